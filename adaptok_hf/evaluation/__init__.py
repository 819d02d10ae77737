"""Evaluations: models x settings over videos, with intervals, protocols, tables and pictures.

`evaluate_reconstruction`, `evaluate_generation` and `evaluate_prediction` write a folder each and can be interrupted;
`compare_videos` measures videos of any other system. `adaptok evaluate` and `adaptok metrics compare` call them.
"""

from .clip_chunks import open_videos, sample_videos
from .folder_comparison import compare_videos
from .generation import evaluate_generation
from .illustrations import draw_reconstruction
from .measuring import Networks, load_networks
from .prediction import evaluate_prediction
from .reconstruction import evaluate_reconstruction, own_protocol
from .settings import Setting, make_settings
from .x264_codec import X264Codec

__all__ = [
    "Networks",
    "Setting",
    "X264Codec",
    "compare_videos",
    "draw_reconstruction",
    "evaluate_generation",
    "evaluate_prediction",
    "evaluate_reconstruction",
    "load_networks",
    "make_settings",
    "open_videos",
    "own_protocol",
    "sample_videos",
]
