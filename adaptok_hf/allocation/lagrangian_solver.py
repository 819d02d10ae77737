"""The fast exact solver: a Lagrangian bound settles almost every row, a dynamic program does the rest.

With a price p on a level, L(p) = sum_k min_j (s[k, j] + p j) - p T is a lower bound of the program for every p. The
reduced cost r[k, j] = s[k, j] + p j - min_i (s[k, i] + p i) >= 0 is by how much the bound rises when row k is
forced to level j. A feasible choice whose reduced costs sum to G therefore proves that no optimal choice uses a level
with r > G, and that it is optimal itself if G = 0.
"""

import math

import numpy as np
from numpy.typing import NDArray

from .exact_solvers import solve_dynamic

# The search for the price ends after few steps; any price is valid, so the limit cannot cost exactness.
_MAX_PRICES = 200
_EPSILON = float(np.finfo(np.float64).eps)


def solve_lagrangian(costs: NDArray[np.float64], total: int) -> tuple[NDArray[np.int64], float]:
    """Minimises sum_k costs[k, j_k] subject to sum_k j_k = `total`.

    Args:
        costs: (N, J) float64, finite, non-negative (each row less its minimum).
        total: from 0 to `N * (J - 1)`.

    Returns:
        (N,) int64 levels and the bound of the Lagrangian relaxation. Deterministic; where several choices are
        optimal, earlier rows tend to get the higher levels.
    """
    price, fewer, more = _best_price(costs, total)
    rows = np.arange(len(costs))
    priced = costs + price * np.arange(costs.shape[1])
    optimum = priced.argmin(axis=1)
    floor = priced[rows, optimum]
    reduced = priced - floor[:, None]
    bound = math.fsum(floor) - price * total

    levels = _repair(reduced, fewer, more, total)
    if levels is None:
        return solve_dynamic(costs, total), bound
    paid = reduced[rows, levels]
    gap = float(paid.sum())
    # Rows at their floor pay nothing; for the others this is the round-off of their reduced costs.
    largest = max(float(priced.max()), -float(floor.min()))
    if gap <= 4 * _EPSILON * largest * np.count_nonzero(paid):
        return levels, bound

    # The margin is far above the round-off of a sum of reduced costs: too many levels stay open, never too few.
    still_open = reduced <= gap + 16 * _EPSILON * largest * (len(costs) + 8)
    num_open = np.bincount(np.flatnonzero(still_open) // costs.shape[1], minlength=len(costs))
    unsettled = np.flatnonzero(num_open > 1)
    core_total = total - int(optimum.sum()) + int(optimum[unsettled].sum())
    # Reduced costs order the choices of this total as the costs do.
    core = np.where(still_open[unsettled], reduced[unsettled], np.inf)
    optimum[unsettled] = solve_dynamic(core, core_total)
    better = math.fsum(costs[rows, optimum]) < math.fsum(costs[rows, levels])
    return optimum if better else levels, bound


def _best_price(costs: NDArray[np.float64], total: int) -> tuple[float, NDArray[np.int64], NDArray[np.int64]]:
    """Maximises the Lagrangian bound over the price of a level.

    The bound is concave and piecewise linear; the next price tried is where the pieces left and right of the maximum
    meet. This ends at the exact maximum, usually after about ten prices.

    Returns:
        The price, and two choices (N,) that minimise `costs + price * level`, one with at most and one with at least
        `total` levels. They are the same where one choice meets the total.
    """
    num_rows, num_levels = costs.shape
    index = np.arange(num_levels, dtype=np.float64)
    starts = np.arange(num_rows) * num_levels
    flat = costs.ravel()
    fewer, more = np.zeros(num_rows, dtype=np.int64), np.full(num_rows, num_levels - 1)
    fewer_sum, more_sum = 0, num_rows * (num_levels - 1)
    if total == fewer_sum:
        return float((costs[:, :1] - costs)[:, 1:].max(initial=0.0)), fewer, fewer
    if total == more_sum:
        return -float((costs[:, -1:] - costs)[:, :-1].max(initial=0.0)), more, more
    fewer_cost, more_cost = float(costs[:, 0].sum()), float(costs[:, -1].sum())
    price, unsettled, unsettled_costs = 0.0, np.arange(num_rows), costs
    for _ in range(_MAX_PRICES):
        price = (fewer_cost - more_cost) / (more_sum - fewer_sum)
        levels = fewer.copy()
        levels[unsettled] = (unsettled_costs + price * index).argmin(axis=1)
        level_sum = int(levels.sum())
        if level_sum == total:
            return price, levels, levels
        if not fewer_sum < level_sum < more_sum:
            break
        cost = float(flat[starts + levels].sum())
        if level_sum < total:
            fewer, fewer_sum, fewer_cost = levels, level_sum, cost
        else:
            more, more_sum, more_cost = levels, level_sum, cost
        # a row whose level is the same at a higher and a lower price has it at all prices between them
        differs = fewer[unsettled] != more[unsettled]
        unsettled, unsettled_costs = unsettled[differs], unsettled_costs[differs]
    return price, fewer, more


def _repair(
    reduced: NDArray[np.float64], fewer: NDArray[np.int64], more: NDArray[np.int64], total: int
) -> NDArray[np.int64] | None:
    """Return a choice that meets the total, made of two that cost (almost) no more than the bound.

    The first rows move from `fewer` to `more` as long as the total is not passed; what is then missing is made up by
    the cheapest change of one or two rows.

    Args:
        reduced: (N, J) reduced costs, >= 0.
        fewer, more: (N,) choices with at most, and at least, `total` levels.
        total: the sum of level indices to meet.

    Returns:
        (N,) levels that sum to `total`, or `None` if no change of two rows is enough.
    """
    num_rows, num_levels = reduced.shape
    moved = np.cumsum(more - fewer) + int(fewer.sum())
    over = np.flatnonzero(moved > total)
    num_moved = int(over[0]) if len(over) else num_rows
    levels = np.concatenate([more[:num_moved], fewer[num_moved:]])
    missing = total - int(levels.sum())
    if missing == 0:
        return levels

    # One row that changes by all that is missing bounds what a pair may cost, and so each of its two changes.
    target = levels + missing
    fits = np.flatnonzero((target >= 0) & (target < num_levels))
    limit = reduced[fits, target[fits]].min(initial=np.inf)
    rows, to_levels = np.nonzero(reduced <= limit)
    costs, changes = reduced[rows, to_levels], to_levels - levels[rows]
    order = np.lexsort((costs, changes))  # stable: earlier rows first
    rows, costs, changes = rows[order], costs[order], changes[order]
    first = np.flatnonzero(np.diff(changes, prepend=-num_levels))
    repeated = first[np.append(changes, num_levels)[first + 1] == changes[first]]
    # cheapest[c]: what a change of one row by c levels costs at least; second[c]: the same in any other row. From the end,
    # c may be negative.
    cheapest, second = np.full((2, 2 * num_levels - 1), np.inf)
    rows_of_cheapest, rows_of_second = np.zeros((2, 2 * num_levels - 1), dtype=np.int64)
    cheapest[changes[first]], rows_of_cheapest[changes[first]] = costs[first], rows[first]
    second[changes[repeated]], rows_of_second[changes[repeated]] = costs[repeated + 1], rows[repeated + 1]

    # Pairs of changes (c, missing - c) in two different rows; "one row changes, another changes by 0" is among them.
    one = np.arange(max(missing, 0) - num_levels + 1, min(missing, 0) + num_levels)
    other = missing - one
    same_row = rows_of_cheapest[one] == rows_of_cheapest[other]
    pair_cost = cheapest[one] + np.where(same_row, second[other], cheapest[other])
    if not np.isfinite(pair_cost).any():
        return None
    pair = int(pair_cost.argmin())
    levels[rows_of_cheapest[one[pair]]] += one[pair]
    levels[(rows_of_second if same_row[pair] else rows_of_cheapest)[other[pair]]] += other[pair]
    return levels
