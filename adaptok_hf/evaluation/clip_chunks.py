"""The clips of an evaluation, in chunks that processes divide among themselves and that a rerun can skip."""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from ..data import (
    ClipStream,
    TooManySkippedVideos,
    VideoFiles,
    VideoItem,
    all_windows,
    first_window,
    kinetics,
    manifest,
    random_window,
    ucf101,
    video_folder,
)
from ..data.video_item import is_video_file
from ..metrics import Protocol


@dataclass
class Clips:
    """Clips, uint8 (clips, frames, 3, size, size), and where they come from."""

    videos: torch.Tensor
    keys: list[str]  # the video of each clip
    starts: list[int]  # index of the first frame in it
    fps: list[float]
    labels: list[int]  # -1 without

    def __len__(self) -> int:
        return len(self.keys)


@dataclass
class ClipChunks:
    """Videos in their order, cut into chunks; chunk i is the same whatever the number of processes.

    Args:
        source: the videos.
        protocol: gives frames, size and windows.
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
        """Return the clips of a chunk; videos that cannot be read or are too short are skipped with a warning.

        Raises:
            ValueError: if too many are skipped.
        """
        first = index * self.videos_per_chunk
        items = self.source.items[first : first + self.videos_per_chunk]
        length, size = self.protocol.num_frames, self.protocol.image_size
        windows = {"first": first_window, "random": random_window, "all": partial(all_windows, step=length)}
        windows = partial(windows[self.protocol.window], clip_length=length)
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
        """Plain values that identify the videos and how they are cut."""
        files = [(item.key, os.path.getsize(item.video)) for item in self.source.items if isinstance(item.video, str)]
        return {
            "files": hashlib.sha256(json.dumps(files).encode()).hexdigest(),
            "num_videos": len(self.source.items),
            "videos_per_chunk": self.videos_per_chunk,
            "seed": self.seed,
        }


def open_videos(
    data: str | Path, ucf101_splits: str | Path | None = None, kinetics_csv: str | Path | None = None
) -> VideoFiles:
    """Open a folder of videos, a single video file, or a csv manifest with a column `path`.

    Args:
        data: the path.
        ucf101_splits: the folder of UCF-101's official split files. `data` is then the unpacked UCF-101, of which the train
            list is taken.
        kinetics_csv: a list of Kinetics, such as that of validation. `data` is then the folder of its videos.

    Raises:
        FileNotFoundError, ValueError: if `data` is none of them.
    """
    path = Path(data)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file or folder")
    if ucf101_splits and kinetics_csv:
        raise ValueError(f"the data are UCF-101 or Kinetics, got {ucf101_splits} and {kinetics_csv}")
    if ucf101_splits:
        return ucf101(path, ucf101_splits, split="train")
    if kinetics_csv:
        return kinetics(kinetics_csv, path)
    if path.is_dir():
        return video_folder(path)
    if path.suffix.lower() == ".csv":
        return manifest(path)
    if is_video_file(path):
        return VideoFiles([VideoItem(path.name, str(path))])
    raise ValueError(f"{path}: expected a folder of videos, a csv manifest, or a video")


def sample_videos(source: VideoFiles, count: int | None, seed: int) -> VideoFiles:
    """Return `count` of the videos.

    These are the first ones if there are enough. Otherwise the whole set is repeated as often as it fits, and a random rest
    is added, which gives more random windows than there are videos. `None` takes all once.

    Raises:
        ValueError: for a count below 1.
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
