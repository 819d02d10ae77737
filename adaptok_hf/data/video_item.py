"""Videos that are not yet read, and their sources."""

import mimetypes
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from ..video.truncation import begins_like_a_video

NO_LABEL = -1

# Files with these suffixes are taken as they are; others, if they begin like a video (`is_video_file`).
VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".qt", ".3gp", ".3g2", ".f4v", ".webm", ".mkv", ".avi", ".divx", ".flv", ".wmv", ".asf"),
    *(".ogv", ".mpg", ".mpeg", ".mpe", ".m2v", ".vob", ".ts", ".mts", ".m2ts", ".mxf", ".nut", ".ivf", ".y4m", ".rm"),
    *(".rmvb", ".dv", ".h264", ".264", ".avc", ".h265", ".265", ".hevc", ".m1v", ".mpv", ".m2t", ".tp", ".trp"),
    *(".gif", ".webp", ".apng"),
)
# Downloads that are not finished begin like a video too.
_UNFINISHED = (".part", ".tmp", ".crdownload", ".ytdl", ".temp")


def is_video_file(path: str | Path) -> bool:
    """Return whether a regular file is a video by its suffix or, with an unknown suffix, by its first bytes."""
    if os.path.splitext(path)[1].lower() in VIDEO_SUFFIXES:
        return True
    kind = mimetypes.guess_type(str(path))[0] or ""  # a look into each of a million pictures would take long
    if str(path).lower().endswith(_UNFINISHED) or kind.startswith(("image/", "audio/", "text/", "application/json")):
        return False
    try:
        with open(path, "rb") as file:
            return begins_like_a_video(file.read(16))
    except OSError:
        return False


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
        key: names the video within its source; bytes of a name that are not UTF-8 become escapes.
        video: a path, the bytes of a file, or a `TarMember`.
        label: index of the class, -1 where there is none.
    """

    key: str
    video: str | bytes | TarMember
    label: int = NO_LABEL

    def __post_init__(self):
        object.__setattr__(self, "key", as_utf8(self.key))


def as_utf8(name: str) -> str:
    """Return a name as the text of csv, JSON and Parquet files: bytes that are not UTF-8 become escapes."""
    return name.encode(errors="backslashreplace").decode()


class VideoSource(Protocol):
    """Source of `ClipStream`: shards, numbered from 0 to `num_shards` - 1.

    `read_shard` returns the videos of a shard, the same in every call: as a list where they can be read in any order,
    otherwise as an iterator.
    """

    num_shards: int

    def read_shard(self, shard: int) -> list[VideoItem] | Iterator[VideoItem]: ...
