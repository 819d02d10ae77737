"""Reading and writing video files.

PyAV decodes containers (mp4, mov, webm, mkv, avi, ...), Pillow decodes animated GIF, WebP and PNG. A damaged file is
refused, never silently shortened. `av` and `PIL` are imported where they are used: importing this module is cheap.
"""

import io
import itertools
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

logger = logging.getLogger(__name__)

# The frame rate assumed where nothing tells it: arrays, lists of images.
DEFAULT_FPS = 24.0

ACCEPTED = "a video file (mp4, mov, webm, mkv, avi, ...) or an animated GIF, WebP or PNG"

# What FFmpeg may recognise: its other formats open files and addresses named in playlists, or draw text as a video.
CONTAINER_FORMATS = (
    "mov,mp4,m4a,3gp,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,ivf,nut,mxf,dv,rm,h264,hevc,m4v,"
    "yuv4mpegpipe,mp3,wav,flac,aac"
)
_MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp", b"pnot", b"uuid", b"sidx"}
_MATROSKA = b"\x1a\x45\xdf\xa3"
_STILL_BRANDS = {"avif", "heic", "heix", "mif1"}

VideoSource = str | os.PathLike | bytes | BinaryIO | Any  # Any: a PyAV container, which is not imported here


@dataclass(eq=False)
class Video:
    """
    A decoded video.

    Args:
        frames (`np.ndarray`): uint8 RGB, `(frames, height, width, 3)`.
        fps (`float`): average frames per second.
        timestamps (`np.ndarray`): float64 `(frames,)`, when each frame is shown in seconds from the first. Strictly
            increasing; not evenly spaced where the frame rate is variable.

    Raises:
        ValueError: where a shape, a dtype, the frame rate or the timestamps are not as described.
    """

    frames: np.ndarray
    fps: float
    timestamps: np.ndarray

    def __post_init__(self):
        frames = self.frames
        if not isinstance(frames, np.ndarray) or frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3:
            got = f"{getattr(frames, 'dtype', type(frames).__name__)} of shape {getattr(frames, 'shape', None)}"
            raise ValueError(f"Video.frames must be uint8 numpy (frames, height, width, 3), got {got}")
        if 0 in frames.shape:
            raise ValueError(f"a Video needs at least one frame of at least one pixel, got shape {frames.shape}")
        self.fps = check_fps(self.fps)
        self.timestamps = _check_timestamps(self.timestamps)
        if len(self.timestamps) != len(frames):
            raise ValueError(f"got {len(self.timestamps)} timestamps for {len(frames)} frames; expected one per frame")

    def __len__(self) -> int:
        return len(self.frames)


