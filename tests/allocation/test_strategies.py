import numpy as np
import pytest

from adaptok_hf.allocation import fixed, quality, threshold


def table(seed=0, shape=(4, 3, 8)):
    return np.sort(np.random.default_rng(seed).uniform(0, 1, shape))[..., ::-1]


def test_quality_by_hand():
    scores = np.array([[1.0, 0.5, 0.3, 0.25]])
    for price, count in [(0.0, 40), (0.004, 40), (0.006, 30), (0.019, 30), (0.021, 20), (0.049, 20), (0.051, 10)]:
        assert quality(scores, step=10, price=price).tolist() == [count]


def test_quality_is_the_minimum_of_score_plus_price():
    scores = np.random.default_rng(1).normal(size=(5, 4, 16))
    counts = quality(scores, step=4, price=0.05)
    cost = scores + 0.05 * np.arange(4, 65, 4)
    reached = np.take_along_axis(cost, counts[..., None] // 4 - 1, axis=-1)
    assert reached[..., 0].tolist() == cost.min(axis=-1).tolist()


def test_quality_ties_go_to_fewer_tokens():
    assert quality(np.full((2, 3, 5), 0.25), step=2, price=0).tolist() == [[2] * 3] * 2
    assert quality(np.array([[1.0, 0.5, 0.0]]), step=1, price=0.5).tolist() == [1]


def test_higher_price_never_gives_more_tokens():
    scores = np.random.default_rng(2).normal(size=(50, 8))
    counts = np.stack([quality(scores, step=8, price=price) for price in np.linspace(0, 0.5, 40)])
    assert (np.diff(counts, axis=0) <= 0).all()
    assert (counts[0] > counts[-1]).any()


@pytest.mark.parametrize("strategy, setting", [(quality, {"price": 0.02}), (threshold, {"threshold": 0.3})])
def test_independent_of_the_batch_and_of_other_blocks(strategy, setting):
    scores = table(3)
    together = strategy(scores, step=8, **setting)
    assert len(set(together.ravel().tolist())) > 2
    for clip in range(4):
        assert strategy(scores[clip : clip + 1], step=8, **setting).tolist() == together[clip : clip + 1].tolist()
        for position in range(3):
            alone = strategy(scores[clip : clip + 1, position], step=8, **setting)
            assert alone.tolist() == [together[clip, position]]


def test_threshold_keeps_the_fewest_tokens_under_it():
    scores = np.array([[0.9, 0.5, 0.4], [0.3, 0.8, 0.1], [0.9, 0.8, 0.7]])
    assert threshold(scores, step=4, threshold=0.5).tolist() == [12, 4, 12]  # strictly under; none: all tokens
    assert threshold(scores, step=4, threshold=0.51).tolist() == [8, 4, 12]
    assert threshold(scores, step=4, threshold=1).tolist() == [4, 4, 4]
    assert threshold(scores, step=4, threshold=-1).tolist() == [12, 12, 12]


def test_larger_threshold_gives_fewer_tokens():
    scores = np.random.default_rng(4).normal(size=(50, 8))
    counts = np.stack([threshold(scores, step=8, threshold=value) for value in np.linspace(-3, 3, 40)])
    assert (np.diff(counts, axis=0) <= 0).all()
    assert (counts[0] == 64).sum() > (counts[-1] == 64).sum()


def test_fixed():
    assert fixed(table(), step=8, budget=24).tolist() == [[24] * 3] * 4
    assert fixed(table()[:, 0], step=8, budget=64.0).tolist() == [64] * 4
    assert fixed(table(), step=8, budget=28.7).tolist() == [[28] * 3] * 4  # any whole number of leading tokens
    with pytest.raises(ValueError, match="28 and 29"):
        fixed(table(), step=8, budget=28.7, rounding="exact")
    with pytest.raises(ValueError, match="nearest feasible budget is 64"):
        fixed(table(), step=8, budget=72)
    with pytest.raises(ValueError, match="nearest feasible budget is 8"):
        fixed(table(), step=8, budget=0)


@pytest.mark.parametrize(
    "strategy, setting", [(quality, {"price": 0.01}), (threshold, {"threshold": 0.3}), (fixed, {"budget": 16})]
)
def test_blocks_of_padding(strategy, setting):
    scores = table(5)
    full = strategy(scores, step=8, **setting)
    valid = np.random.default_rng(0).random((4, 3)) < 0.5
    scores[~valid] = np.inf
    assert strategy(scores, step=8, valid=valid, **setting).tolist() == np.where(valid, full, 0).tolist()


@pytest.mark.parametrize("price", [-0.1, float("nan"), float("inf"), None, "0.1", [0.1, 0.2]])
def test_bad_price(price):
    with pytest.raises(ValueError, match="`price` must be"):
        quality(table(), step=8, price=price)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "0.1"])
def test_bad_threshold(value):
    with pytest.raises(ValueError, match="`threshold` must be"):
        threshold(table(), step=8, threshold=value)
