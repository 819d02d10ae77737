"""Frames become squares: resize, crop, flip. All uint8 RGB, channels last, as they come from the decoder."""

import numpy as np
from PIL import Image


def resize_short_side(frame: np.ndarray, size: int) -> np.ndarray:
    """(height, width, 3) -> the same picture with its short side `size` pixels long.

    Antialiased bilinear, like `AdapTokVideoProcessor`: a model sees the same pictures in training and in use.
    """
    height, width = frame.shape[:2]
    short = min(height, width)
    if short == size:
        return frame
    target = (round(width * size / short), round(height * size / short))
    return np.asarray(Image.fromarray(frame).resize(target, Image.Resampling.BILINEAR))


def centre_crop(frames: np.ndarray, size: int) -> np.ndarray:
    """(frames, height, width, 3) -> (frames, size, size, 3); the sides must be at least `size` long."""
    height, width = frames.shape[1:3]
    return _crop(frames, (height - size) // 2, (width - size) // 2, size)


def random_crop(frames: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """(frames, height, width, 3) -> (frames, size, size, 3), cut from the same random place in every frame."""
    height, width = frames.shape[1:3]
    return _crop(frames, int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1)), size)


def random_flip(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """(frames, height, width, 3), all frames mirrored left to right with probability one half."""
    return frames[:, :, ::-1] if rng.random() < 0.5 else frames


def _crop(frames: np.ndarray, top: int, left: int, size: int) -> np.ndarray:
    return frames[:, top : top + size, left : left + size]
