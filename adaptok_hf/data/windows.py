"""Choosing the frames of clips.

Each function takes the number of frames of the video and a random generator and returns ranges of frame indices, one per
clip, in order of their start. `partial(random_window, clip_length=16)` is what `ClipStream` takes.
"""

from collections.abc import Callable

import numpy as np

# (frames of the video, random generator) -> the frames of each clip
ChooseWindows = Callable[[int, np.random.Generator], list[range]]


def first_window(num_frames: int, rng: np.random.Generator, *, clip_length: int) -> list[range]:
    """Return the first frames of the video; `rng` is not used."""
    return all_windows(num_frames, rng, clip_length=clip_length, step=num_frames)


def random_window(num_frames: int, rng: np.random.Generator, *, clip_length: int) -> list[range]:
    """Return one window; all possible starts are equally likely."""
    windows = all_windows(num_frames, rng, clip_length=clip_length, step=1)
    return [windows[int(rng.integers(len(windows)))]]


def all_windows(num_frames: int, rng: np.random.Generator, *, clip_length: int, step: int) -> list[range]:
    """Return the windows that start at frame 0, step, 2 step, ... and end within the video; `rng` is not used.

    Raises:
        ValueError: for a length or step below 1, and for a video that is too short.
    """
    if num_frames < clip_length:
        raise ValueError(f"{num_frames} frames, but a clip of {clip_length} frames needs as many")
    if clip_length < 1 or step < 1:
        raise ValueError(f"clip length and step must be at least 1, got {clip_length} and {step}")
    return [range(start, start + clip_length) for start in range(0, num_frames - clip_length + 1, step)]
