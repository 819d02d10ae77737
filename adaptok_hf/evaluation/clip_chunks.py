"""The clips of an evaluation, in chunks that processes share out and that a rerun can skip."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..data import ClipStream, TooManySkippedVideos, VideoFiles, all_windows, first_window, manifest, random_window
from ..data import video_folder as read_video_folder
from ..metrics import Protocol


@dataclass
class Clips:
    """
    Args:
        videos: uint8 (clips, frames, 3, size, size).
        keys: the video of each clip.
        starts: index of the first frame in it.
        fps: frames per second of each clip.
        labels: class index, -1 without.
    """

    videos: torch.Tensor
    keys: list[str]
    starts: list[int]
    fps: list[float]
    labels: list[int]

    def __len__(self) -> int:
        return len(self.keys)


@dataclass
class ClipChunks:
    """
    Videos in their order, cut into chunks; chunk i is the same whatever the number of processes.

    Args:
        source: the videos.
        protocol: says frames, size and windows.
        videos_per_chunk: the unit of work.
        seed: of random windows.
    """

    source: VideoFiles
    protocol: Protocol
    videos_per_chunk: int
    seed: int = 0

    def __len__(self) -> int:
        return -(-len(self.source.items) // self.videos_per_chunk)

    def read(self, index: int) -> Clips:
        """
        The clips of a chunk; videos that cannot be read or are too short are skipped with a warning.

        Raises:
            ValueError: if too many are.
        """
        first = index * self.videos_per_chunk
        items = self.source.items[first : first + self.videos_per_chunk]
        length = self.protocol.num_frames
        windows = {
            "first": partial(first_window, clip_length=length),
            "random": partial(random_window, clip_length=length),
            "all": partial(all_windows, clip_length=length, step=length),
        }[self.protocol.window]
        size = self.protocol.image_size
        stream = ClipStream(
            VideoFiles(items), windows, size, shuffle=False, seed=self.seed + index, num_epochs=1, rank=0, world_size=1
        )
        try:
            clips = list(stream)
        except TooManySkippedVideos as error:
            raise ValueError(str(error)) from error
        videos = [clip["pixel_values_videos"] for clip in clips]
        return Clips(
            torch.stack(videos) if videos else torch.zeros(0, length, 3, size, size, dtype=torch.uint8),
            [clip["key"] for clip in clips],
            [int(clip["window"]) for clip in clips],
            [float(clip["fps"]) for clip in clips],
            [int(clip["label"]) for clip in clips],
        )

    @property
    def identity(self) -> dict:
        """What a result depends on, plain."""
        files = [(item.key, os.path.getsize(item.video)) for item in self.source.items if isinstance(item.video, str)]
        return {
            "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
            "num_videos": len(self.source.items),
            "videos_per_chunk": self.videos_per_chunk,
            "seed": self.seed,
        }


def open_videos(data: str | Path) -> VideoFiles:
    """
    A folder of videos, a single video file, or a csv manifest with a column `path`.

    Raises:
        FileNotFoundError, ValueError: if it is none of them.
    """
    from ..data import VideoItem
    from ..data.video_item import VIDEO_SUFFIXES

    path = Path(data)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if path.is_dir():
        return read_video_folder(path)
    if path.suffix.lower() == ".csv":
        return manifest(path)
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoFiles([VideoItem(path.name, str(path))])
    raise ValueError(f"{path}: expected a folder of videos, a csv manifest, or a video ({', '.join(VIDEO_SUFFIXES)})")


def draw_videos(source: VideoFiles, count: int | None, seed: int) -> VideoFiles:
    """
    `count` of the videos: the first ones if there are as many, otherwise the whole set as often as it fits and a random
    rest (which gives more random windows than there are videos). `None` takes all once.
    """
    items: Sequence = source.items
    if count is not None:
        if count < 1:
            raise ValueError(f"the number of videos must be at least 1, got {count}")
        times, rest = divmod(count, len(items))
        if times == 0:
            items = items[:count]
        else:
            extra = np.random.default_rng(seed).permutation(len(items))[:rest]
            items = [*(items * times), *(items[int(i)] for i in sorted(extra))]
    return VideoFiles(items, source.class_names)
