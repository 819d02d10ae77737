"""Two plain solvers of the integer program: a dynamic program over the sum of levels, and HiGHS."""

import math

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

# HiGHS stops at an absolute gap of 1e-6 which scipy cannot change, so costs are scaled to this range first.
_COST_RANGE = 1e5


def solve_dynamic(costs: NDArray[np.float64], total: int) -> NDArray[np.int64]:
    """Minimises sum_k costs[k, j_k] subject to sum_k j_k = `total`, row by row.

    Needs time proportional to N J S and memory to N S, where S <= N (J - 1) is the number of sums within reach.
    Among equal costs the last row takes the lowest level that is optimal, then the row before it, and so on.

    Args:
        costs: (N, J) float64; `inf` closes a level.
        total: the sum of level indices to meet.

    Returns:
        (N,) int64 levels.

    Raises:
        RuntimeError: no choice of open levels has this sum.
    """
    open_levels = [np.flatnonzero(row) for row in np.isfinite(costs)]
    if any(len(levels) == 0 for levels in open_levels):
        raise RuntimeError("The dynamic program has a row without an open level.")
    options = [
        list(zip(levels.tolist(), row[levels].tolist(), strict=True))
        for levels, row in zip(open_levels, costs, strict=True)
    ]
    # Sums after each row that the later rows can still complete to `total`.
    least_after = sum(row[0][0] for row in options)
    most_after = sum(row[-1][0] for row in options)
    first, values = 0, np.zeros(1)
    history = []
    least, most = 0, 0
    for row in options:
        history.append((first, values))
        least, most = least + row[0][0], most + row[-1][0]
        least_after, most_after = least_after - row[0][0], most_after - row[-1][0]
        new_first, new_last = max(least, total - most_after), min(most, total - least_after)
        if new_last < new_first:
            raise RuntimeError(f"No choice of open levels sums to {total}.")
        best = np.full(new_last - new_first + 1, math.inf)
        for level, cost in row:
            begin = max(first + level, new_first)
            end = min(first + level + len(values), new_last + 1)
            if begin < end:
                reached = best[begin - new_first : end - new_first]
                np.minimum(reached, values[begin - level - first : end - level - first] + cost, out=reached)
        first, values = new_first, best
    if not math.isfinite(values[0]):
        raise RuntimeError(f"No choice of open levels sums to {total}.")

    # Walk back. The sums are formed as above, so the chosen one is found by equality.
    levels = np.empty(len(options), dtype=np.int64)
    state, value = total, float(values[0])
    for k in range(len(options) - 1, -1, -1):
        first, values = history[k]
        for level, cost in options[k]:
            before = state - level - first
            if 0 <= before < len(values) and values[before] + cost == value:
                levels[k], state, value = level, state - level, float(values[before])
                break
    return levels


def solve_milp(costs: NDArray[np.float64], total: int) -> tuple[NDArray[np.int64], float]:
    """Minimises sum_k costs[k, j_k] subject to sum_k j_k = `total` with `scipy.optimize.milp`.

    Args:
        costs: (N, J) float64, finite.
        total: the sum of level indices to meet.

    Returns:
        (N,) int64 levels and the lower bound that HiGHS proved, in units of `costs`.

    Raises:
        RuntimeError: HiGHS did not report an optimum, or its answer does not meet the constraints.
    """
    num_rows, num_levels = costs.shape
    variables = np.arange(num_rows * num_levels)
    rows = np.concatenate([variables // num_levels, np.full(variables.size, num_rows)])
    columns = np.concatenate([variables, variables])
    entries = np.concatenate([np.ones(variables.size), variables % num_levels])
    constraints = csr_array((entries, (rows, columns)), shape=(num_rows + 1, variables.size))
    right_side = np.append(np.ones(num_rows), total)

    scale = _COST_RANGE / (float(np.abs(costs).max()) or 1.0)
    result = milp(
        costs.ravel() * scale,
        integrality=np.ones(variables.size),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(constraints, right_side, right_side),
        options={"mip_rel_gap": 0.0},
    )
    if result.status != 0 or result.x is None:
        raise RuntimeError(f"HiGHS found no optimum (status {result.status}): {result.message}")
    chosen = np.rint(result.x).reshape(num_rows, num_levels)
    levels = chosen.argmax(axis=1)
    if not (chosen.sum(axis=1) == 1).all() or int(levels.sum()) != total:
        raise RuntimeError("HiGHS returned an answer that does not meet the constraints.")
    bound = result.fun if result.mip_dual_bound is None else result.mip_dual_bound
    return levels.astype(np.int64), float(bound) / scale
