import math

import numpy as np
import pytest

from adaptok_hf.allocation import ipal, joint, published_budgets, solve_program


def falling(batch, num_blocks, num_levels, seed=0):
    rng = np.random.default_rng(seed)
    level = np.arange(1, num_levels + 1) / num_levels
    height, rate = (rng.uniform(low, high, (batch, num_blocks, 1)) for low, high in [(0.1, 1), (1, 6)])
    return height * np.exp(-rate * level)


def test_joint_certificate():
    scores = falling(3, 4, 8) + np.random.default_rng(1).normal(0, 0.02, (3, 4, 8))
    allocation = joint(scores, step=16, budget=60)
    assert allocation.token_counts.shape == (3, 4)
    assert allocation.token_counts.sum() == 60 * 12
    assert allocation.mean == 60.0
    chosen = np.take_along_axis(scores, allocation.token_counts[..., None] // 16 - 1, axis=-1)
    assert allocation.objective == math.fsum(chosen.ravel())
    assert allocation.objective - 0.1 < allocation.bound <= allocation.objective
    for solver in ("dynamic", "milp"):
        other = joint(scores, step=16, budget=60, solver=solver)
        assert other.objective == pytest.approx(allocation.objective, rel=0, abs=1e-10)
        assert other.bound <= other.objective


def test_joint_is_no_worse_than_ipal_or_a_table_of_budgets():
    scores = falling(6, 4, 8, seed=2)
    best = joint(scores, step=64, budget=256).objective
    for budget in (256, (448, 256, 192, 128)):
        counts = ipal(scores, step=64, budget=budget)
        assert counts.mean() == 256
        assert np.take_along_axis(scores, counts[..., None] // 64 - 1, axis=-1).sum() > best + 1e-6


def test_only_joint_adapts_to_a_single_clip():
    scores = np.array([[[9.0, 3.0, 1.0, 0.0], [1.0, 0.9, 0.8, 0.7], [1.0, 0.9, 0.8, 0.7]]])
    assert ipal(scores, step=2, budget=4).tolist() == [[4, 4, 4]]
    # With one token step left over after [6, 2, 2] the fall of 1 in block 0 is the steepest.
    assert joint(scores, step=2, budget=4).token_counts.tolist() == [[8, 2, 2]]


def test_ipal_is_one_program_per_position():
    scores = falling(5, 3, 8, seed=3)
    budgets = (32.0, 24, 16)
    counts = ipal(scores, step=8, budget=budgets)
    assert counts.mean(axis=0).tolist() == list(budgets)
    for position, budget in enumerate(budgets):
        alone = ipal(scores[:, position], step=8, budget=budget)
        assert alone.shape == (5,)
        assert alone.tolist() == counts[:, position].tolist()
        levels = solve_program(scores[:, position], int(5 * budget / 8) - 5, "dynamic").levels
        assert ((levels + 1) * 8).tolist() == counts[:, position].tolist()
    assert ipal(scores[:, :1], step=8, budget=[32]).tolist() == counts[:, :1].tolist()


def test_number_is_the_budget_of_every_position():
    scores = falling(4, 3, 8, seed=4)
    assert ipal(scores, step=8, budget=24).tolist() == ipal(scores, step=8, budget=[24, 24, 24]).tolist()


def test_budget_sequence_of_wrong_length():
    with pytest.raises(ValueError, match="2 entries for 3 block positions"):
        ipal(falling(2, 3, 4), step=8, budget=(16, 16))
    with pytest.raises(ValueError, match="one number per block position"):
        ipal(falling(2, 3, 4), step=8, budget="published")
    with pytest.raises(ValueError, match=r"\(16, 16, 16\): strategy 'fixed'"):
        joint(falling(2, 3, 4), step=8, budget=(16, 16, 16))


@pytest.mark.parametrize("batch", [1, 2, 5, 64])
@pytest.mark.parametrize("latents_per_block", [256, 512])
@pytest.mark.parametrize("average", [64, 128, 256])
def test_published_budgets_are_rounded_down(average, latents_per_block, batch):
    step = 64 * latents_per_block // 512
    budgets = published_budgets(average, latents_per_block)
    counts = ipal(falling(batch, 4, 8), step=step, budget=budgets, rounding="floor")
    assert counts.sum(axis=0).tolist() == [step * (batch * budget // step) for budget in budgets]


def test_floor_depends_on_the_batch_size():
    scores = falling(8, 4, 8)
    assert ipal(scores[:1], step=64, budget=456, rounding="floor").tolist() == [[448] * 4]
    assert ipal(scores, step=64, budget=456, rounding="floor").mean(axis=0).tolist() == [456] * 4
    with pytest.raises(ValueError, match="block position 0.*budgets are 448 and 512"):
        ipal(scores[:1], step=64, budget=456, rounding="exact")


def test_error_names_the_block_position():
    with pytest.raises(ValueError, match="block position 2: .*65"):
        ipal(falling(2, 3, 8), step=8, budget=(8, 64, 65))


def test_blocks_of_padding_are_neither_allocated_nor_counted():
    scores = falling(3, 4, 8, seed=5)
    valid = np.array([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
    scores[~valid] = np.nan

    allocation = joint(scores, step=8, budget=40, valid=valid)
    assert (allocation.token_counts[~valid] == 0).all()
    assert (allocation.token_counts[valid] >= 8).all()
    assert allocation.token_counts.sum() == 40 * 7
    assert allocation.mean == 40
    alone = joint(scores[valid], step=8, budget=40)
    assert allocation.token_counts[valid].tolist() == alone.token_counts.tolist()
    assert allocation.objective == alone.objective

    counts = ipal(scores, step=8, budget=(40, 24, 32, 48), valid=valid)
    assert counts.sum(axis=0).tolist() == [3 * 40, 2 * 24, 32, 48]
    assert (counts > 0).tolist() == valid.tolist()
    # 44 needs the two valid blocks of position 1; with three, a third of a step would be over.
    assert ipal(scores, step=8, budget=(40, 44, 32, 48), valid=valid)[:, 1].sum() == 88
    rounded = ipal(scores, step=8, budget=(40, 47, 39, 39), valid=valid, rounding="floor")
    assert rounded.sum(axis=0).tolist() == [120, 88, 32, 32]


def test_nothing_valid():
    scores, valid = np.full((2, 3, 4), np.nan), np.zeros((2, 3), dtype=bool)
    assert ipal(scores, step=8, budget=16, valid=valid).tolist() == [[0] * 3] * 2
    allocation = joint(scores, step=8, budget=16, valid=valid)
    assert allocation.token_counts.tolist() == [[0] * 3] * 2
    assert (allocation.objective, allocation.bound, allocation.mean) == (0, 0, 0)


def test_float32_table_is_summed_in_float64():
    scores = falling(64, 1, 8).astype(np.float32)
    allocation = joint(scores, step=64, budget=256)
    chosen = np.take_along_axis(scores.astype(np.float64), allocation.token_counts[..., None] // 64 - 1, axis=-1)
    assert allocation.objective == math.fsum(chosen.ravel())


def test_table_is_not_changed():
    scores = falling(4, 2, 8)
    before = scores.copy()
    for solver in ("lagrangian", "dynamic", "milp"):
        joint(scores, step=8, budget=36, solver=solver)
    assert (scores == before).all()
