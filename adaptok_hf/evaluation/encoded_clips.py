"""What a setting makes of clips that were encoded once: their token counts."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from ..allocation import STRATEGIES
from ..pipelines.encoded_videos import EncodedVideos
from .settings import Setting

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline

# How often a price or threshold is tried, and how near to the budget is near enough.
_SEARCH_STEPS = 7
_SEARCH_TOLERANCE = 0.005


@torch.no_grad()
def reconstruct_from_all_tokens(pipeline: "AdapTokPipeline", videos: torch.Tensor) -> torch.Tensor:
    """Return clips as the tokenizer reproduces them at its best; both (clips, frames, 3, height, width) in [0, 1]."""
    config, videos = pipeline.tokenizer.config, videos.to(pipeline.device)
    counts = torch.full((len(videos), config.num_blocks), config.latents_per_block, device=videos.device)
    return pipeline.tokenizer(videos, counts, return_loss=False).pixel_values_videos.float().clamp(0, 1)


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the context of a protocol's precision."""
    return torch.autocast(device.type, getattr(torch, precision), enabled=precision != "float32")


def allocate_clips(
    pipeline: "AdapTokPipeline",
    encoded: EncodedVideos,
    setting: Setting,
    batches: Sequence[slice],
    batch_size: int,
    precision: str,
    parameter: float | None = None,
) -> tuple[torch.Tensor, torch.Tensor, dict[str, float]]:
    """Decide the token counts of all clips; a tokenizer that needs them to encode then encodes.

    A budget off the grid of levels is rounded down, as by the original's code; the results state what was reached.

    Args:
        encoded: each clip as a video of its own.
        batches: the clips that share a budget, for strategies that depend on them.
        batch_size: clips that the scorer sees at once.
        parameter: price or threshold, for strategies that need one.

    Returns:
        The codes, (clips, blocks, latents_per_block) long; the counts, (clips, blocks) long; and the seconds of the stages
        `score` (or measuring) and `allocate`.
    """
    request, strategy = setting.request(parameter), STRATEGIES.get(setting.strategy)
    seconds = {"score": 0.0, "allocate": 0.0}
    if setting.batch is None:
        batches = [slice(0, len(encoded))]
    tokens = []
    with autocast(pipeline.device, precision):
        if strategy is not None and strategy.order == "clip" and strategy.scores in ("predicted", "measured"):
            measured = strategy.scores == "measured"
            pipeline.score(encoded, measured=measured, batch_size=batch_size)  # once for all batches and budgets
            seconds["score"] = encoded.seconds["measure" if measured else "score"]
        elif strategy is not None and strategy.needs_router:
            pipeline.route(encoded, batch_size=batch_size)
            seconds["route"] = encoded.seconds["route"]
        for batch in batches:
            clips = encoded[batch]
            tokens += pipeline.allocate(clips, request, batch_size=batch_size)
            for stage, value in clips.seconds.items():
                seconds[stage] = seconds.get(stage, 0.0) + value
    if not tokens:
        return encoded.codes, torch.zeros(encoded.codes.shape[:2], dtype=torch.long), seconds
    codes, counts = (torch.cat([getattr(each, name) for each in tokens]) for name in ("codes", "token_counts"))
    return codes, counts, seconds


def search_parameter(
    pipeline: "AdapTokPipeline", encoded: EncodedVideos, setting: Setting, batch_size: int, precision: str
) -> dict[str, float]:
    """Search the price or threshold at which these clips keep about the budget on average.

    Returns:
        `parameter`, and `reached`, the average tokens per block at it.
    """
    strategy, step = STRATEGIES[setting.strategy], pipeline.scorer.config.score_step
    per_block = pipeline.tokenizer.config.latents_per_block
    with autocast(pipeline.device, precision):
        table = pipeline.score(encoded, batch_size=batch_size)
    # Fewer tokens at a higher price or threshold; at these ends it is the fewest and the most, with room for scores of
    # other counts, which this table does not have.
    is_price = strategy.needs == "price"
    spread = float(table.max() - table.min()) or 1.0
    low, high = (0.0, 2 * spread) if is_price else (float(table.min()) - spread, float(table.max()) + spread)

    def tokens_of_table(parameter: float) -> float:
        return float(strategy.allocate(table, step=step, **{strategy.needs: parameter})[0].mean())

    def tokens(parameter: float) -> float:
        _, counts, _ = allocate_clips(pipeline, encoded, setting, [], batch_size, precision, parameter)
        return float(counts.double().mean())

    if setting.budget <= step or setting.budget >= per_block:
        parameter = high if setting.budget <= step else low
        return {"parameter": parameter, "reached": tokens(parameter)}
    # first on one table for all blocks, which costs nothing; its scores are not quite those of the counts chosen
    bottom, top = low, high
    for _ in range(50):
        middle = (bottom + top) / 2
        bottom, top = (middle, top) if tokens_of_table(middle) > setting.budget else (bottom, middle)
    guess = (bottom + top) / 2
    width = guess / 2 if is_price else spread / 8
    bottom, top, best = max(low, guess - width), guess + 2 * width, None
    middle = guess
    for _ in range(_SEARCH_STEPS):
        reached = tokens(middle)
        if best is None or abs(reached - setting.budget) < abs(best["reached"] - setting.budget):
            best = {"parameter": middle, "reached": reached}
        if abs(reached / setting.budget - 1) < _SEARCH_TOLERANCE:
            break
        bottom, top = (middle, top) if reached > setting.budget else (bottom, middle)
        middle = (bottom + top) / 2
    return best
