"""Reading video files.

PyAV decodes containers (mp4, mov, webm, mkv, avi, ...), Pillow decodes GIF, WebP, PNG and pictures. A damaged file raises
an error and is never silently shortened; docs/reliability.md says what each format can promise. `av` and `PIL` are imported
where they are used: importing this module is cheap.
"""

import errno
import io
import itertools
import logging
import os
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np

from .damage import VideoError, as_video_error, damage_error, gif_is_cut_short
from .decoding_limits import TimeBudget, check_size
from .frame_times import FrameTimes, nominal_rate
from .geometry import display_converter
from .picture_files import picture_files, stored_file
from .truncation import begins_like_a_video, video_is_cut_short

logger = logging.getLogger(__name__)

# The frame rate of arrays and lists of images, which have none.
DEFAULT_FPS = 24.0

ACCEPTED = "a video file (mp4, mov, webm, mkv, avi, ...), a GIF, a picture (png, jpg, webp, ...), or a folder of pictures"

# The formats that FFmpeg may recognize. Its others open files and addresses named in playlists, or draw text as a video.
CONTAINER_FORMATS = (
    "mov,mp4,m4a,3gp,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,asf,ogg,ivf,nut,mxf,dv,rm,h264,hevc,m4v,"
    "yuv4mpegpipe,mp3,wav,flac,aac"
)
_STILL_BRANDS = {"heic", "heix", "mif1"}
_PICTURE_MARKS = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
_PICTURE_FORMATS = ("GIF", "PNG", "WEBP", "JPEG", "BMP", "TIFF", "AVIF")

# A frame, seconds from the first frame, nominal frames per second.
TimedFrame = tuple[np.ndarray, float, float | None]
VideoSource = str | os.PathLike | bytes | BinaryIO | Any  # Any: a PyAV container, which is not imported here


