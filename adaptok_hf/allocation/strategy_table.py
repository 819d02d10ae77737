"""The table of strategies, and one entry for callers that take a strategy's name from a user."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .beam_search import compare, search
from .bisection import bidelta, bithr
from .budgets import Rounding, is_finite_number, tokens_per_block
from .integer_program import Solver
from .routing import route
from .strategies import fixed, ipal, joint, quality, threshold

AMOUNTS = ("budget", "price", "threshold")


@dataclass(frozen=True)
class Strategy:
    """One row of [`STRATEGIES`].

    Attributes:
        name: what users write.
        function: table of scores -> token counts, or an object with `token_counts` and `certificate`.
        needs: the parameter that it cannot do without: `"budget"`, `"price"` or `"threshold"`.
        accepts: parameters that it may have; another of the three then does in place of the one needed.
        scores: where its table comes from: `"none"` (only the shape matters), `"predicted"` by a scorer, or `"measured"`
            by decoding. `"searched"`: its function takes an [`AssignmentTree`] of each clip in place of a table.
            `"routed"`: a table at several prices by a router, which looks at the pixels. A router that was trained at one
            price needs no amount.
        order: `"clip"`: one table of whole clips; `"block"`: one block position after another, each scored with the token
            counts chosen before.
        shares_budget: whether the counts of a clip depend on the clips that are allocated with it.
        source: where it is from.
        summary: what it does, in one line.
    """

    name: str
    function: Callable[..., Any]
    needs: Literal["budget", "price", "threshold"]
    accepts: tuple[str, ...]
    scores: Literal["none", "predicted", "measured", "searched", "routed"]
    order: Literal["clip", "block"]
    shares_budget: bool
    source: str
    summary: str

    @property
    def needs_scorer(self) -> bool:
        return self.scores == "predicted" or self.needs_schedules

    @property
    def needs_schedules(self) -> bool:
        """Whether it chooses among those that a scorer carries, see `AdapTokScorerConfig.schedules`."""
        return self.function is compare

    @property
    def needs_router(self) -> bool:
        return self.scores == "routed"

    @property
    def decides_first(self) -> bool:
        """Whether it can decide before anything is encoded: for a tokenizer that needs token counts to encode."""
        return self.scores in ("none", "searched", "routed") and not self.needs_schedules

    def missing(self, has_scorer: bool, has_router: bool, has_schedules: bool) -> str | None:
        """Return what a pipeline that has these lacks to run it; `None` if it can."""
        if self.needs_schedules:
            return None if has_scorer and has_schedules else "scorer with schedules"
        if self.needs_scorer and not has_scorer:
            return "scorer"
        return "router" if self.needs_router and not has_router else None

    def is_usable(self, has_scorer: bool, has_router: bool, has_schedules: bool) -> bool:
        """Return whether a pipeline that has these can run it."""
        return self.missing(has_scorer, has_router, has_schedules) is None

    @property
    def is_streamable(self) -> bool:
        """Whether it decides, or can decide, block after block, each clip alone."""
        return self.needs_router or (self.order == "block" and not self.shares_budget)

    @property
    def amounts(self) -> tuple[str, ...]:
        """Which of budget, price and threshold it can be given; one of them."""
        return (self.needs, *(name for name in self.accepts if name in AMOUNTS))

    def check(self, parameters: dict[str, Any]) -> None:
        """Raise `ValueError` for a parameter that is missing or that this strategy does not use."""
        unused = [f"`{name}`" for name in parameters if name not in (self.needs, *self.accepts)]
        if unused or not (self.needs_router or any(name in parameters for name in self.amounts)):
            needs = " or ".join(f"`{name}`" for name in self.amounts)
            problem = f"does not use {', '.join(unused)}" if unused else f"got no {needs}"
            options = [f"`{name}`" for name in self.accepts if name not in self.amounts]
            also = f" and may have {' and '.join(options)}" if options else ""
            raise ValueError(f"strategy {self.name!r} {problem}: it needs {needs}{also}")
        if "rounding" in parameters and "budget" not in parameters:
            raise ValueError(f"rounding={parameters['rounding']!r} is of a budget, and strategy {self.name!r} got none")

    def allocate(self, scores: ArrayLike, **arguments) -> tuple[NDArray[np.int64], dict[str, float]]:
        """Return the token counts, and what proves or explains them (empty for most strategies)."""
        result = self.function(scores, **arguments)
        return (result, {}) if isinstance(result, np.ndarray) else (result.token_counts, result.certificate)


# name, function, needs, accepts, scores, order, shares_budget, source, summary
STRATEGIES: dict[str, Strategy] = {
    row[0]: Strategy(*row)
    for row in (
        ("fixed", fixed, "budget", ("rounding",), "none", "clip", False, "paper",
         "the same count for every block, or a schedule: one count per block position"),
        ("bithr", bithr, "budget", (), "predicted", "block", True, "paper",
         "the fewest tokens under one score that all blocks share, found by bisection"),
        ("bidelta", bidelta, "budget", (), "predicted", "block", True, "paper",
         "stops where one more step gains less than one amount that all blocks share, found by bisection"),
        ("ipal", ipal, "budget", ("rounding", "solver"), "predicted", "block", True, "paper",
         "one integer program per block position over the clips; with one clip nothing adapts"),
        ("joint", joint, "budget", ("rounding", "solver"), "predicted", "clip", True, "ours",
         "one integer program over all clips and blocks, with a certificate"),
        ("quality", quality, "price", (), "predicted", "block", False, "ours",
         "the lowest score + price * tokens of each block, as the CRF of a video codec"),
        ("threshold", threshold, "threshold", (), "predicted", "block", False, "ElasticTok",
         "the fewest tokens whose score is under a threshold"),
        ("measured", joint, "budget", ("rounding", "solver"), "measured", "clip", True, "ours",
         "joint on losses that are measured by decoding at up to 40 levels; needs no scorer"),
        ("compared", compare, "budget", ("rounding", "loss"), "searched", "clip", True, "ours",
         "the best of a few schedules for each clip, by decoding it with each; they come with the scorer"),
        ("search", search, "budget", ("price", "rounding", "loss"), "searched", "clip", True, "ours",
         "the best counts of whole clips by losses that are measured by decoding; slow, and the best there is"),
        ("router", route, "budget", ("price", "rounding", "solver"), "routed", "clip", True, "EVATok",
         "what a router finds most probable from the pixels alone, at a price or with joint on a budget"),
    )
}  # fmt: skip


@dataclass(frozen=True)
class AllocationRequest:
    """How many tokens to spend, and by which strategy.

    Args:
        budget: AVERAGE tokens per block over everything allocated together, or a percentage of `latents_per_block` such as
            `"25%"`; for `fixed` and `ipal` also one number per block position.
        price: score per token that a token must save to be kept.
        threshold: score that each block must undercut.
        strategy: a name of [`STRATEGIES`]. Default: `quality` with a price, `threshold` with a threshold, else `compared`
            if the scorer carries schedules, `joint` if it does not, or `fixed` without a scorer.
        rounding: of a budget that is off the grid of levels: `"floor"` (the default) spends the most that does not exceed
            it, `"exact"` raises `ValueError`.
        loss: of `compared` and `search`: `"mse"`, `"rmse"`, `"psnr"`, or a callable such as LPIPS, see
            [`assignment_trees`].

    Without budget, price and threshold all tokens are kept. Raises `ValueError` for NaN, infinity and what is not a number.
    """

    budget: float | str | Sequence[float] | None = None
    price: float | None = None
    threshold: float | None = None
    strategy: str | None = None
    rounding: Rounding | None = None
    loss: str | Callable | None = None

    def __post_init__(self):
        tokens_per_block(self.budget, 1)  # raises for what is not a finite number
        for name in ("price", "threshold"):
            value = getattr(self, name)
            if value is not None and not is_finite_number(value):
                raise ValueError(f"`{name}` must be a finite number, got {value!r}")

    def choose_strategy(self, has_scorer: bool, has_router: bool = False, has_schedules: bool = False) -> Strategy | None:
        """Return the strategy, or `None` for keeping all tokens.

        Args:
            has_scorer, has_router, has_schedules: what the pipeline has.

        Raises:
            ValueError: for an unknown strategy, parameters that do not go together, or a strategy that needs a scorer or a
                router where there is none.
        """
        given = self.parameters(1)
        amounts = [name for name in AMOUNTS if name in given]
        if len(amounts) > 1:
            raise ValueError(f"give only one of budget, price and threshold, got {', '.join(amounts)}")
        name = self.strategy
        if name is None:
            by_budget = "compared" if has_schedules else "joint" if has_scorer else "fixed"
            defaults = {"price": "quality", "threshold": "threshold", "budget": by_budget}
            name = next((strategy for parameter, strategy in defaults.items() if parameter in given), None)
            if name is None and given:
                raise ValueError(f"{', '.join(given)} was given without a budget, price or threshold")
            if name is None:
                return None
        strategy = _strategy(name)
        available = has_scorer, has_router, has_schedules
        if missing := strategy.missing(*available):
            usable = ", ".join(row.name for row in STRATEGIES.values() if row.is_usable(*available))
            raise ValueError(f"strategy {name!r} needs a {missing}, and there is none; without, there are {usable}")
        strategy.check(given)
        return strategy

    def parameters(self, latents_per_block: int) -> dict[str, Any]:
        """Return what a strategy's function takes; a percentage becomes a number of tokens."""
        values = {"budget": tokens_per_block(self.budget, latents_per_block), "price": self.price}
        values |= {"threshold": self.threshold, "rounding": self.rounding, "loss": self.loss}
        return {name: value for name, value in values.items() if value is not None}


