"""Predicted against measured losses, at every level of every block (the paper's Fig. J)."""

from typing import TYPE_CHECKING

import torch

from ..training.scorer.targets import BlockLoss, measure_levels

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline


@torch.no_grad()
def score_curves(
    pipeline: "AdapTokPipeline", videos: torch.Tensor, block_loss: BlockLoss
) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Return the scorer's predictions and the true losses.

    Each block is decoded at every level with half of the tokens in earlier blocks and nothing after it.

    Args:
        videos: uint8 (clips, frames, 3, size, size).
        block_loss: what the scorer was trained to predict.

    Returns:
        Predicted and measured losses, (clips, blocks, levels) each, and the tokens of each level.
    """
    tokenizer, config = pipeline.tokenizer, pipeline.tokenizer.config
    full, step = config.latents_per_block, pipeline.scorer.config.score_step
    levels = list(range(step, full + 1, step))
    predicted, measured = [], []
    for video in videos.to(pipeline.device).split(1):
        video = video / 255
        encoded = tokenizer.encode(video)
        for end in range(1, config.num_blocks + 1):
            counts = torch.full((1, end), full // 2, device=pipeline.device)
            counts[0, -1] = full
            latents, quantized = encoded.latents[:, :end], encoded.quantized[:, :end]
            predicted.append(pipeline.scorer(latents, quantized, counts).scores[0, -1].float())
            frames = video[:, : end * config.tubelet_size]
            measured.append(measure_levels(tokenizer, frames, quantized, counts, end - 1, levels, block_loss)[0])
    shape = (len(videos), config.num_blocks, len(levels))
    return torch.stack(predicted).view(shape).cpu(), torch.stack(measured).view(shape).cpu(), levels
