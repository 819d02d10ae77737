"""How large a frame may be, and how long decoding a file may take: a small file can ask for years of work."""

import math
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager

from .damage import VideoError

# The defaults of the environment variables: 8192x8192, and a minute plus 20 seconds for each megabyte of the file.
_DEFAULTS = {"ADAPTOK_MAX_PIXELS": 2**26, "ADAPTOK_MAX_SECONDS": 60}
_BYTES_PER_LIMIT = 3_000_000


def check_size(name: str, width: int, height: int) -> None:
    """Raise `VideoError` for frames of more than `ADAPTOK_MAX_PIXELS` pixels."""
    limit = _setting("ADAPTOK_MAX_PIXELS")
    if width * height > limit:
        raise VideoError(
            f"{name}: frames of {width}x{height} pixels; at most {limit:.0f} pixels are decoded (ADAPTOK_MAX_PIXELS)"
        )


class TimeBudget:
    """Raises `VideoError` where decoding a file takes long for its size; what the caller does meanwhile does not count.

    A file may take `ADAPTOK_MAX_SECONDS`, and as long again for every 3 MB of it.

    Args:
        name: of the file.
        num_bytes: its size; `None` for what has no end, such as a camera: then there is no limit.
    """

    def __init__(self, name: str, num_bytes: int | None):
        limit = _setting("ADAPTOK_MAX_SECONDS")
        self.name, self.limit = name, math.inf if num_bytes is None else limit * (1 + num_bytes / _BYTES_PER_LIMIT)
        self._began = time.monotonic()

    def check(self) -> None:
        """Raise `VideoError` if the time is spent."""
        if time.monotonic() - self._began > self.limit:
            raise VideoError(
                f"{self.name}: decoding takes more than {self.limit:.0f} seconds, which is too long for a file of this "
                "size (ADAPTOK_MAX_SECONDS)"
            )

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock while a frame is with the caller."""
        paused = time.monotonic()
        yield
        self._began += time.monotonic() - paused


def _setting(name: str) -> float:
    text = os.environ.get(name) or str(_DEFAULTS[name])
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError(f"{name} must be a positive number, got {text!r}")
    return value
