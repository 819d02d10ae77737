"""Clips of videos and photos that are changed at random, all of it on the training device."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ..data import VideoFolderClips
from ..models.configuration_adaptok import AdapTokConfig
from .folder_batches import FolderBatches

SPEED_SHARES = (0.6, 0.25, 0.15)  # every frame, every second, every third
REVERSED_SHARE = 0.5
ZOOMED_SHARE = 0.7
SMALLEST_WINDOW = 0.55  # of the frame's side
BRIGHTNESS, CONTRAST, COLOR = 0.08, 0.15, 0.08
PHOTO_SIDE = 192
SMALLEST_PHOTO_WINDOW = 0.35
LARGEST_DRIFT = 0.4  # of a photo's window over a clip, in the photo's side


class AugmentedBatches(FolderBatches):
    """Random clips, mirrored, reversed, zoomed, faster, brighter or darker, of videos that are kept on the device.

    A photo becomes a clip in which a window moves and zooms.

    Args:
        folders, folder_weights: of videos, and the share of the clips that each gives.
        photo_folders, photo_weight: of photos (.jpg, .png, .webp), and the share of the clips that they give.
        device: where the frames are kept.

    Raises:
        ValueError: if a folder has no usable video or photo.
    """

    def __init__(
        self,
        folders: Sequence[Path],
        folder_weights: Sequence[float],
        photo_folders: Sequence[Path],
        photo_weight: float,
        config: AdapTokConfig,
        device: torch.device,
    ):
        videos = VideoFolderClips(folders, config.num_frames, config.image_size)
        self.weights = videos.sampling_weights(folder_weights)
        self.lengths = torch.tensor([len(video) for video in videos.videos])
        self.starts = self.lengths.cumsum(0) - self.lengths
        self.frames = torch.cat(videos.videos).to(device)
        photos = [_read_photo(path) for folder in photo_folders for path in _find_photos(folder)]
        self.photos = torch.stack(photos).to(device) if photos else None
        self.photo_share = photo_weight / (photo_weight + sum(folder_weights))
        self.num_videos: int | None = len(videos)
        self.num_frames, self.size, self.device = config.num_frames, config.image_size, device

    def sample(self, count: int) -> torch.Tensor:
        """Return random clips, by the global generator: the same on every process if its state is."""
        from_photos = 0 if self.photos is None else int((torch.rand(count) < self.photo_share).sum())
        clips = [self._sample_videos(count - from_photos)] if from_photos < count else []
        clips += [self._sample_photos(from_photos)] if from_photos else []
        order = torch.randperm(count).to(self.device)
        return self._change_colors(torch.cat(clips))[order].round().byte()

    def _sample_videos(self, count: int) -> torch.Tensor:
        index = torch.multinomial(self.weights, count, replacement=True)
        lengths, span = self.lengths[index], self.num_frames - 1
        speed = 1 + torch.multinomial(torch.tensor(SPEED_SHARES), count, replacement=True)
        speed = torch.minimum(speed, (lengths - 1) // span)
        first = (torch.rand(count) * (lengths - speed * span)).long()
        steps = torch.arange(self.num_frames)
        times = torch.where((torch.rand(count) < REVERSED_SHARE)[:, None], span - steps, steps)
        positions = self.starts[index][:, None] + first[:, None] + speed[:, None] * times
        clips = self.frames[positions.to(self.device)].float().flatten(1, 2)
        window = torch.where(torch.rand(count) < ZOOMED_SHARE, _between(count, SMALLEST_WINDOW, 1), torch.ones(count))
        centers = (torch.rand(count, 2) * 2 - 1) * (1 - window)[:, None]
        windows = self._look(clips, window, centers)
        return windows.unflatten(1, (self.num_frames, 3))

    def _sample_photos(self, count: int) -> torch.Tensor:
        index = torch.randint(len(self.photos), (count,))
        times = torch.linspace(-0.5, 0.5, self.num_frames)
        zoom = 1 + 0.3 * torch.randn(count, 1) * torch.rand(count, 1) * times
        window = (_between(count, SMALLEST_PHOTO_WINDOW, 0.95)[:, None] * zoom).clamp(max=1)
        # many pictures move slowly, some fast
        drift = LARGEST_DRIFT * torch.rand(count, 1).square() * torch.randn(count, 2).clamp(-2, 2)
        centers = (torch.rand(count, 1, 2) * 2 - 1) * (1 - window[..., None]) + 2 * drift[:, None] * times[:, None]
        centers = centers.clamp(-(1 - window)[..., None], (1 - window)[..., None])
        photos = self.photos[index.to(self.device)].float()
        photos = photos[:, None].expand(-1, self.num_frames, -1, -1, -1).flatten(0, 1)
        windows = self._look(photos, window.flatten(), centers.flatten(0, 1), repeats=self.num_frames)
        return windows.unflatten(0, (count, self.num_frames))

    def _look(self, pictures: torch.Tensor, window: torch.Tensor, centers: torch.Tensor, repeats: int = 1) -> torch.Tensor:
        """Return windows of (batch, channels, side, side), half of them mirrored, as `size` x `size` pictures.

        Args:
            window: (batch,), sides, of 1 for the whole.
            centers: (batch, 2), from -1 to 1.
            repeats: neighbors that are mirrored alike.
        """
        mirror = 1 - 2 * torch.randint(2, (len(window) // repeats,)).repeat_interleave(repeats)
        maps = torch.zeros(len(window), 2, 3)
        maps[:, 0, 0], maps[:, 1, 1], maps[:, :, 2] = window * mirror, window, centers
        shape = (len(window), 1, self.size, self.size)
        grid = nn.functional.affine_grid(maps.to(self.device), shape, align_corners=False)
        return nn.functional.grid_sample(pictures, grid, padding_mode="border", align_corners=False)

    def _change_colors(self, clips: torch.Tensor) -> torch.Tensor:
        count = len(clips)
        changed = (torch.rand(count, 1) < 0.5).float()
        gain = 1 + changed * (CONTRAST * torch.randn(count, 1) + COLOR * torch.randn(count, 3))
        offset = 255 * BRIGHTNESS * changed * torch.randn(count, 1)
        gain, offset = (values.view(count, 1, -1, 1, 1).to(self.device) for values in (gain, offset))
        # around white, so that a white ground stays white unless the clip gets darker
        return (255 + gain * (clips - 255) + offset).clamp(0, 255)


def _between(count: int, low: float, high: float) -> torch.Tensor:
    return low + (high - low) * torch.rand(count)


def _find_photos(folder: Path) -> list[Path]:
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp"))
    if not paths:
        raise ValueError(f"{folder}: no photo (.jpg, .jpeg, .png, .webp) below this folder")
    return paths


def _read_photo(path: Path) -> torch.Tensor:
    """Return the middle square of a photo, (3, PHOTO_SIDE, PHOTO_SIDE) uint8."""
    with Image.open(path) as image:
        scale = PHOTO_SIDE / min(image.size)
        size = [max(PHOTO_SIDE, math.ceil(side * scale)) for side in image.size]
        image = image.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    left, top = ((side - PHOTO_SIDE) // 2 for side in size)
    return torch.from_numpy(np.array(image.crop((left, top, left + PHOTO_SIDE, top + PHOTO_SIDE)))).permute(2, 0, 1)
