"""The integer program of `ipal` and `joint`, with three exact solvers.

Given a table s (N, J) and a total T: choose one level j_k per row, minimise sum_k s[k, j_k] subject to
sum_k j_k = T. With N = B clips, T = B N_b / step - B and level j standing for (j + 1) * step tokens this is Eq. 6 of
the paper.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .exact_solvers import solve_dynamic, solve_milp
from .lagrangian_solver import solve_lagrangian

Solver = Literal["lagrangian", "dynamic", "milp"]


@dataclass(frozen=True, eq=False)
class ProgramSolution:
    """An optimal choice of levels with its certificate.

    Attributes:
        levels: (N,) int64, from 0 to J - 1, summing to the total.
        objective: summed score of the chosen levels, correctly rounded.
        bound: proved lower bound of the optimum, at most `objective`. `lagrangian` reports the bound of the Lagrangian
            relaxation, `milp` that of HiGHS, and `dynamic` the objective itself. `levels` are optimal also where the
            bound of the relaxation stays below the objective: the solver has closed this gap by enumeration.
    """

    levels: NDArray[np.int64]
    objective: float
    bound: float


def solve_program(scores: NDArray[np.float64], total: int, solver: Solver = "lagrangian") -> ProgramSolution:
    """Minimises sum_k scores[k, j_k] over levels with sum_k j_k = `total`.

    All solvers reach the optimum up to float64 round-off of a sum of N scores (`milp` up to the tolerances of HiGHS).
    Each is deterministic; where several choices are optimal, different solvers may return different ones.

    Args:
        scores: (N, J) float64, finite, N >= 1, J >= 1.
        total: from 0 to `N * (J - 1)`.
        solver: `"lagrangian"` (fast), `"dynamic"` (plain dynamic program) or `"milp"` (HiGHS through scipy).

    Raises:
        ValueError: unknown solver, or a total out of range.
        RuntimeError: HiGHS did not report an optimum.
    """
    num_rows, num_levels = scores.shape
    if not 0 <= total <= num_rows * (num_levels - 1):
        raise ValueError(f"`total` must be from 0 to {num_rows * (num_levels - 1)}, got {total}.")
    # Only differences within a row matter to the choice; without the common part they are kept most precisely.
    row_minima = scores.min(axis=1)
    relative = scores - row_minima[:, None]
    if solver == "lagrangian":
        levels, bound = solve_lagrangian(relative, total)
    elif solver == "dynamic":
        levels, bound = solve_dynamic(relative, total), math.inf
    elif solver == "milp":
        levels, bound = solve_milp(relative, total)
    else:
        raise ValueError(f'`solver` must be "lagrangian", "dynamic" or "milp", got {solver!r}.')
    objective = math.fsum(scores[np.arange(num_rows), levels])
    return ProgramSolution(levels, objective, min(math.fsum([*row_minima, bound]), objective))
