"""Checking score tables, and the way between a table, its rows that count, and token counts."""

import operator

import numpy as np
from numpy.typing import ArrayLike, NDArray


def check_step(step: int) -> int:
    """Returns `step` (tokens between two levels) as an int of at least 1; anything else is a `ValueError`."""
    try:
        step = operator.index(step)
    except TypeError:
        raise ValueError(f"`step` must be a whole number of tokens, got {step!r}.") from None
    if step < 1:
        raise ValueError(f"`step` must be at least 1 token, got {step}.")
    return step


def check_scores(scores: ArrayLike, valid: ArrayLike | None = None) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Checks a score table and its mask.

    Args:
        scores: (batch, K, J) or (batch, J), real numbers, finite wherever `valid` is true.
        valid: (batch, K) or (batch,) booleans, false for blocks that are only padding. Default: all true.

    Returns:
        The table as float64 and the mask, which has the shape of the table without its last axis.

    Raises:
        ValueError: wrong number of axes, no level, a mask of another shape or type, NaN or infinity in a valid block.
    """
    scores = np.asarray(scores)
    if scores.ndim not in (2, 3):
        raise ValueError(f"`scores` must be (batch, K, J) or (batch, J), got shape {scores.shape}.")
    if scores.shape[-1] == 0:
        raise ValueError(f"`scores` must have at least one level, got shape {scores.shape}.")
    if scores.dtype.kind not in "fiu":
        raise ValueError(f"`scores` must be real numbers, got dtype {scores.dtype}.")
    scores = scores.astype(np.float64)

    blocks = scores.shape[:-1]
    valid = np.ones(blocks, dtype=bool) if valid is None else np.asarray(valid)
    if valid.shape != blocks or valid.dtype != np.bool_:
        raise ValueError(f"`valid` must be bool of shape {blocks}, got {valid.dtype} of shape {valid.shape}.")

    broken = valid & ~np.isfinite(scores).all(axis=-1)
    if broken.any():
        where = tuple(int(axis[0]) for axis in np.nonzero(broken))
        raise ValueError(
            f"`scores` hold NaN or infinity in {broken.sum()} of {valid.sum()} valid blocks, first at {where}."
        )
    return scores, valid


def counts_from_levels(levels: NDArray[np.integer], valid: NDArray[np.bool_], step: int) -> NDArray[np.int64]:
    """Puts chosen levels back in place as token counts.

    Args:
        levels: (valid.sum(),) level index 0..J-1 of each valid block, in the order of `scores[valid]`.
        valid: (batch, K) or (batch,) booleans.
        step: tokens between two levels.

    Returns:
        Token counts of the shape of `valid`: `(level + 1) * step`, and 0 for blocks that are not valid.
    """
    token_counts = np.zeros(valid.shape, dtype=np.int64)
    token_counts[valid] = (levels + 1) * step
    return token_counts


def first_level_below(values: NDArray[np.float64], threshold: float, num_levels: int) -> NDArray[np.int64]:
    """Return the index of the first of each row's values under `threshold`; the last level (all tokens) where none is.

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
