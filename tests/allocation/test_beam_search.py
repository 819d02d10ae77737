"""Search over whole assignments: against brute force, at prices and at exact budgets."""

import itertools

import numpy as np
import pytest

from adaptok_hf.allocation import AssignmentTree, joint, search
from adaptok_hf.allocation.beam_search import search_levels

LEVELS = [1, 2, 4, 8, 16]


def make_tree(seed: int, num_blocks: int = 4, levels: list[int] = LEVELS) -> AssignmentTree:
    """A tree in which each block gains from its own tokens and from those of the blocks before."""
    random = np.random.default_rng(seed)
    scale, lean = random.uniform(0.5, 2, num_blocks), random.uniform(0, 0.8, (num_blocks, num_blocks))

    def measure(counts, candidates):
        help_of_earlier = sum(lean[len(counts), q] * count for q, count in enumerate(counts))
        return scale[len(counts)] / (np.array(candidates) + help_of_earlier)

    return AssignmentTree(measure, levels, num_blocks)


def all_assignments(tree: AssignmentTree) -> dict[tuple[int, ...], float]:
    return {counts: tree.loss(counts) for counts in itertools.product(tree.levels, repeat=tree.num_blocks)}


def valid_of(trees, num_positions=4):
    return np.array([[q < tree.num_blocks for q in range(num_positions)] for tree in trees]).reshape(-1, num_positions)


def run(trees, **arguments):
    return search(trees, step=1, valid=valid_of(trees), **arguments)


@pytest.mark.parametrize("price", [0.0, 0.003, 0.02, 0.1])
def test_a_wide_beam_finds_the_best_of_all_assignments_at_a_price(price):
    trees = [make_tree(seed) for seed in range(5)]
    found = run(trees, price=price, width=125)
    for tree, counts in zip(trees, found.token_counts.tolist(), strict=True):
        everything = all_assignments(tree)
        best = min(loss + price * sum(each) for each, loss in everything.items())
        assert everything[tuple(counts)] + price * sum(counts) == pytest.approx(best, abs=1e-12)
    assert found.decoded_blocks == 5 * 780, "5 + 25 + 125 + 625 blocks, not 4 * 625"


def test_a_narrow_beam_measures_less_and_loses_little():
    for seed in range(20):
        narrow, wide = make_tree(seed), make_tree(seed)
        found, best = (run([tree], price=0.01, width=width) for tree, width in ((narrow, 10), (wide, 125)))
        assert found.decoded_blocks == 5 + 25 + 50 + 50
        cost, least = (each.objective + 0.01 * each.token_counts.sum() for each in (found, best))
        assert least <= cost <= 1.02 * least


@pytest.mark.parametrize("budget", [1, 1.25, 2, 5.5, 8, 15.75, 16])
def test_a_budget_is_met_exactly_and_no_assignment_of_the_levels_is_better(budget):
    tree = make_tree(3)
    found = run([tree], budget=budget, width=125)
    assert found.token_counts.sum() == 4 * budget
    fitting = [loss for counts, loss in all_assignments(make_tree(3)).items() if sum(counts) == 4 * budget]
    assert found.objective <= min(fitting, default=np.inf) + 1e-12


def test_clips_share_a_budget_as_in_brute_force():
    trees = [make_tree(seed, num_blocks=2, levels=[1, 2, 4]) for seed in (0, 1, 2)]
    found = search(trees, step=1, valid=valid_of(trees, 2), budget=2, width=9)
    assert found.token_counts.sum() == 12
    choices = [list(all_assignments(tree).items()) for tree in trees]
    best = min(
        sum(loss for _, loss in each)
        for each in itertools.product(*choices)
        if sum(sum(counts) for counts, _ in each) == 12
    )
    assert found.objective <= best + 1e-12


def test_it_is_never_worse_than_a_candidate():
    for seed in range(10):
        trees = [make_tree(seed), make_tree(seed + 100)]
        random = np.random.default_rng(seed).integers(1, 17, (2, 4))
        least = sum(tree.loss(tuple(row)) for tree, row in zip(trees, random.tolist(), strict=True))
        found = run([make_tree(seed), make_tree(seed + 100)], budget=random.mean(), width=2, candidates=[random])
        assert found.token_counts.sum() == random.sum() and found.objective <= least + 1e-12


def test_clips_of_fewer_blocks_and_of_none():
    trees = [make_tree(0), make_tree(1, num_blocks=2), make_tree(2, num_blocks=0)]
    found = run(trees, budget=3)
    assert found.token_counts.sum() == 18 and found.token_counts[1, 2:].sum() == 0 and found.token_counts[2].sum() == 0
    assert run(trees, price=0.01).token_counts.shape == (3, 4)
    assert run([], budget=3).token_counts.shape == (0, 4)


def test_where_blocks_are_alone_it_is_the_certified_program():
    scores = np.sort(np.random.default_rng(0).random((3, 4, 8)))[..., ::-1]

    def tree(row):
        return AssignmentTree(
            lambda counts, levels: row[len(counts)][[level // 2 - 1 for level in levels]], range(2, 17, 2), 4
        )

    trees = [tree(row) for row in scores]
    found = search(trees, step=2, valid=valid_of(trees), budget=7, width=512)
    program = joint(scores, step=2, budget=7)
    assert found.objective == pytest.approx(program.objective)


def test_what_cannot_be_searched_is_named():
    with pytest.raises(ValueError, match=r"budget=None.*price=None"):
        run([make_tree(0)])
    with pytest.raises(ValueError, match="-1"):
        run([make_tree(0)], price=-1)
    with pytest.raises(ValueError, match="17"):
        run([make_tree(0)], budget=17)
    with pytest.raises(ValueError, match="nan"):
        run([AssignmentTree(lambda counts, levels: [np.nan] * len(levels), LEVELS, 4)], price=1)


def test_levels_of_a_beam():
    assert search_levels(128, 4) == [4, 8, 12, 16, 24, 32, 48, 64, 96, 128]
    assert search_levels(640, 20) == [20, 40, 60, 80, 120, 160, 240, 320, 480, 640]
    assert search_levels(5, 5) == [5]
