"""What is varied in an evaluation of reconstructions: the strategy, its budget, and how many videos share it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..allocation import STRATEGIES, AllocationRequest, Strategy, published_budgets
from ..allocation.budgets import tokens_per_block

# Equal counts and the best constant schedule: what adaptive allocation is compared with.
BASELINES = ("fixed", "schedule")


@dataclass(frozen=True)
class Setting:
    """A strategy with its budget.

    Args:
        strategy: of `adaptok_hf.allocation.STRATEGIES`; `"schedule"`, `fixed` with the best constant schedule of a
            budget; or `"as is"` for a system that takes no budget.
        budget: AVERAGE tokens per block; `None` for `"as is"`, and for `router` without one: what it finds most probable.
        batch: videos whose clips share the budget; `None` for strategies that do not depend on it.
        budgets_per_position: for `ipal`, the budgets of the block positions in place of one for all (the original's table
            is `allocation.published_budgets`).
    """

    strategy: str
    budget: float | None = None
    batch: int | None = None
    budgets_per_position: tuple[float, ...] | None = None

    def __post_init__(self):
        if self.strategy != "as is" and self.row is None:
            raise ValueError(f"a strategy is one of {', '.join((*STRATEGIES, 'schedule'))}, got {self.strategy!r}")
        if (self.budget is not None and self.row is None) or (self.budget is None and not self._needs_no_budget):
            raise ValueError(f"strategy {self.strategy!r} got the budget {self.budget!r}")
        shares_budget = self.budget is not None and self.row.shares_budget
        if (self.batch is None) == shares_budget or (self.batch is not None and self.batch < 1):
            raise ValueError(f"strategy {self.strategy!r} got the batch {self.batch!r}")

    @property
    def row(self) -> Strategy | None:
        """What allocates; `None` for `"as is"`."""
        return STRATEGIES.get("fixed" if self.strategy == "schedule" else self.strategy)

    @property
    def _needs_no_budget(self) -> bool:
        return self.row is None or self.row.needs_router

    @property
    def needs_search(self) -> bool:
        """Whether it has a price or a threshold, which is searched so that the budget is met on average."""
        return self.row is not None and self.row.needs != "budget"

    def request(self, parameter: float | None = None) -> AllocationRequest:
        """Return what the pipeline allocates; `parameter` is the price or threshold that was found."""
        if self.row is None:
            return AllocationRequest()
        value = parameter if self.needs_search else self.budgets_per_position or self.budget
        return AllocationRequest(**{self.row.needs: value}, strategy=self.row.name)

    @property
    def name(self) -> str:
        """Names files and rows: `ipal-64-batch16`."""
        if self.budget is None:
            return self.strategy.replace(" ", "_")
        parts = [self.strategy, f"{self.budget:g}"]
        if self.budgets_per_position is not None:
            parts.append("positions" + "_".join(f"{budget:g}" for budget in self.budgets_per_position))
        if self.batch is not None:
            parts.append(f"batch{self.batch}")
        return "-".join(parts)


def make_settings(
    strategies: Sequence[str],
    budgets: Sequence[float | str],
    batches: Sequence[int],
    latents_per_block: int,
    ipal_budgets: str = "equal",
) -> list[Setting]:
    """Return both baselines and every strategy at every budget (and, where it matters, batch).

    Args:
        budgets: tokens per block, or percentages of `latents_per_block` such as `"25%"`; with `"own"`, `router` chooses
            without a budget, as EVATok's does.
        batches: videos that share a budget.
        ipal_budgets: `"equal"`, the same at every block position, or `"published"`, the original's table.

    Raises:
        ValueError: for unknown strategies, and budgets that are no numbers or lie outside 1..latents_per_block.
    """
    if ipal_budgets not in ("equal", "published"):
        raise ValueError(f"ipal_budgets must be 'equal' or 'published', got {ipal_budgets!r}")
    settings = [Setting("router")] if "own" in budgets and "router" in strategies else []
    if "own" in budgets and not settings:
        raise ValueError(f"the budget 'own' is of the strategy router, and the strategies are {', '.join(strategies)}")
    for budget in (_tokens(budget, latents_per_block) for budget in budgets if budget != "own"):
        for strategy in (*BASELINES, *strategies) if strategies else ():
            positions = None
            if strategy == "ipal" and ipal_budgets == "published":
                positions = published_budgets(budget, latents_per_block)
            for batch in batches if strategy in STRATEGIES and STRATEGIES[strategy].shares_budget else [None]:
                settings.append(Setting(strategy, budget, batch, positions))
    if not settings:
        raise ValueError("there is nothing to evaluate: give at least one strategy, budget and batch")
    return list(dict.fromkeys(settings))


def _tokens(budget: float | str, latents_per_block: int) -> float:
    value = tokens_per_block(str(budget), latents_per_block)
    if not 1 <= value <= latents_per_block:
        raise ValueError(f"the budget {budget} is not between 1 and the {latents_per_block} tokens of a block")
    return value
