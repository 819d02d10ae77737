"""The reference solver: the program as written, handed to HiGHS."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

# HiGHS stops at an absolute gap of 1e-6 which scipy cannot change, so costs are scaled to this range first.
_COST_RANGE = 1e5


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
