"""Binary search for one threshold that all blocks share: `bithr` and `bidelta`, the paper's Algorithm 1.

They are the paper's baselines. They do not minimise the summed score and only come near the budget, so they report the
mean that they reached.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .budgets import is_finite_number
from .tables import check_scores, check_step, counts_from_levels, first_level_below


@dataclass(frozen=True, eq=False)
class BisectionAllocation:
    """Token counts of a threshold that all blocks share.

    Attributes:
        token_counts: int64, of the shape of `scores` without the last axis; 0 for blocks that are not valid.
        mean: average tokens per valid block, never above the budget (0.0 without valid blocks).
        threshold: the threshold that gives these counts (`inf` without valid blocks).
    """

    token_counts: NDArray[np.int64]
    mean: float
    threshold: float

    @property
    def certificate(self) -> dict[str, float]:
        """The threshold."""
        return {"threshold": self.threshold}


def bithr(
    scores: ArrayLike, *, step: int, budget: float, valid: ArrayLike | None = None, num_iterations: int = 64
) -> BisectionAllocation:
    """Each block keeps the fewest tokens whose score is under a threshold (Algorithm 1 with BiThr).

    One threshold is searched for everything in the table; pass (batch, J) tables for one threshold per block
    position. The result is the one at the smallest threshold found whose mean is not above the budget, which need not
    be the last one tried. Blocks that never come under the threshold keep all their tokens.

    Args:
        scores: (batch, K, J) or (batch, J), lower is better.
        step: tokens between two levels.
        budget: average tokens per block, from `step` to `J * step`; need not be on the grid of levels.
        valid: booleans of the shape of `scores` without the last axis; other blocks get 0 tokens and do not count.
        num_iterations: halvings of the interval; 64 reach the resolution of the numbers for ordinary scores.

    Raises:
        ValueError: bad table, or a budget outside the levels.
    """
    scores, valid = check_scores(scores, valid)
    return _search(scores[valid], scores.shape[-1], valid, step, budget, num_iterations)


def bidelta(
    scores: ArrayLike, *, step: int, budget: float, valid: ArrayLike | None = None, num_iterations: int = 64
) -> BisectionAllocation:
    """Each block stops at the first level from which one more step lowers the score by less than a threshold.

    Algorithm 1 with BiDelta: the values are `s_j - s_{j+1}`, otherwise as [`bithr`], also in arguments and result. A
    block whose every step gains at least the threshold keeps all its tokens.
    """
    scores, valid = check_scores(scores, valid)
    return _search(-np.diff(scores[valid], axis=1), scores.shape[-1], valid, step, budget, num_iterations)


def _search(
    values: NDArray[np.float64],
    num_levels: int,
    valid: NDArray[np.bool_],
    step: int,
    budget: float,
    num_iterations: int,
) -> BisectionAllocation:
    step = check_step(step)
    if not is_finite_number(budget) or not step <= budget <= num_levels * step:
        raise ValueError(
            f"`budget` must be a number of tokens per block from {step} to {num_levels * step}, got {budget!r}."
        )
    if num_iterations < 1:
        raise ValueError(f"`num_iterations` must be at least 1, got {num_iterations}.")
    if not len(values):
        return BisectionAllocation(np.zeros(valid.shape, dtype=np.int64), 0.0, float("inf"))

    def levels_at(threshold: float) -> NDArray[np.int64]:
        return first_level_below(values, threshold, num_levels)

    def mean_at(threshold: float) -> float:
        return step * (float(levels_at(threshold).mean()) + 1.0)

    # At `low` every block keeps all its tokens, at `high` every block keeps one step: just above the largest value,
    # because the comparison is strict. So `high` always respects the budget, and larger thresholds give fewer tokens.
    # One level has no differences, hence no values: any threshold gives the same.
    low = float(values.min()) if values.size else 0.0
    high = float(np.nextafter(values.max(), np.inf)) if values.size else 0.0
    if mean_at(low) <= budget:
        high = low
    for _ in range(num_iterations):
        middle = low + (high - low) / 2
        if not low < middle < high:
            break
        if mean_at(middle) > budget:
            low = middle
        else:
            high = middle
    return BisectionAllocation(counts_from_levels(levels_at(high), valid, step), mean_at(high), high)
