"""One entry for all strategies, for callers that take the strategy's name from a user."""

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .budgets import Rounding
from .integer_programs import ipal, joint
from .per_block import quality
from .per_block import threshold as threshold_strategy
from .programs import Solver
from .threshold_search import bidelta, bithr
from .uniform import fixed

Strategy = Literal["fixed", "bithr", "bidelta", "ipal", "joint", "quality", "threshold"]
STRATEGIES: tuple[str, ...] = get_args(Strategy)


def allocate(
    scores: ArrayLike,
    *,
    strategy: Strategy,
    step: int,
    budget: float | Sequence[float] | None = None,
    price: float | None = None,
    threshold: float | None = None,
    rounding: Rounding | None = None,
    valid: ArrayLike | None = None,
    solver: Solver | None = None,
) -> NDArray[np.int64]:
    """Turns scores into token counts by the strategy of this name.

    | strategy | needs | may have |
    |---|---|---|
    | `fixed`, `bithr`, `bidelta` | `budget` | |
    | `ipal` | `budget` (a number, or one per block position) | `rounding`, `solver` |
    | `joint` | `budget` | `rounding`, `solver` |
    | `quality` | `price` | |
    | `threshold` | `threshold` | |

    The functions of these names say more; `joint`, `bithr` and `bidelta` also return more than the counts.

    Args:
        scores: (batch, K, J), or (batch, J) for one block position; lower is better, level `j` keeps
            `(j + 1) * step` latents.
        strategy: one of the names above.
        step: tokens between two levels.
        budget: AVERAGE tokens per valid block over everything allocated together, from `step` to `J * step`.
        price: score per token, at least 0.
        threshold: score that each block's reconstruction must undercut.
        rounding: `"exact"` (the default) or `"floor"`, what to do with a budget that is off the grid of levels.
        valid: booleans of the shape of `scores` without the last axis; false for blocks that are only padding. They
            get 0 tokens and do not count in the budget.
        solver: `"certified"` (the default), `"dynamic"` or `"milp"`.

    Returns:
        Token counts, int64, of the shape of `scores` without the last axis.

    Raises:
        ValueError: unknown strategy, a parameter that is missing or that the strategy does not use, a bad table, or a
            budget that cannot be met.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"`strategy` must be one of {', '.join(STRATEGIES)}, got {strategy!r}.")
    needed = strategy if strategy == "threshold" else "price" if strategy == "quality" else "budget"
    optional = ("rounding", "solver") if strategy in ("ipal", "joint") else ()
    given = {"budget": budget, "price": price, "threshold": threshold, "rounding": rounding, "solver": solver}
    given = {name: value for name, value in given.items() if value is not None}
    unused = [f"`{name}`" for name in given if name != needed and name not in optional]
    if needed not in given or unused:
        problem = f"does not use {', '.join(unused)}" if unused else f"got no `{needed}`"
        also = " and may have `rounding` and `solver`" if optional else ""
        raise ValueError(f"Strategy {strategy!r} {problem}: it needs `{needed}`{also}.")

    arguments = {"step": step, "valid": valid, **given}
    if strategy == "fixed":
        return fixed(scores, **arguments)
    if strategy == "bithr":
        return bithr(scores, **arguments).token_counts
    if strategy == "bidelta":
        return bidelta(scores, **arguments).token_counts
    if strategy == "ipal":
        return ipal(scores, **arguments)
    if strategy == "joint":
        return joint(scores, **arguments).token_counts
    if strategy == "quality":
        return quality(scores, **arguments)
    return threshold_strategy(scores, **arguments)
