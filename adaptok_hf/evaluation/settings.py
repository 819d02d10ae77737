"""What is varied in an evaluation of reconstructions: the strategy, its budget, and how many videos share it."""

from collections.abc import Sequence
from dataclasses import dataclass

from ..allocation import STRATEGIES

_STRATEGIES = (*STRATEGIES, "measured")
# The tokens of a clip depend on the clips that it shares the budget with.
BATCH_DEPENDENT = ("bithr", "bidelta", "ipal", "joint", "measured")
# These have no budget but a price or a threshold, which is searched so that the budget is met on average.
SEARCHED = {"quality": "price", "threshold": "threshold"}


@dataclass(frozen=True)
class Setting:
    """
    Args:
        strategy: of `adaptok_hf.allocation`, `"measured"` (see `AdapTokPipeline.tokenize`), or `"as is"` for a system that
            takes no budget.
        budget: AVERAGE tokens per block; `None` only for `"as is"`.
        batch: videos whose clips share the budget; `None` for strategies that do not depend on it.
        budgets_per_position: for `ipal`, the budgets of the block positions in place of one for all (the original's table
            is `allocation.published_budgets`).
    """

    strategy: str
    budget: float | None = None
    batch: int | None = None
    budgets_per_position: tuple[float, ...] | None = None

    def __post_init__(self):
        if self.strategy != "as is" and self.strategy not in _STRATEGIES:
            raise ValueError(f"a strategy is one of {', '.join(_STRATEGIES)}, got {self.strategy!r}")
        if (self.budget is None) != (self.strategy == "as is"):
            raise ValueError(f"strategy {self.strategy!r} got the budget {self.budget!r}")
        if (self.batch is None) == (self.strategy in BATCH_DEPENDENT):
            raise ValueError(f"strategy {self.strategy!r} got the batch {self.batch!r}")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"a batch has at least 1 video, got {self.batch}")
        if self.budgets_per_position is not None and self.strategy != "ipal":
            raise ValueError(f"only ipal takes budgets per block position, not {self.strategy!r}")

    @property
    def name(self) -> str:
        """Names files and rows: `ipal-64-batch16`."""
        if self.budget is None:
            return "as_is"
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
    """
    Every strategy at every budget (and, where it matters, batch).

    Args:
        budgets: tokens per block, or percentages of `latents_per_block` such as `"25%"`.
        batches: videos that share a budget.
        ipal_budgets: `"equal"`, the same at every block position, or `"published"`, the original's table.

    Raises:
        ValueError: for unknown strategies, and budgets that are no numbers or lie outside 1..latents_per_block.
    """
    if ipal_budgets not in ("equal", "published"):
        raise ValueError(f"ipal_budgets must be 'equal' or 'published', got {ipal_budgets!r}")
    settings = []
    for budget in (_tokens(budget, latents_per_block) for budget in budgets):
        for strategy in strategies:
            positions = None
            if strategy == "ipal" and ipal_budgets == "published":
                from ..allocation import published_budgets

                positions = published_budgets(int(budget), latents_per_block)
            for batch in batches if strategy in BATCH_DEPENDENT else [None]:
                settings.append(Setting(strategy, budget, batch, positions))
    if not settings:
        raise ValueError("there is nothing to evaluate: give at least one strategy, budget and batch")
    return list(dict.fromkeys(settings))


def _tokens(budget: float | str, latents_per_block: int) -> float:
    text, share = str(budget).strip(), 1.0
    if text.endswith("%"):
        text, share = text[:-1], latents_per_block / 100
    try:
        value = float(text) * share
    except ValueError:
        raise ValueError(f"a budget is tokens per block or a percentage such as '25%', got {budget!r}") from None
    if not 1 <= value <= latents_per_block:
        raise ValueError(f"the budget {budget} is not between 1 and the {latents_per_block} tokens of a block")
    return value
