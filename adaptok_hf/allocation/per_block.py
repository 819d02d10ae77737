"""Strategies that look at one block at a time: `quality` and `threshold`.

The result for a block depends on its own scores and the setting only, never on the batch. So they suit streams, and a
video gives the same tokens whatever is beside it.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .budgets import is_finite_number
from .tables import check_scores, check_step, counts_from_levels


def quality(scores: ArrayLike, *, step: int, price: float, valid: ArrayLike | None = None) -> NDArray[np.int64]:
    """Lowest `score + price * count` of each block: a Lagrange multiplier, as the CRF of a video codec.

    Args:
        scores: (batch, K, J) or (batch, J), lower is better.
        step: tokens between two levels.
        price: score per token, at least 0. A higher price never gives more tokens.
        valid: booleans of the shape of `scores` without the last axis; other blocks get 0 tokens.

    Returns:
        Token counts, int64, of the shape of `scores` without the last axis. Ties go to fewer tokens.

    Raises:
        ValueError: bad table, or a price that is negative or not finite.
    """
    scores, valid = check_scores(scores, valid)
    step = check_step(step)
    if not is_finite_number(price) or price < 0:
        raise ValueError(f"`price` must be a finite number of at least 0 (score per token), got {price!r}.")
    cost = scores[valid] + float(price) * step * np.arange(1, scores.shape[-1] + 1)
    return counts_from_levels(cost.argmin(axis=-1), valid, step)


def threshold(scores: ArrayLike, *, step: int, threshold: float, valid: ArrayLike | None = None) -> NDArray[np.int64]:
    """Fewest tokens whose score is under `threshold` (ElasticTok's rule); all tokens where no level is.

    Args:
        scores: (batch, K, J) or (batch, J), lower is better.
        step: tokens between two levels.
        threshold: score that must be undercut (strictly), finite.
        valid: booleans of the shape of `scores` without the last axis; other blocks get 0 tokens.

    Returns:
        Token counts, int64, of the shape of `scores` without the last axis.

    Raises:
        ValueError: bad table, or a threshold that is not finite.
    """
    scores, valid = check_scores(scores, valid)
    step = check_step(step)
    if not is_finite_number(threshold):
        raise ValueError(f"`threshold` must be a finite score, got {threshold!r}.")
    levels = first_level_below(scores[valid], float(threshold), scores.shape[-1])
    return counts_from_levels(levels, valid, step)


def first_level_below(values: NDArray[np.float64], threshold: float, num_levels: int) -> NDArray[np.int64]:
    """Index of the first of each row's values under `threshold`; the last level (all tokens) where none is.

    Args:
        values: (N, V) with V = `num_levels` (scores) or `num_levels - 1` (differences between neighbouring levels).
        threshold: compared with `<`. A larger threshold never gives a higher level.
        num_levels: J >= 1.

    Returns:
        (N,) level indices from 0 to J - 1.
    """
    below = values < threshold
    below = np.concatenate([below, np.ones((len(values), 1), dtype=bool)], axis=1)
    return np.minimum(below.argmax(axis=1), num_levels - 1)
