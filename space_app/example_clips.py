"""The clips that a visitor can try at once, without a network and without an upload."""

from pathlib import Path

import numpy as np

from adaptok_hf import read_video, write_video

_HERE = Path(__file__).parent
_HELD, _PLAYED = 40, 40  # frames


def make_examples(folder: Path) -> list[Path]:
    """Return the videos of `examples/`, and the first of them with its first frame held for a while, written into `folder`.

    `examples/` lies next to this file (on Spaces) or in the repository.
    """
    files = sorted(_HERE.glob("examples/*.mp4")) or sorted(_HERE.parent.glob("examples/*.mp4"))
    if not files:
        return []
    video = read_video(files[0], max_frames=_PLAYED)
    held = folder / f"{files[0].stem}_held_then_played.mp4"
    write_video(held, np.concatenate([np.repeat(video.frames[:1], _HELD, axis=0), video.frames]), video.fps)
    return [*files, held]
