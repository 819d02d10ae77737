"""Random clips from folders that fit into memory."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from ..data import VideoFolderClips
from ..models.configuration_adaptok import AdapTokConfig


class FolderBatches:
    """Random clips of videos that are kept in memory, on every process."""

    def __init__(self, folders: Sequence[Path], folder_weights: Sequence[float], config: AdapTokConfig):
        self.videos = VideoFolderClips(folders, config.num_frames, config.image_size)
        self.weights = self.videos.sampling_weights(folder_weights)
        self.num_videos: int | None = len(self.videos)

    def next_batch(self, batch_size: int) -> torch.Tensor:
        """Return this process' share of a batch, uint8 (clips, frames, 3, size, size). Call it in `shared_sampling`."""
        state = PartialState()
        return self.sample(batch_size)[state.process_index :: state.num_processes]

    def sample(self, count: int) -> torch.Tensor:
        """Return random clips, by the global generator: the same on every process if its state is."""
        indices = torch.multinomial(self.weights, count, replacement=True)
        return torch.stack([self.videos[int(index)]["pixel_values_videos"] for index in indices])

    def state_dict(self) -> dict[str, Any]:
        return {}  # samples depend on seed and step only

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass
