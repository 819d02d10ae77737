from pathlib import Path

import pytest
from builders.evaluations import moving_frames

from adaptok_hf import write_video


@pytest.fixture(scope="package")
def videos(tmp_path_factory) -> Path:
    """5 videos of 26 frames: two clips of 12 each."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(5):
        write_video(folder / f"v{index}.mp4", moving_frames(index), 12)
    return folder
