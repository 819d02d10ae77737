"""Scores and a budget in, token counts out. Needs numpy and scipy only and knows no model.

Every strategy reads `scores`, the predicted perceptual loss of each block at each level (lower is better; level `j`
keeps `(j + 1) * step` latents), and returns `token_counts`. Tables are (batch, K, J) for whole clips or (batch, J) for
one block position; counts have the same shape without the last axis.
"""

from .budgets import published_budgets
from .dispatch import STRATEGIES, allocate
from .integer_programs import JointAllocation, ipal, joint
from .per_block import quality, threshold
from .programs import ProgramSolution, solve_program
from .rate_control import RateController
from .threshold_search import SearchAllocation, bidelta, bithr
from .uniform import fixed

__all__ = [
    "STRATEGIES",
    "JointAllocation",
    "ProgramSolution",
    "RateController",
    "SearchAllocation",
    "allocate",
    "bidelta",
    "bithr",
    "fixed",
    "ipal",
    "joint",
    "published_budgets",
    "quality",
    "solve_program",
    "threshold",
]
