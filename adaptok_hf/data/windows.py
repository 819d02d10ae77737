"""Choosing the frames of clips.

Each function takes the number of frames of the video and a random generator and returns ranges of frame indices, one per
clip, in order of their start. Fix the other arguments with `functools.partial`:
`partial(random_window, clip_length=16)` is what `ClipStream` takes.

A stride of 1 keeps the frame rate of the video, a stride of n takes every n-th frame.
"""

from collections.abc import Callable

import numpy as np

# (frames of the video, random generator) -> the frames of each clip
ChooseWindows = Callable[[int, np.random.Generator], list[range]]


def first_window(num_frames: int, rng: np.random.Generator, *, clip_length: int, stride: int = 1) -> list[range]:
    """Return the first frames of the video; `rng` is not used."""
    return [_window(0, num_frames, clip_length, stride)]


def random_window(num_frames: int, rng: np.random.Generator, *, clip_length: int, stride: int = 1) -> list[range]:
    """Return one window; all possible starts are equally likely."""
    last = _window(0, num_frames, clip_length, stride)[-1]
    return [_window(int(rng.integers(num_frames - last)), num_frames, clip_length, stride)]


def all_windows(num_frames: int, rng: np.random.Generator, *, clip_length: int, step: int, stride: int = 1) -> list[range]:
    """Return the windows that start at frame 0, step, 2 step, ... and end within the video; `rng` is not used."""
    if step < 1:
        raise ValueError(f"the step between windows must be at least 1 frame, got {step}")
    last = _window(0, num_frames, clip_length, stride)[-1]
    return [_window(start, num_frames, clip_length, stride) for start in range(0, num_frames - last, step)]


def _window(start: int, num_frames: int, clip_length: int, stride: int) -> range:
    if clip_length < 1 or stride < 1:
        raise ValueError(f"clip length and stride must be at least 1, got {clip_length} and {stride}")
    needed = (clip_length - 1) * stride + 1
    if num_frames < needed:
        raise ValueError(f"{num_frames} frames, but a clip of {clip_length} frames with stride {stride} needs {needed}")
    return range(start, start + needed, stride)
