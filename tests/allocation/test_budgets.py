import json
import re
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

from adaptok_hf.allocation import STRATEGIES, AllocationRequest, allocate, published_budgets
from adaptok_hf.allocation.budgets import level_total
from adaptok_hf.checkpoints import PACKAGED_CHECKPOINTS, find_checkpoint

TABLES = [name for name, row in STRATEGIES.items() if row.needs == "budget" and row.scores not in ("searched", "routed")]


def nearest_in(message):
    """The feasible budgets that an error message names."""
    named = re.search(r"nearest feasible budgets? (?:is|are) (\S+)(?: and (\S+))? tokens per block", message)
    return [float(budget) for budget in named.groups() if budget is not None]


def test_total():
    assert level_total(256, num_blocks=64, num_levels=8, step=64) == 64 * 3
    assert level_total(64, num_blocks=5, num_levels=8, step=64) == 0
    assert level_total(512, num_blocks=5, num_levels=8, step=64, rounding="exact") == 35
    assert level_total(96, num_blocks=2, num_levels=8, step=64) == 1
    assert level_total(np.float32(96), num_blocks=2, num_levels=8, step=64) == 1


def test_floor_total_is_the_original_rule():
    for num_blocks in (1, 3, 8, 64):
        for budget in (64, 65, 127, 257, 284, 456, 511, 512):
            expected = (num_blocks * budget) // 64 - num_blocks
            for rounding in (None, "floor"):
                assert level_total(budget, num_blocks=num_blocks, num_levels=8, step=64, rounding=rounding) == expected


@pytest.mark.parametrize("rounding", ["exact", "floor"])
def test_budget_without_exact_float_is_met(rounding):
    """1024 / 3, 64 / 7 and the like are feasible means, although no float equals them."""
    for num_blocks in (3, 7, 49, 1001):
        for steps in range(num_blocks, 8 * num_blocks + 1, 5):
            budget = steps * 64 / num_blocks
            total = level_total(budget, num_blocks=num_blocks, num_levels=8, step=64, rounding=rounding)
            assert total == steps - num_blocks


@pytest.mark.parametrize("num_blocks", [1, 3, 7, 128])
@pytest.mark.parametrize("budget", [-64, 0, 32, 63.9, 64.1, 100.123, 256.7, 511.9, 512.1, 600, 1e9])
def test_exact_rounding_names_the_nearest_feasible_budgets(num_blocks, budget):
    with pytest.raises(ValueError, match=re.escape(f"budget of {budget} ")) as refusal:
        level_total(budget, num_blocks=num_blocks, num_levels=8, step=64, rounding="exact")
    nearest = nearest_in(str(refusal.value))
    totals = [level_total(near, num_blocks=num_blocks, num_levels=8, step=64) for near in nearest]
    if 64 < budget < 512:
        below, above = nearest
        assert below < budget < above
        assert totals[1] == totals[0] + 1  # so nothing feasible lies between them
    else:
        assert nearest == [64 if budget < 64 else 512]
        assert totals == [0 if budget < 64 else 7 * num_blocks]


def test_floor_refuses_what_it_cannot_reach():
    for budget, nearest in ((63.9, 64), (-64, 64), (576, 512)):
        with pytest.raises(ValueError) as refusal:
            level_total(budget, num_blocks=2, num_levels=8, step=64, rounding="floor")
        assert nearest_in(str(refusal.value)) == [nearest]


def test_almost_on_the_grid_is_off_the_grid():
    with pytest.raises(ValueError, match="budgets are 256 and 256.064"):
        level_total(256 + 1e-6, num_blocks=1000, num_levels=8, step=64, rounding="exact")


@pytest.mark.parametrize("budget", [None, "256", True, float("nan"), float("inf"), [256], 1j])
def test_budget_must_be_a_number(budget):
    with pytest.raises(ValueError, match="finite number of tokens per block"):
        level_total(budget, num_blocks=4, num_levels=8, step=64)


