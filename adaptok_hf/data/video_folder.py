"""Random clips from folders of videos that fit into memory."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset, default_collate

from ..video.video_io import read_video

logger = logging.getLogger(__name__)

VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp")


class VideoFolderClips(Dataset):
    """Every video below the folders, decoded once and kept as uint8; an item is one clip of consecutive frames.

    A video is one item whatever its length, so that long videos do not crowd out short ones.

    Args:
        folders: searched recursively for video files.
        num_frames: frames of a clip; shorter videos are left out. So are files that cannot be read: they are counted and
            named in a warning, and kept in `unreadable`.
        image_size: frames are resized (short side) and centre-cropped to this square.
        random_clips: draw the clip's start and a horizontal flip at random (training); otherwise the clip is the first
            `num_frames` frames (validation).

    Raises:
        ValueError: if a folder has no usable video.
    """

    def __init__(self, folders: Sequence[str | Path], num_frames: int, image_size: int, random_clips: bool = True):
        self.num_frames, self.random_clips = num_frames, random_clips
        self.videos: list[torch.Tensor] = []  # each (frames, 3, image_size, image_size) uint8
        self.paths: list[Path] = []
        self.unreadable: list[Path] = []
        self.folder_index: list[int] = []  # which of `folders` each video is from
        for index, folder in enumerate(folders):
            before = len(self.videos)
            for path in sorted(p for p in Path(folder).rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES):
                try:
                    frames = read_video(path).frames
                except ValueError as error:
                    self.unreadable.append(path)
                    logger.warning("left out (%d so far): %s", len(self.unreadable), error)
                    continue
                if len(frames) >= num_frames:
                    self.videos.append(_square(frames, image_size))
                    self.paths.append(path)
                    self.folder_index.append(index)
            if len(self.videos) == before:
                raise ValueError(f"{folder}: no video of at least {num_frames} frames below this folder")

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """`pixel_values_videos`: (num_frames, 3, image_size, image_size) uint8, and `index` of the video."""
        video, start = self.videos[index], 0
        if self.random_clips:
            start = int(torch.randint(len(video) - self.num_frames + 1, ()))
        clip = video[start : start + self.num_frames]
        if self.random_clips and torch.rand(()) < 0.5:
            clip = clip.flip(-1)
        return {"pixel_values_videos": clip, "index": torch.tensor(index)}

    def sampling_weights(self, folder_weights: Sequence[float]) -> torch.Tensor:
        """(videos,) weights that give each folder its share of the draws, whatever its number of videos."""
        index = torch.tensor(self.folder_index)
        shares = torch.tensor(folder_weights, dtype=torch.float64) / index.bincount(minlength=len(folder_weights))
        return shares[index]

    def random_batches(self, weights: torch.Tensor, batch_size: int, count: int) -> Iterator[dict[str, torch.Tensor]]:
        """`count` batches of items drawn with these weights (videos,).

        Each batch is drawn when it is asked for, from torch's global generator: a run that restores the generator's
        state goes on with the same batches.
        """
        for _ in range(count):
            drawn = torch.multinomial(weights, batch_size, replacement=True)
            yield default_collate([self[int(index)] for index in drawn])


def _square(frames: np.ndarray, size: int) -> torch.Tensor:
    """uint8 (frames, height, width, 3) -> uint8 (frames, 3, size, size)."""
    height, width = frames.shape[1:3]
    if (height, width) != (size, size):
        scale = size / min(height, width)
        new = (max(size, round(width * scale)), max(size, round(height * scale)))
        left, top = (new[0] - size) // 2, (new[1] - size) // 2
        box = (left, top, left + size, top + size)
        frames = np.stack([np.asarray(Image.fromarray(f).resize(new, Image.Resampling.BICUBIC).crop(box)) for f in frames])
    return torch.from_numpy(np.ascontiguousarray(frames)).permute(0, 3, 1, 2).contiguous()
