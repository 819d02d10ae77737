"""Frames of any size as overlapping square tiles, and back."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .video_io import Video, iter_video, read_video

# Tiles overlap by at least this part of their size; the reconstruction fades from one to the next.
_OVERLAP = 1 / 8


@dataclass(frozen=True)
class TileGrid:
    """The places of the tiles of a frame, row by row. A frame smaller than a tile is filled up with copies of its edge.

    Args:
        size: height and width of a tile.
        tops: the first row of each row of tiles.
        lefts: the first column of each column of tiles.
    """

    size: int
    tops: tuple[int, ...]
    lefts: tuple[int, ...]

    @classmethod
    def cover(cls, height: int, width: int, size: int) -> "TileGrid":
        """Return the fewest tiles that cover a frame and overlap by an eighth of their size, evenly spread."""
        return cls(size, _starts(height, size), _starts(width, size))

    def __len__(self) -> int:
        return len(self.tops) * len(self.lefts)

    def check(self, height: int, width: int) -> None:
        """Raise `ValueError` unless the tiles cover a frame of this size, and nothing else."""
        for name, starts, side in (("tops", self.tops, height), ("lefts", self.lefts, width)):
            steps = np.diff(starts) if starts else np.zeros(1)
            ends_well = (
                starts
                and all(type(start) is int for start in starts)
                and starts[0] == 0
                and starts[-1] == max(side - self.size, 0)
            )
            if not ends_well or (steps < 1).any() or (steps > self.size).any():
                raise ValueError(f"tiles of {self.size} pixels with {name}={starts} do not cover {side} pixels")

    def cut(self, frames: np.ndarray, tiles: slice) -> torch.Tensor:
        """Return some of the tiles of uint8 frames (frames, height, width, 3), (tiles, frames, 3, size, size)."""
        missing = [(0, max(self.size - side, 0)) for side in frames.shape[1:3]]
        frames = np.pad(frames, ((0, 0), *missing, (0, 0)), mode="edge") if any(map(max, missing)) else frames
        corners = [(top, left) for top in self.tops for left in self.lefts][tiles]
        cut = [frames[:, top : top + self.size, left : left + self.size] for top, left in corners]
        return torch.from_numpy(np.stack(cut)).permute(0, 1, 4, 2, 3)

    def join(self, tiles: Sequence[np.ndarray], height: int, width: int) -> Iterator[np.ndarray]:
        """Yield whole uint8 frames (height, width, 3), one at a time, of tiles (frames, size, size, 3)."""
        rows, columns = (_weights(starts, self.size) for starts in (self.tops, self.lefts))
        weights = [(row[:, None] * column)[..., None] for row in rows for column in columns]
        corners = [(top, left) for top in self.tops for left in self.lefts]
        canvas = np.empty((self.tops[-1] + self.size, self.lefts[-1] + self.size, 3), dtype=np.float32)
        for index in range(len(tiles[0])):
            canvas[:] = 0
            for tile, weight, (top, left) in zip(tiles, weights, corners, strict=True):
                canvas[top : top + self.size, left : left + self.size] += tile[index] * weight
            yield np.rint(canvas[:height, :width]).astype(np.uint8)


@dataclass(eq=False)
class TiledClips:
    """A video cut into clips in time and tiles in space; all tiles of the first clip come first.

    Frames are read again where they are needed: of a file, those of one clip are held.

    Args:
        source: a [`Video`], or what `read_video` reads.
        source_fps: of pictures.
        grid: the tiles.
        clip_frames: frames of a clip; the last one is filled up with copies of the last frame.
        valid_blocks, num_frames, source_size, fps, timestamps: as of a [`ClipBatch`]; `valid_blocks` has a row for each
            tile.
    """

    source: Any
    source_fps: float | None
    grid: TileGrid
    clip_frames: int
    valid_blocks: torch.Tensor
    num_frames: int
    source_size: tuple[int, int]
    fps: float
    timestamps: np.ndarray

    def __post_init__(self):
        self._clip, self._frames, self._decoded = -1, None, None

    def __len__(self) -> int:
        return len(self.valid_blocks)

    def take(self, start: int, stop: int) -> torch.Tensor:
        """Return uint8 frames (clips, clip frames, 3, size, size) of some of the tiles of all clips."""
        taken, per_clip = [], len(self.grid)
        for clip in range(start // per_clip, -(-min(stop, len(self)) // per_clip)):
            first = clip * per_clip
            taken.append(self.grid.cut(self._whole_frames(clip), slice(max(start - first, 0), stop - first)))
        return torch.cat(taken)

    def without_frames(self) -> "TiledClips":
        """Return the same without pixels."""
        return replace(self, source=None)

    def original(self) -> np.ndarray:
        """Return the video as it was given, uint8 (frames, height, width, 3)."""
        return self.source.frames if self._in_memory else read_video(self.source, fps=self.source_fps).frames

    @property
    def _in_memory(self) -> bool:
        return hasattr(self.source, "timestamps")

    def _whole_frames(self, clip: int) -> np.ndarray:
        if clip != self._clip:
            start = clip * self.clip_frames
            stop = min(start + self.clip_frames, self.num_frames)
            frames = self.source.frames[start:stop] if self._in_memory else self._read(clip, stop - start)
            missing = self.clip_frames - len(frames)
            self._clip, self._frames = clip, np.concatenate([frames, np.repeat(frames[-1:], missing, axis=0)])
        return self._frames

    def _read(self, clip: int, count: int) -> np.ndarray:
        """Return the frames of a clip of a file: the next ones of the open file, or from its start."""
        if self._decoded is None or clip <= self._clip:
            self._decoded, self._clip = iter_video(self.source, self.source_fps), -1
        for _ in range((clip - self._clip - 1) * self.clip_frames):
            next(self._decoded)
        return np.stack([next(self._decoded)[0] for _ in range(count)])


def tile_video(video: Video | Any, fps: float | None, image_size: int, num_frames: int, tubelet_size: int) -> TiledClips:
    """Cut a video into clips and tiles, see [`TiledClips`]; a file is read once to count and check its frames."""
    counted = video
    if not hasattr(video, "timestamps"):
        size = None

        def forget(frame: np.ndarray) -> np.ndarray:
            nonlocal size
            size = frame.shape[:2]
            return frame[:1, :1]

        counted = read_video(video, transform=forget, fps=fps)
    else:
        size = video.frames.shape[1:3]
    grid, total = TileGrid.cover(*size, image_size), len(counted)
    num_clips = -(-total // num_frames)
    first_frames = torch.arange(0, num_clips * num_frames, tubelet_size)
    valid = (first_frames < total).unflatten(0, (num_clips, -1)).repeat_interleave(len(grid), dim=0)
    return TiledClips(video, fps, grid, num_frames, valid, total, tuple(size), counted.fps, counted.timestamps)


def _starts(side: int, size: int) -> tuple[int, ...]:
    if side <= size:
        return (0,)
    overlap = int(size * _OVERLAP)
    count = math.ceil((side - overlap) / (size - overlap))
    return tuple(round(index * (side - size) / (count - 1)) for index in range(count))


def _weights(starts: tuple[int, ...], size: int) -> list[np.ndarray]:
    """Return the weight of each tile along one side, (size,) float32: falling to its ends, in sum 1 at each pixel."""
    fade = np.minimum(np.arange(1, size + 1), np.arange(size, 0, -1)).astype(np.float32)
    total = np.zeros(starts[-1] + size, dtype=np.float32)
    for start in starts:
        total[start : start + size] += fade
    return [fade / total[start : start + size] for start in starts]
