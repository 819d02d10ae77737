"""Numbers of a video's tokens that several tabs show."""

import math

import numpy as np
import torch

from adaptok_hf import AdapTokPipeline, AllocationRequest, EncodedVideos, TokenizedVideo
from adaptok_hf.metrics import VideoSSIM


def token_levels(pipeline: AdapTokPipeline) -> list[int]:
    """Tokens per block that every strategy can spend."""
    step = pipeline.scorer.config.score_step if pipeline.scorer is not None else 1
    return list(range(step, pipeline.tokenizer.config.latents_per_block + 1, step))


def default_budget(pipeline: AdapTokPipeline, part: int = 4) -> int:
    """Return a quarter (or another part) of all tokens, on the grid of the scorer's levels."""
    step, most = token_levels(pipeline)[0], pipeline.tokenizer.config.latents_per_block
    return max(step, most // part // step * step)


def baseline(pipeline: AdapTokPipeline, encoded: EncodedVideos, budget: float) -> tuple[str, AllocationRequest]:
    """What adaptive tokens are compared with: the scorer's best constant schedule, or equal counts where it has none."""
    if not pipeline.has_schedules:
        return "fixed", AllocationRequest(budget=round(budget), strategy="fixed")
    counts = pipeline.find_schedule(budget, encoded.valid_blocks)
    return "schedule", AllocationRequest(budget=counts, strategy="fixed")


def counts_over_time(pipeline: AdapTokPipeline, tokens: TokenizedVideo) -> list[int]:
    """Tokens of each block of the video, in the order of time."""
    return tokens.token_counts.flatten().tolist()[: -(-tokens.num_frames // pipeline.tokenizer.config.tubelet_size)]


def spread(values: list[int], count: int) -> list[int]:
    """At most `count` of the rising values, the first and the last among them, evenly spaced in ratio."""
    index = np.geomspace(1, len(values), min(count, len(values))).round().astype(int) - 1
    return [values[i] for i in sorted(set(index.tolist()))]


def psnr(reconstruction: np.ndarray, original: np.ndarray) -> float:
    """dB, over all pixels of uint8 frames; 100 for identical ones."""
    error = np.mean(np.square(reconstruction.astype(np.float32) - original), dtype=np.float64)
    return 100.0 if error == 0 else min(100.0, 10 * math.log10(255**2 / error))


def ssim(reconstruction: np.ndarray, original: np.ndarray) -> float:
    """Return the mean over up to 16 evenly spaced uint8 frames: it changes slowly, and a visitor waits."""
    index = np.unique(np.linspace(0, len(original) - 1, 16).round().astype(int))
    pair = [torch.from_numpy(frames[index]).permute(0, 3, 1, 2)[None] / 255 for frames in (reconstruction, original)]
    return VideoSSIM().measure(*pair).item()
