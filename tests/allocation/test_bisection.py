import numpy as np
import pytest

from adaptok_hf.allocation import bidelta, bithr
from adaptok_hf.allocation.tables import first_level_below


def curves(seed=0, shape=(6, 4, 8)):
    rng = np.random.default_rng(seed)
    level = np.arange(1, shape[-1] + 1) / shape[-1]
    height, rate = (rng.uniform(low, high, (*shape[:-1], 1)) for low, high in [(0.1, 1), (1, 6)])
    return height * np.exp(-rate * level)


def at_threshold(strategy, scores, threshold, step):
    """Algorithm 1's inner line, written as a loop."""
    counts = np.zeros(scores.shape[:-1], dtype=np.int64)
    for block in np.ndindex(counts.shape):
        row = scores[block]
        values = row if strategy is bithr else row[:-1] - row[1:]
        below = [level for level, value in enumerate(values) if value < threshold]
        counts[block] = step * (below[0] + 1 if below else len(row))
    return counts


@pytest.mark.parametrize("strategy", [bithr, bidelta])
@pytest.mark.parametrize("budget", [8, 11.3, 20, 32, 50.5, 64])
def test_reaches_the_budget_from_below(strategy, budget):
    scores = curves()
    found = strategy(scores, step=8, budget=budget)
    assert found.mean == found.token_counts.mean() <= budget
    # Scores without ties change one block at a time, so the mean comes within one block's range of the budget.
    assert found.mean > budget - 64 / 24
    assert (found.token_counts == at_threshold(strategy, scores, found.threshold, 8)).all()


@pytest.mark.parametrize("strategy", [bithr, bidelta])
def test_a_slightly_smaller_threshold_would_be_over_the_budget(strategy):
    scores = curves(1)
    found = strategy(scores, step=8, budget=30)
    assert at_threshold(strategy, scores, np.nextafter(found.threshold, -np.inf), 8).mean() > 30


@pytest.mark.parametrize("strategy", [bithr, bidelta])
def test_larger_budget_smaller_threshold_more_tokens(strategy):
    scores = curves(2)
    found = [strategy(scores, step=8, budget=budget) for budget in range(8, 65, 4)]
    counts = np.stack([result.token_counts for result in found])
    assert (np.diff(counts, axis=0) >= 0).all()
    assert (np.diff([result.threshold for result in found]) <= 0).all()
    assert found[0].token_counts.tolist() == [[8] * 4] * 6
    assert found[-1].token_counts.tolist() == [[64] * 4] * 6


def test_larger_threshold_gives_fewer_tokens():
    values = np.random.default_rng(3).normal(size=(40, 8))
    levels = np.stack([first_level_below(values, threshold, 8) for threshold in np.linspace(-3, 3, 50)])
    assert (np.diff(levels, axis=0) <= 0).all()
    assert levels[0].max() == 7 and levels[-1].min() == 0


@pytest.mark.parametrize("strategy", [bithr, bidelta])
def test_block_that_is_never_below_keeps_all_tokens(strategy):
    """The trap of an arg-max over a row of falses, which would give index 0: the fewest tokens to the worst block."""
    hard = 10.0 - np.arange(4.0)  # never low, and every step gains 1
    easy = np.array([0.4, 0.3, 0.25, 0.225])
    scores = np.stack([hard, easy, easy, easy])
    found = strategy(scores, step=4, budget=7)
    assert found.token_counts.tolist() == [16, 4, 4, 4]
    assert found.mean == 7


@pytest.mark.parametrize("strategy", [bithr, bidelta])
def test_constant_scores_do_not_pass_the_budget(strategy):
    found = strategy(np.full((3, 4), 0.5), step=4, budget=10)
    assert found.token_counts.tolist() == [4, 4, 4]
    assert found.mean == 4.0
    assert strategy(np.full((3, 4), 0.5), step=4, budget=16).mean == 16.0


@pytest.mark.parametrize("strategy", [bithr, bidelta])
def test_one_level(strategy):
    found = strategy(np.array([[0.3], [0.1]]), step=4, budget=4)
    assert found.token_counts.tolist() == [4, 4]


def test_one_threshold_per_table():
    """A table of whole clips shares one threshold, a table of one block position has its own."""
    scores = curves(4, (5, 2, 8))
    scores[:, 1] *= 0.1
    whole = bithr(scores, step=8, budget=32)
    assert whole.token_counts[:, 0].mean() > whole.token_counts[:, 1].mean() + 8
    alone = bithr(scores[:, 1], step=8, budget=32)
    assert alone.token_counts.shape == (5,)
    assert alone.mean > whole.token_counts[:, 1].mean()


@pytest.mark.parametrize("strategy", [bithr, bidelta])
def test_blocks_of_padding(strategy):
    scores = curves(5)
    valid = np.random.default_rng(0).random((6, 4)) < 0.6
    scores[~valid] = np.nan
    found = strategy(scores, step=8, budget=30, valid=valid)
    alone = strategy(scores[valid], step=8, budget=30)
    assert found.token_counts[valid].tolist() == alone.token_counts.tolist()
    assert (found.token_counts[~valid] == 0).all()
    assert (found.mean, found.threshold) == (alone.mean, alone.threshold)
    nothing = strategy(scores, step=8, budget=30, valid=np.zeros_like(valid))
    assert nothing.token_counts.sum() == nothing.mean == 0.0


@pytest.mark.parametrize("strategy", [bithr, bidelta])
@pytest.mark.parametrize("budget", [7.9, 65, float("nan"), None, "30"])
def test_budget_outside_the_levels(strategy, budget):
    with pytest.raises(ValueError, match="from 8 to 64"):
        strategy(curves(), step=8, budget=budget)


@pytest.mark.parametrize("strategy", [bithr, bidelta])
def test_few_iterations_are_still_within_the_budget(strategy):
    coarse = strategy(curves(6), step=8, budget=30, num_iterations=1)
    assert coarse.mean <= strategy(curves(6), step=8, budget=30).mean <= 30
    with pytest.raises(ValueError, match="num_iterations"):
        strategy(curves(6), step=8, budget=30, num_iterations=0)
