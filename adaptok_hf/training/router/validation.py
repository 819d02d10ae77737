"""How much of the range from the worst to the best assignment choices reach (EVATok's Table 8), by what was measured."""

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ...allocation import reward_percentile
from ...pipelines.encoded_videos import lookup_codes
from ...pipelines.pipeline_adaptok import AdapTokPipeline
from .targets import ClipCosts

# Factors between the price of labels and that of a scorer, whose loss may be another.
_FACTORS = np.geomspace(1e-3, 1e3, 31)


def choice_percentile(clips: Sequence[ClipCosts], counts: Iterable[Sequence[int]], price: float) -> float | None:
    """Return the percentile that one assignment for each clip reaches at a price.

    Clips whose assignment was not measured are left out; `None` if that is all of them.
    """
    rewards = []
    for clip, chosen in zip(clips, counts, strict=True):
        costs, cost = clip.costs(price), clip.cost(chosen, price)
        rewards += [] if cost is None else [[-float(costs.max()), -float(costs.min()), -cost]]
    return reward_percentile(rewards, [2] * len(rewards)) if rewards else None


def cheapest_schedule(clips: Sequence[ClipCosts], price: float, among: Sequence[ClipCosts] = ()) -> tuple[int, ...] | None:
    """Return the assignment with the lowest mean cost if all clips get it, of those measured for every clip.

    Args:
        among: clips for which it must have been measured, too.

    Returns:
        `None` if no assignment was measured for every clip.
    """
    common = set.intersection(*(set(clip.known) for clip in (*clips, *among)))
    cost = {counts: sum(clip.cost(counts, price) for clip in clips) for counts in common}
    return min(common, key=lambda counts: (cost[counts], counts), default=None)


def schedule_percentiles(
    train: Sequence[ClipCosts], validation: Sequence[ClipCosts], prices: Sequence[float]
) -> dict[str, float]:
    """Return the percentiles on validation clips of the best schedule of training clips, and of their own best.

    A mean over prices; without an entry where no schedule was measured for every clip.
    """
    percentiles = {}
    for name, clips in (("val_percentile_schedule", train), ("val_percentile_own_schedule", validation)):
        chosen = [cheapest_schedule(clips, price, validation) for price in prices]
        if all(chosen):
            pairs = zip(chosen, prices, strict=True)
            each = [choice_percentile(validation, [counts] * len(validation), price) for counts, price in pairs]
            percentiles[name] = sum(each) / len(each)
    return percentiles


@torch.no_grad()
def scorer_percentile(
    pipeline: AdapTokPipeline, frames: Iterable[torch.Tensor], clips: Sequence[ClipCosts], prices: Sequence[float]
) -> float | None:
    """Return the percentile of a scorer's `quality`, a mean over prices; at each, with the factor that suits it best.

    Args:
        pipeline: with a scorer.
        frames: uint8 (1, frames, 3, size, size) of each clip.
        clips: their measured costs.

    Raises:
        ValueError: for a pipeline without scorer.
    """
    if pipeline.scorer is None:
        raise ValueError("the pipeline to compare with has no scorer")
    levels, step = clips[0].levels.numpy(), pipeline.scorer.config.score_step
    tables = []
    for video in frames:
        encoded = pipeline.tokenizer.encode((video.to(pipeline.device) / 255).to(pipeline.tokenizer.dtype))
        quantized = lookup_codes(pipeline.tokenizer, encoded.codes)
        scores = pipeline.scorer(encoded.latents, quantized).scores[0].double().cpu().numpy()
        grid = step * np.arange(1, scores.shape[-1] + 1)
        tables.append([np.interp(levels, grid, block) for block in scores])
    tables, percentiles = np.array(tables), []
    for price in prices:
        counts = [levels[(tables + factor * price * levels).argmin(-1)] for factor in _FACTORS]
        reached = [choice_percentile(clips, chosen.tolist(), price) for chosen in counts]
        percentiles.append(max((each for each in reached if each is not None), default=None))
    return None if None in percentiles else sum(percentiles) / len(percentiles)
