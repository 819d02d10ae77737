"""Small evaluations."""

from pathlib import Path

import numpy as np

from adaptok_hf.evaluation import evaluate_reconstruction, open_videos, own_protocol


def moving_frames(seed: int, count: int = 26) -> np.ndarray:
    """uint8 (count, 16, 16, 3): a random picture that drifts."""
    rng = np.random.default_rng(seed)
    picture = rng.integers(40, 215, (1, 16, 16, 3))
    return np.clip(picture + np.cumsum(rng.integers(-6, 7, (count, 16, 16, 3)), axis=0), 0, 255).astype(np.uint8)


def evaluate(pipeline, videos: Path, output: Path, window: str = "all", **options) -> dict:
    protocol = own_protocol(pipeline, "test", window, "reconstruction")
    given = {"strategies": ["fixed"], "budgets": [4], "batches": [2], "batch_size": 3, "num_schedule_clips": 2} | options
    return evaluate_reconstruction({"tiny": pipeline}, open_videos(videos), protocol, output, **given)
