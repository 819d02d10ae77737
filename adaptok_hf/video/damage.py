"""The error for files that cannot be read as videos."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO


class VideoError(ValueError):
    """A file that cannot be read as a video. The message begins with the file's name and says what is wrong."""


def damage_error(name: str, count: int, declared: int | None = None) -> VideoError:
    """Return the error for a file of which `count` frames, of those `declared` if known, can be decoded."""
    of = f" of {declared}" if declared and declared > 0 else ""
    return VideoError(f"{name}: the file is damaged or truncated; only {count}{of} frames could be decoded")


@contextmanager
def as_video_error(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into a `VideoError`; decoders meet damage with any kind of exception."""
    try:
        yield
    except VideoError:
        raise
    except MemoryError as error:
        raise VideoError(f"{name}: decoding it needs more memory than there is") from error
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise VideoError(f"{name}: the file is damaged, or no video ({reason})") from error


def gif_is_cut_short(file: BinaryIO) -> bool:
    """Return whether a GIF lacks its end mark: cut between two frames, it decodes without error."""
    file.seek(-16, os.SEEK_END)
    return not file.read().rstrip(b"\0\r\n ").endswith(b";")
