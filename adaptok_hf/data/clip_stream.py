"""Clips from a source of videos: sharded, shuffled, resumable."""

import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..video.frames import center_crop, resize_short_side
from .clip_reader import Clip, EndedEarly, probe_video, read_clips
from .video_item import TarMember, VideoItem, VideoSource
from .windows import ChooseWindows

logger = logging.getLogger(__name__)

# Uses of the random generators; included in their seeds.
_SHARD_ORDER, _VIDEO_ORDER, _WINDOWS, _PICTURE = 1, 2, 3, 4


# The first position: epoch; units (shards or pieces of them), videos and clips done; videos seen and skipped.
_START = {"epoch": 0, "units": 0, "videos": 0, "clips": 0, "seen": 0, "skipped": 0}


class TooManySkippedVideos(Exception):
    """So many videos cannot be read that something must be wrong with the data as a whole."""


def check_skipped(tried: int, count: int, skipped: dict[str, str], max_skipped: int, max_skipped_share: float) -> None:
    """Check that not too many videos could not be read.

    Args:
        tried, count: videos so far, and how many of them were skipped.
        skipped: key -> reason, for the message.

    Raises:
        TooManySkippedVideos: for more than `max_skipped`, which are also more than that share of those tried.
    """
    if count > max_skipped and count > max_skipped_share * tried:
        raise TooManySkippedVideos(
            f"{count} of {tried} videos could not be used; at most {max_skipped}, or {max_skipped_share:.1%}, are skipped "
            f"(max_skipped, max_skipped_share). {_last(skipped)}"
        )


def _last(skipped: dict[str, str]) -> str:
    return "The last ones: " + "; ".join(f"{key} ({reason})" for key, reason in list(skipped.items())[-5:])


