"""Video processor of AdapTok: any video in, clips in [0, 1] out, and back to uint8 frames."""

import os
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
from transformers import BatchFeature, ImageProcessingMixin
from transformers.video_processing_utils import VideoProcessorMixin

from .frames import center_crop, interpolate, resize, resize_short_side, to_uint8
from .video_io import DEFAULT_FPS, Video, check_fps, pil_to_rgb, read_video

RESIZE_MODES = ("crop", "squash")

ACCEPTED = (
    "a path, a list of PIL images, a numpy array or tensor of shape (frames, height, width, 3) or "
    "(frames, 3, height, width), a torchcodec VideoDecoder, a PyAV container or a Video"
)

# Frames converted to float at once: bounds the working memory of a long or large video.
_CHUNK = 16


class AdapTokVideoProcessorKwargs(TypedDict, total=False):
    """Options that `from_pretrained(..., name=value)` may override."""

    image_size: int
    num_frames: int
    tubelet_size: int
    resize_mode: str


@dataclass(eq=False)
class ClipBatch:
    """A video cut into clips, see `AdapTokVideoProcessor.clips`.

    Args:
        frames: uint8, `(num_clips, clip frames, 3, image_size, image_size)`. The last clip is filled
            up with copies of the last frame.
        valid_blocks: bool, `(num_clips, K)`; whether a block holds at least one real frame, as a clip's first ones do.
        num_frames: real frames over all clips.
        source_size: height and width of the video before resizing.
        fps: average frames per second.
        timestamps: float64 seconds of the real frames, `(num_frames,)`.
    """

    frames: torch.Tensor
    valid_blocks: torch.Tensor
    num_frames: int
    source_size: tuple[int, int]
    fps: float
    timestamps: np.ndarray

    @property
    def pixel_values_videos(self) -> torch.Tensor:
        """All clips as float32 in [0, 1], four times the memory of `frames`."""
        return self.frames / 255

    def __len__(self) -> int:
        return len(self.frames)


