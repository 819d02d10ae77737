"""The `fixed` strategy: no adaptation."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .budgets import level_total
from .tables import check_scores, check_step, counts_from_levels


def fixed(scores: ArrayLike, *, step: int, budget: float, valid: ArrayLike | None = None) -> NDArray[np.int64]:
    """Gives every block the same number of tokens ("Fixed" in the paper).

    Args:
        scores: (batch, K, J) or (batch, J). Only the shape matters, but NaN and infinity are refused as elsewhere.
        step: tokens between two levels.
        budget: tokens per block, one of `step, 2 * step, ..., J * step`.
        valid: booleans of the shape of `scores` without the last axis; other blocks get 0 tokens.

    Returns:
        Token counts, int64, of the shape of `scores` without the last axis.

    Raises:
        ValueError: bad table, or a budget that is not a level; the message names the nearest levels.
    """
    scores, valid = check_scores(scores, valid)
    step = check_step(step)
    level = level_total(budget, num_blocks=1, num_levels=scores.shape[-1], step=step)
    return counts_from_levels(np.full(int(valid.sum()), level), valid, step)