class ClipStream(IterableDataset):
    """An endless (or, for evaluation, one-epoch) stream of clips.

    * Every process and every worker of its `DataLoader` reads its own share; together they read each video exactly once
      per epoch. Do not hand the loader to `accelerator.prepare`, which would share it out a second time, and make the
      stream after the process group. A share is of whole shards where there are enough of them, else of single videos.
    * Shards are shuffled by `seed` and epoch, and so are the videos within shards that can be read in any order. There is
      no shuffle buffer, so nothing is lost on resuming.
    * Windows, crops and flips depend on `seed`, epoch and the video, not on who reads it. With files (shards of one
      video) the global batches do not depend on the number of processes either, as long as each has as many workers.
    * `state_dict` after an item (through a worker: `torchdata.stateful_dataloader.StatefulDataLoader`, whose state
      each process saves) and `load_state_dict` into an equal stream continue with the same items.
    * Videos that cannot be read or are too short are skipped, counted and named in warnings; too many are an error.

    Args:
        source: of videos (`video_folder`, `manifest`, `ucf101`, `kinetics`, `TarShards`, `HubVideos`).
        choose_windows: selects the frames of clips, a function of `windows.py` such as
            `partial(random_window, clip_length=16)`.
        image_size: frames are resized to this short side, then cropped to a square.
        flip_at_random: mirror half of the clips.
        shuffle: otherwise the order is that of the source.
        seed: not negative.
        num_epochs: how many epochs an iteration lasts; by default it does not end. Shares differ in
            length: processes that must take the same number of steps need the endless kind.
        max_skipped, max_skipped_share: the stream stops when more than `max_skipped` videos and more than this share of
            the videos that one reader has seen in an epoch were skipped.
        rank, world_size: by default those of `torch.distributed`, or 0 and 1.

    Yields dicts:
        `pixel_values_videos`: uint8 `(frames, 3, image_size, image_size)`.
        `label`: long `()`, -1 where there is none.
        `key`: the name of the video in its source.
        `fps`: float64 `()`, frames of the clip per second.
        `timestamps`: float64 `(frames,)`, seconds from the first frame of the video.
        `window`: long `()`, index of the clip's first frame in the video.

    Raises:
        ValueError: for impossible arguments; for a state of another stream or another number of readers.
        TooManySkippedVideos: see `max_skipped`; also when a reader of an endless stream has no readable video at all.
    """

    def __init__(
        self,
        source: VideoSource,
        choose_windows: ChooseWindows,
        image_size: int,
        *,
        flip_at_random: bool = False,
        shuffle: bool = True,
        seed: int = 0,
        num_epochs: int | None = None,
        max_skipped: int = 10,
        max_skipped_share: float = 0.05,
        rank: int | None = None,
        world_size: int | None = None,
    ):
        self.source, self.choose_windows, self.image_size = source, choose_windows, image_size
        self.flip_at_random, self.shuffle, self.seed, self.num_epochs = flip_at_random, shuffle, seed, num_epochs
        self.max_skipped, self.max_skipped_share = max_skipped, max_skipped_share
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = rank if rank is not None else torch.distributed.get_rank() if distributed else 0
        self.world_size = world_size if world_size is not None else torch.distributed.get_world_size() if distributed else 1
        for name, value, least in (("image_size", image_size, 1), ("seed", seed, 0), ("max_skipped", max_skipped, 0)):
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank must be between 0 and {self.world_size - 1}, got {self.rank}")
        if source.num_shards < 1:
            raise ValueError("the source has no videos")
        self.skipped: dict[str, str] = {}  # key -> reason, as far as this process has read itself
        self._position = dict(_START)
        self._resume = False

    def state_dict(self) -> dict[str, Any]:
        """Return the position after the last item that this reader yielded; small, and plain enough for JSON."""
        return {**self._identity(), **self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Begin the next iteration at that position. An iteration that is under way is not changed."""
        for name, value in self._identity().items():
            if state.get(name) != value:
                raise ValueError(
                    f"the state is of a stream with {name} = {state.get(name)!r}, this one has {value!r}; resuming needs "
                    "the same source, seed, processes and workers"
                )
        self._position = {name: int(state[name]) for name in _START}
        self._resume = True

    def __iter__(self) -> Iterator[dict[str, Any]]:
        if not self._resume:
            self._position = dict(_START)
        self._resume = False
        at = self._position
        while self.num_epochs is None or at["epoch"] < self.num_epochs:
            yield from self._epoch(at)
            if self.num_epochs is None and at["seen"] == at["skipped"]:
                raise TooManySkippedVideos(
                    f"reader {self._reader()} of {self._num_readers()} has no readable video: of {at['seen']} in its share "
                    f"{at['skipped']} were skipped, in {self.source.num_shards} shards. {_last(self.skipped)}"
                )
            at.update(epoch=at["epoch"] + 1, units=0, videos=0, clips=0, seen=0, skipped=0)

    def _epoch(self, at: dict[str, int]) -> Iterator[dict[str, Any]]:
        """Yield the rest of this reader's share of an epoch. `at` advances before each item is yielded."""
        readers, num_shards = self._num_readers(), self.source.num_shards
        pieces = -(-readers // num_shards)  # with more readers than shards, each shard is shared by so many
        order = self._permutation(num_shards, at["epoch"], _SHARD_ORDER)
        for unit in range(self._reader() + at["units"] * readers, num_shards * pieces, readers):
            shard, piece = int(order[unit // pieces]), unit % pieces
            for index, item in islice(self._videos(shard, at), piece + at["videos"] * pieces, None, pieces):
                yield from self._items(item, (at["epoch"], shard, index), at)
                if at["clips"]:
                    at.update(videos=at["videos"] + 1, clips=0)
            at.update(units=at["units"] + 1, videos=0)

    def _videos(self, shard: int, at: dict[str, int]) -> Iterator[tuple[int, VideoItem]]:
        """Yield the videos of a shard with their number in it, in the order of this epoch."""
        try:
            items = self.source.read_shard(shard)
            if self.shuffle and isinstance(items, list):
                items = [(int(i), items[i]) for i in self._permutation(len(items), at["epoch"], _VIDEO_ORDER, shard)]
            else:
                items = enumerate(items)
            # a shard that is streamed may turn out to be damaged at any of its videos
            yield from items
        except (OSError, ValueError) as error:
            at["seen"] += 1
            self._skip(f"shard {shard}", error, at)

    def _items(self, item: VideoItem, place: tuple[int, int, int], at: dict[str, int]) -> Iterator[dict[str, Any]]:
        """Yield the clips of a video after `at`; on return or with the last clip, `at` is after the video."""
        at["seen"] += at["clips"] == 0
        try:
            for number, total, clip in self._clips(item, place, at["clips"]):
                frames = center_crop(clip.frames, self.image_size).transpose(0, 3, 1, 2)
                if self.flip_at_random and self._rng(*place, _PICTURE, number).random() < 0.5:
                    frames = frames[..., ::-1]
                if number + 1 < total:
                    at["clips"] = number + 1
                else:
                    at.update(videos=at["videos"] + 1, clips=0)
                yield {
                    "pixel_values_videos": torch.from_numpy(np.ascontiguousarray(frames)),
                    "label": torch.tensor(item.label),
                    "key": item.key,
                    "fps": torch.tensor(clip.fps, dtype=torch.float64),
                    "timestamps": torch.from_numpy(clip.timestamps),
                    "window": torch.tensor(clip.start),
                }
        except (OSError, ValueError) as error:
            at.update(videos=at["videos"] + 1, clips=0)
            self._skip(item.key, error, at)

    def _clips(self, item: VideoItem, place: tuple[int, int, int], done: int) -> Iterator[tuple[int, int, Clip]]:
        """Yield number, total and clip for the clips of a video, starting from number `done`."""
        video = item.video.read() if isinstance(item.video, TarMember) else item.video
        num_frames, fps = probe_video(video)
        while True:
            windows = self.choose_windows(num_frames, self._rng(*place, _WINDOWS))
            try:
                for clip in read_clips(video, windows[done:], nominal_fps=fps, transform=self._resize):
                    done += 1
                    yield done - 1, len(windows), clip
                return
            except EndedEarly as ended:
                if ended.num_frames >= num_frames:
                    raise ValueError(f"windows {windows} were chosen for a video of {num_frames} frames") from ended
                num_frames = ended.num_frames

    def _resize(self, frame: np.ndarray) -> np.ndarray:
        return resize_short_side(frame, self.image_size)

    def _skip(self, key: str, error: Exception, at: dict[str, int]) -> None:
        at["skipped"] += 1
        if key not in self.skipped:
            self.skipped[key] = " ".join(str(error).split())
            logger.warning("skipped %s (%d of %d so far): %s", key, at["skipped"], at["seen"], self.skipped[key])
        check_skipped(at["seen"], at["skipped"], self.skipped, self.max_skipped, self.max_skipped_share)

    def _identity(self) -> dict[str, Any]:
        """Return what must be equal for a position to mean the same."""
        return {
            "seed": self.seed,
            "shuffle": self.shuffle,
            "num_shards": self.source.num_shards,
            "rank": self.rank,
            "world_size": self.world_size,
            "num_workers": info.num_workers if (info := get_worker_info()) else 1,
        }

    def _num_readers(self) -> int:
        info = get_worker_info()
        return self.world_size * (info.num_workers if info else 1)

    def _reader(self) -> int:
        # Ranks are apart by the number of workers: a batch of all ranks together then holds the same videos whatever
        # their number, since a loader takes its batches from its workers in turn.
        info = get_worker_info()
        return self.rank * info.num_workers + info.id if info else self.rank

    def _rng(self, *place: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, len(place), *place])

    def _permutation(self, count: int, *place: int) -> np.ndarray:
        return self._rng(*place).permutation(count) if self.shuffle else np.arange(count)
