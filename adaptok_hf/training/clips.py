"""Clips for training: from folders that fit into memory, or streamed from data sets that do not.

Both kinds give the same clips whatever the number of processes: a batch is that of all processes together, and each takes
its share of it.
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from accelerate.utils import gather_object

from ..data import (
    ClipStream,
    HubVideos,
    TarShards,
    VideoFiles,
    VideoFolderClips,
    VideoItem,
    hub_videos,
    kinetics,
    random_window,
    ucf101,
    video_folder,
)
from ..models.configuration_adaptok import AdapTokConfig
from .arguments import ClipArguments, DatasetArguments, require
from .augmented_clips import AugmentedBatches
from .folder_batches import FolderBatches


@contextmanager
def shared_sampling(seed: int, step: int):
    """Make torch's generator on the CPU give the same numbers on every process, and again in a resumed run."""
    with torch.random.fork_rng(devices=[]):
        seed_of_step = np.random.SeedSequence([seed, step]).generate_state(1)[0]
        torch.default_generator.manual_seed(int(seed_of_step))  # `torch.manual_seed` would reach the accelerators too
        yield


class StreamBatches:
    """Clips of videos that are decoded when they are needed, each process reading its own share.

    Args:
        source: where the videos come from, see `adaptok_hf.data`.
        num_workers: decoding processes for each training process; 0 decodes in the training process itself.
    """

    def __init__(self, source: "JoinedSources", config: AdapTokConfig, seed: int, num_workers: int):
        require("torchdata")
        from torchdata.stateful_dataloader import StatefulDataLoader

        windows = partial(random_window, clip_length=config.num_frames)
        self.make_stream = partial(ClipStream, source, windows, config.image_size, flip_at_random=True, seed=seed)
        # single clips: the size of a batch changes with the stages of a run
        ahead = {"prefetch_factor": 8} if num_workers else {}
        self.loader = StatefulDataLoader(self.make_stream(), batch_size=None, num_workers=num_workers, **ahead)
        self.num_videos = source.num_videos
        self._clips: Iterator[dict[str, torch.Tensor]] | None = None

    def next_batch(self, batch_size: int) -> torch.Tensor:
        """Return this process' share of a batch, uint8 (clips, frames, 3, size, size)."""
        if self._clips is None:
            # it takes a random seed for the workers, which must not shift what a resumed run samples next
            with torch.random.fork_rng(devices=[]):
                self._clips = iter(self.loader)
        share = islice(self._clips, batch_size // PartialState().num_processes)
        return torch.stack([clip["pixel_values_videos"] for clip in share])

    def sample(self, count: int) -> torch.Tensor:
        """Return the first clips of the stream without advancing it; the same on every process."""
        clips = islice(self.make_stream(rank=0, world_size=1), count)
        return torch.stack([clip["pixel_values_videos"] for clip in clips])

    def state_dict(self) -> dict[str, Any]:
        """Return the positions of all processes, which must all call this."""
        return {"loaders": gather_object([self.loader.state_dict()])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume there; raise `ValueError` if another number of processes wrote the state."""
        here = PartialState()
        if len(state["loaders"]) != here.num_processes:
            raise ValueError(f"the checkpoint is of {len(state['loaders'])} processes, this run has {here.num_processes}")
        self.loader.load_state_dict(state["loaders"][here.process_index])


class JoinedSources:
    """Several sources of videos as one."""

    def __init__(self, sources: Sequence[VideoFiles | TarShards | HubVideos]):
        self.sources = list(sources)
        self._ends = list(accumulate(source.num_shards for source in self.sources))
        self.num_shards = self._ends[-1]

    @property
    def num_videos(self) -> int | None:
        """The number of videos, or `None` if the sources do not know it without reading."""
        if all(isinstance(source, VideoFiles) for source in self.sources):
            return sum(len(source.items) for source in self.sources)
        return None

    def read_shard(self, shard: int) -> Iterable[VideoItem]:
        index = bisect_right(self._ends, shard)
        return self.sources[index].read_shard(shard - (self._ends[index - 1] if index else 0))


def open_clips(args: ClipArguments, config: AdapTokConfig) -> tuple[FolderBatches | StreamBatches, VideoFolderClips | None]:
    """Return the training clips and, with a `val_folder`, the validation clips; relative paths start at `data_root`.

    Raises:
        ValueError, OSError: for missing folders and lists, as the sources of `adaptok_hf.data`.
    """
    root, val_clips = Path(args.data_root), None
    if args.train_folders and args.augment:
        folders, photos = ([root / folder for folder in folders] for folders in (args.train_folders, args.photo_folders))
        device = PartialState().device
        clips = AugmentedBatches(folders, args.train_weights, photos, args.photo_weight, config, device)
    elif args.train_folders:
        clips = FolderBatches([root / folder for folder in args.train_folders], args.train_weights, config)
    else:
        sources = [video_folder(root / folder) for folder in args.stream_folders] + open_datasets(args, root)
        sources += [TarShards.from_folder(root / folder) for folder in args.shard_folders]
        clips = StreamBatches(JoinedSources(sources), config, args.seed, args.num_workers)
    clips.num_videos = args.videos_per_epoch or clips.num_videos
    if args.val_folder:
        val_clips = VideoFolderClips([root / args.val_folder], config.num_frames, config.image_size, random_clips=False)
    PartialState().print(f"{clips.num_videos or 'uncounted'} training videos, {len(val_clips or [])} for validation")
    return clips, val_clips


def open_datasets(
    args: DatasetArguments,
    root: Path,
    ucf101_split: str = "train",
    class_names: Sequence[str] | None = None,
    **hub_columns: str | None,
) -> list[VideoFiles | TarShards | HubVideos]:
    """Return the data sets that the arguments name, with paths relative to `root`.

    Args:
        class_names: classes of Kinetics in the order of their labels.
        hub_columns: see `HubVideos`.
    """
    sources: list[VideoFiles | TarShards | HubVideos] = []
    if args.ucf101_folder:
        sources.append(ucf101(root / args.ucf101_folder, root / args.ucf101_splits, ucf101_split))
    if args.kinetics_folder:
        sources.append(kinetics(root / args.kinetics_csv, root / args.kinetics_folder, class_names))
    if args.hub_dataset:
        sources.append(hub_videos(args.hub_dataset, args.hub_split, video_column=args.hub_video_column, **hub_columns))
    return sources
