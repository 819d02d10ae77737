"""Clips that overlap in time, faded into each other."""

from collections.abc import Iterable, Iterator

import numpy as np


def fade_clips(clips: Iterable[np.ndarray], shared: int) -> Iterator[np.ndarray]:
    """Yield the frames of a video, one at a time.

    Args:
        clips: uint8 (frames, height, width, 3) each, in order.
        shared: frames that each has in common with the end of the one before.
    """
    weights = (np.arange(1, shared + 1, dtype=np.float32) / (shared + 1))[:, None, None, None]
    tail = None
    for clip in clips:
        head = clip[:shared]
        if tail is not None:
            head = np.rint(tail * (1 - weights) + head * weights).astype(np.uint8)
        yield from head
        yield from clip[shared : len(clip) - shared]
        tail = clip[len(clip) - shared :]
    if tail is not None:
        yield from tail
