"""Arrays, tensors and lists of images as uint8 frames."""

from typing import Any

import numpy as np
import torch

from .frames import to_uint8
from .video_io import DEFAULT_FPS, Video, pil_to_rgb, read_picture

_SHAPES = (
    "(frames, height, width, 3) or (frames, 3, height, width), with 1 in place of 3 for gray; of one picture, without "
    "frames; of a gray video, (frames, height, width)"
)


def is_frame(value: Any) -> bool:
    """Return whether it is a PIL image, or an array of one frame."""
    return (hasattr(value, "convert") and hasattr(value, "mode")) or getattr(value, "ndim", None) in (2, 3)


def frames_from_list(images: list | tuple, max_frames: int | None = None) -> np.ndarray:
    """Return PIL images, 2-D or 3-D arrays, or picture files, all of one size, stacked.

    Raises:
        ValueError: for an empty list, an item of another kind, and frames that are not alike.
    """
    if not images:
        raise ValueError("the list of frames is empty; a video needs at least one frame")
    frames = []
    for index, image in enumerate(images[:max_frames]):
        frames.append(_one_frame(image, index))
        if frames[-1].shape != frames[0].shape or frames[-1].dtype != frames[0].dtype:
            raise ValueError(
                f"frame {index} of the list is {frames[-1].dtype} {frames[-1].shape}, but the first is "
                f"{frames[0].dtype} {frames[0].shape}; all frames must be alike"
            )
    return np.stack(frames)


def _one_frame(image: Any, index: int) -> np.ndarray:
    if is_frame(image):
        if not hasattr(image, "ndim"):
            return pil_to_rgb(image)
        return _to_numpy(image)[..., None] if image.ndim == 2 else _to_numpy(image)
    if isinstance(image, str) or hasattr(image, "__fspath__"):
        return read_picture(image)
    raise ValueError(
        f"frame {index} of the list is {type(image).__name__}; expected a PIL image, an array or a picture file"
    )


def _to_numpy(array: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    return np.asarray(array)


def frames_from_array(
    video: np.ndarray | torch.Tensor, max_frames: int | None = None, layout: str | None = None
) -> np.ndarray:
    """Check an array or tensor and return it as uint8 (frames, height, width, 3).

    Args:
        video: integers 0..255 or floats in [0, 1]. (3, height, width) and (height, width, 3) are one picture.
        max_frames: only the first frames.
        layout: `"channels_first"` or `"channels_last"`; by default the shape decides.

    Raises:
        ValueError: for a shape that is wrong or ambiguous, another dtype or range, and NaN.
    """
    shape = tuple(video.shape)
    if 0 in shape or not 2 <= len(shape) <= 4:
        raise ValueError(f"got an array of shape {shape}; expected {_SHAPES}")
    if len(shape) == 4:
        video, axis = video[:max_frames], _channel_axis(shape, layout)
    elif len(shape) == 2:
        video, axis = video[None, ..., None], 3
    elif layout is None and not {1, 3} & {shape[0], shape[2]}:
        if shape[2] in (2, 4) or shape[0] == 4:
            raise ValueError(
                f"shape {shape} is ambiguous: a picture with an alpha channel (give RGB), or a gray video (give it as "
                "(frames, height, width, 1))"
            )
        video, axis = video[:max_frames, ..., None], 3
    else:
        video, axis = video[None], _channel_axis((1, *shape), layout)
    frames = _as_uint8(_to_numpy(video))
    if axis == 1:
        frames = frames.transpose(0, 2, 3, 1)
    return np.repeat(frames, 3, axis=3) if frames.shape[3] == 1 else frames


def _channel_axis(shape: tuple[int, ...], layout: str | None) -> int:
    """Return which dimension of (frames, ?, ?, ?) holds the colors."""
    if layout is not None:
        axis = 1 if layout == "channels_first" else 3
        if shape[axis] not in (1, 3):
            raise ValueError(f"got an array of shape {shape} with input_data_format={layout!r}; expected {_SHAPES}")
        return axis
    for channels in (3, 1):
        if shape[1] == shape[3] == channels:
            raise ValueError(
                f"shape {shape} is ambiguous: both dimension 1 and dimension 3 could be the colors; give an "
                "input_data_format"
            )
        if channels in (shape[1], shape[3]):
            return 1 if shape[1] == channels else 3
    raise ValueError(f"got an array of shape {shape}; expected {_SHAPES}")


def _as_uint8(video: np.ndarray) -> np.ndarray:
    if video.dtype == np.uint8:
        return video
    if video.dtype.kind in "iu" and 0 <= video.min() and video.max() <= 255:
        return video.astype(np.uint8)
    if video.dtype.kind != "f":
        values = f" from {video.min()} to {video.max()}" if video.dtype.kind in "iu" else ""
        raise ValueError(f"got values of dtype {video.dtype}{values}; expected integers 0..255, or floats in [0, 1]")
    frames = np.empty(video.shape, dtype=np.uint8)
    for index, frame in enumerate(video):
        # a hair outside is rounding (half precision, resizing)
        if not (frame.min() >= -1e-3 and frame.max() <= 1 + 1e-3):
            raise ValueError(
                f"frame {index} has values from {frame.min():.4g} to {frame.max():.4g}; a float video must lie in "
                "[0, 1] without NaN (divide by 255, or map (x + 1) / 2, or pass uint8)"
            )
        frames[index] = to_uint8(torch.from_numpy(frame.copy()))
    return frames


def read_decoder(decoder: Any, max_frames: int | None) -> Video:
    """Return the frames of a torchcodec `VideoDecoder`."""
    stop = min(len(decoder), max_frames or len(decoder))
    if stop == 0:
        raise ValueError("the video decoder holds no frames")
    batch = decoder.get_frames_in_range(start=0, stop=stop)
    timestamps = batch.pts_seconds.double().numpy()
    fps = decoder.metadata.average_fps or DEFAULT_FPS
    return Video(frames_from_array(batch.data), fps, timestamps - timestamps[0])
