"""Clips from a video file: decodes no further than the last frame that is needed, and keeps only frames in use."""

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import takewhile

import numpy as np

from ..video.damage import VideoError
from ..video.decoding_limits import TimeBudget
from ..video.frame_times import nominal_rate
from ..video.truncation import video_is_cut_short
from ..video.video_io import DEFAULT_FPS, VideoSource, iter_video, open_container, open_source, source_name, video_stream


@dataclass(frozen=True, eq=False)
class Clip:
    """Consecutive frames of a video.

    Args:
        frames: uint8 `(frames, height, width, 3)`.
        fps: frames of the clip per second.
        timestamps: float64 `(frames,)`, seconds from the first frame of the VIDEO.
        start: the first frame's index in the video.
    """

    frames: np.ndarray
    fps: float
    timestamps: np.ndarray
    start: int


class EndedEarly(Exception):
    """A video has `num_frames` frames, fewer than its container promised."""

    def __init__(self, num_frames: int):
        super().__init__(num_frames)
        self.num_frames = num_frames


def probe_video(video: str | bytes) -> tuple[int, float | None]:
    """Return the number of frames and the nominal frame rate (None: unknown) of a path or the bytes of a file.

    The number is that in the index of an mp4 or mov, elsewhere that of compressed packets: cheap, and nearly always right;
    see `EndedEarly`. Animations, which have neither, are decoded to be counted.

    Raises:
        OSError, VideoError: as `read_video`.
    """
    name, count, rate, cut_short = source_name(video), 0, None, None
    with open_source(video) as file:
        num_bytes = file.seek(0, os.SEEK_END)
        budget = TimeBudget(name, num_bytes)
        try:
            cut_short = video_is_cut_short(file)
            file.seek(0)
            with open_container(file) as container:
                stream = video_stream(container, name)
                rate = nominal_rate(container, stream)
                count = stream.frames if "mp4" in container.format.name else 0
                if count == 0 and not cut_short:
                    for packet in container.demux(stream):
                        budget.check()
                        count += packet.size > 0
        except VideoError:
            raise
        except Exception:
            count = 0
    if count == 0 or count > num_bytes or cut_short:
        # Either another kind of file or a damaged one: `iter_video` knows, and has the right words for it.
        count, rate = sum(1 for _ in iter_video(video)), None
    return count, rate


def read_clips(
    video: VideoSource,
    windows: Sequence[range],
    *,
    nominal_fps: float | None = None,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Iterator[Clip]:
    """Decode windows of a video.

    Args:
        video: anything that `iter_video` takes.
        windows: frame indices of each clip, in order of their start; they may overlap.
        nominal_fps: the video's frame rate, used where the timestamps agree with it (they are often
            rounded); otherwise the rate is that of the timestamps.
        transform: applied to each needed uint8 `(height, width, 3)` frame as it is decoded.

    Yields:
        A `Clip` per window, each as soon as its last frame is decoded.

    Raises:
        EndedEarly: where the video ends before a window does.
        OSError, VideoError: as `read_video`. Damage after the last window goes unnoticed.
    """
    pending = deque(windows)
    kept: dict[int, tuple[np.ndarray, float]] = {}
    count = 0
    with closing(iter_video(video)) as decoded:
        for index, (frame, seconds, _) in enumerate(decoded):
            count = index + 1
            if any(index in window for window in takewhile(lambda w: w.start <= index, pending)):  # noqa: B023
                kept[index] = (transform(frame) if transform else frame, seconds)
            while pending and pending[0][-1] <= index:
                window = pending.popleft()
                yield _clip(window, kept, nominal_fps)
                first = pending[0].start if pending else None
                kept = {i: value for i, value in kept.items() if first is not None and i >= first}
            if not pending:
                return
    raise EndedEarly(count)


def _clip(window: range, kept: dict[int, tuple[np.ndarray, float]], nominal_fps: float | None) -> Clip:
    frames, timestamps = zip(*(kept[index] for index in window), strict=True)
    fps, span, steps = nominal_fps, timestamps[-1] - timestamps[0], len(window) - 1
    if steps and (not fps or abs(span - steps / fps) > 0.002):
        fps = steps / span
    return Clip(np.stack(frames), fps or DEFAULT_FPS, np.array(timestamps), window.start)
