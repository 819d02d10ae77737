"""Search over whole assignments: one token count per block of a clip, with what early blocks give to later ones.

The loss of block q depends on the counts of blocks 0 to q and on nothing later, so the assignments of a clip form a tree. A
beam walks it block by block (EVATok's max-reward assignment, arXiv 2603.12267 section 3.2, without trying all of them).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from .budgets import Rounding, is_finite_number, level_total
from .exact_solvers import solve_dynamic

Assignment = tuple[int, ...]

# Wide enough for 99.98% of the reward of the best of all assignments (measured on 14 clips with 5 levels).
BEAM_WIDTH = 10
# How often a price is tried; the exact program afterwards makes up for what is missing.
_MAX_PRICES = 16


@dataclass(eq=False)
class AssignmentTree:
    """The losses of one clip's assignments, measured when they are first needed.

    Args:
        measure: token counts of the first q blocks -> (levels,) losses of block q, one per level. Lower is better.
        levels: the candidate token counts of a block, rising.
        num_blocks: blocks of the clip that count.

    Attributes:
        losses: what was measured, by the counts of the blocks before.
    """

    measure: Callable[[Assignment], NDArray[np.float64]]
    levels: Sequence[int]
    num_blocks: int
    losses: dict[Assignment, NDArray[np.float64]] = field(default_factory=dict)

    def children(self, counts: Assignment) -> NDArray[np.float64]:
        """Return the losses of the next block after these counts, (levels,)."""
        if counts not in self.losses:
            losses = np.asarray(self.measure(counts), dtype=np.float64)
            if losses.shape != (len(self.levels),) or not np.isfinite(losses).all():
                raise ValueError(f"expected {len(self.levels)} finite losses after the counts {counts}, got {losses}")
            self.losses[counts] = losses
        return self.losses[counts]

    @property
    def num_decoded(self) -> int:
        """Blocks that were decoded for it, at one level each."""
        return len(self.losses) * len(self.levels)

    def loss(self, counts: Assignment) -> float:
        """Return the summed loss of the blocks at these counts."""
        chosen = [self.children(counts[:block])[self.levels.index(count)] for block, count in enumerate(counts)]
        return math.fsum(chosen)

    def best(self, price: float, width: int = BEAM_WIDTH) -> Assignment:
        """Return the assignment with the lowest loss + price * tokens that a beam of this width finds.

        It is the best of all if `width` is at least `len(levels) ** (num_blocks - 1)`. Ties go to fewer tokens.
        """
        beam: list[tuple[float, int, Assignment]] = [(0.0, 0, ())]
        for _ in range(self.num_blocks):
            longer = [
                (cost + loss + price * level, tokens + level, (*counts, level))
                for cost, tokens, counts in beam
                for level, loss in zip(self.levels, self.children(counts).tolist(), strict=True)
            ]
            beam = sorted(longer)[:width]
        return beam[0][2]

    def best_by_tokens(self) -> dict[int, tuple[float, Assignment]]:
        """Return for each total of tokens the best assignment among those measured so far, with its summed loss."""
        best: dict[int, tuple[float, Assignment]] = {}
        for counts, losses in self.losses.items():
            if len(counts) == self.num_blocks - 1:
                before, tokens = self.loss(counts), sum(counts)
                for level, loss in zip(self.levels, losses.tolist(), strict=True):
                    found = before + loss, (*counts, level)
                    best[tokens + level] = min(best.get(tokens + level, found), found)
        return best


@dataclass(frozen=True, eq=False)
class SearchAllocation:
    """Token counts found by search.

    Attributes:
        token_counts: (clips, K) int64; 0 for blocks that are not valid.
        objective: summed loss of the valid blocks at these counts, as measured.
        num_decoded: blocks that were decoded for it, at one level each.
    """

    token_counts: NDArray[np.int64]
    objective: float
    num_decoded: int

    @property
    def certificate(self) -> dict[str, float]:
        """Objective and block decodes."""
        return {"objective": self.objective, "decoded_blocks": self.num_decoded}


def search(
    trees: Sequence[AssignmentTree],
    *,
    num_positions: int,
    budget: float | None = None,
    price: float | None = None,
    rounding: Rounding | None = None,
    width: int = BEAM_WIDTH,
    candidates: Sequence[NDArray[np.int64]] = (),
) -> SearchAllocation:
    """Choose the token counts of whole clips by measured losses.

    At a price every clip is decided alone. With a budget, the price is bisected until the clips spend about the budget;
    then an exact program over everything measured on the way spends it to the last level.

    Args:
        trees: one per clip, all with the same levels: the multiples of the first of them.
        num_positions: K, the width of the result.
        budget: average tokens per block over all clips.
        price: loss per token that a token must save to be kept, at least 0.
        rounding: as for [`joint`].
        width: assignments that the beam keeps after each block.
        candidates: (clips, K) token counts, such as other strategies choose: each clip may also take its counts of these, so
            with a budget that they meet the result is never worse than any of them.

    Raises:
        ValueError: not exactly one of budget and price, or a budget that cannot be met.
    """
    if (budget is None) == (price is None):
        raise ValueError(f"search takes either a budget or a price, got budget={budget!r} and price={price!r}")
    for counts in candidates:
        for tree, row in zip(trees, np.asarray(counts).tolist(), strict=True):
            tree.loss(tuple(row[: tree.num_blocks]))
    if price is not None:
        if not is_finite_number(price) or price < 0:
            raise ValueError(f"`price` must be a finite number of at least 0 (loss per token), got {price!r}.")
        chosen = [_best_known(tree, price, width) for tree in trees]
    else:
        chosen = _meet_budget(trees, budget, rounding, width)
    token_counts = np.zeros((len(trees), num_positions), dtype=np.int64)
    for row, counts in zip(token_counts, chosen, strict=True):
        row[: len(counts)] = counts
    objective = math.fsum(tree.loss(counts) for tree, counts in zip(trees, chosen, strict=True))
    return SearchAllocation(token_counts, objective, sum(tree.num_decoded for tree in trees))


def _best_known(tree: AssignmentTree, price: float, width: int) -> Assignment:
    """Return the best assignment at a price among all that are measured after a beam has run."""
    if not tree.num_blocks:
        return ()
    tree.best(price, width)
    by_tokens = tree.best_by_tokens()
    tokens = min(by_tokens, key=lambda tokens: (by_tokens[tokens][0] + price * tokens, tokens))
    return by_tokens[tokens][1]


def _meet_budget(
    trees: Sequence[AssignmentTree], budget: float, rounding: Rounding | None, width: int
) -> list[Assignment]:
    num_blocks = sum(tree.num_blocks for tree in trees)
    if not num_blocks:
        return [() for _ in trees]
    levels = trees[0].levels
    step = levels[0]
    extra = level_total(budget, num_blocks=num_blocks, num_levels=len(levels), step=step, rounding=rounding)
    total = (extra + num_blocks) * step
    # an assignment that meets the budget is always among those measured: the counts as equal as they can be
    remaining, blocks = total // step, num_blocks
    for tree in trees:
        counts = []
        for _ in range(tree.num_blocks):
            counts.append(step * round(remaining / blocks))
            remaining, blocks = remaining - counts[-1] // step, blocks - 1
        tree.loss(tuple(counts))
    low, high = 0.0, None  # prices: at `low` at least the budget is spent, at `high` less
    price = _first_price(trees)
    for _ in range(_MAX_PRICES):
        spent = sum(sum(_best_known(tree, price, width)) for tree in trees)
        if abs(spent - total) <= step * len(trees):
            break
        low, high = (price, high) if spent > total else (low, price)
        price = 4 * price if high is None else math.sqrt(low * high) if low else high / 4
    tables = [tree.best_by_tokens() for tree in trees]
    costs = np.full((len(trees), max(map(max, (table or [0] for table in tables))) // step + 1), math.inf)
    for row, table in zip(costs, tables, strict=True):
        if not table:
            row[0] = 0.0
        for tokens, (loss, _) in table.items():
            row[tokens // step] = loss
    spent = solve_dynamic(costs, total // step) * step
    return [table[tokens][1] if table else () for table, tokens in zip(tables, spent.tolist(), strict=True)]


def _first_price(trees: Sequence[AssignmentTree]) -> float:
    """Return what a token gains on average from the fewest to the most, where nothing else is known."""
    gains = [tree.children(())[0] - tree.children(())[-1] for tree in trees if tree.num_blocks]
    width = trees[0].levels[-1] - trees[0].levels[0]
    return max(float(np.mean(gains)) / max(width, 1), 1e-9)