def test_fraction_and_rounding_name():
    assert level_total(Fraction(1024, 3), num_blocks=3, num_levels=8, step=64, rounding="exact") == 13
    with pytest.raises(ValueError, match="'nearest'"):
        level_total(256, num_blocks=4, num_levels=8, step=64, rounding="nearest")


# Blocks of each clip that hold frames: a whole clip, one block, a partial last clip, several videos, nothing at the end.
BLOCKS = {
    "one clip": [4],
    "one block": [1],
    "33 frames": [4, 4, 1],
    "three videos": [4, 4, 2, 1, 4, 3],
}


@pytest.mark.parametrize("blocks", BLOCKS)
@pytest.mark.parametrize("strategy", TABLES)
@pytest.mark.parametrize("checkpoint", PACKAGED_CHECKPOINTS)
def test_every_budget_works(checkpoint, strategy, blocks):
    """From one level to all tokens; as much is spent as these blocks can, and no more."""
    config = json.loads((Path(find_checkpoint(checkpoint)) / "scorer" / "config.json").read_text())
    step, most = config["score_step"], config["latents_per_block"]
    valid = np.arange(4) < np.array(BLOCKS[blocks])[:, None]
    scores = -np.sort(-np.random.default_rng(0).random((*valid.shape, most // step)), axis=-1)
    percentages = [f"{share}%" for share in (100 * step / most, 10, 12.5, 20, 30, 33.3, 100)]
    for budget in (*range(step, most + 1, most // 64 + 1), step + 0.1, most - 0.1, 100 / 3, *percentages):
        tokens = AllocationRequest(budget=budget).parameters(most)["budget"]
        counts = allocate(scores, strategy=strategy, step=step, valid=valid, budget=tokens)
        assert ((counts >= step) == valid).all() and (counts <= most).all()
        asked, spent = tokens * valid.sum(), counts.sum()
        assert spent <= asked + 1e-9, budget
        if strategy in ("joint", "measured"):
            assert spent > asked - step
        elif strategy == "ipal":  # one program per position
            assert spent > asked - step * valid.any(axis=0).sum()
        elif strategy == "fixed":
            assert set(counts[valid].tolist()) == {int(tokens + 1e-9)}


@pytest.mark.parametrize("strategy", TABLES)
def test_budgets_that_no_block_can_spend(strategy):
    for budget, nearest in ((7.9, 8), (0, 8), (64.1, 64)):
        with pytest.raises(ValueError, match=rf"\b{nearest}\b.*tokens|from 8 to 64"):
            allocate(np.zeros((2, 3, 8)), strategy=strategy, step=8, budget=budget)


def test_budgets_per_position():
    scores = np.zeros((3, 4, 8))
    counts = allocate(scores, strategy="ipal", step=8, budget=(9.5, 33, 40, 63.9))
    assert counts.sum(axis=0).tolist() == [24, 96, 120, 184]
    assert allocate(scores, strategy="fixed", step=8, budget=(9.5, 33, 40, 63.9)).tolist() == [[9, 33, 40, 63]] * 3


def test_published_budgets():
    assert published_budgets(256) == (456, 242, 172, 150)
    assert published_budgets(128) == (284, 80, 72, 72)
    assert published_budgets(128, latents_per_block=256) == (228, 121, 86, 75)
    assert published_budgets(512) == (512, 512, 512, 512)
    for average in range(64, 513, 64):
        halved = published_budgets(average // 2, latents_per_block=256)
        assert tuple(2 * budget for budget in halved) == published_budgets(average)
    # The table's own means are close to, but not all at, the nominal average.
    assert sum(published_budgets(320)) == 4 * 319
    with pytest.raises(ValueError, match="average of 100, only for 64, 128"):
        published_budgets(100)
    with pytest.raises(ValueError, match="512 and 256 latents per block, not 64"):
        published_budgets(32, latents_per_block=64)
