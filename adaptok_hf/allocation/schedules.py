"""Schedules: one token count per block position, the same for every clip. The baseline that adaptive allocation must beat.

Over half of what adaptive allocation gains over equal counts comes from the position alone: later blocks lean on the
first.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .beam_search import BEAM_WIDTH, Assignment, AssignmentTree, search


def mean_tree(trees: Sequence[AssignmentTree]) -> AssignmentTree:
    """Return the tree of the mean losses of several clips with as many blocks: its assignments are schedules."""

    def measure(counts: Assignment, levels: Sequence[int]) -> NDArray[np.float64]:
        return np.mean([tree.next_losses(counts, levels) for tree in trees], axis=0)

    return AssignmentTree(measure, trees[0].levels, trees[0].num_blocks)


def best_schedule(trees: Sequence[AssignmentTree], budget: float, step: int, width: int = BEAM_WIDTH) -> tuple[int, ...]:
    """Return the schedule with the lowest mean loss over clips at a budget of tokens per block.

    Args:
        trees: of clips with all their blocks.
        budget: average over the positions; rounded down to steps.
        step: tokens.
    """
    tree = mean_tree(trees)
    found = search([tree], step=step, valid=np.ones((1, tree.num_blocks), dtype=bool), budget=budget, width=width)
    return tuple(found.token_counts[0].tolist())


def position_scores(
    trees: Sequence[AssignmentTree], prices: Sequence[float], step: int, width: int = BEAM_WIDTH
) -> NDArray[np.float64]:
    """Return a score table whose best choice at each price is the best schedule at that price.

    Args:
        trees: of clips with all their blocks.
        prices: loss per token; several, from one at which little is kept to one at which nearly all is.
        step: tokens between two levels of the table.

    Returns:
        (K, J) float64: the level `j` of `(j + 1) * step` tokens at each position; 0 at the first level, convex, falling.
    """
    tree = mean_tree(trees)
    prices = sorted(prices, reverse=True)
    for price in prices:
        tree.run_beam(price, width)
    # what each position keeps as the price falls; it never gives tokens back
    kept = np.maximum.accumulate([tree.best(price) for price in prices], axis=0)
    levels = np.arange(step, tree.levels[-1] + 1, step)
    log_prices = np.log(prices)
    # beyond the lowest price, a token is worth less and less
    steepness = math.log(max(prices[0] / prices[-1], 2.0)) / max(tree.levels[-1] - tree.levels[0], 1)
    scores = np.zeros((tree.num_blocks, len(levels)))
    for position, counts in enumerate(kept.T):
        distinct, first = np.unique(counts, return_index=True)
        worth = np.exp(np.interp(levels, distinct, log_prices[first]))
        worth = np.where(levels > distinct[-1], prices[-1] * np.exp(-steepness * (levels - distinct[-1])), worth)
        worth = np.minimum.accumulate(worth)
        scores[position, 1:] = -step * np.cumsum(worth[1:])
    return scores
