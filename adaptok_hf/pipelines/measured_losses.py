"""What blocks lose at each number of tokens, measured by decoding them: a loss table without a scorer."""

from collections.abc import Sequence

import torch

from ..models.block_cache import BlockCache
from ..models.modeling_adaptok import AdapTokModel

# Every block is decoded once for each.
MOST_LEVELS = 40


def levels_to_measure(latents_per_block: int, score_step: int = 1) -> range:
    """The token counts at which blocks are measured: as close together as at most 40 of them can be.

    They are step, 2 step, ..., latents_per_block, with the smallest step that divides `latents_per_block` and is a multiple
    of `score_step`. So 640 latents with a scorer's step of 8 have levels 16 apart, 128 without a scorer 4 apart. (Without a
    divisor in between, as for a prime number above 40, the only level is all of them.)

    Args:
        latents_per_block: M.
        score_step: the scorer's, which divides M; 1 without a scorer.

    Raises:
        ValueError: for a `score_step` that does not divide `latents_per_block`.
    """
    if score_step < 1 or latents_per_block < 1 or latents_per_block % score_step:
        raise ValueError(f"score_step must divide latents_per_block, got {score_step} and {latents_per_block}")
    steps = range(score_step, latents_per_block + 1, score_step)
    step = next(s for s in steps if latents_per_block % s == 0 and latents_per_block // s <= MOST_LEVELS)
    return range(step, latents_per_block + 1, step)


@torch.inference_mode()
def measure_losses(
    tokenizer: AdapTokModel, frames: torch.Tensor, codes: torch.Tensor, levels: Sequence[int]
) -> torch.Tensor:
    """The loss of every block at every level: the root of the mean squared error of a block's pixels.

    The loss of a block is that after earlier blocks with all their tokens, whatever these are given in the end: an
    approximation, as the decoder looks at earlier blocks, and the one that the scorer's table of `joint` makes.

    Args:
        tokenizer: must be adaptive.
        frames: float (clips, frames, channels, image_size, image_size) in [0, 1], the originals, on the tokenizer's device.
            All clips are decoded together, a block at a time.
        codes: (clips, blocks, latents_per_block) long, what the tokenizer made of them.
        levels: token counts, from 1 to `latents_per_block`, such as `levels_to_measure` gives.

    Returns:
        (clips, blocks, levels) float32, in [0, 1]; what is decoded is clamped to [0, 1] before.

    Raises:
        ValueError: for shapes, codes, levels or pixel values outside these, and a tokenizer that is not adaptive.
    """
    config, levels = tokenizer.config, list(levels)
    if codes.ndim != 3:
        raise ValueError(f"codes has shape {tuple(codes.shape)}, expected (clips, blocks, {config.latents_per_block})")
    size = (config.num_channels, config.image_size, config.image_size)
    expected = (codes.shape[0], codes.shape[1] * config.tubelet_size, *size)
    if tuple(frames.shape) != expected:
        raise ValueError(f"frames has shape {tuple(frames.shape)}, expected {expected} for codes {tuple(codes.shape)}")
    if not frames.is_floating_point() or not (frames.min() >= 0 and frames.max() <= 1):
        raise ValueError(
            f"frames must be floats in [0, 1], got {frames.dtype} from {float(frames.min()):g} to {float(frames.max()):g}"
        )
    if not levels or not all(isinstance(level, int) and 1 <= level <= config.latents_per_block for level in levels):
        raise ValueError(f"levels must be whole numbers from 1 to {config.latents_per_block}, got {levels}")
    full, losses = config.latents_per_block, []
    # a decoder that is not causal takes no cache: earlier blocks are decoded again and again
    cache = None if config.decoder_attention_type == "full" else BlockCache()
    for block, original in enumerate(frames.split(config.tubelet_size, dim=1)):
        given = slice(0 if cache is None else block, block + 1)
        counts = torch.full_like(codes[:, given, 0], full)
        by_level = {}
        for level in sorted({*levels, full}):  # with all its tokens last, which is how the block stays in the cache
            if by_level and cache is not None:
                cache.crop_block()
            counts[:, -1] = level
            decoded = tokenizer.decode(codes[:, given], counts, past_key_values=cache, return_dict=True).pixel_values_videos
            error = decoded[:, -config.tubelet_size :].float().clamp(0, 1).sub_(original)
            by_level[level] = error.square_().flatten(1).mean(1).sqrt()
        losses.append(torch.stack([by_level[level] for level in levels], dim=1))
    return torch.stack(losses, dim=1)


__all__ = ["levels_to_measure", "measure_losses"]
