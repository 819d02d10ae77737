"""The clips that a visitor can try at once, without a network and without an upload."""

from pathlib import Path

import numpy as np

from adaptok_hf import read_video, write_video

_HERE = Path(__file__).parent
_HELD, _PLAYED = 40, 40  # frames


def example_files() -> list[Path]:
    """The videos of `examples/`, beside this file (on Spaces) or in the repository that it lies in."""
    for folder in (_HERE / "examples", _HERE.parent / "examples"):
        files = sorted(folder.glob("*.mp4"))
        if files:
            return files
    return []


def make_examples(folder: Path) -> list[Path]:
    """The files above, and the first of them with its first frame held for a while, written into `folder`."""
    files = example_files()
    if not files:
        return []
    video = read_video(files[0], max_frames=_PLAYED)
    made = folder / f"{files[0].stem}_held_then_played.mp4"
    write_video(made, np.concatenate([np.repeat(video.frames[:1], _HELD, axis=0), video.frames]), video.fps)
    return [*files, made]