@dataclass(eq=False)
class Video:
    """A decoded video.

    Args:
        frames: uint8 RGB, `(frames, height, width, 3)`.
        fps: average frames per second.
        timestamps: float64 `(frames,)`, when each frame is shown in seconds from the first. Strictly increasing; not
            evenly spaced where the frame rate is variable.

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
        self.timestamps = check_timestamps(self.timestamps)
        if len(self.timestamps) != len(frames):
            raise ValueError(f"got {len(self.timestamps)} timestamps for {len(frames)} frames; expected one per frame")

    def __len__(self) -> int:
        return len(self.frames)


def read_video(
    source: VideoSource,
    *,
    max_frames: int | None = None,
    transform: Callable[[np.ndarray], np.ndarray] | None = None,
    fps: float | None = None,
) -> Video:
    """Decode a video file into memory (6 MB per 1080p frame; see `iter_video` for long videos).

    Args:
        source: a path, the bytes of a file, a dict of these as datasets has it (`Video(decode=False)`), a binary file
            object, or an open PyAV container (read from its start and not closed). Frames are what a player shows: square
            pixels, rotation and mirroring applied. A picture is a video of one frame; a list of pictures, or a folder of
            them, sorted (frame2 before frame10), one of several.
        max_frames: decode only the first frames. What follows them is then not checked for damage.
        transform: applied to each uint8 `(height, width, 3)` frame as it is decoded, so that a long video
            need not be held at full size.
        fps: only for pictures, which have no frame rate; 24 by default.

    Returns:
        The video; its `fps` is the container's frame rate where the timestamps agree with it, otherwise their average.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: where the path is not a file that may be read, or a folder
            without pictures.
        VideoError: a `ValueError` that names the file. For an empty file, a file that is no video, a file without video
            stream or without frames, a damaged or truncated file, a pipe or device, pictures of different sizes, frames or
            work beyond the limits (docs/reliability.md).
        ValueError: for `fps` and something that has a frame rate.
    """
    if max_frames is not None and (not isinstance(max_frames, int) or max_frames < 1):
        raise ValueError(f"max_frames must be a positive integer or None, got {max_frames!r}")
    source = stored_file(source)
    with closing(iter_video(source, fps)) as decoded:
        frames = itertools.islice(decoded, max_frames)
        return _collect(frames, transform or (lambda frame: frame), source_name(source))


def read_picture(path: str | os.PathLike) -> np.ndarray:
    """Return a picture file as uint8 RGB `(height, width, 3)`.

    Raises:
        VideoError: a `ValueError` that names the file, for one of several frames and for all that `read_video` raises.
    """
    with closing(_iter_file(path)) as decoded:
        frame = next(decoded)[0]
        if next(decoded, None) is not None:
            raise VideoError(f"{path}: a video in a list of frames; expected a picture")
    return frame


def pil_to_rgb(image: Any) -> np.ndarray:
    """Return a PIL image as uint8 RGB `(height, width, 3)`; transparent parts become white."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode[0] in "IF":
        raise ValueError(f"a PIL image of mode {image.mode!r} has no defined range; convert it to 'RGB' first")
    image = image.convert("RGBA")
    return np.array(Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB"))


def check_fps(fps: float) -> float:
    """Return `fps` as a float; `ValueError` unless it is a number between 0.01 and 1000."""
    if isinstance(fps, bool) or not isinstance(fps, int | float | Fraction | np.number) or not 0.01 <= fps <= 1000:
        raise ValueError(f"fps must be a number between 0.01 and 1000, got {fps!r}")
    return float(fps)


def check_timestamps(timestamps: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return the timestamps as float64; `ValueError` unless they are finite and strictly increasing."""
    timestamps = np.asarray(timestamps, dtype=np.float64)
    if timestamps.ndim != 1 or not np.isfinite(timestamps).all() or (np.diff(timestamps) <= 0).any():
        raise ValueError("timestamps must be finite, strictly increasing seconds, at least 1/90000 s apart")
    return timestamps


def _collect(decoded: Iterator[TimedFrame], transform: Callable[[np.ndarray], np.ndarray], name: str) -> Video:
    """Gather frames into a `Video`."""
    first, _, rate = head = next(decoded)
    timestamps = []

    def frames():
        for frame, seconds, _ in itertools.chain([head], decoded):
            timestamps.append(seconds)
            yield transform(frame)

    try:
        # fromiter grows one buffer in place: a list and np.stack would hold every frame twice
        stacked = np.fromiter(frames(), dtype=np.dtype((np.uint8, transform(first).shape)))
    except MemoryError as error:
        raise VideoError(f"{name}: the frames need more memory than there is; {len(timestamps)} were read") from error
    # the nominal rate is exact where timestamps are rounded (to 1 ms in webm), and wrong for a variable frame rate
    span = timestamps[-1]
    if len(timestamps) > 1 and (not rate or abs(span - (len(timestamps) - 1) / rate) > 0.002):
        rate = (len(timestamps) - 1) / span
    with as_video_error(name):
        return Video(stacked, rate or DEFAULT_FPS, np.array(timestamps))


def source_name(source: VideoSource) -> str:
    """Return the name of a source for messages."""
    if isinstance(source, bytes | bytearray | memoryview):
        return f"<{len(source)} bytes>"
    name = source if isinstance(source, str | os.PathLike) else getattr(source, "name", None)
    return str(name) if name and not isinstance(name, int) else f"<{type(source).__name__}>"


@contextmanager
def open_source(source: VideoSource) -> Iterator[BinaryIO]:
    """Yield the source as a binary file at its start.

    Raises:
        FileNotFoundError, IsADirectoryError, PermissionError: where the path is not a file that may be read.
        VideoError: for a pipe, a socket or a device: reading it may never end, or never begin.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        yield io.BytesIO(source)
    elif hasattr(source, "read"):
        if _is_seekable(source):
            source.seek(0)
        yield source
    elif isinstance(source, str | os.PathLike):
        if os.path.isdir(source):
            raise IsADirectoryError(f"{source} is a folder; expected {ACCEPTED}")
        if not os.path.exists(source):
            hint = "; an address must be downloaded first" if "://" in str(source) else ""
            raise FileNotFoundError(f"{source}: no such file{hint}")
        if not stat.S_ISREG(os.stat(source).st_mode):
            raise VideoError(f"{source}: a pipe or device, not a regular file; expected {ACCEPTED}")
        with open(source, "rb") as file:
            yield file
    else:
        raise ValueError(f"cannot read a video from {type(source).__name__}; expected a path, bytes or a binary file")


def _is_seekable(file: BinaryIO) -> bool:
    return not hasattr(file, "seekable") or file.seekable()


class _Input:
    """A binary file whose `seek` returns an error number instead of raising: PyAV prints tracebacks of some exceptions."""

    def __init__(self, file: BinaryIO):
        self._seek, self.read, self.tell = file.seek, file.read, file.tell
        self.seekable = lambda: _is_seekable(file)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -errno.EINVAL


def open_container(file: BinaryIO) -> Any:
    """Return a binary file as a PyAV container; only formats that are videos by themselves are recognized."""
    import av

    options = {"format_whitelist": CONTAINER_FORMATS}
    return av.open(_Input(file), options=options, metadata_errors="replace")


def iter_video(source: VideoSource, fps: float | None = None) -> Iterator[TimedFrame]:
    """Decode a video file one frame at a time, in constant memory.

    Arguments and errors are those of `read_video`; the frames before a damage are yielded before the error.

    Yields:
        A uint8 RGB frame `(height, width, 3)`, all of one size, its time in seconds from the first frame, and the nominal
        frames per second of the file, `None` if unknown.
    """
    source = stored_file(source)
    paths = picture_files(source)
    if paths is not None:
        yield from _iter_pictures(paths, DEFAULT_FPS if fps is None else check_fps(fps))
    elif fps is not None:
        raise ValueError(f"got fps={fps}, but a {type(source).__name__} has a frame rate")
    else:
        yield from _iter_file(source)


def _iter_pictures(paths: Sequence[str | os.PathLike], fps: float) -> Iterator[TimedFrame]:
    first = None
    for index, path in enumerate(paths):
        frame = read_picture(path)
        first = first or frame.shape
        if frame.shape != first:
            raise VideoError(
                f"{path}: {frame.shape[0]}x{frame.shape[1]} (height x width), but {paths[0]} is {first[0]}x{first[1]}; all "
                "frames of a video must be of one size"
            )
        yield frame, index / fps, fps


def _iter_file(source: VideoSource) -> Iterator[TimedFrame]:
    name = source_name(source)
    if hasattr(source, "demux"):
        source.seek(0)
        yield from iter_container(source, name)
        return
    with open_source(source) as file, as_video_error(name):
        if not _is_seekable(file):  # such as standard input: read as it comes
            with open_container(file) as container:
                yield from iter_container(container, name, cut_short=None)
            return
        num_bytes = file.seek(0, os.SEEK_END)
        file.seek(0)
        head, budget = file.read(32), TimeBudget(name, num_bytes)
        if not head:
            raise VideoError(f"{name}: the file is empty (0 bytes); expected {ACCEPTED}")
        if head.startswith(_PICTURE_MARKS) or head[8:12] == b"WEBP" or head[4:12] == b"ftypavif":
            check_size(name, *_animation_size(head))
            yield from _iter_animation(file, name, budget)
            return
        cut_short = video_is_cut_short(file)
        file.seek(0)
        with _opened_by_name(file, name, head[:16], bool(cut_short)) as container:
            for stream in container.streams.video:
                # With several threads, what a decoder makes of a damaged frame differs from one time to the next.
                stream.thread_type = "NONE"
            yield from iter_container(container, name, cut_short, budget)


def _opened_by_name(file: BinaryIO, name: str, head: bytes, cut_short: bool) -> Any:
    """Return `open_container(file)`; its errors say what the file is."""
    import av

    try:
        return open_container(file)
    except av.error.FFmpegError as error:
        if isinstance(error, av.error.EOFError) and not cut_short:
            raise VideoError(f"{name}: the file holds no video frames") from error
        if begins_like_a_video(head):
            raise damage_error(name, 0) from error
        raise VideoError(f"{name}: not a video; expected {ACCEPTED}") from error


def video_stream(container: Any, name: str, cut_short: bool | None = False) -> Any:
    """Return the first real video stream of a PyAV container.

    Raises:
        VideoError: where there is none, or none that can be decoded, and for frames that are too large.
    """
    import av

    if container.metadata.get("major_brand", "").strip() in _STILL_BRANDS:
        raise VideoError(f"{name}: a HEIC picture cannot be read; expected {ACCEPTED}")
    cover = av.stream.Disposition.attached_pic  # the picture of a music file is a video stream too
    stream = next((s for s in container.streams.video if not s.disposition & cover), None)
    if stream is None:
        if cut_short:
            raise damage_error(name, 0)
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "nothing"
        raise VideoError(f"{name}: the file has no video stream and no frames (it holds: {kinds})")
    if stream.codec_context is None:
        raise VideoError(f"{name}: FFmpeg has no decoder for the video codec of this file")
    check_size(name, stream.codec_context.width, stream.codec_context.height)
    return stream


def iter_container(
    container: Any, name: str, cut_short: bool | None = False, budget: TimeBudget | None = None
) -> Iterator[TimedFrame]:
    """Decode the first real video stream of a PyAV container, from where it stands.

    Args:
        name: for messages.
        cut_short: whether bytes are missing, see `video_is_cut_short`. Where that is not known, a warning names the number
            of frames.
        budget: of time; none by default.
    """
    with as_video_error(name):
        yield from _iter_stream(container, video_stream(container, name, cut_short), name, cut_short, budget)


def _iter_stream(
    container: Any, stream: Any, name: str, cut_short: bool | None, budget: TimeBudget | None
) -> Iterator[TimedFrame]:
    import av

    budget = budget or TimeBudget(name, None)
    rate = nominal_rate(container, stream)
    times, convert = FrameTimes(container, stream, name), None
    count = hidden = concealed = 0
    last_packet_damaged = frame_damaged = False
    try:
        # all streams: the end of the file may lie in the sound
        for packet in container.demux():
            budget.check()
            last_packet_damaged = packet.is_corrupt if packet.size else last_packet_damaged
            if packet.stream.index != stream.index:
                continue
            hidden += packet.is_discard  # cut away by an edit list
            times.add(packet)
            for frame in packet.decode():
                convert = convert or display_converter(stream, frame, name)
                seconds, picture = times.next(frame), convert(frame)
                count += 1
                frame_damaged = frame.is_corrupt
                concealed += frame_damaged
                with budget.paused():
                    yield picture, seconds, rate
                budget.check()
    except av.error.FFmpegError as error:
        raise damage_error(name, count, stream.frames - hidden) from error

    # Only the sample table of mp4 and mov counts exactly: the number in an avi header includes repeated frames.
    declared = stream.frames - hidden if "mp4" in container.format.name else 0
    unsure = cut_short is None
    if cut_short or last_packet_damaged or (unsure and frame_damaged) or count < 0.9 * declared - 1:
        raise damage_error(name, count, declared)
    if count == 0:
        raise VideoError(f"{name}: the file holds no video frames")
    if concealed or count < declared:
        logger.warning("%s: %d of %d frames are missing or have damaged parts that the decoder filled in", name,
                       concealed + max(declared - count, 0), max(declared, count))  # fmt: skip
    if unsure:
        logger.warning(
            "%s: %d frames; this %s file does not show whether it is complete", name, count, container.format.name
        )


def _animation_size(head: bytes) -> tuple[int, int]:
    """Return the size in the header; Pillow takes the memory for a WebP of that size as soon as it opens it."""
    if head.startswith(b"GIF8"):
        return struct.unpack("<HH", head[6:10])
    if head[12:16] == b"IHDR":
        return struct.unpack(">II", head[16:24])
    if head[12:16] == b"VP8X":
        return tuple(1 + int.from_bytes(head[start : start + 3], "little") for start in (24, 27))
    return 0, 0  # a still image


def _iter_animation(file: BinaryIO, name: str, budget: TimeBudget) -> Iterator[TimedFrame]:
    """Decode a GIF, WebP, PNG or picture; a frame without duration is shown for 0.1 s, as browsers do."""
    from PIL import Image, ImageOps

    index, seconds = 0, 0.0
    try:
        Image.init()  # or some formats are unknown
        with Image.open(file, formats=_PICTURE_FORMATS) as image:
            width, height = image.size
            check_size(name, width, height)
            # a photo in several JPEG parts, or with a thumbnail, is still a photo
            kind = image.format
            total = 1 if kind in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
            if total == 1:
                image = ImageOps.exif_transpose(image)
                width, height = image.size
            for index in range(total):
                image.seek(index)
                check_size(name, *image.size)
                frame = pil_to_rgb(image)[:height, :width]  # Pillow enlarges a GIF whose frames leave its screen
                duration = (image.info.get("duration") or 100) / 1000
                budget.check()
                with budget.paused():
                    yield frame, seconds, 1 / duration if total > 1 else None
                seconds += duration
            if kind == "GIF" and gif_is_cut_short(file):
                raise damage_error(name, total)
    except (VideoError, MemoryError):
        raise
    except Exception as error:  # Pillow meets damage with exceptions of any kind
        raise damage_error(name, index) from error
