"""EVATok's proxy reward (arXiv 2603.12267 section 3.2): what an assignment is worth, and how near the best a choice is.

A reward is a price per token in disguise: the assignment of the highest reward has the lowest loss + price * tokens at the
price that `reward_price` returns.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray


def assignments(levels: Sequence[int], num_blocks: int) -> NDArray[np.int64]:
    """Return all assignments of levels to blocks, (levels ** blocks, blocks), the last block varying fastest.

    Raises:
        ValueError: for more than 10,000 of them, which are better searched by [`search`], with a beam.
    """
    if len(levels) ** num_blocks > 10_000:
        raise ValueError(
            f"{len(levels)} levels of {num_blocks} blocks are {len(levels) ** num_blocks} assignments, more than 10000: "
            "search them with a beam"
        )
    return np.array(list(itertools.product(levels, repeat=num_blocks)), dtype=np.int64).reshape(-1, num_blocks)


def proxy_reward(losses: ArrayLike, tokens: ArrayLike, quality_weight: float = 1.2) -> NDArray[np.float64]:
    """Return w_q Q - w_l L (Eq. 3), with Q the loss and L the tokens, standardized; the loss with its sign turned.

    Args:
        losses: (clips, assignments), for EVATok LPIPS; lower is better. Mean and deviation are over all of them.
        tokens: (assignments,), the sum of each assignment's counts.
        quality_weight: w_q from 0 to 2; w_l is 2 - w_q. EVATok released 1.2.

    Raises:
        ValueError: for a weight outside 0..2, or shapes that do not fit.
    """
    losses, tokens = np.asarray(losses, dtype=np.float64), np.asarray(tokens, dtype=np.float64)
    if losses.ndim != 2 or tokens.shape != losses.shape[1:]:
        raise ValueError(f"losses {losses.shape} must be (clips, assignments) and tokens {tokens.shape} (assignments,)")
    if not 0 <= quality_weight <= 2:
        raise ValueError(f"quality_weight must be from 0 to 2, got {quality_weight}")
    quality = -(losses - losses.mean()) / losses.std()
    length = (tokens - tokens.mean()) / tokens.std()
    return quality_weight * quality - (2 - quality_weight) * length


def reward_price(quality_weight: float, loss_std: float, tokens_std: float) -> float:
    """Return the price per token at which [`search`] maximizes the reward of this weight.

    Args:
        quality_weight: w_q, above 0 and at most 2.
        loss_std: deviation of the loss over random clips and assignments.
        tokens_std: deviation of an assignment's tokens; 349.137 for 4 blocks of 32, 64, 128, 256 or 512.
    """
    if not 0 < quality_weight <= 2:
        raise ValueError(f"quality_weight must be above 0 and at most 2, got {quality_weight}")
    return (2 - quality_weight) / quality_weight * loss_std / tokens_std


def reward_percentile(rewards: ArrayLike, chosen: ArrayLike) -> float:
    """Return how much of the range from the worst to the best assignment a choice reaches, in percent (Table 8).

    Args:
        rewards: (clips, assignments).
        chosen: (clips,) index of each clip's assignment.
    """
    rewards, chosen = np.asarray(rewards, dtype=np.float64), np.asarray(chosen)
    worst, best = rewards.min(axis=1).mean(), rewards.max(axis=1).mean()
    return float(100 * (rewards[np.arange(len(rewards)), chosen].mean() - worst) / (best - worst))
