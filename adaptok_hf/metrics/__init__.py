"""Metrics of videos, features, codes and counts, independent of our models.

Metrics are `torchmetrics.Metric`s: `update` batch by batch, `compute` in all processes, `reset`. Videos are
(N, T, 3, H, W) in [0, 1] or uint8; anything else raises `ValueError`. `results` joins a metric's value with a confidence
interval and the protocol it was measured under; `network_weights` downloads the true weights of I3D and LPIPS.
"""

from .distribution import FrechetVideoDistance, frechet_distance
from .i3d_network import I3DNetwork
from .lpips_network import LPIPSNetwork
from .network_weights import NETWORKS, NetworkWeights, fetch_network_weights
from .per_video import PerVideoMetric, VideoLPIPS, VideoPSNR, VideoSSIM
from .protocols import PROTOCOLS, Protocol
from .results import MetricResult, interval, real_floor, summarize_distance
from .token_statistics import CodebookUsage, TokenRate
from .video_checks import check_pairs, check_videos

__all__ = [
    "NETWORKS",
    "PROTOCOLS",
    "CodebookUsage",
    "FrechetVideoDistance",
    "I3DNetwork",
    "LPIPSNetwork",
    "MetricResult",
    "NetworkWeights",
    "PerVideoMetric",
    "Protocol",
    "TokenRate",
    "VideoLPIPS",
    "VideoPSNR",
    "VideoSSIM",
    "check_pairs",
    "check_videos",
    "fetch_network_weights",
    "frechet_distance",
    "interval",
    "real_floor",
    "summarize_distance",
]
