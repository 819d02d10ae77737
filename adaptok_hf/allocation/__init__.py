"""Scores and a budget in, token counts out. Needs numpy and scipy only and knows no model.

Every strategy reads `scores`, the predicted or measured loss of each block at each level (lower is better; level `j` keeps
`(j + 1) * step` latents), and returns `token_counts`. Tables are (batch, K, J) for whole clips or (batch, J) for one block
position; counts have the same shape without the last axis. `STRATEGIES` says what each strategy needs.
"""

from .beam_search import AssignmentTree, SearchAllocation, compare, search
from .bisection import BisectionAllocation, bidelta, bithr
from .budgets import published_budgets
from .integer_program import ProgramSolution, solve_program
from .rate_control import RateController
from .reward import assignments, proxy_reward, reward_percentile, reward_price
from .routing import RouteAllocation, route
from .schedules import best_schedule, nearest_schedule, pull_to_schedule, schedule_levels, schedule_variants
from .strategies import JointAllocation, fixed, ipal, joint, quality, threshold
from .strategy_table import STRATEGIES, AllocationRequest, Strategy, allocate

__all__ = [
    "STRATEGIES",
    "AllocationRequest",
    "AssignmentTree",
    "BisectionAllocation",
    "JointAllocation",
    "ProgramSolution",
    "RateController",
    "RouteAllocation",
    "SearchAllocation",
    "Strategy",
    "allocate",
    "assignments",
    "best_schedule",
    "bidelta",
    "bithr",
    "compare",
    "fixed",
    "ipal",
    "joint",
    "nearest_schedule",
    "published_budgets",
    "proxy_reward",
    "pull_to_schedule",
    "quality",
    "reward_percentile",
    "reward_price",
    "route",
    "schedule_levels",
    "schedule_variants",
    "search",
    "solve_program",
    "threshold",
]
