"""Routing: counts from log-probabilities, at the price that a budget needs."""

import itertools

import numpy as np
import pytest

from adaptok_hf.allocation import joint, route
from adaptok_hf.allocation.routing import spend_on_levels, spread_levels

PRICES = [0.001, 0.002, 0.004, 0.008]


def cost_tables(levels: list[int], seed: int = 0, clips: int = 3, blocks: int = 4) -> np.ndarray:
    """Minus log-probabilities of a router that knows the costs, at `PRICES`: (clips, prices, blocks, levels)."""
    rng = np.random.default_rng(seed)
    size = rng.uniform(0.02, 0.2, (clips, 1, blocks, 1))
    return 1000 * (size / np.array(levels) ** 0.5 + np.array(PRICES)[:, None, None] * np.array(levels) / 10)


def test_losses_are_spread_over_the_grid():
    losses = np.array([[3.0, 1.0, 2.0], [0.0, 4.0, 4.0]])
    table = spread_levels(losses, [2, 4, 8])
    np.testing.assert_allclose(table, [[3, 1, 1.5, 2], [0, 4, 4, 4]])
    table = spread_levels(losses, [2, 3, 5])  # steps of 1: there is a count below the first level
    np.testing.assert_allclose(table[:, 1:], [[3, 1, 1.5, 2], [0, 4, 4, 4]])
    assert (table[:, 0] > losses.max(1)).all()


def test_at_a_price_the_most_probable_counts_are_taken():
    losses = np.random.default_rng(0).random((5, 1, 4, 3))
    levels = np.array([6, 8, 12])  # steps of 2
    valid = np.ones((5, 4), dtype=bool)
    valid[1, 2:] = False
    found = route(spread_levels(losses, levels), step=2, prices=[0.5], valid=valid)
    assert (found.token_counts == np.where(valid, levels[losses[:, 0].argmin(-1)], 0)).all()
    assert found.certificate == {"price": pytest.approx(0.5)}
    assert route(spread_levels(losses, levels), step=2).certificate == {}


@pytest.mark.parametrize("budget", [8, 9, 17, 40, 61.3, 64])
def test_a_budget_is_met_at_the_price_that_spends_it(budget):
    tables = spread_levels(cost_tables([8, 16, 32, 64]), [8, 16, 32, 64])
    found = route(tables, step=8, prices=PRICES, budget=budget)
    assert found.token_counts.sum() == 12 * budget // 8 * 8
    # no other counts of this budget are more probable at that price
    position = np.interp(np.log(found.certificate["price"]), np.log(PRICES), range(4))
    first = min(int(position), 2)
    table = (first + 1 - position) * tables[:, first] + (position - first) * tables[:, first + 1]
    assert found.certificate["objective"] == pytest.approx(joint(table, step=8, budget=budget).objective)
    if 1.01 * PRICES[0] < found.certificate["price"] < 0.99 * PRICES[-1]:
        probable = 8 * (table.argmin(-1) + 1)
        assert (probable != found.token_counts).sum() <= 2, "only what is left over is spent against the router"


def test_what_a_price_spends_as_a_budget_gives_the_same_counts():
    tables = spread_levels(cost_tables([8, 16, 32, 64], seed=1), [8, 16, 32, 64])
    for index, price in itertools.islice(enumerate(PRICES), 1, 3):
        alone = route(tables[:, index, None], step=8, prices=[price])
        shared = route(tables, step=8, prices=PRICES, budget=alone.token_counts.mean())
        assert (shared.token_counts == alone.token_counts).all()
        assert shared.certificate["price"] <= price * 1.0001


def test_what_does_not_fit_is_named():
    tables = spread_levels(cost_tables([8, 16]), [8, 16])
    for options, value in (
        ({"prices": PRICES[:3], "budget": 8}, "3 prices"),
        ({"prices": PRICES}, "budget=None"),
        ({"prices": PRICES, "budget": 17}, "17"),
        ({"prices": PRICES, "budget": 9, "rounding": "exact"}, "9"),
    ):
        with pytest.raises(ValueError, match=value):
            route(tables, step=8, **options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("budget", [32, 100, 300, 512])
def test_levels_only(seed, budget):
    """Greedy steps: on rows that are convex over tokens as good as the best of all assignments that spend as much."""
    levels = np.array([32, 64, 128, 256, 512])
    scores = np.random.default_rng(seed).uniform(1, 9, (1, 4, 1)) * 50 / levels
    counts = spend_on_levels(scores, levels, budget)
    assert set(counts.flatten().tolist()) <= set(levels.tolist()) and counts.sum() <= 4 * budget

    def loss(row):
        return sum(scores[0, block, int(np.searchsorted(levels, count))] for block, count in enumerate(row))

    same = [row for row in itertools.product(levels, repeat=4) if sum(row) == counts.sum()]
    assert loss(counts[0]) == pytest.approx(min(map(loss, same)))
    # nothing that fits is left undone
    rest = 4 * budget - counts.sum()
    assert all(level - count > rest for count in counts[0] for level in levels if level > count)


def test_levels_that_are_no_multiples():
    scores = np.zeros((2, 2, 2))
    valid = np.array([[True, True], [True, False]])
    assert spend_on_levels(scores, [48, 64], 60, valid=valid).sum() == 176
    assert spend_on_levels(scores, [48, 64], 48, "exact", valid).tolist() == [[48, 48], [48, 0]]
    for budget, rounding, value in ((47, None, "47"), (65, None, "65"), (60, "exact", "60")):
        with pytest.raises(ValueError, match=value):
            spend_on_levels(scores, [48, 64], budget, rounding, valid)
