"""A plain detector of hard cuts."""

import numpy as np


def find_cuts(frames: np.ndarray, ratio: float = 4.0, least: float = 0.08) -> list[int]:
    """Find frames that differ from the one before far more than their neighbors do.

    A cut is where the mean absolute difference of two neighboring frames (in [0, 1], at an eighth of the size, so that
    motion and noise count little) is at least `least`, and `ratio` times the median of the 8 differences around it. Fades
    and dissolves are not found.

    Args:
        frames: uint8 (frames, height, width, 3).

    Returns:
        Index of the first frame after each cut.
    """
    small = frames[:, 4::8, 4::8] if min(frames.shape[1:3]) >= 16 else frames
    small = small.astype(np.float32) / 255
    change = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3))
    cuts = []
    for index, value in enumerate(change):
        around = np.concatenate([change[max(0, index - 4) : index], change[index + 1 : index + 5]])
        usual = float(np.median(around)) if len(around) else 0.0
        if value >= least and value >= ratio * usual:
            cuts.append(index + 1)
    return cuts
