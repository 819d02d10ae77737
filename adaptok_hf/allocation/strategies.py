"""The strategies that do not search: one count for all, integer programs, and rules for one block at a time.

`bisection` holds the other two. Every strategy takes a table of scores, (batch, K, J) or (batch, J), lower is better; level
`j` keeps `(j + 1) * step` latents. All return token counts of the table's shape without its last axis.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .budgets import Rounding, budgets_per_position, is_finite_number, level_total, round_to_level
from .integer_program import ProgramSolution, Solver, solve_program
from .tables import check_scores, check_step, counts_from_levels, first_level_below


def fixed(
    scores: ArrayLike,
    *,
    step: int,
    budget: float | Sequence[float],
    rounding: Rounding | None = None,
    valid: ArrayLike | None = None,
    levels: Sequence[int] | None = None,
) -> NDArray[np.int64]:
    """Give every block the same number of tokens ("Fixed" in the paper), or follow a schedule.

    A block can keep any number of leading tokens, so counts need not be levels here, unless `levels` are given.

    Args:
        scores: (batch, K, J) or (batch, J). Only the shape matters, but NaN and infinity raise `ValueError` as elsewhere.
        step: tokens between two levels.
        budget: tokens per block, from `step` to `J * step`; or a schedule, one number from 1 to `J * step` for each of the
            K block positions, the same for every clip.
        rounding: `"floor"` (the default) rounds down to a whole number, or to one of `levels`; `"exact"` demands one.
        valid: booleans of the shape of `scores` without the last axis; other blocks get 0 tokens.
        levels: the only counts that a block may have, rising.

    Returns:
        Token counts, int64, of the shape of `scores` without the last axis.

    Raises:
        ValueError: bad table, or a budget outside this range; the message names the nearest budget in it.
    """
    scores, valid = check_scores(scores, valid)
    step, num_levels = check_step(step), scores.shape[-1]
    counts = []
    for count in budgets_per_position(budget, scores.shape[1] if scores.ndim == 3 else 1):
        if levels is not None:
            counts.append(round_to_level(count, levels, rounding))
            continue
        if np.ndim(budget) == 0:
            level_total(count, num_blocks=1, num_levels=num_levels, step=step)  # raises outside one level and all of them
        counts.append(1 + level_total(count, num_blocks=1, num_levels=num_levels * step, step=1, rounding=rounding))
    by_position = np.broadcast_to(counts, (len(scores), len(counts))).reshape(valid.shape)
    return np.where(valid, by_position, 0)


@dataclass(frozen=True, eq=False)
class JointAllocation:
    """Token counts of one program over everything, with their certificate.

    Attributes:
        token_counts: int64, of the shape of `scores` without the last axis; 0 for blocks that are not valid.
        objective: summed score of the valid blocks.
        bound: proved lower bound of the summed score of ANY allocation with this budget, at most `objective`. The
            counts are optimal also where the bound is smaller, see [`ProgramSolution`].
        mean: average tokens per valid block (0.0 without valid blocks).
    """

    token_counts: NDArray[np.int64]
    objective: float
    bound: float
    mean: float

    @property
    def certificate(self) -> dict[str, float]:
        """Objective and bound."""
        return {"objective": self.objective, "bound": self.bound}


def ipal(
    scores: ArrayLike,
    *,
    step: int,
    budget: float | Sequence[float],
    rounding: Rounding | None = None,
    valid: ArrayLike | None = None,
    solver: Solver = "lagrangian",
) -> NDArray[np.int64]:
    """Solve one integer program per block position, over the batch: the paper's IPAL (Eq. 6).

    Every position spends its budget, so with one clip nothing adapts to the content. For scores that depend on the
    counts of earlier blocks call it with a (batch, J) table and the budget of this position, block by block.

    Args:
        scores: (batch, K, J), or (batch, J) for one block position; lower is better.
        step: tokens between two levels.
        budget: average tokens per valid block at each position: one number, or K of them
            (see [`published_budgets`]); from `step` to `J * step`.
        rounding: `"floor"` (the default) spends the most that does not exceed the budget, as the original code does:
            `floor(N * budget / step) - N` is the sum of levels for N valid blocks at the position. `"exact"` raises for
            a budget that is off this grid.
        valid: booleans of the shape of `scores` without the last axis; other blocks get 0 tokens and do not count.
        solver: `"lagrangian"`, `"dynamic"` or `"milp"`; all reach the same optimum.

    Returns:
        Token counts, int64, of the shape of `scores` without the last axis. Ties: see [`solve_program`].

    Raises:
        ValueError: bad table, or a budget that cannot be met; the message names the nearest feasible ones.
    """
    scores, valid = check_scores(scores, valid)
    step = check_step(step)
    by_position = scores if scores.ndim == 3 else scores[:, None]
    valid_by_position = valid.reshape(by_position.shape[:2])
    token_counts = np.zeros(valid_by_position.shape, dtype=np.int64)
    budgets = budgets_per_position(budget, by_position.shape[1])
    for position, position_budget in enumerate(budgets):
        here = valid_by_position[:, position]
        solution = _solve(
            by_position[here, position], position_budget, step, rounding, solver, f"block position {position}: "
        )
        token_counts[:, position] = counts_from_levels(solution.levels, here, step)
    return token_counts.reshape(valid.shape)


def joint(
    scores: ArrayLike,
    *,
    step: int,
    budget: float,
    rounding: Rounding | None = None,
    valid: ArrayLike | None = None,
    solver: Solver = "lagrangian",
) -> JointAllocation:
    """Solve one integer program over all valid blocks of all clips: Eq. 6 with a single budget.

    Adapts to the content of a single clip too, because its blocks compete with each other. The certificate is about
    the given table.

    Args:
        scores: (batch, K, J) or (batch, J), lower is better.
        step: tokens between two levels.
        budget: average tokens per valid block, one number from `step` to `J * step`.
        rounding: `"floor"` (the default) or `"exact"`, as for [`ipal`] with N = all valid blocks.
        valid: booleans of the shape of `scores` without the last axis; other blocks get 0 tokens and do not count.
        solver: `"lagrangian"`, `"dynamic"` or `"milp"`; all reach the same optimum. Ties: see [`solve_program`].

    Raises:
        ValueError: bad table, or a budget that cannot be met; the message names the nearest feasible ones.
    """
    scores, valid = check_scores(scores, valid)
    step = check_step(step)
    solution = _solve(scores[valid], budget, step, rounding, solver)
    token_counts = counts_from_levels(solution.levels, valid, step)
    mean = float(token_counts[valid].mean()) if valid.any() else 0.0
    return JointAllocation(token_counts, solution.objective, solution.bound, mean)


def quality(scores: ArrayLike, *, step: int, price: float, valid: ArrayLike | None = None) -> NDArray[np.int64]:
    """Take the lowest `score + price * count` of each block: a Lagrange multiplier, as the CRF of a video codec.

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
    """Take the fewest tokens whose score is under `threshold` (ElasticTok's rule); all tokens where no level is.

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


def _solve(
    rows: NDArray[np.float64],
    budget: float,
    step: int,
    rounding: Rounding | None,
    solver: Solver,
    where: str = "",
) -> ProgramSolution:
    if not len(rows):
        return ProgramSolution(np.zeros(0, dtype=np.int64), 0.0, 0.0)
    total = level_total(budget, num_blocks=len(rows), num_levels=rows.shape[1], step=step, rounding=rounding, where=where)
    return solve_program(rows, total, solver)
