"""What the `evaluate` module does: it streams videos in any form into one of our metrics."""

import os
from collections.abc import Iterable, Iterator
from functools import partial

import numpy as np
import torch

from ..video.video_io import read_video
from .distribution import FrechetVideoDistance
from .per_video import VideoLPIPS, VideoPSNR, VideoSSIM


def as_videos(videos: torch.Tensor | np.ndarray | Iterable) -> Iterator[torch.Tensor]:
    """Yield one (1, T, 3, H, W) tensor per video.

    Args:
        videos: an array or tensor (N, T, 3, H, W), or a list of videos, each a path or a (T, 3, H, W) array or tensor.
    """
    for video in videos:
        if isinstance(video, str | os.PathLike):
            video = np.moveaxis(read_video(video).frames, 3, 1)
        if not isinstance(video, torch.Tensor):
            video = torch.from_numpy(np.ascontiguousarray(video))
        yield video[None]


class VideoMetrics:
    """Mixin of `evaluate.Metric` that streams videos into a torchmetrics metric and writes nothing to disk.

    `config_name` is one of `METRICS`. One process only.
    """

    METRICS = {
        "psnr": VideoPSNR,
        "psnr_per_frame": partial(VideoPSNR, per_frame=True),
        "ssim": VideoSSIM,
        "lpips_vgg": VideoLPIPS,
        "lpips_alex": partial(VideoLPIPS, "alex"),
        "fvd": FrechetVideoDistance,
    }
    metric, num_videos = None, 0

    def add(self, *, prediction, reference) -> None:
        """Add one video each."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions, references) -> None:
        """Add videos as `as_videos` takes them."""
        if self.metric is None:
            self.metric = self.METRICS[self.config_name]()
        if self.config_name == "fvd":
            for videos, real in ((predictions, False), (references, True)):
                for video in as_videos(videos):
                    self.metric.update(video, real=real)
        else:
            for video, reference in zip(as_videos(predictions), as_videos(references), strict=True):
                self.metric.update(video, reference)
        self.num_videos += len(predictions)

    def compute(self, *, predictions=None, references=None) -> dict:
        """Return the result of all videos that were added, and of these; then reset."""
        if (predictions is None) != (references is None):
            raise ValueError("give both predictions and references, or neither after add_batch")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        if not self.num_videos:
            raise ValueError("no videos were given")
        result = {self.config_name: self.metric.compute().item(), "num_videos": self.num_videos}
        self.metric.reset()
        self.num_videos = 0
        return result
