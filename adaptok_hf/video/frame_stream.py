"""Frames one at a time from files, cameras, iterators and arrays."""

import os
from collections.abc import Iterable, Iterator
from contextlib import closing
from typing import Any

import numpy as np

from .frame_arrays import is_frame
from .picture_files import is_file
from .video_io import DEFAULT_FPS, check_fps, iter_container, iter_video, source_name
from .video_processing_adaptok import AdapTokVideoProcessor

ACCEPTED = (
    "an iterable of frames (PIL images, pictures, arrays or tensors (height, width, 3) or (3, height, width), or several "
    "of them stacked), a path (also of a picture, or a folder of them), an address such as rtsp://..., a camera such as "
    "/dev/video0, an open PyAV container, a Video, or an array of frames"
)

Frame = tuple[np.ndarray, float, float]


def iter_frames(video: Any, processor: AdapTokVideoProcessor, fps: float | None = None) -> Iterator[Frame]:
    """Yield the frames of a source, in constant memory.

    Args:
        video: an iterable of frames, which may also come several at once (4-D); a video file (path, bytes, file object);
            an address or camera that FFmpeg can open (a string with `://`, or `/dev/video...`); an open PyAV container,
            which is read from its position and never rewound; a file object that cannot be rewound, such as
            `sys.stdin.buffer`; a [`Video`]; a 4-D array or tensor.
        processor: turns frames into uint8 arrays.
        fps: only for frames without a frame rate.

    Yields:
        uint8 `(height, width, 3)`, seconds from the first frame, frames per second of the source.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: where a path is no file that may be read.
        OSError: for an address or camera that cannot be opened.
        VideoError: a `ValueError` that names the file, see `read_video`.
        ValueError: for a source of another kind, frames that change their size, and no frames at all.
    """
    first = None
    with closing(_open(video, processor, fps)) as frames:
        for number, (frame, seconds, rate) in enumerate(frames):
            first = first or frame.shape
            if frame.shape != first:
                raise ValueError(
                    f"frame {number} of the stream is {frame.shape[0]}x{frame.shape[1]} (height x width), but it began "
                    f"with {first[0]}x{first[1]}; all frames must be of one size"
                )
            yield frame, seconds, rate or DEFAULT_FPS
    if first is None:
        raise ValueError("the stream ended without a frame")


def _open(video: Any, processor: AdapTokVideoProcessor, fps: float | None) -> Iterator[Frame]:
    is_live = isinstance(video, str) and (("://" in video and not os.path.exists(video)) or video.startswith("/dev/video"))
    knows_fps = is_live or any(hasattr(video, name) for name in ("demux", "metadata", "timestamps"))
    if knows_fps and fps is not None:
        raise ValueError(f"got fps={fps}, but a {type(video).__name__} has a frame rate")
    if is_live:
        return _iter_live(video)
    if hasattr(video, "demux"):
        return iter_container(video, source_name(video))
    if is_file(video):
        return iter_video(video, fps)
    if hasattr(video, "timestamps"):
        return ((frame, float(time), video.fps) for frame, time in zip(video.frames, video.timestamps, strict=True))
    if is_frame(video):  # one picture, or a gray video
        video = processor.load(video).frames
    if not isinstance(video, Iterable) or isinstance(video, dict | set):
        raise ValueError(f"cannot stream frames from {type(video).__name__}; expected {ACCEPTED}")
    if hasattr(video, "metadata"):  # torchcodec
        fps = video.metadata.average_fps
    return _iter_items(video, processor, DEFAULT_FPS if fps is None else check_fps(fps))


def _iter_items(video: Iterable, processor: AdapTokVideoProcessor, fps: float) -> Iterator[Frame]:
    number = 0
    for item in video:
        if getattr(item, "ndim", None) == 4 and len(item) == 0:
            continue
        try:
            frames = processor.load(item if getattr(item, "ndim", None) == 4 else [item]).frames
        except ValueError as error:
            raise ValueError(f"frame {number} of the stream: {error}") from error
        for frame in frames:
            yield frame, number / fps, fps
            number += 1


def _iter_live(address: str) -> Iterator[Frame]:
    """Yield the frames of a camera or an address as they arrive."""
    import av

    options = {"protocol_blacklist": "file,fd,pipe"}  # a local file is given as a path, which is checked as one
    try:
        container = av.open(address, format="v4l2" if address.startswith("/dev/video") else None, options=options)
    except (av.error.FFmpegError, OSError) as error:
        hint = " (a file is given by its path alone)" if "file:" in address else ""
        raise OSError(f"cannot open {address}: {error}{hint}") from error
    with container:
        yield from iter_container(container, address)
