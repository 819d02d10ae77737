"""Evaluations: models x settings over videos, with intervals, protocols, tables and pictures.

`evaluate_reconstruction`, `evaluate_generation` and `evaluate_prediction` write a folder each and can be interrupted;
`compare_videos` measures videos of any other system. `adaptok evaluate` and `training_scripts/evaluate.py` call them.
"""

from .allocation_timing import time_allocation
from .clip_chunks import draw_videos, open_videos
from .folder_comparison import compare_videos
from .generation import evaluate_generation
from .illustrations import draw_reconstruction
from .measuring import Networks, load_networks
from .prediction import evaluate_prediction
from .rating_form import summarize_ratings, write_rating_form
from .reconstruction import evaluate_reconstruction, own_protocol
from .settings import Setting, make_settings

__all__ = [
    "Networks",
    "Setting",
    "compare_videos",
    "draw_reconstruction",
    "draw_videos",
    "evaluate_generation",
    "evaluate_prediction",
    "evaluate_reconstruction",
    "load_networks",
    "make_settings",
    "open_videos",
    "own_protocol",
    "summarize_ratings",
    "time_allocation",
    "write_rating_form",
]
