"""What a router learns: from the measured losses of a clip's assignments to choices at a price."""

import math
from collections.abc import Sequence

import torch

from ...allocation import AssignmentTree


class ClipCosts:
    """The assignments of a clip that were measured to the last block.

    Args:
        tree: with what was measured.
    """

    def __init__(self, tree: AssignmentTree):
        index, complete = list(tree.levels).index, [counts for counts in tree.losses if len(counts) == tree.num_blocks]
        choices, losses = [list(map(index, counts)) for counts in complete], [tree.loss(counts) for counts in complete]
        levels = list(tree.levels)
        self.known = dict(zip(map(tuple, complete), losses, strict=True))
        self.levels = torch.tensor(levels)
        self.choices = torch.tensor(choices)  # (assignments, blocks), indices of levels
        self.losses = torch.tensor(losses, dtype=torch.float64)
        self.tokens = self.levels[self.choices].sum(1).double()

    def costs(self, price: float) -> torch.Tensor:
        """Return loss + price * tokens of each assignment."""
        return self.losses + price * self.tokens

    def block_targets(self, price: float, temperature: float) -> torch.Tensor:
        """Return (blocks, levels) probabilities: of each level by the best assignment that has it at this block."""
        costs, (_, num_blocks) = self.costs(price), self.choices.shape
        best = torch.full((num_blocks, len(self.levels)), math.inf, dtype=torch.float64)
        for block in range(num_blocks):
            best[block].scatter_reduce_(0, self.choices[:, block], costs, "amin")
        return _probabilities(best, temperature)

    def assignment_targets(self, price: float, temperature: float) -> torch.Tensor:
        """Return (levels ** blocks,) probabilities; those of assignments that were not measured are 0."""
        num_levels, num_blocks = len(self.levels), self.choices.shape[1]
        weights = torch.tensor([num_levels**power for power in range(num_blocks - 1, -1, -1)])
        costs = torch.full((num_levels**num_blocks,), math.inf, dtype=torch.float64)
        costs[(self.choices * weights).sum(1)] = self.costs(price)
        return _probabilities(costs, temperature)

    def cost(self, counts: Sequence[int], price: float) -> float | None:
        """Return loss + price * tokens of these counts, or `None` if they were not measured."""
        loss = self.known.get(tuple(counts))
        return None if loss is None else loss + price * sum(counts)


def _probabilities(costs: torch.Tensor, temperature: float) -> torch.Tensor:
    if not temperature:
        return torch.nn.functional.one_hot(costs.argmin(-1), costs.shape[-1]).float()
    return torch.softmax(-costs / temperature, dim=-1).float()
