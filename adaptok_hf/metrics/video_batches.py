"""Shared by the `evaluate` modules: streams videos in any form into one of our metrics."""

import os
from collections.abc import Iterable, Iterator

import numpy as np
import torch

from ..video.video_io import read_video


def as_videos(videos: torch.Tensor | np.ndarray | Iterable) -> Iterator[torch.Tensor]:
    """Yield one (1, T, 3, H, W) tensor per video.

    Args:
        videos: an array or tensor (N, T, 3, H, W), or a list of videos, each a path or a (T, 3, H, W) array or tensor.

    Raises:
        ValueError, OSError: for anything else, and files that are no videos (see `read_video`).
    """
    for video in videos:
        if isinstance(video, str | os.PathLike):
            video = np.moveaxis(read_video(video).frames, 3, 1)
        if not isinstance(video, torch.Tensor):
            video = torch.from_numpy(np.ascontiguousarray(video))
        yield video[None]


class StreamingModule:
    """Mixin of `evaluate.Metric` that streams videos into a torchmetrics metric and writes nothing to disk.

    A subclass defines `make_metric() -> Metric`, `add_videos(metric, predictions, references)` and
    `results(metric) -> dict`. One process only.
    """

    metric = None

    def add(self, *, prediction, reference) -> None:
        """One video each."""
        self.add_batch(predictions=[prediction], references=[reference])

    def add_batch(self, *, predictions, references) -> None:
        """Videos as `as_videos` takes them."""
        if self.metric is None:
            self.metric = self.make_metric()
        self.add_videos(self.metric, as_videos(predictions), as_videos(references))

    def compute(self, *, predictions=None, references=None) -> dict:
        """Return the results of all videos that were added, and of these; then reset."""
        if (predictions is None) != (references is None):
            raise ValueError("give both predictions and references, or neither after add_batch")
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        if self.metric is None:
            raise ValueError("no videos were given")
        results = self.results(self.metric)
        self.metric.reset()
        return results


class PairedModule(StreamingModule):
    """For metrics of a video and its reference."""

    def add_videos(self, metric, predictions, references) -> None:
        for prediction, reference in zip(predictions, references, strict=True):
            metric.update(prediction, reference)
