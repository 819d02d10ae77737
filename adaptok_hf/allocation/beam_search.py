"""Search over whole assignments: one token count per block of a clip, with what early blocks give to later ones.

The loss of block q depends on the counts of blocks 0 to q and on nothing later, so the assignments of a clip form a tree. A
beam walks it block by block (EVATok's max-reward assignment, arXiv 2603.12267 section 3.2, without trying all of them).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .budgets import Rounding, is_finite_number, level_total, round_to_level

Assignment = tuple[int, ...]

# Wide enough for 99.98% of the reward of the best of all assignments (measured on 14 clips with 5 levels).
BEAM_WIDTH = 10
# How often a price is tried; the exact program afterwards makes up for what is missing.
_MAX_PRICES = 16
# Assignments of a clip among which that program chooses.
_MOST_OPTIONS = 64


def search_levels(latents_per_block: int, step: int) -> list[int]:
    """Return token counts that a beam tries: 1, 2, 3, 4, 6, 8, 12, 16, ... times `step`, and all latents of a block."""
    multiples = sorted({factor * 2**power for factor in (2, 3) for power in range(latents_per_block.bit_length())} | {1})
    return [step * multiple for multiple in multiples if step * multiple < latents_per_block] + [latents_per_block]


@dataclass(eq=False)
class AssignmentTree:
    """The losses of one clip's assignments, measured when they are first needed.

    Args:
        measure: counts of the first q blocks, and candidate counts of block q -> (candidates,) losses of block q. Lower is
            better.
        levels: the counts that a beam tries for a block, rising.
        num_blocks: blocks of the clip that count.

    Attributes:
        losses: what was measured: counts of the first blocks -> the loss of the last of them.
    """

    measure: Callable[[Assignment, Sequence[int]], ArrayLike]
    levels: Sequence[int]
    num_blocks: int
    losses: dict[Assignment, float] = field(default_factory=dict)

    def next_losses(self, counts: Assignment, levels: Sequence[int] | None = None) -> list[float]:
        """Return the loss of the next block at each of these levels (by default, all) after these counts."""
        levels = self.levels if levels is None else levels
        if missing := [level for level in levels if (*counts, level) not in self.losses]:
            losses = np.asarray(self.measure(counts, missing), dtype=np.float64)
            if losses.shape != (len(missing),) or not np.isfinite(losses).all():
                raise ValueError(f"expected {len(missing)} finite losses after the counts {counts}, got {losses}")
            self.losses |= {(*counts, level): loss for level, loss in zip(missing, losses.tolist(), strict=True)}
        return [self.losses[*counts, level] for level in levels]

    def loss(self, counts: Assignment) -> float:
        """Return the summed loss of the blocks at these counts, which need not be levels."""
        return math.fsum(self.next_losses(counts[:block], counts[block : block + 1])[0] for block in range(len(counts)))

    def run_beam(self, price: float, width: int = BEAM_WIDTH) -> None:
        """Measure the assignments with a low loss + price * tokens, keeping the `width` lowest after each block.

        The lowest of all is among them if `width` is at least `len(levels) ** (num_blocks - 1)`.
        """
        if width >= len(self.levels) ** (self.num_blocks - 1):  # all of them: so that what is measured can go step by step
            self._measure_below(())
        beam: list[tuple[float, int, Assignment]] = [(0.0, 0, ())]
        for _ in range(self.num_blocks):
            longer = [
                (cost + loss + price * level, tokens + level, (*counts, level))
                for cost, tokens, counts in beam
                for level, loss in zip(self.levels, self.next_losses(counts), strict=True)
            ]
            beam = sorted(longer)[:width]

    def _measure_below(self, counts: Assignment) -> None:
        """Measure all that begin with these counts, going deep first: few keys and values must be kept for that."""
        if len(counts) < self.num_blocks:
            self.next_losses(counts)
            for level in self.levels if len(counts) + 1 < self.num_blocks else ():
                self._measure_below((*counts, level))

    def best_by_tokens(self) -> dict[int, tuple[float, Assignment]]:
        """Return for each total of tokens the best assignment among those measured so far, with its summed loss."""
        best: dict[int, tuple[float, Assignment]] = {}
        for counts in self.losses:
            if len(counts) == self.num_blocks:
                found, tokens = (self.loss(counts), counts), sum(counts)
                best[tokens] = min(best.get(tokens, found), found)
        return best or {0: (0.0, ())}

    def best(self, price: float) -> Assignment:
        """Return the assignment with the lowest loss + price * tokens among those measured; ties go to fewer tokens."""
        known = self.best_by_tokens()
        return known[min(known, key=lambda tokens: (known[tokens][0] + price * tokens, tokens))][1]


@dataclass(frozen=True, eq=False)
class SearchAllocation:
    """Token counts found by search.

    Attributes:
        token_counts: (clips, K) int64; 0 for blocks that are not valid.
        objective: summed loss of the valid blocks at these counts, as measured.
        decoded_blocks: how many were decoded for it, counting each level.
    """

    token_counts: NDArray[np.int64]
    objective: float
    decoded_blocks: int

    @property
    def certificate(self) -> dict[str, float]:
        """Objective and block decodes."""
        return {"objective": self.objective, "decoded_blocks": self.decoded_blocks}


def search(
    trees: Sequence[AssignmentTree],
    *,
    step: int,
    valid: ArrayLike,
    budget: float | None = None,
    price: float | None = None,
    rounding: Rounding | None = None,
    width: int = BEAM_WIDTH,
    candidates: Sequence[ArrayLike] = (),
    levels_only: bool = False,
) -> SearchAllocation:
    """Choose the token counts of whole clips by measured losses.

    At a price every clip is decided alone. With a budget, the price is bisected until the clips spend about the budget. An
    exact program over everything measured on the way then spends it, and the best block takes what may be left over.

    Args:
        trees: one per clip. Their levels are multiples of `step`, the last of them all latents of a block.
        step: the budget is spent in steps of so many tokens.
        valid: (clips, K) booleans; blocks that are not valid come last and get 0 tokens. A tree has the others.
        budget: average tokens per block over all clips.
        price: loss per token that a token must save to be kept, at least 0.
        rounding: as for [`joint`].
        width: assignments that a beam keeps after each block.
        candidates: (clips, K) token counts, such as other strategies choose. Each clip may also take its counts of these:
            if they meet the budget, the result is never worse than any of them.
        levels_only: blocks can have the trees' levels only. What a budget then leaves over stays unspent.

    Raises:
        ValueError: not exactly one of budget and price, or a budget that cannot be met.
    """
    if (budget is None) == (price is None):
        raise ValueError(f"search takes either a budget or a price, got budget={budget!r} and price={price!r}")
    if budget is not None:
        measured = _measure(trees, candidates)
        chosen = _meet_budget(trees, budget, step, rounding, width, measured, levels_only)
    elif not is_finite_number(price) or price < 0:
        raise ValueError(f"`price` must be a finite number of at least 0 (loss per token), got {price!r}.")
    else:
        for tree in trees:
            tree.run_beam(price, width)
        chosen = [tree.best(price) for tree in trees]
    return _allocation(trees, chosen, valid)


def compare(
    trees: Sequence[AssignmentTree],
    *,
    step: int,
    valid: ArrayLike,
    budget: float,
    candidates: Sequence[ArrayLike],
    rounding: Rounding | None = None,
) -> SearchAllocation:
    """Give each clip the best of a few assignments, by measured losses.

    Args:
        trees: one per clip.
        step: the budget is spent in steps of so many tokens.
        valid: (clips, K) booleans; blocks that are not valid come last and get 0 tokens. A tree has the others.
        budget: average tokens per block over all clips. An exact program spends it, and the best block takes what may be
            left over.
        candidates: (clips, K) token counts. At least the first must not exceed the budget; the result is never worse than
            any that meets it.
        rounding: as for [`joint`].

    Raises:
        ValueError: for a budget that cannot be met.
    """
    blocks, levels = sum(tree.num_blocks for tree in trees), max((tree.levels[-1] // step for tree in trees), default=1)
    steps = blocks + level_total(budget, num_blocks=blocks, num_levels=levels, step=step, rounding=rounding)
    chosen = _spend(_measure(trees, candidates), steps * step)
    return _allocation(trees, _add_rest(trees, chosen, steps * step - sum(map(sum, chosen))), valid)


def _measure(trees: Sequence[AssignmentTree], candidates: Sequence[ArrayLike]) -> list[dict[Assignment, float]]:
    """Return for each tree the losses of its candidates: of each, (clips, K) token counts, it has one row."""
    rows = [np.asarray(counts).tolist() for counts in candidates]
    return [
        {counts: tree.loss(counts) for counts in (tuple(row[clip][: tree.num_blocks]) for row in rows)}
        for clip, tree in enumerate(trees)
    ]


def _allocation(trees: Sequence[AssignmentTree], chosen: Sequence[Assignment], valid: ArrayLike) -> SearchAllocation:
    token_counts = np.zeros(np.shape(valid), dtype=np.int64)
    for row, counts in zip(token_counts, chosen, strict=True):
        row[: len(counts)] = counts
    objective = math.fsum(tree.loss(counts) for tree, counts in zip(trees, chosen, strict=True))
    return SearchAllocation(token_counts, objective, sum(len(tree.losses) for tree in trees))


def _meet_budget(
    trees: Sequence[AssignmentTree],
    budget: float,
    step: int,
    rounding: Rounding | None,
    width: int,
    candidates: Sequence[dict[Assignment, float]],
    levels_only: bool,
) -> list[Assignment]:
    num_blocks = sum(tree.num_blocks for tree in trees)
    if not num_blocks:
        return [() for _ in trees]
    if levels_only:
        round_to_level(budget, trees[0].levels)  # raises outside
    num_levels = trees[0].levels[-1] // step
    steps = num_blocks + level_total(budget, num_blocks=num_blocks, num_levels=num_levels, step=step, rounding=rounding)
    total, low, high, price = steps * step, 0.0, math.inf, _average_gain(trees)
    for _ in range(_MAX_PRICES):
        for tree in trees:
            tree.run_beam(price, width)
        spent = sum(sum(tree.best(price)) for tree in trees)
        if abs(spent - total) <= step * len(trees):
            break
        low, high = (price, high) if spent > total else (low, price)
        price = 4 * price if high == math.inf else math.sqrt(low * high) if low else high / 4
    tables = []
    for index, tree in enumerate(trees):
        fewest = (trees[0].levels[0] if levels_only else step,) * tree.num_blocks  # so that no budget is out of reach
        tree.loss(fewest)
        known = sorted(tree.best_by_tokens().values(), key=lambda each: each[0] + price * sum(each[1]))
        kept = {counts: loss for loss, counts in known[:_MOST_OPTIONS]}
        kept |= candidates[index] | {fewest: tree.loss(fewest)}
        tables.append(kept)
    chosen = _spend(tables, total)
    rest = total - sum(map(sum, chosen))
    if rest and levels_only and rounding == "exact":
        raise ValueError(f"rounding='exact', but the levels {list(trees[0].levels)} leave {rest} of {total} tokens unspent")
    return chosen if levels_only else _add_rest(trees, chosen, rest)


def _spend(tables: Sequence[dict[Assignment, float]], total: int) -> list[Assignment]:
    """Return one assignment of each table with the lowest summed loss of those that spend the most up to `total`."""
    best = np.full(total + 1, np.inf)  # by tokens spent
    best[0] = 0.0
    history = []
    for table in tables:
        longer, choice = np.full(total + 1, np.inf), np.full(total + 1, -1)
        for index, (counts, loss) in enumerate(table.items()):
            tokens = sum(counts)
            found = best[: total + 1 - tokens] + loss if tokens <= total else best[:0]
            better = np.flatnonzero(found < longer[tokens:])
            longer[tokens + better], choice[tokens + better] = found[better], index
        best = longer
        history.append(choice)
    spent, chosen = int(np.flatnonzero(np.isfinite(best))[-1]), []
    for table, choice in zip(reversed(tables), reversed(history), strict=True):
        chosen.append(list(table)[choice[spent]])
        spent -= sum(chosen[-1])
    return chosen[::-1]


def _add_rest(trees: Sequence[AssignmentTree], chosen: list[Assignment], rest: int) -> list[Assignment]:
    """Give tokens that are left over to the block that gains most from them, and on if it is then full."""
    while rest:
        best = None
        for clip, (tree, counts) in enumerate(zip(trees, chosen, strict=True)):
            for block, count in enumerate(counts):
                more = min(rest, tree.levels[-1] - count)
                if more:
                    longer = (*counts[:block], count + more, *counts[block + 1 :])
                    found = (tree.loss(longer) - tree.loss(counts)) / more, clip, longer, more
                    best = found if best is None else min(best, found)
        _, clip, longer, more = best
        chosen = [longer if index == clip else counts for index, counts in enumerate(chosen)]
        rest -= more
    return chosen


def _average_gain(trees: Sequence[AssignmentTree]) -> float:
    """Return what a token gains on average from the fewest to the most, where nothing else is known."""
    ends = trees[0].levels[0], trees[0].levels[-1]
    gains = [-np.diff(tree.next_losses((), ends)).item() for tree in trees if tree.num_blocks]
    return max(float(np.mean(gains)) / max(ends[1] - ends[0], 1), 1e-9)
