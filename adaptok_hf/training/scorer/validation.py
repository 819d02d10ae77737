"""How well a scorer's predictions rank blocks and levels, in numbers and as curves."""

from collections.abc import Callable

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torchmetrics.functional import spearman_corrcoef

from ...data import VideoFolderClips
from ...models.modeling_adaptok import AdapTokModel
from ...models.modeling_adaptok_scorer import AdapTokScorerModel
from .targets import BlockLoss, Span, measure_levels

BATCH_SIZE = 8
PICTURE_CLIPS = 4


ScoreBlock = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


def measure_scores(
    tokenizer: AdapTokModel,
    clips: VideoFolderClips,
    score_step: int,
    block_loss: BlockLoss,
    accelerator: Accelerator,
    span: Span = "block",
) -> torch.Tensor:
    """Return the loss of every clip, block and level; the other blocks keep half of their tokens.

    Every process must call this, and works on its share of the clips.

    Returns:
        (clips, blocks, levels) float32 on the CPU.
    """
    levels = range(score_step, tokenizer.config.latents_per_block + 1, score_step)

    def measure(block, video, latents, quantized, counts):
        seen = slice(None if span == "clip" else block + 1)
        video = video[:, : quantized[:, seen].shape[1] * tokenizer.config.tubelet_size]
        return measure_levels(tokenizer, video, quantized[:, seen], counts[:, seen], block, levels, block_loss)

    return _score_blocks(tokenizer, clips, accelerator, measure)


def predict_scores(
    scorer: AdapTokScorerModel, tokenizer: AdapTokModel, clips: VideoFolderClips, accelerator: Accelerator
) -> torch.Tensor:
    """Return the scores that a scorer (of inputs as they are, see `InputScale.fold`) predicts for `measure_scores`."""

    def predict(block, video, latents, quantized, counts):
        counts = counts[:, : block + 1].clone()
        counts[:, -1] = tokenizer.config.latents_per_block
        return scorer(latents[:, : block + 1], quantized[:, : block + 1], counts).scores[:, -1]

    return _score_blocks(tokenizer, clips, accelerator, predict)


@torch.no_grad()
def _score_blocks(
    tokenizer: AdapTokModel, clips: VideoFolderClips, accelerator: Accelerator, score: ScoreBlock
) -> torch.Tensor:
    """`score`: a block, and video, latents, quantized and counts of clips -> (batch, levels)."""
    config = tokenizer.config
    share = range(accelerator.process_index, len(clips), accelerator.num_processes)
    results: dict[int, torch.Tensor] = {}  # by clip
    for start in range(0, len(share), BATCH_SIZE):
        indices = share[start : start + BATCH_SIZE]
        video = torch.stack([clips[index]["pixel_values_videos"] for index in indices]).to(tokenizer.device).float() / 255
        counts = torch.full((len(video), config.num_blocks), config.latents_per_block // 2, device=video.device)
        blocks = []
        with accelerator.autocast():
            encoded = tokenizer.encode(video)
            for block in range(config.num_blocks):
                blocks.append(score(block, video, encoded.latents, encoded.quantized, counts))
        results |= zip(indices, torch.stack(blocks, dim=1).float().cpu(), strict=True)
    everyone = {index: result for gathered in gather_object([results]) for index, result in gathered.items()}
    return torch.stack([everyone[index] for index in range(len(clips))])


def rank_correlations(predicted: torch.Tensor, measured: torch.Tensor) -> dict[str, float]:
    """Return Spearman's rank correlation of predicted and measured losses, both (clips, blocks, levels).

    `rank_correlation_across_levels`: per clip and block over the levels, then the mean; left out if there is one level.
    `rank_correlation_across_clips`: per block and level over the clips, then the mean; this is what allocation between
    clips lives on. Left out if there is one clip. `val_rmse`: in units of the target.
    """
    num_clips, _, num_levels = predicted.shape
    record = {"val_rmse": float((predicted - measured).square().mean().sqrt())}
    if num_levels > 1:
        across = spearman_corrcoef(predicted.reshape(-1, num_levels).T, measured.reshape(-1, num_levels).T)
        record["rank_correlation_across_levels"] = float(across.mean())
    if num_clips > 1:
        across = spearman_corrcoef(predicted.flatten(1), measured.flatten(1))
        record["rank_correlation_across_clips"] = float(across.mean())
    return record


def plot_scores(predicted: torch.Tensor, measured: torch.Tensor, score_step: int, target: str) -> np.ndarray:
    """Plot predicted and measured losses over the token count: uint8 (height, width, 3).

    Each of the first clips has a row, each block a column.

    Args:
        predicted, measured: (clips, blocks, levels).
    """
    num_clips, num_blocks, num_levels = min(PICTURE_CLIPS, len(predicted)), *predicted.shape[1:]
    tokens = [score_step * (level + 1) for level in range(num_levels)]
    figure = Figure(figsize=(2.4 * num_blocks, 1.8 * num_clips), dpi=100, layout="constrained")
    axes = figure.subplots(num_clips, num_blocks, squeeze=False, sharex=True, sharey="row")
    for clip, row in enumerate(axes):
        for block, axis in enumerate(row):
            axis.plot(tokens, measured[clip, block], "o-", markersize=3, label="measured")
            axis.plot(tokens, predicted[clip, block], "x--", markersize=3, label="predicted")
            if clip == 0:
                axis.set_title(f"block {block}", fontsize=9)
        row[0].set_ylabel(f"{target}, clip {clip}", fontsize=8)
    axes[0, 0].legend(fontsize=7)
    figure.supxlabel("tokens of the block", fontsize=9)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