def read_video(
    source: VideoSource,
    *,
    max_frames: int | None = None,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Video:
    """
    Decode a video file into memory (6 MB per 1080p frame; see `iter_video` for long videos).

    Args:
        source: a path, the bytes of a file, a binary file object, or an open PyAV container (read from its start and
            not closed). Display rotation (phone videos) is applied.
        max_frames (`int`, *optional*): decode only the first frames. What follows them is then not checked for damage.
        transform (*optional*): applied to each uint8 `(height, width, 3)` frame as it is decoded, so that a long video
            need not be held at full size.

    Returns:
        `Video`: `fps` is the container's frame rate where the timestamps agree with it, otherwise their average.

    Raises:
        FileNotFoundError, IsADirectoryError: where the path is not a file.
        ValueError: for an empty file, a file that is no video, a still image, a file without video stream or without
            frames, and a damaged or truncated file.
    """
    if max_frames is not None and (not isinstance(max_frames, int) or max_frames < 1):
        raise ValueError(f"max_frames must be a positive integer or None, got {max_frames!r}")
    with closing(iter_timed_frames(source)) as decoded:
        return _collect(itertools.islice(decoded, max_frames), transform or (lambda frame: frame))


def iter_video(source: VideoSource) -> Iterator[tuple[np.ndarray, float]]:
    """
    Decode a video file one frame at a time, in constant memory.

    Sources and errors are those of `read_video`; the frames before a damage are yielded before the error.

    Yields:
        A uint8 RGB frame `(height, width, 3)`, all of one size, and its time in seconds from the first frame.
    """
    for frame, seconds, _ in iter_timed_frames(source):
        yield frame, seconds


def write_video(
    path: str | os.PathLike,
    frames: np.ndarray | Iterable[np.ndarray],
    fps: float,
    timestamps: Sequence[float] | np.ndarray | None = None,
) -> None:
    """
    Write an H.264 mp4 (yuv420p, BT.709, crf 18, playable while it downloads).

    The file is written beside its destination and renamed when complete: a failure leaves nothing behind and an
    existing file untouched. yuv420p needs even sizes: an odd height or width gains a copy of its last row or column.

    Args:
        path: ends in `.mp4`; its folder must exist.
        frames: uint8 RGB `(frames, height, width, 3)`, or an iterable of `(height, width, 3)` frames of one size.
        fps (`float`): frames per second, 0.01 to 1000.
        timestamps (*optional*): seconds, strictly increasing, one per frame; written relative to the first. Gives a
            video of variable frame rate, exact to 1/90000 s. By default frames are evenly spaced.

    Raises:
        FileNotFoundError, IsADirectoryError: where the folder of `path` is missing or `path` is a folder.
        ValueError: for another file ending, no frames, wrong or mixed dtypes or sizes, and bad times.
    """
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; expected the name of an .mp4 file")
    if path.suffix.lower() != ".mp4":
        raise ValueError(f"{path}: only .mp4 files can be written, got the ending {path.suffix!r}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: the folder {path.parent} does not exist")
    check_fps(fps)
    ticks = None
    if timestamps is not None:
        timestamps = _check_timestamps(timestamps)
        ticks = _check_timestamps(np.rint((timestamps - timestamps[:1]) * 90000))

    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        _encode(partial, frames, fps, ticks)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def pil_to_rgb(image: Any) -> np.ndarray:
    """A PIL image as uint8 RGB `(height, width, 3)`; transparent parts become white."""
    from PIL import Image

    if image.mode[0] in "IF":
        raise ValueError(f"a PIL image of mode {image.mode!r} has no defined range; convert it to 'RGB' first")
    image = image.convert("RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def check_fps(fps: float) -> float:
    """`fps` as a float; `ValueError` unless it is a number between 0.01 and 1000."""
    if isinstance(fps, bool) or not isinstance(fps, int | float | Fraction | np.number) or not 0.01 <= fps <= 1000:
        raise ValueError(f"fps must be a number between 0.01 and 1000, got {fps!r}")
    return float(fps)


def _check_timestamps(timestamps: Sequence[float] | np.ndarray) -> np.ndarray:
    timestamps = np.asarray(timestamps, dtype=np.float64)
    if timestamps.ndim != 1 or not np.isfinite(timestamps).all() or (np.diff(timestamps) <= 0).any():
        raise ValueError("timestamps must be finite, strictly increasing seconds, at least 1/90000 s apart")
    return timestamps


def _collect(
    decoded: Iterator[tuple[np.ndarray, float, float | None]], transform: Callable[[np.ndarray], np.ndarray]
) -> Video:
    """Gather `(frame, seconds, nominal rate)` into a `Video`."""
    first, _, rate = head = next(decoded)
    timestamps = []

    def frames():
        for frame, seconds, _ in itertools.chain([head], decoded):
            timestamps.append(seconds)
            yield transform(frame)

    # fromiter grows one buffer in place: a list and np.stack would hold every frame twice
    stacked = np.fromiter(frames(), dtype=np.dtype((np.uint8, transform(first).shape)))
    # the nominal rate is exact where timestamps are rounded (to 1 ms in webm), and wrong for a variable frame rate
    span = timestamps[-1]
    if len(timestamps) > 1 and (not rate or abs(span - (len(timestamps) - 1) / rate) > 0.002):
        rate = (len(timestamps) - 1) / span
    return Video(stacked, min(max(rate or DEFAULT_FPS, 0.01), 1000.0), np.array(timestamps))


@contextmanager
def _open_source(source: VideoSource) -> Iterator[tuple[BinaryIO, str]]:
    """The source as a binary file, and the name that messages give it."""
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source), f"<{len(source)} bytes>"
    elif hasattr(source, "read"):
        source.seek(0)
        yield source, str(getattr(source, "name", "<file object>"))
    elif isinstance(source, str | os.PathLike):
        if os.path.isdir(source):
            raise IsADirectoryError(f"{source} is a folder; expected {ACCEPTED}")
        if not os.path.exists(source):
            hint = "; an address must be downloaded first" if "://" in str(source) else ""
            raise FileNotFoundError(f"{source}: no such file{hint}")
        with open(source, "rb") as file:
            yield file, str(source)
    else:
        raise ValueError(f"cannot read a video from {type(source).__name__}; expected a path, bytes or a binary file")


def iter_timed_frames(source: VideoSource) -> Iterator[tuple[np.ndarray, float, float | None]]:
    """Yield `(frame, seconds, nominal frames per second or None)`."""
    import av

    if isinstance(source, av.container.InputContainer):
        source.seek(0)
        yield from iter_container(source, source.name or "<container>")
        return
    with _open_source(source) as (file, name):
        head = file.read(16)
        if not head:
            raise ValueError(f"{name}: the file is empty (0 bytes); expected {ACCEPTED}")
        if head.startswith((b"GIF8", b"\x89PNG", b"\xff\xd8\xff")) or head[8:12] == b"WEBP":
            yield from _iter_animation(file, name)
            return
        cut_short = _is_cut_short(file, head)
        file.seek(0)
        try:
            container = av.open(file, options={"format_whitelist": CONTAINER_FORMATS}, metadata_errors="replace")
        except av.error.FFmpegError as error:
            if isinstance(error, av.error.EOFError) and not cut_short:
                raise ValueError(f"{name}: the file holds no video frames") from error
            if head[4:8] in _MP4_BOXES or head[:4] == _MATROSKA or head[8:12] == b"AVI ":
                raise _damaged(name, 0) from error
            raise ValueError(f"{name}: not a video; expected {ACCEPTED}") from error
        with container:
            for stream in container.streams.video:
                stream.thread_type = "AUTO"
            yield from iter_container(container, name, cut_short)


def iter_container(container: Any, name: str, cut_short: bool = False) -> Iterator[tuple]:
    """Decode the first real video stream of a PyAV container."""
    import av

    if container.metadata.get("major_brand", "").strip() in _STILL_BRANDS:
        raise ValueError(f"{name}: a still image is not a video; expected {ACCEPTED}")
    cover = av.stream.Disposition.attached_pic  # the picture of a music file is a video stream too
    stream = next((s for s in container.streams.video if not s.disposition & cover), None)
    if stream is None:
        if cut_short:
            raise _damaged(name, 0)
        found = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise ValueError(f"{name}: the file has no video stream and no frames (it holds: {found})")
    if stream.codec_context is None:
        raise ValueError(f"{name}: FFmpeg has no decoder for the video codec of this file")

    rate = float(stream.average_rate) if stream.average_rate else None
    count = hidden = concealed = 0
    seconds, start, size = 0.0, None, {}
    try:
        for packet in container.demux(stream):
            hidden += packet.is_discard  # cut away by an edit list
            for frame in packet.decode():
                time = None if frame.pts is None else frame.pts * frame.time_base
                if count == 0:
                    start, size = time, {"width": frame.width, "height": frame.height}
                elif time is not None and start is not None and time - start > seconds:
                    seconds = float(time - start)
                else:  # no time, or one that goes backwards
                    seconds += 1 / (rate or DEFAULT_FPS)
                count += 1
                concealed += frame.is_corrupt
                image = frame.to_ndarray(format="rgb24", **size)
                # the rotation is counterclockwise, like that of rot90
                yield np.ascontiguousarray(np.rot90(image, round(frame.rotation / 90))), seconds, rate
    except av.error.FFmpegError as error:
        raise _damaged(name, count, stream.frames - hidden) from error

    # Only the sample table of mp4 and mov counts exactly: the number in an avi header includes repeated frames.
    declared = stream.frames - hidden if "mp4" in container.format.name else 0
    if cut_short or count < 0.9 * declared - 1:
        raise _damaged(name, count, declared)
    if count == 0:
        raise ValueError(f"{name}: the file holds no video frames")
    if concealed:
        logger.warning("%s: %d of %d frames have damaged parts that the decoder filled in", name, concealed, count)


def _iter_animation(file: BinaryIO, name: str) -> Iterator[tuple[np.ndarray, float, float]]:
    """Decode an animated GIF, WebP or PNG; a frame without duration is shown for 0.1 s, as browsers do."""
    from PIL import Image

    index, seconds = 0, 0.0
    try:
        with Image.open(file) as image:
            # a photo in several JPEG parts is still a photo
            total = image.n_frames if image.format in ("GIF", "PNG", "WEBP") else 1
            for index in range(total if total > 1 else 0):
                image.seek(index)
                frame = pil_to_rgb(image)
                duration = (image.info.get("duration") or 100) / 1000
                yield frame, seconds, 1 / duration
                seconds += duration
            # a GIF that was cut between two frames decodes without error, but lacks its end mark
            file.seek(-16, os.SEEK_END)
            if image.format == "GIF" and not file.read().rstrip(b"\0\r\n ").endswith(b";"):
                raise _damaged(name, total)
    except (OSError, EOFError, SyntaxError) as error:
        raise _damaged(name, index) from error
    if total == 1:
        raise ValueError(f"{name}: a still image is not a video; expected {ACCEPTED}")


def _is_cut_short(file: BinaryIO, head: bytes) -> bool:
    """Whether an mp4, mov, avi, webm or mkv file declares more bytes than it has."""
    size = file.seek(0, os.SEEK_END)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little") > size
    if head[:4] == _MATROSKA:
        return _matroska_end(file) > size
    position = 0
    while head[4:8] in _MP4_BOXES and position <= size:
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end of the file, wherever that is
            break
        position += length
        file.seek(position)
        head = file.read(16)
    return position > size


def _matroska_end(file: BinaryIO) -> int:
    """Where the segment of a webm or mkv file ends by its own account; 0 where it does not say (live recordings)."""
    position = 0
    for name in (_MATROSKA, b"\x18\x53\x80\x67"):  # the header, then the segment
        file.seek(position)
        element = file.read(12)
        if len(element) < 12 or element[:4] != name or element[4] == 0:
            return 0
        width = 9 - element[4].bit_length()  # the leading zero bits of a number tell how many bytes it has
        unknown = (1 << 7 * width) - 1
        length = int.from_bytes(element[4 : 4 + width], "big") & unknown
        position += 4 + width + length
    return 0 if length == unknown else position


def _damaged(name: str, count: int, declared: int | None = None) -> ValueError:
    of = f" of {declared}" if declared and declared > 0 else ""
    return ValueError(f"{name}: the file is damaged or truncated; only {count}{of} frames could be decoded")


def _encode(path: Path, frames: Iterable[np.ndarray], fps: float, ticks: np.ndarray | None) -> None:
    """Write mp4 to `path`; `ticks` are presentation times in 1/90000 s, or None for evenly spaced frames."""
    import av
    from av.video.reformatter import ColorRange, Colorspace

    rate = Fraction(fps).limit_denominator(1001)
    time_base = 1 / rate if ticks is None else Fraction(1, 90000)
    count, shape = 0, None
    with av.open(path, "w", format="mp4", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=rate, options={"crf": "18"})
        stream.pix_fmt = "yuv420p"
        # say which YUV it is (limited BT.709): players guess differently for small and large videos
        context = stream.codec_context
        context.time_base = time_base
        context.colorspace = context.color_primaries = context.color_trc = context.color_range = 1
        for frame in frames:
            frame = np.asarray(frame)
            shape = shape or frame.shape
            if frame.dtype != np.uint8 or frame.ndim != 3 or frame.shape != shape or shape[2] != 3 or 0 in shape:
                got = f"frame {count} is {frame.dtype} of shape {frame.shape}"
                raise ValueError(f"{got}; expected uint8 (height, width, 3), all frames of one size")
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