def allocate(
    scores: ArrayLike,
    *,
    strategy: str,
    step: int,
    budget: float | Sequence[float] | None = None,
    price: float | None = None,
    threshold: float | None = None,
    rounding: Rounding | None = None,
    valid: ArrayLike | None = None,
    solver: Solver | None = None,
) -> NDArray[np.int64]:
    """Turn scores into token counts by the strategy of this name.

    Args:
        scores: (batch, K, J), or (batch, J) for one block position; lower is better, level `j` keeps
            `(j + 1) * step` latents.
        strategy: a name of [`STRATEGIES`], whose rows say what each needs and may have.
        step: tokens between two levels.
        budget: AVERAGE tokens per valid block over everything allocated together, from `step` to `J * step`.
        price: score per token, at least 0.
        threshold: score that each block's reconstruction must undercut.
        rounding: of a budget that is off the grid of levels: `"floor"` (the default) spends the most that does not exceed
            it, `"exact"` raises `ValueError`.
        valid: booleans of the shape of `scores` without the last axis; false for blocks that are only padding. They
            get 0 tokens and do not count in the budget.
        solver: `"lagrangian"` (the default), `"dynamic"` or `"milp"`.

    Returns:
        Token counts, int64, of the shape of `scores` without the last axis.

    Raises:
        ValueError: unknown strategy, a parameter that is missing or that the strategy does not use, a bad table, or a
            budget that cannot be met.
    """
    given = {"budget": budget, "price": price, "threshold": threshold, "rounding": rounding, "solver": solver}
    given = {name: value for name, value in given.items() if value is not None}
    row = _strategy(strategy)
    row.check(given)
    if row.scores in ("searched", "routed"):
        raise ValueError(f"strategy {strategy!r} takes no table of scores: use the pipeline or `{row.function.__name__}`")
    return row.allocate(scores, step=step, valid=valid, **given)[0]


def _strategy(name: str) -> Strategy:
    if name not in STRATEGIES:
        raise ValueError(f"a strategy is one of {', '.join(STRATEGIES)}, got {name!r}")
    return STRATEGIES[name]
