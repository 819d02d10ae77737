"""Scores and a budget in, token counts out. Needs numpy and scipy only and knows no model.

Every strategy reads `scores`, the predicted or measured loss of each block at each level (lower is better; level `j` keeps
`(j + 1) * step` latents), and returns `token_counts`. Tables are (batch, K, J) for whole clips or (batch, J) for one block
position; counts have the same shape without the last axis. `STRATEGIES` says what each strategy needs.
"""

from .bisection import BisectionAllocation, bidelta, bithr
from .budgets import published_budgets
from .integer_program import ProgramSolution, solve_program
from .rate_control import RateController
from .strategies import JointAllocation, fixed, ipal, joint, quality, threshold
from .strategy_table import STRATEGIES, AllocationRequest, Strategy, allocate

__all__ = [
    "STRATEGIES",
    "AllocationRequest",
    "BisectionAllocation",
    "JointAllocation",
    "ProgramSolution",
    "RateController",
    "Strategy",
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
