"""Clips that were encoded once, and what a setting makes of them: token counts, and videos decoded from these."""

import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from ..allocation import allocate
from ..pipelines.measured_losses import levels_to_measure, measure_losses
from .settings import SEARCHED, Setting

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline

# How often a price or threshold is tried, and how near to the budget is near enough.
_SEARCH_STEPS = 7
_SEARCH_TOLERANCE = 0.005


@dataclass
class EncodedClips:
    """
    Args:
        videos: uint8 (clips, frames, 3, size, size), what was encoded, on the CPU.
        codes: (clips, blocks, latents_per_block) long, on the CPU.
        latents: (clips, blocks, latents_per_block, hidden_size), before quantisation, on the CPU; `None` without a scorer.
        seconds: what encoding took.
        measured: what `measured_table` gave; the same for all budgets, so it is measured once.
    """

    videos: torch.Tensor
    codes: torch.Tensor
    latents: torch.Tensor | None
    seconds: float
    measured: tuple[np.ndarray, int, float] | None = None

    def __len__(self) -> int:
        return len(self.codes)

    def part(self, clips: slice) -> "EncodedClips":
        latents = None if self.latents is None else self.latents[clips]
        return EncodedClips(self.videos[clips], self.codes[clips], latents, 0.0)


@contextmanager
def stopwatch(seconds: dict[str, float], stage: str, device: torch.device):
    """Adds the wall-clock seconds of the block; waits for an accelerator's queue on both sides."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    yield
    wait()
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


def autocast(device: torch.device, precision: str):
    """The precision of a protocol."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


@torch.no_grad()
def encode_clips(pipeline: "AdapTokPipeline", videos: torch.Tensor, batch_size: int, precision: str) -> EncodedClips:
    """
    Args:
        videos: uint8 (clips, frames, 3, size, size).
    """
    device, seconds, codes, latents = pipeline.device, {"encode": 0.0}, [], []
    for part in videos.split(batch_size):
        with stopwatch(seconds, "encode", device), autocast(device, precision):
            encoded = pipeline.tokenizer.encode(part.to(device) / 255)
        codes.append(encoded.codes.cpu())
        if pipeline.scorer is not None:
            latents.append(encoded.latents.cpu())
    return EncodedClips(videos, torch.cat(codes), torch.cat(latents) if latents else None, seconds["encode"])


@torch.no_grad()
def decode_clips(
    pipeline: "AdapTokPipeline", codes: torch.Tensor, token_counts: torch.Tensor, precision: str, seconds: dict[str, float]
) -> torch.Tensor:
    """(clips, frames, 3, size, size) float32 in [0, 1], on the pipeline's device."""
    device = pipeline.device
    counts = token_counts.to(device) if pipeline.tokenizer.config.adaptive else None
    with stopwatch(seconds, "decode", device), autocast(device, precision):
        video = pipeline.tokenizer.decode(codes.to(device), counts).pixel_values_videos
    return video.float().clamp(0, 1)


