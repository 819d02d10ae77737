"""Token counts by a router, a model that gives each number of tokens a probability from the pixels alone (EVATok)."""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .budgets import Rounding, round_to_level
from .integer_program import Solver
from .strategies import joint, quality
from .tables import check_scores

# Halvings of the range of prices: further than the interpolation is exact.
_BISECTIONS = 20


@dataclass(frozen=True, eq=False)
class RouteAllocation:
    """Token counts by a router.

    Attributes:
        token_counts: (clips, K) int64; 0 for blocks that are not valid.
        certificate: the price per token at which the router was asked, if it takes one; of a budget also the objective and
            bound of [`joint`], in minus log-probabilities.
    """

    token_counts: NDArray[np.int64]
    certificate: dict[str, float]


def spread_levels(losses: ArrayLike, levels: Sequence[int]) -> NDArray[np.float64]:
    """Return losses at every multiple of the levels' greatest common divisor up to the last level.

    Between two levels the loss is interpolated. What lies below the first level loses more than all levels, so that a block
    gets as much only where a budget forces it to.

    Args:
        losses: (..., levels), of which the router knows these.
        levels: token counts, rising.
    """
    losses, step = np.asarray(losses, dtype=np.float64), math.gcd(*levels)
    grid = np.arange(step, levels[-1] + 1, step)
    table = losses @ np.stack([np.interp(grid, levels, level) for level in np.eye(len(levels))])
    below = grid[grid < levels[0]]
    table[..., : len(below)] = losses.max(axis=-1, keepdims=True) + levels[0] - below
    return table


def route(
    scores: ArrayLike,
    *,
    step: int,
    prices: Sequence[float] | None = None,
    budget: float | None = None,
    rounding: Rounding | None = None,
    valid: ArrayLike | None = None,
    solver: Solver = "lagrangian",
    levels: Sequence[int] | None = None,
) -> RouteAllocation:
    """Take the counts that a router finds most probable or, with a budget, the most probable ones that spend it.

    With a budget, the price is bisected at which the most probable counts spend about as much; between two prices the
    log-probabilities are interpolated over the logarithm of the price. [`joint`] then spends the budget on the
    log-probabilities at that price. Without, each clip is decided alone.

    Args:
        scores: (clips, prices, K, J), minus the log-probability of each level of each block at each price; level `j` keeps
            `(j + 1) * step` tokens. Without a budget there is one price.
        step: tokens between two levels.
        prices: per token, rising; `None` for a router that takes none, whose table has one.
        budget: average tokens per valid block.
        rounding, solver: of the budget, as for [`joint`].
        valid: (clips, K) booleans; other blocks get 0 tokens.
        levels: of a tokenizer that takes no other counts, the tokens of level `j`, in place of `(j + 1) * step`. A budget
            is then spent by [`spend_on_levels`]: `solver` has no influence.

    Raises:
        ValueError: for tables of other shapes, and a budget that cannot be met.
    """
    scores = np.asarray(scores, dtype=np.float64)
    num_prices = 1 if prices is None else len(prices)
    if scores.ndim != 4 or scores.shape[1] != num_prices or (budget is None and num_prices != 1):
        raise ValueError(
            f"a router's scores are (clips, prices, blocks, levels), with one price where there is no budget; got "
            f"{scores.shape}, {num_prices} prices and budget={budget!r}"
        )
    given = {"step": step, "valid": valid}
    counts_of = np.arange(scores.shape[3] + 1) * step if levels is None else np.array([0, *levels])

    def best_counts(position: float) -> NDArray[np.int64]:
        return counts_of[quality(scores_at(position), step=1, price=0.0, valid=valid)]

    def scores_at(position: float) -> NDArray[np.float64]:
        first = min(int(position), max(num_prices - 2, 0))
        share = position - first
        return scores[:, first] if not share else (1 - share) * scores[:, first] + share * scores[:, first + 1]

    low, high = 0.0, num_prices - 1.0
    blocks = scores.shape[0] * scores.shape[2] if valid is None else int(np.sum(valid))
    for _ in range(_BISECTIONS if num_prices > 1 else 0):
        middle = (low + high) / 2
        spends_more = best_counts(middle).sum() > budget * blocks
        low, high = (middle, high) if spends_more else (low, middle)
    facts = {} if prices is None else {"price": float(np.exp(np.interp(high, np.arange(num_prices), np.log(prices))))}
    if budget is None:
        return RouteAllocation(best_counts(0.0), facts)
    if levels is not None:
        return RouteAllocation(spend_on_levels(scores_at(high), levels, budget, rounding, valid), facts)
    found = joint(scores_at(high), budget=budget, rounding=rounding, solver=solver, **given)
    return RouteAllocation(found.token_counts, facts | found.certificate)


def spend_on_levels(
    scores: ArrayLike,
    levels: Sequence[int],
    budget: float,
    rounding: Rounding | None = None,
    valid: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """Spend a budget where only levels are allowed, which need not be multiples of a step.

    All blocks start at the first level. Again and again, the step up to another level that lowers the scores most per token
    is taken, of those that the rest of the budget pays for. So the last levels' worth of tokens may stay unspent.

    Args:
        scores: (clips, K, J), lower is better.
        levels: tokens of each of the J levels, rising.
        budget: average tokens per valid block, from the first level to the last.
        rounding: `"exact"` demands that all is spent.
        valid: (clips, K) booleans; other blocks get 0 tokens.

    Raises:
        ValueError: for a budget outside the levels or, with `"exact"`, one of which something stays unspent.
    """
    scores, valid = check_scores(scores, valid)
    round_to_level(budget, levels)  # raises outside
    rows, tokens, chosen = scores[valid], np.asarray(levels), np.zeros(int(valid.sum()), dtype=np.int64)
    rest = budget * len(rows) * (1 + 1e-12) - levels[0] * len(rows)
    steps: list[tuple[float, int, int]] = []

    def add_step(row: int) -> None:
        more = tokens[chosen[row] + 1 :] - tokens[chosen[row]]
        more = more[more <= rest]
        if len(more):
            first = chosen[row] + 1
            slopes = (rows[row, first : first + len(more)] - rows[row, chosen[row]]) / more
            heapq.heappush(steps, (float(slopes.min()), row, int(first + slopes.argmin())))

    for row in range(len(rows)):
        add_step(row)
    while steps:
        _, row, level = heapq.heappop(steps)
        cost = tokens[level] - tokens[chosen[row]]
        if cost <= rest:
            rest, chosen[row] = rest - cost, level
        add_step(row)
    counts = np.zeros(valid.shape, dtype=np.int64)
    counts[valid] = tokens[chosen]
    if rounding == "exact" and counts.sum() != round(budget * len(rows), 9):
        raise ValueError(
            f"a budget of {budget} tokens per block cannot be spent exactly by {len(rows)} blocks at the levels "
            f"{list(levels)}: {counts.sum() / max(len(rows), 1):g} is what they reach"
        )
    return counts
