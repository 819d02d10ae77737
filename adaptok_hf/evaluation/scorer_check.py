"""Predicted against measured losses, at every level of every block (the paper's Fig. J)."""

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline

LOSSES = ("rmse", "l1", "lpips")


@torch.no_grad()
def score_curves(
    pipeline: "AdapTokPipeline", videos: torch.Tensor, loss: str = "rmse", lpips: torch.nn.Module | None = None
) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """Return the scorer's predictions and the true losses.

    Each block is decoded at every level with half of the tokens in earlier blocks and nothing after it.

    Args:
        videos: uint8 (clips, frames, 3, size, size).
        loss: what the scorer was trained to predict: `"rmse"` or `"l1"` (the training script's, in [0, 1]) or `"lpips"`
            (the paper's, mean over a block's frames; needs the network).

    Returns:
        Predicted and measured losses, (clips, blocks, levels) each, and the tokens of each level.

    Raises:
        ValueError: for another loss, or a pipeline without a scorer.
    """
    if loss not in LOSSES or (loss == "lpips" and lpips is None):
        raise ValueError(f"loss must be one of {', '.join(LOSSES)} (lpips with its network), got {loss!r}")
    if pipeline.scorer is None:
        raise ValueError("this pipeline has no scorer")
    tokenizer, scorer, config = pipeline.tokenizer, pipeline.scorer, pipeline.tokenizer.config
    full, step = config.latents_per_block, scorer.config.score_step
    levels = list(range(step, full + 1, step))
    predicted = np.zeros((len(videos), config.num_blocks, len(levels)))
    measured = np.zeros_like(predicted)
    for clip, video in enumerate(videos.split(1)):
        video = video.to(pipeline.device) / 255
        encoded = tokenizer.encode(video)
        for block in range(config.num_blocks):
            counts = torch.full((1, block + 1), full // 2, device=pipeline.device)
            counts[0, block] = full
            part = slice(0, block + 1)
            scores = scorer(encoded.latents[:, part], encoded.quantized[:, part], counts).scores
            predicted[clip, block] = scores[0, block].float().cpu().numpy()
            rows = counts.repeat(len(levels), 1)
            rows[:, block] = torch.tensor(levels, device=pipeline.device)
            codes = encoded.codes[:, part].expand(len(levels), -1, -1)
            frames = slice(block * config.tubelet_size, (block + 1) * config.tubelet_size)
            decoded = tokenizer.decode(codes, rows).pixel_values_videos[:, frames].float()
            measured[clip, block] = _loss(decoded, video[:, frames], loss, lpips).cpu().numpy()
    return predicted, measured, levels


def _loss(decoded: torch.Tensor, original: torch.Tensor, loss: str, lpips: torch.nn.Module | None) -> torch.Tensor:
    """Return (levels,) losses of a block's frames."""
    if loss == "lpips":
        original = original.expand_as(decoded)
        distances = lpips(decoded.clamp(0, 1).flatten(0, 1), original.flatten(0, 1))
        return distances.view(len(decoded), -1).mean(dim=1)
    error = decoded - original
    return error.square().flatten(1).mean(1).sqrt() if loss == "rmse" else error.abs().flatten(1).mean(1)
