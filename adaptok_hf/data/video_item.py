"""Videos that are not yet read, and their sources."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

NO_LABEL = -1

VIDEO_SUFFIXES = (".mp4", ".mov", ".webm", ".mkv", ".avi", ".gif", ".webp")


@dataclass(frozen=True)
class TarMember:
    """A file inside a tar file."""

    tar: str
    offset: int
    size: int

    def read(self) -> bytes:
        with open(self.tar, "rb") as file:
            file.seek(self.offset)
            data = file.read(self.size)
        if len(data) < self.size:
            raise ValueError(f"{self.tar}: ends in the middle of this video, {self.size - len(data)} bytes are missing")
        return data


@dataclass(frozen=True)
class VideoItem:
    """One video, not yet read.

    Args:
        key: names the video within its source.
        video: a path, the bytes of a file, or a `TarMember`.
        label: index of the class, -1 where there is none.
    """

    key: str
    video: str | bytes | TarMember
    label: int = NO_LABEL


class VideoSource(Protocol):
    """Source of `ClipStream`: shards, numbered from 0 to `num_shards` - 1.

    `read_shard` returns the videos of a shard, the same in every call: as a list where they can be read in any order,
    otherwise as an iterator.
    """

    num_shards: int

    def read_shard(self, shard: int) -> list[VideoItem] | Iterator[VideoItem]: ...
