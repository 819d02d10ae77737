"""Holding an average number of tokens per block over a stream, with no look at what comes later.

The ABR mode of a video codec: the `quality` strategy with a price that follows the content and what was spent so far.
"""

from collections import deque
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from .budgets import is_finite_number
from .tables import check_scores, check_step


class RateController:
    """Chooses the token count of one block after the other.

    With t the target, D the tokens spent above target so far (D = spent - n t after n blocks), W the window and
    B = reservoir * t, block n gets

        a     = t - D / W                           what the blocks of a window may spend, so that D is paid back
        price = the lowest p >= 0 at which the last W blocks, this one included, would have spent at most `a` on
                average, each by the lowest score + p * count (`quality`)
        count = what `quality` gives this block at that price, then brought into [t - B - D, t + B - D]

    The price is the Lagrange multiplier of the recent past, corrected by the deviation. The last line keeps |D| <= B
    after every block, whatever the scores are: the average of the first n blocks is within B / n of the target.
    Memory: W rows of the score table.

    Args:
        target: t, average tokens per block, from `step` to `num_levels * step`.
        step: tokens between two levels.
        num_levels: J, levels of the score table.
        window: W, blocks, at least 1.
        reservoir: the largest deviation, in blocks' worth of `target`, at least 1.
        levels: the J counts that a block may have, in place of multiples of `step`. Where they lie so far apart that none
            keeps the deviation in its bounds, the block takes the fewest tokens.

    Raises:
        ValueError: for numbers outside these ranges.
    """

    def __init__(
        self,
        target: float,
        *,
        step: int,
        num_levels: int,
        window: int = 32,
        reservoir: float = 16,
        levels: Sequence[int] | None = None,
    ):
        self.step = check_step(step)
        self._counts = self.step * np.arange(1, num_levels + 1) if levels is None else np.asarray(levels)
        fewest, most = self._counts[[0, -1]]
        if not is_finite_number(target) or not fewest <= target <= most:
            raise ValueError(f"the target must lie between {fewest} and {most} tokens per block on average, got {target!r}")
        if not isinstance(window, int) or window < 1:
            raise ValueError(f"the window must be a whole number of at least 1 block, got {window!r}")
        if not is_finite_number(reservoir) or reservoir < 1:
            raise ValueError(f"the reservoir must be at least 1 block's worth of the target, got {reservoir!r}")
        self.target = float(target)
        self.window, self.reservoir = window, float(reservoir)
        self.price = 0.0  # of the block that was chosen last, score per token
        self.spent = 0  # tokens
        self.num_blocks = 0
        self._tables: deque = deque(maxlen=window)

    @property
    def deviation(self) -> float:
        """Tokens spent above the target so far; between -reservoir * target and +reservoir * target."""
        return self.spent - self.num_blocks * self.target

    def choose(self, scores: ArrayLike) -> int:
        """The count of the next block.

        Args:
            scores: (J,), its predicted loss at each level, lower is better.

        Raises:
            ValueError: for a table of another length, NaN or infinity.
        """
        scores, _ = check_scores(np.asarray(scores)[None])
        if scores.shape != (1, len(self._counts)):
            raise ValueError(f"expected the scores of {len(self._counts)} levels, got shape {scores.shape[1:]}")
        self._tables.append(scores[0])
        tables = np.stack(self._tables)
        self.price = self._lowest_price(tables, self.target - self.deviation / self.window)
        wanted = self._spending(tables[-1:], self.price)[0]

        limit = self.reservoir * self.target
        low, high = self.target - limit - self.deviation, self.target + limit - self.deviation
        allowed = self._counts[(self._counts >= low) & (self._counts <= high)]
        allowed = allowed if len(allowed) else self._counts[:1]
        count = int(np.clip(wanted, allowed[0], allowed[-1]))
        self.spent += count
        self.num_blocks += 1
        return count

    def _spending(self, tables: np.ndarray, price: float) -> np.ndarray:
        """(N,) counts of the lowest score + price * count; ties go to fewer tokens."""
        return self._counts[(tables + price * self._counts).argmin(axis=1)]

    def _lowest_price(self, tables: np.ndarray, average: float) -> float:
        """The lowest price at which the tables spend at most `average` each; the highest that matters where none is."""
        few, many = np.triu_indices(len(self._counts), k=1)
        # prices at which a block changes its mind: two levels cost the same. Just above, the one with fewer tokens wins.
        slopes = (tables[:, few] - tables[:, many]) / (self._counts[many] - self._counts[few])
        prices = np.unique(np.append(np.nextafter(slopes[slopes > 0] * (1 + 1e-12), np.inf), 0.0))
        low, high = 0, len(prices) - 1
        while low < high:
            middle = (low + high) // 2
            if self._spending(tables, prices[middle]).mean() <= average:
                high = middle
            else:
                low = middle + 1
        return float(prices[low])
