"""Videos to be tokenized: where they come from, and windows of several of them in random order."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ...data import ClipStream, HubVideos, TarShards, VideoFiles, VideoItem, all_windows, video_folder
from ..arguments import DatasetArguments
from ..clips import open_datasets


@dataclass(kw_only=True)
class SourceArguments(DatasetArguments):
    """Exactly one of `videos`, `ucf101_folder`, `kinetics_folder`, `shard_folder`, `hub_dataset`."""

    videos: str | None = field(default=None, metadata={"help": "A folder of videos, searched recursively."})
    labels: Literal["folder", "none"] = field(
        default="none", metadata={"help": "Of videos: 'folder': the class is the first sub-folder; 'none'."}
    )
    ucf101_split: Literal["train", "test"] = field(default="train", metadata={"help": "trainlist01 or testlist01."})
    shard_folder: str | None = field(default=None, metadata={"help": "A folder of tar shards (write_shards.py)."})
    hub_label_column: str | None = field(
        default=None, metadata={"help": "Of hub_dataset; default: the one of class labels."}
    )
    hub_key_column: str | None = field(default=None, metadata={"help": "Of hub_dataset: what names a video."})
    class_names: str | None = field(
        default=None,
        metadata={
            "help": "File with a class a line, in the order of the labels, such as for validation videos that do not have "
            "every class. Default: those of the source; of shards, their class_names.txt."
        },
    )

    def __post_init__(self):
        super().__post_init__()
        kinds = ("videos", "ucf101_folder", "kinetics_folder", "shard_folder", "hub_dataset")
        sources = [name for name in kinds if getattr(self, name) is not None]
        if len(sources) != 1:
            raise ValueError(f"give exactly one of {', '.join(kinds)}; got {sources or 'none'}")


def open_source(args: SourceArguments) -> tuple[VideoFiles | TarShards | HubVideos, list[str]]:
    """Return the videos that the arguments name, and the classes in the order of their labels (none without labels).

    Raises:
        ValueError, OSError: for missing folders, lists and classes, as the sources of `adaptok_hf.data`.
    """
    names = Path(args.class_names).read_text().splitlines() if args.class_names else None
    if args.videos:
        if args.labels == "folder":
            source = video_folder(args.videos, names)
            return source, source.class_names
        return VideoFiles(VideoItem(item.key, item.video) for item in video_folder(args.videos).items), []
    if args.shard_folder:
        listed = Path(args.shard_folder) / "class_names.txt"
        if names is None and listed.is_file():
            names = listed.read_text().splitlines()
        return TarShards.from_folder(args.shard_folder), names or []
    columns = {"label_column": args.hub_label_column, "key_column": args.hub_key_column}
    (source,) = open_datasets(args, Path(), args.ucf101_split, names, **columns)
    return source, source.class_names if isinstance(source, VideoFiles) else names or source.class_names


class OneShard:
    """A shard of a source, as a source."""

    num_shards = 1

    def __init__(self, source: TarShards | HubVideos, shard: int):
        self.source, self.shard = source, shard

    def read_shard(self, shard: int) -> Any:
        return self.source.read_shard(self.shard)


def split_source(
    source: VideoFiles | TarShards | HubVideos, videos_per_shard: int, seed: int
) -> list[VideoFiles | OneShard]:
    """Return what goes into one output shard each: some videos in random order, or what is a shard already."""
    if not isinstance(source, VideoFiles):
        return [OneShard(source, shard) for shard in range(source.num_shards)]
    order = np.random.default_rng(seed).permutation(len(source.items))
    starts = range(0, len(order), videos_per_shard)
    return [VideoFiles(source.items[i] for i in order[start : start + videos_per_shard]) for start in starts]


def source_hash(source: VideoFiles | TarShards | HubVideos, args: SourceArguments) -> str:
    """Return the SHA-256 of what is read, so that shards of other videos are not taken for these."""
    if isinstance(source, VideoFiles):
        listing: list = [(item.key, item.label) for item in source.items]
    elif isinstance(source, TarShards):
        listing = [(Path(path).name, Path(path).stat().st_size) for path in source.paths]
    else:
        listing = [args.hub_dataset, args.hub_split, source.label_column, source.num_shards]
    return hashlib.sha256(json.dumps(listing).encode()).hexdigest()


class MixedWindows:
    """All windows of the videos of a source, each once, those of several videos mixed: at every turn the next window of one
    of `videos_at_once` open videos, chosen at random.

    Only the frames of these videos' current windows are in memory. A video that cannot be read goes to `skipped` (key ->
    reason); of one that is damaged further on, the windows before the damage are given.

    Args:
        clip_length, step: frames of a window, and between the starts of two.
        seed: of the choice.
    """

    def __init__(
        self,
        source: VideoFiles | OneShard,
        *,
        clip_length: int,
        step: int,
        image_size: int,
        videos_at_once: int,
        seed: tuple[int, ...],
    ):
        self.source, self.image_size, self.videos_at_once, self.seed = source, image_size, videos_at_once, seed
        self.windows = partial(all_windows, clip_length=clip_length, step=step)
        self.skipped: dict[str, str] = {}
        self.num_videos = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Items of `ClipStream`."""
        rng = np.random.default_rng(self.seed)
        waiting = (item for shard in range(self.source.num_shards) for item in self.source.read_shard(shard))
        opened: list[Iterator[dict[str, Any]]] = []
        while True:
            while len(opened) < self.videos_at_once and (item := next(waiting, None)) is not None:
                self.num_videos += 1
                opened.append(self._read(item))
            if not opened:
                return
            chosen = int(rng.integers(len(opened)))
            window = next(opened[chosen], None)
            if window is None:
                opened.pop(chosen)
            else:
                yield window

    def _read(self, item: VideoItem) -> Iterator[dict[str, Any]]:
        stream = ClipStream(
            VideoFiles([item]), self.windows, self.image_size, shuffle=False, num_epochs=1, rank=0, world_size=1
        )
        yield from stream
        self.skipped |= stream.skipped
