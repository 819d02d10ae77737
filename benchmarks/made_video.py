"""A video for benchmarks, made of waves and noise."""

from collections.abc import Iterator

import numpy as np

FPS = 25


def moving_picture(seconds: float, size: int = 128) -> Iterator[np.ndarray]:
    """uint8 (size, size, 3) frames at 25 per second; motion, contrast and noise change over time."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    for number in range(round(seconds * FPS)):
        t = number / FPS
        phase = np.stack([x + 0.3 * t, y - 0.2 * t, x * y + 0.1 * t], axis=-1)
        picture = 0.5 + (0.15 + 0.3 * np.sin(t / 7) ** 2) * np.sin(2 * np.pi * (2 + np.sin(t / 11)) * phase)
        picture = picture + rng.normal(0, 0.05 * np.cos(t / 5) ** 2, picture.shape)
        yield (picture.clip(0, 1) * 255).astype(np.uint8)