# ImageProcessingMixin adds nothing here, but is a base class by which diffusers knows a component that it can save.
class AdapTokVideoProcessor(VideoProcessorMixin, ImageProcessingMixin):
    """Turns videos of any length and size into the clips that AdapTok reads, and its output back into frames.

    Needs no torchvision. Resizing is antialiased bilinear on uint8, equal to Pillow's.

    Args:
        image_size (`int`, *optional*, defaults to 128): height and width of a clip.
        num_frames (`int`, *optional*, defaults to 16): frames of a clip.
        tubelet_size (`int`, *optional*, defaults to 4): frames of a block; divides `num_frames`.
        resize_mode (`str`, *optional*, defaults to `"crop"`):
            `"crop"`: the short side becomes `image_size`, then the center square is cut out; proportions are kept,
            the ends of the long side are lost. `"squash"`: the whole frame is squeezed into the square; nothing is
            lost, and `unclip(..., output_size=clips.source_size)` restores the proportions.

    Example:
        ```python
        processor = AdapTokVideoProcessor()
        clips = processor.clips(processor.load("holiday.mp4"))
        frames = processor.unclip(clips.pixel_values_videos, num_frames=clips.num_frames)
        ```
    """

    model_input_names = ["pixel_values_videos"]
    valid_kwargs = AdapTokVideoProcessorKwargs

    def __init__(
        self,
        image_size: int = 128,
        num_frames: int = 16,
        tubelet_size: int = 4,
        resize_mode: str = "crop",
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, value in (("image_size", image_size), ("num_frames", num_frames), ("tubelet_size", tubelet_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if num_frames % tubelet_size:
            raise ValueError(f"num_frames={num_frames} must be a multiple of tubelet_size={tubelet_size}")
        _check_resize_mode(resize_mode)
        self.image_size = image_size
        self.num_frames = num_frames
        self.tubelet_size = tubelet_size
        self.resize_mode = resize_mode

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs):
        """Load a processor as transformers does.

        Raises:
            OSError: if there is no such file.
            ValueError: if it is damaged, or a value is out of range.
        """
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except (
            ValueError,
            TypeError,
            LookupError,
            AttributeError,
            RecursionError,
        ) as error:
            raise ValueError(f"the video processor of {pretrained_model_name_or_path}: {error}") from error

    def preprocess(self, videos: Any, return_tensors: str = "pt", resize_mode: str | None = None) -> BatchFeature:
        """Return the first clip of each video; a shorter video is filled up with copies of its last frame.

        Args:
            videos: one video as `load` takes it, a list of them, or a 5-D array or tensor (a batch). A list of PIL
                images or of 3-D arrays is one video.
            return_tensors: `"pt"` or `"np"`.
            resize_mode: instead of the processor's.

        Returns:
            `pixel_values_videos`, float32 in [0, 1], `(batch, num_frames, 3, image_size, image_size)`.

        Raises:
            ValueError: see `load`.
        """
        loaded = [self.load(video, max_frames=self.num_frames) for video in (videos if is_video_list(videos) else [videos])]
        clips = [self.clips(video, resize_mode=resize_mode).pixel_values_videos for video in loaded]
        clips = torch.cat([torch.empty(0, self.num_frames, 3, self.image_size, self.image_size), *clips])
        return BatchFeature({"pixel_values_videos": clips}, tensor_type=return_tensors)

    def load(self, video: Any, fps: float | None = None, max_frames: int | None = None) -> Video:
        """Read one video of any form.

        Args:
            video: a path (or the bytes of a file, or a binary file object), a list of PIL images or of `(H, W, 3)`
                arrays, a numpy array or torch tensor `(T, H, W, 3)` or `(T, 3, H, W)`
                of integers 0..255 or of floats in [0, 1],
                a torchcodec `VideoDecoder`, an open PyAV container (read from its start), or a `Video`.
            fps: only for images, arrays and tensors, which have no frame rate; 24 by default.
            max_frames: only the first frames.

        Returns:
            uint8 frames `(T, H, W, 3)`, fps and timestamps.

        Raises:
            FileNotFoundError, IsADirectoryError: where a path is not a file.
            ValueError: for anything that is not a video: see `read_video` for files; for arrays a wrong or ambiguous
                shape, another dtype, NaN, floats outside [0, 1]; images of different sizes; no frames.
        """
        if max_frames is not None and (not isinstance(max_frames, int) or max_frames < 1):
            raise ValueError(f"max_frames must be a positive integer or None, got {max_frames!r}")
        from_memory = isinstance(video, list | tuple | np.ndarray | torch.Tensor)
        if fps is not None and not from_memory:
            raise ValueError(f"got fps={fps}, but a {type(video).__name__} has a frame rate")
        if from_memory:
            fps = DEFAULT_FPS if fps is None else check_fps(fps)
            frames = _frames_from_list(video, max_frames) if isinstance(video, list | tuple) else video
            frames = _frames_from_array(frames, max_frames)
            return Video(frames, fps, np.arange(len(frames)) / fps)
        if _is_video(video):
            return Video(video.frames[:max_frames], video.fps, video.timestamps[:max_frames])
        if hasattr(video, "get_frames_in_range") and hasattr(video, "metadata"):  # torchcodec
            return _read_decoder(video, max_frames)
        if _is_file(video):
            return read_video(video, max_frames=max_frames)
        raise ValueError(f"cannot read a video from {type(video).__name__}; expected {ACCEPTED}")

    def clips(self, video: Any, fps: float | None = None, resize_mode: str | None = None) -> ClipBatch:
        """Cut a video of any length into clips of `num_frames` frames, resized to the square of `image_size`.

        Frames of a file are resized as they are decoded, so that a long video is never held at full size.

        Args:
            video: anything that `load` takes.
            fps: see `load`.
            resize_mode: instead of the processor's.

        Returns:
            the clips and what is needed to turn them back into a video.

        Raises:
            ValueError: see `load`; an unknown `resize_mode`, and frames too narrow to crop.
        """
        resize_mode = _check_resize_mode(resize_mode or self.resize_mode)
        if _is_file(video) and fps is None:
            source_size = None

            def shrink(frame):
                nonlocal source_size
                source_size = frame.shape[:2]
                return self._square(frame, resize_mode)

            video = read_video(video, transform=shrink)
            squares = np.require(video.frames, requirements=["C", "O", "W"])
            frames = squares.reshape(len(squares), 3, self.image_size, self.image_size)  # the same memory: no second copy
            for start in range(0, len(video), _CHUNK):
                frames[start : start + _CHUNK] = squares[start : start + _CHUNK].transpose(0, 3, 1, 2).copy()
        else:
            video = self.load(video, fps)
            source_size = video.frames.shape[1:3]
            frames = np.empty((len(video), 3, self.image_size, self.image_size), dtype=np.uint8)
            for start in range(0, len(video), _CHUNK):
                chunk = self._square(video.frames[start : start + _CHUNK], resize_mode)
                frames[start : start + len(chunk)] = chunk.transpose(0, 3, 1, 2)
        total = len(frames)
        num_clips = -(-total // self.num_frames)
        if total < num_clips * self.num_frames:
            frames = frames if frames.base is None else frames.base
            frames.resize((num_clips * self.num_frames, 3, self.image_size, self.image_size), refcheck=False)  # in place
            frames[total:] = frames[total - 1]
        first_frames = torch.arange(0, len(frames), self.tubelet_size)
        return ClipBatch(
            frames=torch.from_numpy(frames).unflatten(0, (num_clips, self.num_frames)),
            valid_blocks=(first_frames < total).unflatten(0, (num_clips, -1)),
            num_frames=total,
            source_size=source_size,
            fps=video.fps,
            timestamps=video.timestamps,
        )

    def unclip(
        self,
        pixel_values_videos: torch.Tensor,
        num_frames: int | None = None,
        output_size: tuple[int, int] | None = None,
    ) -> np.ndarray:
        """Join clips back into the frames of one video.

        Args:
            pixel_values_videos: floats, `(num_clips, clip frames, 3, height, width)`, on any device;
                values outside [0, 1] are clamped.
            num_frames: real frames, all by default; the filling after them is dropped.
            output_size: resize the frames to this height and width. Give the
                `source_size` of squashed clips to restore their proportions.

        Returns:
            uint8 `(num_frames, height, width, 3)`.

        Raises:
            ValueError: for another shape, an integer dtype, NaN, or a `num_frames` that the clips do not have.
        """
        clips = pixel_values_videos
        if not isinstance(clips, torch.Tensor) or clips.ndim != 5 or clips.shape[2] != 3 or not clips.is_floating_point():
            raise ValueError(
                "unclip() takes a float tensor of shape (num_clips, frames, 3, height, width), got "
                f"{getattr(clips, 'dtype', type(clips).__name__)} of shape {tuple(getattr(clips, 'shape', ()))}"
            )
        frames = clips.detach().flatten(0, 1)
        num_frames = len(frames) if num_frames is None else num_frames
        if not 1 <= num_frames <= len(frames):
            raise ValueError(f"num_frames={num_frames} is not between 1 and the {len(frames)} frames of the clips")
        height, width = output_size or frames.shape[2:]
        video = np.empty((num_frames, height, width, 3), dtype=np.uint8)
        for start in range(0, num_frames, _CHUNK):
            chunk = frames[start : min(start + _CHUNK, num_frames)].float().clamp(0, 1)
            if chunk.isnan().any():
                raise ValueError(f"unclip() got NaN values in frames {start} to {start + len(chunk) - 1}")
            chunk = to_uint8(interpolate(chunk, (height, width)))
            video[start : start + len(chunk)] = chunk.permute(0, 2, 3, 1).cpu().numpy()
        return video

    def _square(self, frames: np.ndarray, resize_mode: str) -> np.ndarray:
        """uint8 `(..., height, width, 3)` to `(..., image_size, image_size, 3)`."""
        size = self.image_size
        if resize_mode == "squash":
            return resize(frames, (size, size))
        return center_crop(resize_short_side(frames, size), size)


def _check_resize_mode(resize_mode: str) -> str:
    if resize_mode not in RESIZE_MODES:
        raise ValueError(f"resize_mode must be one of {', '.join(map(repr, RESIZE_MODES))}, got {resize_mode!r}")
    return resize_mode


def _is_video(value: Any) -> bool:
    """Return whether it is a `Video`, also of another copy of this module (such as that in Hub code)."""
    return all(hasattr(value, name) for name in ("frames", "fps", "timestamps"))


def _is_file(value: Any) -> bool:
    """Return whether it is a path, the bytes of a file, a file object or an open PyAV container."""
    return isinstance(value, str | os.PathLike | bytes) or hasattr(value, "read") or hasattr(value, "demux")


def _is_image(value: Any) -> bool:
    """Return whether it is one frame: a PIL image or a 3-D array."""
    return (hasattr(value, "convert") and hasattr(value, "mode")) or getattr(value, "ndim", None) == 3


def is_video_list(videos: Any) -> bool:
    """Return whether this is several videos: a 5-D array, or a list whose items are not single frames."""
    if isinstance(videos, np.ndarray | torch.Tensor):
        return videos.ndim == 5
    return isinstance(videos, list | tuple) and bool(videos) and not _is_image(videos[0])


def _frames_from_list(images: list | tuple, max_frames: int | None) -> np.ndarray:
    """Return PIL images or 3-D arrays of one size, stacked."""
    if not images:
        raise ValueError("the list of frames is empty; a video needs at least one frame")
    frames = []
    for index, image in enumerate(images[:max_frames]):
        if not _is_image(image):
            raise ValueError(f"frame {index} of the list is {type(image).__name__}; expected a PIL image or 3-D array")
        frames.append(_to_numpy(image) if hasattr(image, "ndim") else pil_to_rgb(image))
        if frames[-1].shape != frames[0].shape or frames[-1].dtype != frames[0].dtype:
            raise ValueError(
                f"frame {index} of the list is {frames[-1].dtype} {frames[-1].shape}, but the first is "
                f"{frames[0].dtype} {frames[0].shape}; all frames must be alike"
            )
    return np.stack(frames)


def _to_numpy(array: np.ndarray | torch.Tensor) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        array = array.detach().cpu()
        array = (array.float() if array.is_floating_point() else array).numpy()
    return np.asarray(array)


def _frames_from_array(video: np.ndarray | torch.Tensor, max_frames: int | None = None) -> np.ndarray:
    """Check a 4-D array or tensor and return it as uint8 `(T, H, W, 3)`."""
    shape = tuple(video.shape)
    if len(shape) != 4 or 3 not in (shape[1], shape[3]) or 0 in shape:
        raise ValueError(
            f"got an array of shape {shape}; expected (frames, height, width, 3) or (frames, 3, height, width)"
        )
    if shape[1] == shape[3]:
        raise ValueError(f"shape {shape} is ambiguous: both dimension 1 and dimension 3 could be the 3 colors")
    video = _to_numpy(video[:max_frames])
    if shape[1] == 3:
        video = video.transpose(0, 2, 3, 1)
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


def _read_decoder(decoder: Any, max_frames: int | None) -> Video:
    """Return the frames of a torchcodec `VideoDecoder`."""
    stop = min(len(decoder), max_frames or len(decoder))
    if stop == 0:
        raise ValueError("the video decoder holds no frames")
    batch = decoder.get_frames_in_range(start=0, stop=stop)
    timestamps = batch.pts_seconds.double().numpy()
    fps = decoder.metadata.average_fps or DEFAULT_FPS
    return Video(_frames_from_array(batch.data), fps, timestamps - timestamps[0])
