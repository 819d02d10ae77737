"""Random clips from folders of videos that fit into memory."""

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch.utils.data import Dataset

from ..video.video_processing_adaptok import AdapTokVideoProcessor
from .sources import video_folder
from .video_item import VideoItem

logger = logging.getLogger(__name__)


class VideoFolderClips(Dataset):
    """Every video below the folders, decoded once and kept as uint8; an item is one clip of consecutive frames.

    A video is one item whatever its length, so that long videos do not crowd out short ones. Frames are resized and
    cropped by `AdapTokVideoProcessor`, so that training and validation see the same pictures as users.

    Args:
        folders: searched recursively for video files.
        num_frames: frames of a clip; shorter videos are left out. So are files that cannot be read: they are counted and
            named in a warning.
        image_size: side of the square frames.
        random_clips: sample the clip's start and a horizontal flip at random (training); otherwise the clip is the first
            `num_frames` frames (validation).

    Raises:
        ValueError: if a folder has no usable video.
    """

    def __init__(self, folders: Sequence[str | Path], num_frames: int, image_size: int, random_clips: bool = True):
        self.num_frames, self.random_clips = num_frames, random_clips
        self.videos: list[torch.Tensor] = []  # each (frames, 3, image_size, image_size) uint8
        self.paths: list[Path] = []
        unreadable = 0
        self.folder_index: list[int] = []  # which of `folders` each video is from
        processor = AdapTokVideoProcessor(image_size=image_size, num_frames=1, tubelet_size=1)
        for index, folder in enumerate(folders):
            before, items = len(self.videos), video_folder(folder).items
            with ThreadPoolExecutor() as threads:  # decoders leave Python's lock to others
                decoded = threads.map(lambda item: _read_frames(processor, item), items)
                for item, frames in zip(items, decoded, strict=True):
                    if isinstance(frames, ValueError):
                        unreadable += 1
                        logger.warning("left out (%d so far): %s", unreadable, frames)
                    elif len(frames) >= num_frames:
                        self.videos.append(frames)
                        self.paths.append(Path(item.video))
                        self.folder_index.append(index)
            if len(self.videos) == before:
                raise ValueError(f"{folder}: no video of at least {num_frames} frames below this folder")

    def __len__(self) -> int:
        return len(self.videos)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return `pixel_values_videos`, (num_frames, 3, image_size, image_size) uint8, and the `index` of the video."""
        video, start = self.videos[index], 0
        if self.random_clips:
            start = int(torch.randint(len(video) - self.num_frames + 1, ()))
        clip = video[start : start + self.num_frames]
        if self.random_clips and torch.rand(()) < 0.5:
            clip = clip.flip(-1)
        return {"pixel_values_videos": clip, "index": torch.tensor(index)}

    def sampling_weights(self, folder_weights: Sequence[float]) -> torch.Tensor:
        """Return (videos,) weights that give each folder its share of the samples, whatever its number of videos."""
        index = torch.tensor(self.folder_index)
        shares = torch.tensor(folder_weights, dtype=torch.float64) / index.bincount(minlength=len(folder_weights))
        return shares[index]


def _read_frames(processor: AdapTokVideoProcessor, item: VideoItem) -> torch.Tensor | ValueError:
    try:
        return processor.clips(item.video).frames.squeeze(1)
    except ValueError as error:
        return error
