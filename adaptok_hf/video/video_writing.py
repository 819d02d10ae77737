"""Writing video files."""

import io
import os
from collections.abc import Iterable, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from ..atomic_files import atomic_file
from .video_io import check_fps, check_timestamps

# Durations are written as 32 bits of 1/90000 s; half of that is left for the last frame.
MAX_SECONDS_PER_FRAME = 2**30 // 90000


def write_video(
    path: str | os.PathLike,
    frames: np.ndarray | Iterable[np.ndarray],
    fps: float,
    timestamps: Sequence[float] | np.ndarray | None = None,
) -> None:
    """Write an H.264 mp4 (yuv420p, BT.709, crf 18, playable while it downloads). Equal frames give equal files.

    A failure leaves no new file and an existing file untouched. yuv420p needs even sizes: an odd height or width gains a
    copy of its last row or column.

    Args:
        path: ends in `.mp4`, or for a single frame in `.png`; its folder must exist.
        frames: RGB `(frames, height, width, 3)`, uint8 or floats in [0, 1], or an iterable of such frames of one size.
        fps: frames per second, 0.01 to 1000.
        timestamps: seconds, strictly increasing, one per frame; written relative to the first. Gives a
            video of variable frame rate, exact to 1/90000 s. By default frames are evenly spaced.

    Raises:
        FileNotFoundError, IsADirectoryError: where the folder of `path` is missing or `path` is a folder.
        ValueError: for another file ending, no frames, wrong or mixed dtypes or sizes, and bad times.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of an .mp4 file")
    if path.suffix.lower() not in (".mp4", ".png"):
        raise ValueError(f"{path}: only .mp4 files and .png pictures can be written, got the ending {path.suffix!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    check_fps(fps)
    if path.suffix.lower() == ".png":
        _write_picture(path, list(frames))
        return
    ticks = None
    if timestamps is not None:
        timestamps = check_timestamps(timestamps)
        ticks = check_timestamps(np.rint((timestamps - timestamps[:1]) * 90000))
        if (longest := np.diff(ticks).max(initial=0) / 90000) > MAX_SECONDS_PER_FRAME:
            raise ValueError(f"a frame lasts {longest:.6g} s; an mp4 file holds frames of up to {MAX_SECONDS_PER_FRAME} s")
    import av

    with atomic_file(path) as partial:
        try:
            _encode(partial, frames, fps, ticks)
        except av.error.FFmpegError as error:
            for reason in (error, error.__cause__, error.__context__):
                if isinstance(reason, OSError):  # such as a full disk, which comes from the file object
                    raise OSError(reason.errno, reason.strerror, os.fspath(path)) from error
            raise ValueError(f"{path}: FFmpeg cannot write this video ({error.strerror})") from error


def _write_picture(path: Path, frames: list[np.ndarray]) -> None:
    from PIL import Image

    if len(frames) != 1:
        raise ValueError(f"{path}: a picture holds one frame, got {len(frames)}; write an .mp4 file")
    with atomic_file(path) as partial:
        Image.fromarray(_check_frame(frames[0], 0)).save(partial, format="PNG")


def _check_frame(frame: np.ndarray, index: int, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """Return a frame as uint8 (height, width, 3); raise `ValueError` for anything but a picture of this shape."""
    frame = np.asarray(frame)
    shape = shape or frame.shape
    if np.issubdtype(frame.dtype, np.floating) and ((frame >= 0) & (frame <= 1)).all():
        frame = np.rint(frame * 255).astype(np.uint8)
    if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape != shape or shape[2] != 3 or 0 in shape:
        raise ValueError(
            f"frame {index} is {frame.dtype} {frame.shape}; expected uint8 (height, width, 3) of one size, or floats in "
            "[0, 1]"
        )
    return frame


class _WholeWrites(io.FileIO):
    """A file without a buffer, since FFmpeg opens it a second time by its name and reads it for `faststart`."""

    def write(self, data) -> int:
        """Write everything or raise `OSError`: FFmpeg does not see that a full disk took a part only."""
        done = 0
        while done < len(data):
            done += super().write(memoryview(data)[done:])
        return done


def _encode(path: Path, frames: Iterable[np.ndarray], fps: float, ticks: np.ndarray | None) -> None:
    """Write mp4 to `path`; `ticks` are presentation times in 1/90000 s, or None for evenly spaced frames."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    rate = Fraction(fps).limit_denominator(1001)
    time_base = 1 / rate if ticks is None else Fraction(1, 90000)
    count, shape = 0, None
    # a file object, because FFmpeg reads names its own way (protocols, bytes that are not UTF-8)
    with (
        _WholeWrites(os.path.abspath(path), "w+") as file,
        av.open(file, "w", format="mp4", options={"movflags": "faststart"}) as container,
    ):
        # x264's macroblock tree reads memory that nothing wrote (with AVX-512): the same frames gave other files
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18", "x264-params": "mbtree=0"})
        stream.pix_fmt = "yuv420p"
        # say which YUV it is (limited BT.709): players guess differently for small and large videos
        context = stream.codec_context
        context.time_base = time_base
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        for frame in frames:
            frame = _check_frame(frame, count, shape)
            shape = frame.shape
            frame = np.pad(frame, ((0, shape[0] % 2), (0, shape[1] % 2), (0, 0)), mode="edge")
            if count == 0:
                stream.height, stream.width = frame.shape[:2]
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            if ticks is not None and count == len(ticks):
                raise ValueError(f"got {len(ticks)} timestamps for more frames; expected one per frame")
            picture.pts, picture.time_base = count if ticks is None else int(ticks[count]), time_base
            container.mux(stream.encode(picture))
            count += 1
        if count == 0:
            raise ValueError("cannot write a video without frames")
        container.mux(stream.encode(None))
    if ticks is not None and count != len(ticks):
        raise ValueError(f"got {len(ticks)} timestamps for {count} frames; expected one per frame")
