"""Schedules: one token count per block position, the same for every clip. The baseline that adaptive allocation must beat.

Over half of what adaptive allocation gains over equal counts comes from the position alone: later blocks lean on the first.
"""

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .beam_search import Assignment, AssignmentTree, search, search_levels
from .budgets import level_total

# As good as 10 for the mean of clips, at half of its cost (measured on 4 clips at 8 budgets).
SCHEDULE_WIDTH = 4


def schedule_levels(latents_per_block: int, step: int) -> list[int]:
    """Return token counts that a beam tries for a schedule: from `step`, the least that `fixed` keeps, to all."""
    return sorted({*search_levels(latents_per_block, step), min(3 * step // 2, latents_per_block)})


def mean_tree(trees: Sequence[AssignmentTree]) -> AssignmentTree:
    """Return the tree of the mean losses of clips with as many blocks: its assignments are schedules."""

    def measure(counts: Assignment, levels: Sequence[int]) -> NDArray[np.float64]:
        return np.mean([tree.next_losses(counts, levels) for tree in trees], axis=0)

    return AssignmentTree(measure, trees[0].levels, trees[0].num_blocks)


def best_schedule(trees: Sequence[AssignmentTree], budget: float, width: int = SCHEDULE_WIDTH) -> Assignment:
    """Return the schedule with the lowest mean loss over clips.

    Equal counts are among those tried. Only what the beam needs is measured, and kept in the trees for the next budget.

    Args:
        trees: of clips with all their blocks.
        budget: average tokens per block over the positions, at least the first level; spent to the token, rounded down.
        width: schedules that the beam keeps after each block.

    Returns:
        One count per block position.

    Raises:
        ValueError: without clips, or for a budget that cannot be met.
    """
    if not trees:
        raise ValueError("a schedule is learned on at least one clip, got none")
    tree = mean_tree(trees)
    if budget in (tree.levels[0], tree.levels[-1]):  # nothing to decide, and nothing to measure
        return (int(budget),) * tree.num_blocks
    equal = [[(count,) * tree.num_blocks] for count in (tree.levels[0], int(budget))]
    valid = np.ones((1, tree.num_blocks), dtype=bool)
    found = search([tree], step=1, valid=valid, budget=budget, width=width, candidates=equal)
    return tuple(found.token_counts[0].tolist())


def nearest_schedule(
    schedules: Sequence[Sequence[int]], budget: float, latents_per_block: int, valid: ArrayLike | None = None
) -> Assignment:
    """Return a schedule for any budget: between the two known ones whose averages are next to it.

    Args:
        schedules: of other budgets, such as a scorer's `config.schedules`.
        budget: average tokens per block; spent to the token, rounded down.
        latents_per_block: the most that a block keeps.
        valid: (clips, K) booleans: the blocks that count in the budget; default: those of a whole clip. Blocks of several
            clips at one position change together, so less than these many tokens may be left over.

    Returns:
        One count per block position.

    Raises:
        ValueError: for a budget that cannot be met.
    """
    num_positions = len(schedules[0])
    blocks = np.ones(num_positions, dtype=int) if valid is None else np.sum(valid, axis=0)
    num_blocks = int(blocks.sum())
    total = num_blocks + level_total(budget, num_blocks=num_blocks, num_levels=latents_per_block, step=1)
    known = np.array([*schedules, [1] * num_positions, [latents_per_block] * num_positions])
    known = known[np.argsort(known @ blocks, kind="stable")]
    between = np.array([np.interp(total, known @ blocks, counts) for counts in known.T])
    schedule = np.floor(between).astype(int)
    for position in np.argsort(schedule - between, kind="stable"):  # the most that was rounded off first
        if blocks[position] <= total - schedule @ blocks and schedule[position] < latents_per_block:
            schedule[position] += 1
    return tuple(schedule.tolist())


def schedule_variants(trees: Sequence[AssignmentTree], schedule: Assignment, count: int) -> list[Assignment]:
    """Return schedules that spend as much as the best one, for clips that it does not suit.

    Half of a block's share, or a quarter, moves from one position to another. Of all these, the one is added again and
    again that lowers the mean loss most if each clip takes the best of those chosen so far.

    Args:
        trees: of clips with all their blocks.
        schedule: the best one.
        count: how many; fewer where there are no more, then filled up with the schedule.
    """
    fewest, most, moves = trees[0].levels[0], trees[0].levels[-1], {schedule: None}
    for giver, taker in itertools.permutations(range(len(schedule)), 2):
        for share in (2, 4):
            tokens = max(sum(schedule) // len(schedule) // share, 1)
            tokens = min(tokens, schedule[giver] - fewest, most - schedule[taker])
            moved = np.array(schedule)
            moved[[giver, taker]] += -tokens, tokens
            moves[tuple(moved.tolist())] = None
    losses = np.array([[tree.loss(counts) for counts in moves] for tree in trees])
    chosen, lowest = [0], losses[:, 0]
    for _ in range(count):
        chosen.append(int(np.minimum(losses, lowest[:, None]).mean(axis=0).argmin()))
        lowest = np.minimum(lowest, losses[:, chosen[-1]])
    return [list(moves)[index] for index in chosen[1:]]


def pull_to_schedule(scores: ArrayLike, *, step: int, schedule: Sequence[int], pull: float) -> NDArray[np.float64]:
    """Return a table that makes every token by which a block leaves the schedule cost `pull`.

    [`joint`] then moves a token from one block to another only for a gain of more than twice as much. Scores are
    predictions, and without this their errors can lose more than the content's differences gain.

    Args:
        scores: (clips, K, J), lower is better; level `j` keeps `(j + 1) * step` tokens.
        schedule: one count for each of the K block positions.
        pull: score per token, at least 0.
    """
    levels = step * np.arange(1, np.shape(scores)[-1] + 1)
    return np.asarray(scores) + pull * np.abs(levels - np.asarray(schedule)[:, None])
