"""Examples for the scorer: a block of each clip, random counts before it, and the losses that were measured."""

import dataclasses
import math
from dataclasses import dataclass

import torch

from ...models.configuration_adaptok_scorer import AdapTokScorerConfig
from ...models.modeling_adaptok import AdapTokModel
from ..block_mask_sampler import sample_token_counts
from .targets import BlockLoss, Span, measure_levels


@dataclass(frozen=True)
class ExampleSettings:
    """What is random about the examples of a batch.

    Args:
        block: the one that is measured; of all clips.
        counts: (clips, blocks) long, up to and with `block` or of whole clips; those of `block` are ignored.
        counts_known: whether the scorer is shown the counts before `block`, or these blocks whole.
        levels: (levels,) long, indices of the levels measured, rising.
        zoom: (clips, 4) in [0, 1), see `zoom_and_contrast`; `None` leaves clips as they are.
    """

    block: int
    counts: torch.Tensor
    counts_known: bool
    levels: torch.Tensor
    zoom: torch.Tensor | None

    def of(self, clips: slice) -> "ExampleSettings":
        """Return those of some of the clips."""
        return dataclasses.replace(self, counts=self.counts[clips], zoom=None if self.zoom is None else self.zoom[clips])


@dataclass(frozen=True)
class Example:
    """What the scorer is shown of a batch of clips, and what it shall predict.

    Args:
        latents, quantized: (clips, blocks, latents_per_block, hidden_size) float32, up to and with the block measured.
        counts: (clips, blocks) long, the last block full.
        losses: (clips, levels) float32, of the last block's counts.
    """

    latents: torch.Tensor
    quantized: torch.Tensor
    counts: torch.Tensor
    losses: torch.Tensor


def sample_settings(
    config: AdapTokScorerConfig, batch_size: int, levels: int | None, augment: bool, span: Span
) -> ExampleSettings:
    """Sample a block, counts of the others, and so many levels (`None`: all) by torch's global generator.

    Args:
        span: `"block"`: counts by the tokenizer's block-mask sampler, for blocks up to the one that is measured. `"clip"`:
            counts of all blocks, uniform in their logarithm, which the scorer knows half of the time: allocation over whole
            clips scores a block before any count is chosen.
    """
    block, full, known = int(torch.randint(config.num_blocks, ())), config.latents_per_block, True
    if span == "block":
        counts = sample_token_counts(batch_size, block + 1, full)
    else:
        fewest = min(config.score_step, max(full // 16, 1))
        logs = torch.rand(batch_size, config.num_blocks) * math.log(full / fewest) + math.log(fewest)
        counts, known = logs.exp().round().long().clamp_(1, full), bool(torch.rand(()) < 0.5)
    chosen = torch.randperm(config.num_levels)[:levels].sort().values
    return ExampleSettings(block, counts, known, chosen, torch.rand(batch_size, 4) if augment else None)


@torch.no_grad()
def measure_example(
    tokenizer: AdapTokModel, videos: torch.Tensor, settings: ExampleSettings, score_step: int, block_loss: BlockLoss
) -> Example:
    """Encode clips, decode them with each level of a block, and measure what it loses.

    Args:
        videos: uint8 (clips, frames, 3, height, width).
        settings: for these clips.
        score_step: the scorer's tokens from level to level.
    """
    device, config, block = tokenizer.device, tokenizer.config, settings.block
    counts = settings.counts.to(device)
    video = videos[:, : counts.shape[1] * config.tubelet_size].to(device).float() / 255
    if settings.zoom is not None:
        video = zoom_and_contrast(video, settings.zoom)
    encoded = tokenizer.encode(video)
    levels = ((settings.levels + 1) * score_step).tolist()
    losses = measure_levels(tokenizer, video, encoded.quantized, counts, block, levels, block_loss)
    shown = slice(block + 1)
    counts = counts[:, shown].clone()
    counts[:, -1 if settings.counts_known else slice(None)] = config.latents_per_block
    return Example(encoded.latents[:, shown].float(), encoded.quantized[:, shown].float(), counts, losses)


def zoom_and_contrast(video: torch.Tensor, amounts: torch.Tensor) -> torch.Tensor:
    """Crop each clip to a square of half to all of its width and enlarge it again; multiply its contrast by 0.5 to 1.2.

    Args:
        video: (clips, frames, 3, size, size) in [0, 1].
        amounts: (clips, 4) in [0, 1), for the square's side, its top and left edge, and the contrast.
    """
    size = video.shape[-1]
    clips = []
    for clip, (side, top, left, contrast) in zip(video, amounts.tolist(), strict=True):
        side = size // 2 + int(side * (size - size // 2 + 1))
        top, left = int(top * (size - side + 1)), int(left * (size - side + 1))
        crop = clip[..., top : top + side, left : left + side]
        clip = torch.nn.functional.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)
        mean = clip.mean()
        clips.append(mean + (clip - mean) * (0.5 + 0.7 * contrast))
    return torch.stack(clips).clamp(0, 1)
