"""Budget arithmetic: from an average number of tokens per block to the sum of levels that an integer program meets.

A budget is the AVERAGE number of tokens per block over everything that is allocated together (the paper's N_b).
"""

import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np

Rounding = Literal["floor", "exact"]

# Budgets per block position that were published with the original code, for clips of 4 blocks of 512 latents.
_PUBLISHED_BUDGETS = {
    64: (64, 64, 64, 64),
    128: (284, 80, 72, 72),
    192: (408, 140, 114, 102),
    256: (456, 242, 172, 150),
    320: (478, 342, 246, 210),
    384: (490, 418, 342, 282),
    448: (498, 468, 440, 384),
    512: (512, 512, 512, 512),
}

# A budget such as 1024 / 3 tokens has no exact float; this much of the total is taken for round-off of the number.
_ROUND_OFF = Fraction(1, 10**12)


def published_budgets(average: float, latents_per_block: int = 512) -> tuple[int, int, int, int]:
    """The budgets per block position that the original AdapTok code uses with `ipal`.

    Most entries lie between levels of its scorer (64 tokens apart) and are rounded down. After that rounding, and in
    the table itself at some averages, the mean over the positions is not exactly `average`.

    Args:
        average: nominal tokens per block: 64, 128, ..., 512; half of these with 256 latents per block.
        latents_per_block: 512 (2048-token clips), or 256 (1024-token clips: everything is halved).

    Returns:
        Tokens per block for block positions 0 to 3.

    Raises:
        ValueError: no such table was published.
    """
    if latents_per_block not in (512, 256):
        raise ValueError(f"Budget tables were published for 512 and 256 latents per block, not {latents_per_block}.")
    halves = 512 // latents_per_block
    if average * halves not in _PUBLISHED_BUDGETS:
        known = ", ".join(str(key // halves) for key in _PUBLISHED_BUDGETS)
        raise ValueError(f"No budget table was published for an average of {average:g}, only for {known}.")
    first, second, third, fourth = _PUBLISHED_BUDGETS[average * halves]
    return first // halves, second // halves, third // halves, fourth // halves


def level_total(
    budget: float,
    *,
    num_blocks: int,
    num_levels: int,
    step: int,
    rounding: Rounding | None = None,
    where: str = "",
) -> int:
    """Return the sum of level indices (counted from 0) that spends `budget` on `num_blocks` blocks.

    Args:
        budget: average tokens per block, from `step` to `num_levels * step`.
        num_blocks: N >= 1, blocks allocated together.
        num_levels: J, level indices go from 0 to J - 1.
        step: tokens between two levels.
        rounding: `"floor"` (the default) spends the most that does not exceed the budget, by the rule of the original
            code: `floor(N * budget / step) - N`. `"exact"` demands that `N * budget` is a multiple of `step`.
        where: put before the message of an error, for example `"block position 2: "`.

    Returns:
        An integer from 0 to `N * (J - 1)`.

    Raises:
        ValueError: the budget is below one level or above all of them or, with `"exact"`, between what these blocks can
            spend; the message names the nearest budgets that work.
    """
    if rounding not in (None, "floor", "exact"):
        raise ValueError(f'`rounding` must be "floor" or "exact", got {rounding!r}.')
    if not is_finite_number(budget):
        hint = "" if isinstance(budget, str) or not isinstance(budget, Sequence) else ": strategy 'fixed' takes a schedule"
        raise ValueError(f"{where}`budget` must be a finite number of tokens per block, got {budget!r}{hint}.")
    exact = budget if isinstance(budget, (int, Fraction)) else float(budget)
    steps = Fraction(exact) * num_blocks / step
    if abs(steps - round(steps)) <= _ROUND_OFF * max(1, abs(steps)):
        steps = Fraction(round(steps))
    total = math.floor(steps)
    if num_blocks <= steps <= num_blocks * num_levels and (rounding != "exact" or total == steps):
        return total - num_blocks

    below = min(max(total, num_blocks), num_blocks * num_levels)
    above = min(max(total + 1, num_blocks), num_blocks * num_levels)
    nearest = [_readable(Fraction(steps_used * step, num_blocks)) for steps_used in sorted({below, above})]
    blocks = f"{num_blocks} block" + "s" * (num_blocks != 1)
    names = f"budgets are {nearest[0]} and {nearest[1]}" if len(nearest) == 2 else f"budget is {nearest[0]}"
    raise ValueError(
        f"{where}a budget of {budget} tokens per block cannot be met by {blocks} with {num_levels} levels of "
        f"{step} tokens: the nearest feasible {names} tokens per block."
    )


def round_to_level(count: float, levels: Sequence[int], rounding: Rounding | None = None) -> int:
    """Return the largest level that is at most `count`, or with `"exact"` the level that it must be.

    Raises:
        ValueError: for a number outside the levels or, with `"exact"`, between two; the message names the levels.
    """
    if rounding not in (None, "floor", "exact"):
        raise ValueError(f'`rounding` must be "floor" or "exact", got {rounding!r}.')
    inside = is_finite_number(count) and levels[0] <= count <= levels[-1]
    if not inside or (rounding == "exact" and count not in levels):
        raise ValueError(f"a block has {', '.join(map(str, levels))} tokens, got {count!r} (rounding={rounding!r})")
    return max(level for level in levels if level <= count)


def tokens_per_block(
    budget: float | str | Sequence[float] | None, latents_per_block: int
) -> float | tuple[float, ...] | None:
    """A budget as numbers: `"25%"` becomes a quarter of `latents_per_block`.

    Raises:
        ValueError: for what is neither a finite number nor a percentage.
    """
    if budget is None:
        return None
    if isinstance(budget, str):
        text, share = budget.strip(), 1.0
        if text.endswith("%"):
            text, share = text[:-1], latents_per_block / 100
        try:
            tokens = float(text) * share
        except ValueError:
            tokens = math.nan
    elif isinstance(budget, Sequence) or (isinstance(budget, np.ndarray) and budget.ndim == 1):
        return tuple(tokens_per_block(value, latents_per_block) for value in budget)
    else:
        tokens = budget
    if not is_finite_number(tokens):
        raise ValueError(f"a budget is a finite number of tokens per block or a percentage such as '25%', got {budget!r}")
    return float(tokens)


def budgets_per_position(budget: float | Sequence[float], num_positions: int) -> list[float]:
    """One budget per block position from a number (used for all) or a sequence of length `num_positions`."""
    if isinstance(budget, str):
        raise ValueError(f"`budget` must be a number or one number per block position, got {budget!r}.")
    try:
        budgets = list(budget)  # type: ignore[arg-type]
    except TypeError:
        return [budget] * num_positions  # type: ignore[list-item]
    if len(budgets) != num_positions:
        raise ValueError(f"`budget` has {len(budgets)} entries for {num_positions} block positions: {budget!r}.")
    return budgets


def is_finite_number(value: object) -> bool:
    """Whether `value` is a single real number, numpy scalars included, and neither NaN nor infinite."""
    try:
        return not isinstance(value, (bool, str)) and math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return False


def _readable(budget: Fraction) -> str:
    return str(budget.numerator) if budget.denominator == 1 else repr(float(budget))
