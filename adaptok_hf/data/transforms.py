"""Random crops and flips. Frames are uint8 RGB with channels last, as they come from the decoder."""

import numpy as np


def random_crop(frames: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Return (frames, size, size, 3), cut from the same random place in every frame of (frames, height, width, 3)."""
    height, width = frames.shape[1:3]
    top, left = int(rng.integers(height - size + 1)), int(rng.integers(width - size + 1))
    return frames[:, top : top + size, left : left + size]


def random_flip(frames: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirror all of (frames, height, width, 3) left to right with probability one half."""
    return frames[:, :, ::-1] if rng.random() < 0.5 else frames
