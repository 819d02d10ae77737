import numpy as np
import pytest

from adaptok_hf.allocation import quality
from adaptok_hf.allocation.rate_control import RateController


def tables(kind: str, num_blocks: int, num_levels: int, seed: int = 0) -> np.ndarray:
    """(num_blocks, num_levels): falling scores whose steepness drifts, jumps or alternates; noise; or all equal."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, num_levels + 1) / num_levels
    height = {
        "drift": np.linspace(0.02, 2, num_blocks),
        "jump": np.where(np.arange(num_blocks) < num_blocks // 2, 0.01, 1.0),
        "alternate": np.where(np.arange(num_blocks) // 7 % 2, 0.05, 0.5),
    }.get(kind)
    if height is None:
        return rng.normal(size=(num_blocks, num_levels)) if kind == "noise" else np.zeros((num_blocks, num_levels))
    return height[:, None] * np.exp(-3 * share) + rng.normal(0, 1e-3, (num_blocks, num_levels))


@pytest.mark.parametrize("kind", ["drift", "jump", "alternate", "noise", "flat"])
@pytest.mark.parametrize("target", [64, 100, 256, 500, 512])
@pytest.mark.parametrize("reservoir", [1, 8])
def test_the_deviation_is_bounded_after_every_block(kind, target, reservoir):
    controller = RateController(target, step=64, num_levels=8, window=16, reservoir=reservoir)
    spent = 0
    for number, scores in enumerate(tables(kind, 400, 8), 1):
        spent += controller.choose(scores)
        assert controller.deviation == spent - number * target
        assert abs(controller.deviation) <= reservoir * target + 1e-9
    assert abs(spent / 400 - target) <= reservoir * target / 400 + 1e-9


@pytest.mark.parametrize("kind", ["drift", "jump", "alternate"])
def test_the_average_is_met_closely(kind):
    """Far inside the bound, and with counts that follow the content."""
    controller = RateController(200, step=64, num_levels=8)
    counts = np.array([controller.choose(scores) for scores in tables(kind, 1000, 8)])
    assert counts.mean() == pytest.approx(200, rel=0.01)
    assert len(np.unique(counts)) > 3


def test_difficult_blocks_get_more():
    scores = tables("alternate", 700, 8)
    controller = RateController(256, step=64, num_levels=8, window=28)
    counts = np.array([controller.choose(row) for row in scores])
    hard = scores[:, 0] > scores[:, 0].mean()
    assert counts[hard].mean() > counts[~hard].mean() + 64


def test_a_window_that_meets_the_target_is_quality_at_its_price():
    """No deviation yet: the price is the lowest at which the blocks seen spend at most the target."""
    scores = tables("drift", 1, 8)
    controller = RateController(256, step=64, num_levels=8)
    count = controller.choose(scores[0])
    assert count == int(quality(scores, step=64, price=controller.price)[0]) <= 256
    assert int(quality(scores, step=64, price=controller.price * (1 - 1e-9))[0]) > 256


def test_a_price_of_zero_where_tokens_are_plenty():
    controller = RateController(512, step=64, num_levels=8)
    assert controller.choose(tables("drift", 1, 8)[0]) >= 448 and controller.price == 0


def test_the_past_decides_not_the_future():
    scores = tables("noise", 60, 8)
    a, b = (RateController(256, step=64, num_levels=8) for _ in range(2))
    changed = scores.copy()
    changed[40:] = tables("drift", 20, 8)
    counts = [[c.choose(row) for row in table] for c, table in ((a, scores), (b, changed))]
    assert counts[0][:40] == counts[1][:40] and counts[0] != counts[1]


def test_memory_is_the_window():
    controller = RateController(256, step=64, num_levels=8, window=5)
    for row in tables("noise", 50, 8):
        controller.choose(row)
    assert len(controller._tables) == 5 and controller.num_blocks == 50


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": 63}, "between 64 and 512 tokens .* got 63"),
        ({"target": 513}, "between 64 and 512 tokens .* got 513"),
        ({"target": float("nan")}, "got nan"),
        ({"window": 0}, "window .* got 0"),
        ({"window": 1.5}, "window .* got 1.5"),
        ({"reservoir": 0.9}, "reservoir .* got 0.9"),
        ({"step": 0}, "step"),
    ],
)
def test_impossible_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        RateController(**{"target": 256, "step": 64, "num_levels": 8} | settings)


def test_bad_tables_are_named():
    controller = RateController(256, step=64, num_levels=8)
    with pytest.raises(ValueError, match="scores of 8 levels"):
        controller.choose(np.zeros(7))
    with pytest.raises(ValueError, match="NaN"):
        controller.choose(np.full(8, np.nan))
    assert controller.num_blocks == 0
