"""A video cut into clips."""

from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass(eq=False)
class ClipBatch:
    """A video cut into clips, see `AdapTokVideoProcessor.clips`.

    Args:
        frames: uint8, `(num_clips, clip frames, 3, image_size, image_size)`. The last clip is filled
            up with copies of the last frame.
        valid_blocks: bool, `(num_clips, K)`; whether a block holds at least one real frame, as a clip's first ones do.
        num_frames: real frames over all clips.
        source_size: height and width of the video before resizing.
        fps: average frames per second.
        timestamps: float64 seconds of the real frames, `(num_frames,)`.
        overlap_blocks: blocks that each clip shares with the one before.
    """

    frames: torch.Tensor
    valid_blocks: torch.Tensor
    num_frames: int
    source_size: tuple[int, int]
    fps: float
    timestamps: np.ndarray
    overlap_blocks: int = 0

    @property
    def pixel_values_videos(self) -> torch.Tensor:
        """All clips as float32 in [0, 1], four times the memory of `frames`."""
        return self.frames / 255

    def __len__(self) -> int:
        return len(self.frames)

    def take(self, start: int, stop: int) -> torch.Tensor:
        """Return the uint8 frames of some clips."""
        return self.frames[start:stop]

    def without_frames(self) -> "ClipBatch":
        """Return the same without pixels."""
        return replace(self, frames=self.frames.new_empty(len(self), 0))

    def original(self) -> np.ndarray:
        """Return uint8 (num_frames, image_size, image_size, 3) without what fills up the last clip."""
        shared = self.overlap_blocks * self.frames.shape[1] // self.valid_blocks.shape[1]
        frames = (
            torch.cat([self.frames[0, :shared], self.frames[:, shared:].flatten(0, 1)])
            if shared
            else self.frames.flatten(0, 1)
        )
        return frames[: self.num_frames].permute(0, 2, 3, 1).numpy()
