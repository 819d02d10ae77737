"""The table of strategies, `allocate`, requests, and the checks of tables that all strategies share."""

import ast
import inspect
import sys
from pathlib import Path

import numpy as np
import pytest

from adaptok_hf import allocation
from adaptok_hf.allocation import STRATEGIES, AllocationRequest, allocate

SETTINGS = {
    "fixed": {"budget": 32},
    "bithr": {"budget": 32},
    "bidelta": {"budget": 32},
    "ipal": {"budget": 32},
    "joint": {"budget": 32},
    "quality": {"price": 0.004},
    "threshold": {"threshold": 0.3},
    "measured": {"budget": 32},
}
TABLES = [name for name, row in STRATEGIES.items() if row.scores not in ("searched", "routed")]
strategies = pytest.mark.parametrize("strategy", TABLES)


def table(seed=0, shape=(4, 3, 8)):
    return np.sort(np.random.default_rng(seed).uniform(0, 1, shape))[..., ::-1]


def test_every_strategy_is_covered():
    assert set(SETTINGS) == set(TABLES)


@strategies
@pytest.mark.parametrize("shape", [(4, 3, 8), (4, 8), (1, 1, 8), (2, 3, 1)])
def test_same_as_the_function_of_this_name(strategy, shape):
    setting = {"budget": 8} if shape[-1] == 1 and "budget" in SETTINGS[strategy] else SETTINGS[strategy]
    counts = allocate(table(1, shape), strategy=strategy, step=8, **setting)
    direct = getattr(allocation, strategy, allocation.joint)(table(1, shape), step=8, **setting)
    direct = getattr(direct, "token_counts", direct)
    assert counts.dtype == np.int64
    assert counts.shape == shape[:-1]
    assert counts.tolist() == direct.tolist()
    assert (counts % 8 == 0).all() and counts.min() >= 8 and counts.max() <= 8 * shape[-1]


@strategies
def test_deterministic(strategy):
    first, second = (allocate(table(2), strategy=strategy, step=8, **SETTINGS[strategy]) for _ in range(2))
    assert first.tolist() == second.tolist()


@strategies
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite(strategy, value):
    scores = table(3)
    scores[2, 1, 4] = value
    with pytest.raises(ValueError, match=r"NaN or infinity in 1 of 12 valid blocks, first at \(2, 1\)"):
        allocate(scores, strategy=strategy, step=8, **SETTINGS[strategy])
    valid = np.ones((4, 3), dtype=bool)
    valid[2] = False
    counts = allocate(scores, strategy=strategy, step=8, valid=valid, **SETTINGS[strategy])
    assert (counts[2] == 0).all() and (counts[valid] > 0).all()


@strategies
def test_missing_parameter_is_named(strategy):
    (needed,) = SETTINGS[strategy]
    with pytest.raises(ValueError, match=f"'{strategy}'.*`{needed}`"):
        allocate(table(), strategy=strategy, step=8)


@strategies
@pytest.mark.parametrize(
    "extra", [{"budget": 32}, {"price": 0.1}, {"threshold": 0.1}, {"rounding": "floor"}, {"solver": "dynamic"}]
)
def test_parameter_that_is_not_used_is_refused(strategy, extra):
    (name,) = extra
    setting = SETTINGS[strategy]
    if name in setting or name in STRATEGIES[strategy].accepts:
        allocate(table(), strategy=strategy, step=8, **{**setting, **extra})
        return
    with pytest.raises(ValueError, match=f"`{name}`.*`{next(iter(setting))}`"):
        allocate(table(), strategy=strategy, step=8, **setting, **extra)


def test_parameters_and_needs_of_the_strategies():
    rounding = {name for name, row in STRATEGIES.items() if "rounding" in row.accepts}
    assert rounding == {"fixed", "ipal", "joint", "measured", "compared", "search", "router"}
    assert {name for name, row in STRATEGIES.items() if "solver" in row.accepts} == {"ipal", "joint", "measured", "router"}
    assert {name for name, row in STRATEGIES.items() if row.is_streamable} == {"quality", "threshold", "router"}
    without_scorer = {name for name, row in STRATEGIES.items() if row.is_usable(False, True, False)}
    assert without_scorer == {"fixed", "measured", "search", "router"}
    assert {name for name, row in STRATEGIES.items() if not row.is_usable(True, False, True)} == {"router"}
    assert {name for name, row in STRATEGIES.items() if not row.is_usable(True, True, False)} == {"compared"}


def test_search_takes_trees_and_no_table():
    with pytest.raises(ValueError, match="'search'"):
        allocate(table(), strategy="search", step=8, budget=32)
    row = STRATEGIES["search"]
    row.check({"price": 0.1}), row.check({"budget": 8, "loss": "mse"})
    for parameters in ({}, {"loss": "mse"}, {"threshold": 0.1}):
        with pytest.raises(ValueError, match="`budget` or `price`"):
            row.check(parameters)