def allocate_clips(
    pipeline: "AdapTokPipeline",
    encoded: EncodedClips,
    setting: Setting,
    batches: Sequence[slice],
    batch_size: int,
    precision: str,
    parameter: float | None = None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """
    Token counts of all clips.

    Integer programs meet the budget rounded down to the grid of levels (`rounding="floor"`, as the original's code); what
    was reached stands in the results.

    Args:
        batches: the clips that share a budget, for strategies that depend on them.
        batch_size: clips that the scorer sees at once.
        parameter: price or threshold, for strategies that need one.

    Returns:
        (clips, blocks) long, and the seconds of the stages `score` (or measuring) and `allocate`.
    """
    per_block = pipeline.tokenizer.config.latents_per_block
    seconds: dict[str, float] = {"score": 0.0, "allocate": 0.0}
    shape = encoded.codes.shape[:2]
    if setting.strategy == "as is":
        return torch.full(shape, per_block), seconds
    step = pipeline.scorer.config.score_step if pipeline.scorer is not None else 1
    if setting.strategy == "fixed":
        with stopwatch(seconds, "allocate", pipeline.device):
            table = np.zeros((*shape, per_block // step))
            counts = torch.from_numpy(allocate(table, strategy="fixed", step=step, budget=setting.budget))
        return counts, seconds
    if setting.strategy in SEARCHED:
        given = {SEARCHED[setting.strategy]: parameter}
        return _block_by_block(pipeline, encoded, setting.strategy, given, batch_size, precision, seconds), seconds
    if setting.strategy == "measured":
        measured, step, seconds["score"] = measured_table(pipeline, encoded, batch_size, precision)
    counts = []
    for batch in batches:
        clips = encoded.part(batch)
        given = {"budget": setting.budgets_per_position or setting.budget}
        if setting.strategy in ("ipal", "joint", "measured"):
            given["rounding"] = "floor"
        if setting.strategy in ("joint", "measured"):
            if setting.strategy == "joint":
                table = score_table(pipeline, clips, batch_size, precision, seconds)
            else:
                table = measured[batch]
            with stopwatch(seconds, "allocate", pipeline.device):
                found = allocate(table, strategy="joint", step=step, **given)
            counts.append(torch.from_numpy(found))
        else:
            counts.append(_block_by_block(pipeline, clips, setting.strategy, given, batch_size, precision, seconds))
    return torch.cat(counts) if counts else torch.zeros(shape, dtype=torch.long), seconds


@torch.no_grad()
def score_table(
    pipeline: "AdapTokPipeline", encoded: EncodedClips, batch_size: int, precision: str, seconds: dict[str, float]
) -> np.ndarray:
    """(clips, blocks, levels) float64: predicted losses with all blocks full."""
    device, scores = pipeline.device, []
    for latents, codes in zip(encoded.latents.split(batch_size), encoded.codes.split(batch_size), strict=True):
        with stopwatch(seconds, "score", device), autocast(device, precision):
            quantized = pipeline.tokenizer.quantizer.lookup(codes.to(device))
            scores.append(pipeline.scorer(latents.to(device), quantized).scores.cpu())
    return torch.cat(scores).double().numpy()


def measured_table(
    pipeline: "AdapTokPipeline", encoded: EncodedClips, batch_size: int, precision: str
) -> tuple[np.ndarray, int, float]:
    """(clips, blocks, levels) float64 losses, see `measure_losses`; tokens between two levels; the seconds that it took."""
    if encoded.measured is None:
        device, seconds, losses = pipeline.device, {"score": 0.0}, []
        step = pipeline.scorer.config.score_step if pipeline.scorer is not None else 1
        levels = levels_to_measure(pipeline.tokenizer.config.latents_per_block, step)
        for videos, codes in zip(encoded.videos.split(batch_size), encoded.codes.split(batch_size), strict=True):
            with stopwatch(seconds, "score", device), autocast(device, precision):
                found = measure_losses(pipeline.tokenizer, videos.to(device) / 255, codes.to(device), levels)
            losses.append(found.cpu())
        encoded.measured = torch.cat(losses).double().numpy(), levels.step, seconds["score"]
    return encoded.measured


@torch.no_grad()
def _block_by_block(
    pipeline: "AdapTokPipeline",
    encoded: EncodedClips,
    strategy: str,
    given: dict,
    batch_size: int,
    precision: str,
    seconds: dict[str, float],
) -> torch.Tensor:
    """As the pipeline does for the clips of a video; here each is a clip of its own."""
    with autocast(pipeline.device, precision):
        return pipeline._allocate_block_by_block(
            [part.to(pipeline.device) for part in encoded.latents.split(batch_size)],
            list(encoded.codes.split(batch_size)),
            torch.ones(encoded.codes.shape[:2], dtype=torch.bool),
            strategy,
            given,
            seconds,
        )


def search_parameter(
    pipeline: "AdapTokPipeline", encoded: EncodedClips, setting: Setting, batch_size: int, precision: str
) -> dict[str, float]:
    """
    The price (`quality`) or threshold (`threshold`) at which these clips keep about the budget on average.

    Returns:
        `parameter`, and `reached`, the average tokens per block at it.
    """
    name, step = SEARCHED[setting.strategy], pipeline.scorer.config.score_step
    per_block = pipeline.tokenizer.config.latents_per_block
    table = score_table(pipeline, encoded, batch_size, precision, {})
    # Fewer tokens at a higher price or threshold; at these ends it is the fewest and the most, with room for scores of
    # other counts, which this table does not have.
    spread = float(table.max() - table.min()) or 1.0
    low, high = (0.0, 2 * spread) if name == "price" else (float(table.min()) - spread, float(table.max()) + spread)

    def tokens(parameter: float, exact: bool) -> float:
        if exact:
            return float(
                _block_by_block(pipeline, encoded, setting.strategy, {name: parameter}, batch_size, precision, {})
                .double()
                .mean()
            )
        return float(allocate(table, strategy=setting.strategy, step=step, **{name: parameter}).mean())

    if setting.budget <= step or setting.budget >= per_block:
        parameter = high if setting.budget <= step else low
        return {"parameter": parameter, "reached": tokens(parameter, True)}
    # first on one table for all blocks, which costs nothing; its scores are not quite those of the counts chosen
    bottom, top = low, high
    for _ in range(50):
        middle = (bottom + top) / 2
        bottom, top = (middle, top) if tokens(middle, False) > setting.budget else (bottom, middle)
    guess = (bottom + top) / 2
    width = guess / 2 if name == "price" else spread / 8
    bottom, top, best = max(low, guess - width), guess + 2 * width, None
    middle = guess
    for _ in range(_SEARCH_STEPS):
        reached = tokens(middle, True)
        if best is None or abs(reached - setting.budget) < abs(best["reached"] - setting.budget):
            best = {"parameter": middle, "reached": reached}
        if abs(reached / setting.budget - 1) < _SEARCH_TOLERANCE:
            break
        bottom, top = (middle, top) if reached > setting.budget else (bottom, middle)
        middle = (bottom + top) / 2
    return best
