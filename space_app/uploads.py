"""Reading what a visitor uploads, within limits, and saying in one sentence what is wrong with it.

No message holds a path of the server, and names that come from outside are escaped: messages are shown as HTML.
"""

import functools
import html
import inspect
import logging
import math
import os
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import gradio as gr
import numpy as np

from adaptok_hf import AdapTokPipeline, Video, read_video
from adaptok_hf.video.video_io import ACCEPTED, CONTAINER_FORMATS

logger = logging.getLogger(__name__)

MAX_MEGABYTES = 50
MAX_SECONDS = 120
MAX_PIXELS = 2560 * 1440
MAX_ASPECT = 20
# What is read of a video: this many clips of the model. The rest is left out, and a note says so.
MAX_CLIPS = 6
# Seconds that decoding may take.
MAX_DECODING = 30

LIMITS = f"Up to {MAX_MEGABYTES} MB, {MAX_SECONDS} seconds and 2560×1440 pixels. What is used is the center square"


class UploadError(ValueError):
    """Something that the visitor can fix. Its message is shown as it is: no paths, no markup."""


@dataclass
class Upload:
    """
    Args:
        video: the center squares at the model's size, uint8 (frames, image_size, image_size, 3).
        name: the file's own name.
        note: what was left out, or "".
    """

    video: Video
    name: str
    note: str


def read_upload(pipeline: AdapTokPipeline, path: str | None, max_frames: int | None = None) -> Upload:
    """Read the first frames of a video file, resized as they are decoded, exactly as the pipeline's processor does it.

    Args:
        path: a file; `None` where nothing was chosen.
        max_frames: default: those of `MAX_CLIPS` clips.

    Raises:
        UploadError: for anything that is no video within the limits.
    """
    if not path:
        raise UploadError("Choose an example or upload a video first.")
    name = Path(path).name
    processor = pipeline.video_processor
    max_frames = max_frames or MAX_CLIPS * processor.num_frames
    deadline = time.monotonic() + MAX_DECODING

    def shrink(frame: np.ndarray) -> np.ndarray:
        _check_size(name, *frame.shape[1::-1])
        if time.monotonic() > deadline:
            raise UploadError(f"{name}: decoding takes longer than {MAX_DECODING} seconds. Try a smaller video.")
        return processor.clips(frame[None]).frames[0, 0].permute(1, 2, 0).numpy()

    if not os.path.isfile(path):
        raise UploadError(f"{name}: this file is not here any more. Upload it again.")
    megabytes = os.path.getsize(path) / 1e6
    if megabytes > MAX_MEGABYTES:
        raise UploadError(f"{name}: {megabytes:.0f} MB are more than this Space takes ({MAX_MEGABYTES} MB).")
    try:
        _check_header(path, name)
        video = read_video(path, max_frames=max_frames + 1, transform=shrink)
    except UploadError:
        raise
    except OSError as error:
        raise UploadError(f"{name}: the file cannot be read; expected {ACCEPTED}.") from error
    except ValueError as error:
        raise UploadError(_without_paths(" ".join(str(error).split()).replace(str(path), name))) from error
    if len(video) <= max_frames:
        return Upload(video, name, "")
    video = Video(video.frames[:max_frames], video.fps, video.timestamps[:max_frames])
    return Upload(video, name, f"Only the first {max_frames} frames ({max_frames / video.fps:.1f} s) are used.")


def guarded(function: Callable) -> Callable:
    """Return a function, or generator function, as one whose errors reach the visitor as a message, not as a traceback.

    A `ValueError` (ours or the package's) is shown; anything else is logged and called a fault of this Space.
    """

    @functools.wraps(function)
    def run(*arguments, **options):
        try:
            if inspect.isgeneratorfunction(function):
                yield from function(*arguments, **options)
            else:
                yield function(*arguments, **options)
        except ValueError as error:
            message = _without_paths(str(error))
        except Exception:
            logger.exception("%s failed", getattr(function, "func", function).__name__)
            message = "Something went wrong on our side, and it was logged. Other settings or another video may work."
        else:
            return
        raise gr.Error(html.escape(message), title="That did not work", print_exception=False)

    return run


def check_values(component: gr.components.Component) -> None:
    """Let a component refuse what no page sends (another type, NaN, infinity) by a message, without a traceback."""
    preprocess, is_number = component.preprocess, isinstance(component, gr.Number | gr.Slider)

    def check(payload):
        try:
            value = preprocess(payload)
            if is_number and value is not None:
                if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
                    raise ValueError("expected a finite number")
            return value
        except Exception as error:  # gradio's components raise whatever they meet
            given = f"{payload}"[:40] if isinstance(payload, str | int | float | None) else type(payload).__name__
            reason = f": {error}" if isinstance(error, gr.Error) else ""
            message = f"{component.label} cannot be {given}{_without_paths(reason)}"
            raise gr.Error(html.escape(message), title="That did not work", print_exception=False) from None

    if not getattr(component, "is_checked", False):
        component.preprocess, component.is_checked = check, True


def _check_header(path: str, name: str) -> None:
    """Size and duration by the file's own account, before anything is decoded; files that do not tell pass."""
    import av
    from PIL import Image

    try:
        with Image.open(path) as image:
            size, seconds = image.size, None
    except Image.DecompressionBombError:
        raise UploadError(f"{name}: its pictures have more pixels than this Space takes (2560×1440).") from None
    except (OSError, SyntaxError, ValueError):
        try:
            with av.open(path, options={"format_whitelist": CONTAINER_FORMATS}, metadata_errors="replace") as container:
                stream = next(iter(container.streams.video), None)
                context = stream.codec_context if stream is not None else None
                size = (context.width, context.height) if context is not None else (0, 0)
                seconds = container.duration / 1e6 if container.duration else None
        except (av.error.FFmpegError, OSError, ValueError):
            return  # read_video says what is wrong
    if seconds is not None and seconds > MAX_SECONDS:
        raise UploadError(f"{name}: {seconds:.0f} seconds are more than this Space takes ({MAX_SECONDS}). Cut out a part.")
    _check_size(name, *size)


def _check_size(name: str, width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise UploadError(f"{name}: {width}×{height} pixels are more than this Space takes (2560×1440). Make it smaller.")
    if max(width, height) > MAX_ASPECT * max(1, min(width, height)):
        raise UploadError(f"{name}: {width}×{height} pixels are too narrow to cut a square out of them.")


def _without_paths(message: str) -> str:
    """Cut folders of absolute paths away, should one have come into a message."""
    message = message.replace(tempfile.gettempdir(), "")
    return re.sub(r"(?<![\w/])/(?:[\w.+~-]+/)+", "", message)
