"""A call of the video processor: one clip of a video, as the standard options ask."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers.video_utils import VideoMetadata, default_sample_indices_fn

from .frame_arrays import is_frame
from .frames import center_crop, resize, resize_short_side
from .picture_files import is_file, picture_files
from .video_io import read_video

# Frames converted to float at once.
_CHUNK = 16


def metadata_of_each(metadata: Any, num_videos: int) -> list[dict[str, Any]]:
    """Return a mapping for each video, of what transformers takes as `video_metadata`.

    Raises:
        ValueError: if there is not one for each video.
    """
    if metadata is None:
        return [{}] * num_videos
    entries = metadata if isinstance(metadata, list) else [metadata]
    entries = [entry for each in entries for entry in (each if isinstance(each, list) else [each])]
    if len(entries) != num_videos:
        raise ValueError(f"got {len(entries)} video_metadata for {num_videos} videos; give one for each")
    return [{name: value for name, value in dict(entry).items() if value is not None} for entry in entries]


def clip_for_call(
    processor: Any, video: Any, about: dict[str, Any], options: SimpleNamespace
) -> tuple[torch.Tensor, VideoMetadata]:
    """Return a video's frames as a call asks, and what is known of the video.

    Args:
        processor: the [`AdapTokVideoProcessor`], which loads what is no file.
        video: as its `load` takes it.
        about: the video's metadata, as far as the caller gave it.
        options: of `resolve_options`.

    Returns:
        (num_frames, 3, height, width) uint8 or float, and the metadata.

    Raises:
        ValueError: for what is no video, and frames that cannot be sampled or cropped.
    """
    whole = options.do_sample_frames or options.return_metadata
    source_size, max_frames, fps = None, None if whole else options.num_frames, about.get("fps")

    def fit(frames: np.ndarray) -> np.ndarray:
        nonlocal source_size
        source_size = frames.shape[-3:-1]
        return _fit(frames, options)

    if is_file(video):
        loaded = read_video(video, max_frames=max_frames, transform=fit, fps=fps)
        frames = loaded.frames
    else:
        loaded = processor.load(video, fps, max_frames, options.input_data_format)
        chunks = range(0, len(loaded), _CHUNK)
        frames = np.concatenate([fit(loaded.frames[start : start + _CHUNK]) for start in chunks])
    total, rate = len(loaded), None if fps is None and _has_no_rate(video) else loaded.fps
    indices = np.arange(min(total, options.num_frames))
    if options.do_sample_frames:
        indices = _sampled_frames(total, rate, about, options)[: options.num_frames]
    missing = options.num_frames - len(indices)
    frames = torch.from_numpy(np.ascontiguousarray(frames[np.pad(indices, (0, missing), mode="edge")]))
    description = VideoMetadata(
        total_num_frames=total,
        fps=rate,
        height=source_size[0],
        width=source_size[1],
        duration=rate and total / rate,
        video_backend="pyav" if is_file(video) else None,
        frames_indices=indices.tolist(),
    )
    return _to_values(frames.permute(0, 3, 1, 2), _is_float(video), options), description


def _fit(frames: np.ndarray, options: SimpleNamespace) -> np.ndarray:
    """Resize and crop uint8 (..., height, width, 3)."""
    if isinstance(options.size, int):
        frames = resize_short_side(frames, options.size, options.resample)
    elif options.size is not None:
        frames = resize(frames, options.size, options.resample)
    return frames if options.crop_size is None else center_crop(frames, options.crop_size)


def _to_values(pixels: torch.Tensor, was_float: bool, options: SimpleNamespace) -> torch.Tensor:
    """Rescale and normalize uint8 (frames, 3, height, width)."""
    if options.do_rescale and options.rescale_factor != 1 / 255:
        pixels = pixels * options.rescale_factor
    elif options.do_rescale or was_float:  # floats in [0, 1] that shall not be rescaled
        pixels = pixels / 255
    if options.do_normalize:
        mean, std = (torch.tensor(value).reshape(-1, 1, 1) for value in (options.image_mean, options.image_std))
        pixels = (pixels - mean) / std
    return pixels


def _sampled_frames(total: int, rate: float | None, about: dict[str, Any], options: SimpleNamespace) -> np.ndarray:
    """Return the numbers of the frames that a call takes of a whole video."""
    if about.get("total_num_frames", total) != total:
        raise ValueError(f"video_metadata has total_num_frames={about['total_num_frames']}, the video {total} frames")
    if options.fps is None:
        if "num_frames" in options.given and options.num_frames > total:
            raise ValueError(f"num_frames={options.num_frames} frames cannot be sampled of {total}")
        return default_sample_indices_fn(VideoMetadata(total), num_frames=min(options.num_frames, total))
    if rate is None:
        raise ValueError(f"fps={options.fps} cannot be sampled without a frame rate; give video_metadata={{'fps': ...}}")
    if options.fps > rate:
        raise ValueError(f"fps={options.fps} is more than the video's {rate:g} frames per second")
    return default_sample_indices_fn(VideoMetadata(total, fps=rate), fps=options.fps)


def _has_no_rate(video: Any) -> bool:
    """Return whether it is pictures or arrays, whose frame rate nobody knows."""
    return (
        is_frame(video) or isinstance(video, list | tuple | np.ndarray | torch.Tensor) or picture_files(video) is not None
    )


def _is_float(video: Any) -> bool:
    first = video[0] if isinstance(video, list | tuple) and len(video) else video
    return "float" in str(getattr(first, "dtype", ""))