def test_schedules_are_compared_by_default_where_there_are_some():
    request = AllocationRequest(budget=8)
    assert request.choose_strategy(True, has_schedules=True).name == "compared"
    assert request.choose_strategy(True).name == "joint"
    with pytest.raises(ValueError, match="'compared' needs a scorer with schedules"):
        AllocationRequest(budget=8, strategy="compared").choose_strategy(True)


def test_a_schedule_is_the_same_for_every_clip():
    counts = allocate(table(), strategy="fixed", step=8, budget=(64, 8, 24))
    assert counts.tolist() == [[64, 8, 24]] * 4
    valid = np.array([[True, True, False]] * 4)
    assert allocate(table(), strategy="fixed", step=8, budget=(64, 8, 24), valid=valid).tolist() == [[64, 8, 0]] * 4
    for budget, value in (((64, 8), "2 entries"), ((64, 8, 0.5), "0.5")):
        with pytest.raises(ValueError, match=value):
            allocate(table(), strategy="fixed", step=8, budget=budget)


@pytest.mark.parametrize(
    "request_, with_scorer, without",
    [
        ({}, None, None),
        ({"budget": 8}, "joint", "fixed"),
        ({"budget": "25%", "strategy": "measured"}, "measured", "measured"),
        ({"price": 0.1}, "quality", ValueError),
        ({"threshold": 0.1}, "threshold", ValueError),
        ({"budget": 8, "strategy": "ipal", "rounding": "floor"}, "ipal", ValueError),
        ({"rounding": "floor"}, ValueError, ValueError),
        ({"budget": 8, "price": 0.1}, ValueError, ValueError),
        ({"budget": 8, "strategy": "greedy"}, ValueError, ValueError),
        ({"strategy": "joint"}, ValueError, ValueError),
    ],
)
def test_strategies_that_requests_choose(request_, with_scorer, without):
    for has_scorer, expected in ((True, with_scorer), (False, without)):
        request = AllocationRequest(**request_)
        if expected is ValueError:
            with pytest.raises(ValueError):
                request.choose_strategy(has_scorer)
        else:
            row = request.choose_strategy(has_scorer)
            assert (row and row.name) == expected


def test_percentages_become_tokens():
    assert AllocationRequest(budget="25%", rounding="floor").parameters(64) == {"budget": 16.0, "rounding": "floor"}
    assert AllocationRequest(budget=(1, 2)).parameters(64) == {"budget": (1.0, 2.0)}


def test_rounding_and_budget_per_position_reach_ipal():
    counts = allocate(table(), strategy="ipal", step=8, budget=(33, 32, 17), rounding="floor")
    assert counts.sum(axis=0).tolist() == [128, 128, 64]
    with pytest.raises(ValueError, match="32 and 34"):
        allocate(table(), strategy="ipal", step=8, budget=(33, 32, 17), rounding="exact")


def test_unknown_strategy():
    with pytest.raises(ValueError, match="fixed, bithr.*'greedy'"):
        allocate(table(), strategy="greedy", step=8, budget=32)


@strategies
@pytest.mark.parametrize(
    "scores, problem",
    [
        (np.zeros(8), "got shape"),
        (np.zeros((1, 2, 3, 4)), "got shape"),
        (np.zeros((2, 3, 0)), "at least one level"),
        (np.zeros((2, 8), dtype=bool), "real numbers"),
        (np.zeros((2, 8), dtype=complex), "real numbers"),
        ([["a", "b"]], "real numbers"),
    ],
)
def test_bad_table(strategy, scores, problem):
    with pytest.raises(ValueError, match=problem):
        allocate(scores, strategy=strategy, step=8, **SETTINGS[strategy])


@strategies
@pytest.mark.parametrize("step", [0, -8, 8.0, None, "8"])
def test_bad_step(strategy, step):
    with pytest.raises(ValueError, match="`step` must be"):
        allocate(table(), strategy=strategy, step=step, **SETTINGS[strategy])


@strategies
@pytest.mark.parametrize("valid", [np.ones((4, 3)), np.ones((3, 4), dtype=bool), [True] * 4])
def test_bad_mask(strategy, valid):
    with pytest.raises(ValueError, match=r"`valid` must be bool of shape \(4, 3\)"):
        allocate(table(), strategy=strategy, step=8, valid=valid, **SETTINGS[strategy])


def test_integer_scores_and_lists():
    assert allocate([[3, 1, 0], [9, 2, 1]], strategy="joint", step=4, budget=6).tolist() == [4, 8]


def test_every_public_name_has_a_docstring():
    for name in allocation.__all__:
        if name != "STRATEGIES":
            assert inspect.getdoc(getattr(allocation, name)), name


def test_needs_neither_torch_nor_the_rest_of_the_package():
    modules = list(Path(allocation.__file__).parent.glob("*.py"))
    assert len(modules) > 5
    for module in modules:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and (module.parent / f"{node.module}.py").exists(), module.name
            elif isinstance(node, (ast.Import, ast.ImportFrom)):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                for name in names:
                    root = name.split(".")[0]
                    assert root in {"numpy", "scipy"} or root in sys.stdlib_module_names, module.name
