"""Constant schedules: the best of several clips, and those of any budget between known ones."""

import itertools

import numpy as np
import pytest

from adaptok_hf.allocation import (
    AssignmentTree,
    best_schedule,
    joint,
    nearest_schedule,
    pull_to_schedule,
    schedule_levels,
)

MOST = 6


def make_tree(seed: int, measured: set | None = None) -> AssignmentTree:
    """A clip of 3 blocks that gain from their own tokens and from those of the blocks before."""
    random = np.random.default_rng(seed)
    scale, lean = random.uniform(0.5, 2, 3), random.uniform(0, 0.8, (3, 3))

    def measure(counts, candidates):
        if measured is not None:
            measured.update((*counts, level) for level in candidates)
        help_of_earlier = sum(lean[len(counts), q] * count for q, count in enumerate(counts))
        return scale[len(counts)] / (np.array(candidates) + help_of_earlier)

    return AssignmentTree(measure, range(1, MOST + 1), 3)


def mean_loss(trees, counts) -> float:
    return float(np.mean([tree.loss(counts) for tree in trees]))


@pytest.mark.parametrize("total", [3, 4, 9, 13, 18])
def test_no_schedule_of_a_budget_is_better(total):
    trees = [make_tree(seed) for seed in range(4)]
    found = best_schedule(trees, (total + 0.5) / 3 if total < 18 else 6, width=36)
    assert sum(found) == total
    every = [counts for counts in itertools.product(range(1, MOST + 1), repeat=3) if sum(counts) == total]
    assert mean_loss(trees, found) == pytest.approx(min(mean_loss(trees, counts) for counts in every), abs=1e-12)


def test_a_clip_that_is_left_out_changes_it_and_nothing_is_measured_twice():
    measured: set = set()
    odd = AssignmentTree(lambda counts, levels: 9 * len(counts) / np.array(levels), range(1, MOST + 1), 3)
    trees = [make_tree(0, measured), odd]
    alone, together = (best_schedule(of, 2, width=36) for of in (trees[:1], trees))
    assert alone[0] > together[0]
    before, measured_before = len(trees[0].losses), set(measured)
    assert best_schedule(trees[:1], 2, width=36) == alone
    assert len(trees[0].losses) == before and measured == measured_before


def test_it_is_never_worse_than_equal_counts_and_keeps_the_first_level():
    for seed in range(10):
        trees = [make_tree(seed + clip) for clip in range(3)]
        for tree in trees:
            tree.levels = [2, 6]
        found = best_schedule(trees, 3, width=1)
        assert sum(found) == 9 and min(found) >= 2
        assert mean_loss(trees, found) <= mean_loss(trees, (3, 3, 3)) + 1e-12


def test_no_clips_and_budgets_out_of_reach_are_refused():
    with pytest.raises(ValueError, match="got none"):
        best_schedule([], 2)
    with pytest.raises(ValueError, match="7"):
        best_schedule([make_tree(0)], 7)


@pytest.mark.parametrize(
    ("latents_per_block", "step", "levels"),
    [(128, 8, [8, 12, 16, 24, 32, 48, 64, 96, 128]), (8, 8, [8]), (6, 1, [1, 2, 3, 4, 6]), (64, 64, [64])],
)
def test_levels_go_from_a_step_to_all(latents_per_block, step, levels):
    assert schedule_levels(latents_per_block, step) == levels


KNOWN = [[8, 8, 8, 8], [28, 12, 12, 12], [64, 24, 20, 20], [128, 128, 128, 128]]


@pytest.mark.parametrize("budget", [1, 3.3, 8, 8.25, 12, 15.99, 16, 17.5, 24, 31.75, 32, 32.26, 77, 127.75, 128])
def test_any_budget_is_spent_to_the_token(budget):
    counts = nearest_schedule(KNOWN[::-1], budget, 128)
    assert sum(counts) == int(4 * budget) and all(1 <= count <= 128 for count in counts)
    if list(counts) not in KNOWN:
        totals = [4, *map(sum, KNOWN)]
        above = next(index for index, total in enumerate(totals) if total > sum(counts))
        low, high = ([1] * 4, *KNOWN)[above - 1], KNOWN[above - 1]
        assert all(min(a, b) <= count <= max(a, b) for a, b, count in zip(low, high, counts, strict=True))
    else:
        assert budget in (8, 16, 32, 128)


def test_blocks_that_do_not_count_are_left_out_of_the_budget():
    valid = np.array([[True] * 4, [True, True, False, False]])
    for budget in (8, 9, 16, 20.5, 60, 128):
        counts = np.array(nearest_schedule(KNOWN, budget, 128, valid))
        spent = (counts * valid).sum()
        assert 6 * budget - 2 < spent <= 6 * budget
    with pytest.raises(ValueError, match="129"):
        nearest_schedule(KNOWN, 129, 128, valid)


@pytest.mark.parametrize("pull, expected", [(0.001, [16, 16]), (0.062, [16, 16]), (0.063, [24, 8]), (9.0, [24, 8])])
def test_a_pull_keeps_the_schedule_unless_the_scores_gain_more(pull, expected):
    scores = np.zeros((1, 2, 4))
    scores[0, 1, 1:] = -1.0  # what 8 more tokens gain in the second block; both blocks leave the schedule by 8
    pulled = pull_to_schedule(scores, step=8, schedule=(24, 8), pull=pull)
    assert joint(pulled, step=8, budget=16).token_counts.tolist() == [expected]
