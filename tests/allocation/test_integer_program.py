"""The three solvers against each other, against enumeration and against the original's recorded instances."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from adaptok_hf.allocation import exact_solvers, ipal, joint, solve_program
from adaptok_hf.allocation.exact_solvers import solve_dynamic, solve_milp
from adaptok_hf.allocation.lagrangian_solver import solve_lagrangian

PARITY = Path(__file__).parents[1] / "assets" / "parity" / "ilp"
TABLES = load_file(PARITY / "scores.safetensors")
INSTANCES = json.loads((PARITY / "instances.json").read_text())["instances"]
FEASIBLE = [instance for instance in INSTANCES if instance["feasible"]]
INFEASIBLE = [instance for instance in INSTANCES if not instance["feasible"]]
KINDS = ("falling", "falling_with_noise", "rough", "plateaus", "ties", "integers", "constant", "two_levels", "offset")


def instance_id(instance):
    return f"{instance['scores']}-{instance['avg_target']}"


def random_table(rng, kind, num_rows, num_levels):
    """A (num_rows, num_levels) table; "falling" is convex in the level, the others are not."""
    level = np.arange(1, num_levels + 1) / num_levels
    height, rate, rest = (rng.uniform(*bounds, (num_rows, 1)) for bounds in [(0.05, 0.6), (1, 6), (0.02, 0.3)])
    falling = rest + height * np.exp(-rate * level)
    if kind == "falling":
        return falling
    if kind == "falling_with_noise":
        return falling + rng.normal(0, 0.004, falling.shape)
    if kind == "rough":
        return rng.normal(0, 1, falling.shape)
    if kind == "plateaus":
        return np.sort(np.ceil(rng.uniform(0, 4, falling.shape)) + 1e-3 * rng.uniform(0, 1, falling.shape))[:, ::-1]
    if kind == "ties":
        return np.repeat(np.round(falling, 2), 2, axis=0)[:num_rows]
    if kind == "integers":
        return rng.integers(-5, 6, falling.shape).astype(float)
    if kind == "constant":
        return np.full(falling.shape, rng.uniform())
    if kind == "two_levels":
        table = np.full(falling.shape, 1.0)
        table[:, -1] = rng.uniform(0, 0.1, num_rows)
        return table
    return falling + rng.uniform(-1e4, 1e4, (num_rows, 1))


def random_instances(count, seed, max_rows, level_choices):
    rng = np.random.default_rng(seed)
    for index in range(count):
        kind = KINDS[index % len(KINDS)]
        num_rows, num_levels = int(rng.integers(1, max_rows + 1)), int(rng.choice(level_choices))
        top = num_rows * (num_levels - 1)
        total = [0, top, 1, top - 1][rng.integers(4)] if rng.random() < 0.1 else int(rng.integers(0, top + 1))
        yield kind, random_table(rng, kind, num_rows, num_levels), min(max(total, 0), top)


def check_solution(scores, total, solution):
    assert solution.levels.dtype == np.int64
    assert solution.levels.shape == (len(scores),)
    assert solution.levels.min() >= 0 and solution.levels.max() < scores.shape[1]
    assert solution.levels.sum() == total
    assert solution.objective == math.fsum(scores[np.arange(len(scores)), solution.levels])
    assert solution.bound <= solution.objective


def round_off(scores):
    return 1e-13 * len(scores) * max(1.0, float(np.abs(scores).max()))


def enumerate_optimum(scores, total):
    num_rows, num_levels = scores.shape
    choices = np.array(list(itertools.product(range(num_levels), repeat=num_rows)))
    choices = choices[choices.sum(axis=1) == total]
    return scores[np.arange(num_rows), choices].sum(axis=1).min()


@pytest.mark.parametrize("solver", ["lagrangian", "dynamic", "milp"])
@pytest.mark.parametrize("instance", FEASIBLE, ids=instance_id)
def test_original_instances(instance, solver):
    scores, step = TABLES[instance["scores"]], instance["step"]
    counts = ipal(scores, step=step, budget=instance["avg_target"], rounding="floor", solver=solver)
    assert counts.sum() == instance["total_tokens"] == step * (instance["index_sum_target"] + instance["n"])
    objective = math.fsum(scores[np.arange(len(scores)), counts // step - 1].astype(np.float64))
    assert objective == pytest.approx(instance["exact_optimum"], rel=0, abs=1e-9)
    if instance["unique_optimum"] and instance["gap_to_exact"] == 0:
        assert counts.tolist() == instance["counts"]


@pytest.mark.parametrize("rounding", ["exact", "floor"])
@pytest.mark.parametrize("instance", INFEASIBLE, ids=instance_id)
def test_original_infeasible_instances_are_refused(instance, rounding):
    with pytest.raises(ValueError, match="nearest feasible"):
        joint(TABLES[instance["scores"]], step=instance["step"], budget=instance["avg_target"], rounding=rounding)


def test_solvers_equal_enumeration():
    for _, scores, total in random_instances(300, seed=0, max_rows=5, level_choices=[1, 2, 3, 5]):
        optimum = enumerate_optimum(scores, total)
        for solver in ("lagrangian", "dynamic"):
            solution = solve_program(scores, total, solver)
            check_solution(scores, total, solution)
            assert solution.objective == pytest.approx(optimum, rel=0, abs=round_off(scores))


@pytest.mark.parametrize("num_levels", [1, 2, 3, 8, 16])
def test_certified_equals_dynamic(num_levels):
    for kind, scores, total in random_instances(630, seed=num_levels, max_rows=64, level_choices=[num_levels]):
        lagrangian, dynamic = solve_program(scores, total, "lagrangian"), solve_program(scores, total, "dynamic")
        check_solution(scores, total, lagrangian)
        check_solution(scores, total, dynamic)
        if kind in ("integers", "constant"):
            assert lagrangian.objective == dynamic.objective
        else:
            assert lagrangian.objective == pytest.approx(dynamic.objective, rel=0, abs=round_off(scores))


@pytest.mark.parametrize("num_levels", [64, 130])
def test_certified_equals_dynamic_with_many_levels(num_levels):
    for _, scores, total in random_instances(54, seed=num_levels, max_rows=40, level_choices=[num_levels]):
        lagrangian, dynamic = solve_program(scores, total, "lagrangian"), solve_program(scores, total, "dynamic")
        check_solution(scores, total, lagrangian)
        assert lagrangian.objective == pytest.approx(dynamic.objective, rel=0, abs=round_off(scores))


def test_certified_equals_milp():
    for _, scores, total in random_instances(270, seed=7, max_rows=16, level_choices=[2, 4, 8]):
        lagrangian, milp = solve_program(scores, total, "lagrangian"), solve_program(scores, total, "milp")
        check_solution(scores, total, milp)
        spread = float(np.ptp(scores, axis=1).max())
        assert lagrangian.objective == pytest.approx(milp.objective, rel=0, abs=round_off(scores) + 1e-10 * spread)


def test_milp_bound():
    """The bound itself, before it is cut off at the objective."""
    for _, scores, total in random_instances(36, seed=8, max_rows=16, level_choices=[4, 8]):
        costs = scores - scores.min(axis=1, keepdims=True)
        levels, bound = solve_milp(costs, total)
        optimum = costs[np.arange(len(costs)), levels].sum()
        assert bound == pytest.approx(optimum, rel=0, abs=round_off(costs) + 1e-9 * costs.max())


def test_lagrangian_bound_is_valid_and_tight():
    """The bound itself, before it is cut off at the objective."""
    loose = 0
    for kind, scores, total in random_instances(450, seed=3, max_rows=32, level_choices=[2, 8, 16]):
        costs = scores - scores.min(axis=1, keepdims=True)
        _, bound = solve_lagrangian(costs, total)
        optimum = costs[np.arange(len(costs)), solve_dynamic(costs, total)].sum()
        assert bound <= optimum + round_off(costs)
        if kind in ("falling", "offset", "constant"):
            assert bound == pytest.approx(optimum, rel=0, abs=1e-11 * len(costs))
        loose += bound < optimum - 1e-6
    assert loose > 50  # so the gap was really closed by enumeration


def test_optimum_between_almost_equal_choices():
    """Differences far below the range of the scores decide, which a coarse tolerance would lose."""
    rng = np.random.default_rng(11)
    for _ in range(200):
        scores = 1e-11 * rng.uniform(0, 1, (12, 8))
        scores[0] = [0.0, *[1.0] * 7]
        total = int(rng.integers(0, 78))
        lagrangian, dynamic = solve_program(scores, total, "lagrangian"), solve_program(scores, total, "dynamic")
        assert lagrangian.objective == pytest.approx(dynamic.objective, rel=0, abs=1e-15)


@pytest.mark.parametrize("solver", ["lagrangian", "dynamic", "milp"])
def test_deterministic(solver):
    scores = random_table(np.random.default_rng(5), "ties", 24, 8)
    first = solve_program(scores.copy(), 80, solver)
    second = solve_program(np.asfortranarray(scores), 80, solver)
    assert first.levels.tolist() == second.levels.tolist()


def test_dynamic_prefers_few_tokens_late():
    assert solve_dynamic(np.zeros((3, 4)), 4).tolist() == [3, 1, 0]


def test_dynamic_skips_closed_levels():
    costs = np.array([[0.0, np.inf, 5.0], [np.inf, 0.0, 1.0]])
    assert solve_dynamic(costs, 3).tolist() == [2, 1]
    assert solve_dynamic(costs, 2).tolist() == [0, 2]
    with pytest.raises(RuntimeError, match="sums to 5"):
        solve_dynamic(costs, 5)
    with pytest.raises(RuntimeError, match="sums to 1"):
        solve_dynamic(np.array([[0.0, np.inf, 0.0]]), 1)


def test_milp_without_optimum_is_an_error(monkeypatch):
    def gives_up(*args, **kwargs):
        kwargs["options"] = {**kwargs["options"], "time_limit": 0.0, "presolve": False}
        return original(*args, **kwargs)

    original = exact_solvers.milp
    monkeypatch.setattr(exact_solvers, "milp", gives_up)
    scores = random_table(np.random.default_rng(0), "rough", 64, 16)
    with pytest.raises(RuntimeError, match="HiGHS"):
        solve_program(scores, 400, "milp")


def test_bad_arguments():
    with pytest.raises(ValueError, match="`total` must be from 0 to 6"):
        solve_program(np.zeros((2, 4)), 7)
    with pytest.raises(ValueError, match="`solver` must be"):
        solve_program(np.zeros((2, 4)), 3, "simplex")
