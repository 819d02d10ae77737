"""Video processor of AdapTok: any video in, clips in [0, 1] out, and back to uint8 frames."""

import os
from copy import copy
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, ImageProcessingMixin
from transformers.processing_utils import VideosKwargs
from transformers.video_processing_utils import VideoProcessorMixin

from .clip_batch import ClipBatch
from .frame_arrays import frames_from_array, frames_from_list, is_frame, read_decoder
from .frames import center_crop, interpolate, resize, resize_short_side, to_uint8
from .picture_files import is_file, is_picture_file
from .processor_calls import clip_for_call, metadata_of_each
from .processor_options import STANDARD_OPTIONS, check_options, resolve_options, resolve_size
from .tiles import TiledClips, tile_video
from .video_io import DEFAULT_FPS, Video, check_fps, read_video

RESIZE_MODES = ("crop", "squash", "tile")

ACCEPTED = (
    "a path (of a video, a picture or a folder of pictures), a PIL image, an array or tensor of shape (frames, height, "
    "width, 3) or (frames, 3, height, width), or of one frame, a list of images, pictures or 3-D arrays (frames of one "
    "video), a torchcodec VideoDecoder, a PyAV container or a Video"
)

# Frames converted to float at once: bounds the working memory of a long or large video.
_CHUNK = 16

# What a saved configuration or transformers itself gives next to options.
_NO_OPTIONS = {"video_processor_type", "image_processor_type", "feature_extractor_type", "processor_class", "auto_map"}
_LOADING_OPTIONS = {"return_unused_kwargs", "trust_remote_code", "code_revision"}
# Options of a call that would make clips other than the models read.
_CALL_ONLY = ("do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize", "do_sample_frames")


class AdapTokVideoProcessorKwargs(VideosKwargs, total=False):
    """Options that `from_pretrained(..., name=value)` may override."""

    image_size: int
    tubelet_size: int
    resize_mode: str


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
            lost, and `unclip(..., output_size=clips.source_size)` restores the proportions. `"tile"`: nothing is resized;
            the frame is cut into squares that overlap, which only the pipeline's whole-video steps and `tiled_clips` do.
        size (*optional*): `image_size` in transformers' words: a number or `{"shortest_edge": 128}`; `{"height": 128,
            "width": 128}` also sets `resize_mode="squash"`, for that is what these words mean.
        kwargs: other options of a transformers video processor, which become the defaults of a call; see `preprocess`.

    Raises:
        TypeError: for an unknown option.
        ValueError: for a value that is not accepted.

    Example:
        ```python
        processor = AdapTokVideoProcessor()
        clips = processor.clips(processor.load("holiday.mp4"))
        frames = processor.unclip(clips.pixel_values_videos, num_frames=clips.num_frames)
        ```
    """

    model_input_names = ["pixel_values_videos"]
    valid_kwargs = AdapTokVideoProcessorKwargs

    do_resize, do_rescale, do_convert_rgb = True, True, True
    do_normalize = do_sample_frames = do_pad = return_metadata = False
    resample = 2  # Pillow's BILINEAR
    fps = image_mean = image_std = input_data_format = device = None
    data_format, return_tensors = "channels_first", "pt"

    def __init__(
        self,
        image_size: int = 128,
        num_frames: int = 16,
        tubelet_size: int = 4,
        resize_mode: str = "crop",
        size: Any = None,
        **kwargs,
    ):
        if unknown := sorted(set(kwargs) - set(STANDARD_OPTIONS) - _NO_OPTIONS):
            accepted = ("image_size", "tubelet_size", "resize_mode", *STANDARD_OPTIONS)
            raise TypeError(f"the video processor takes no option {unknown[0]!r}; accepted are {', '.join(accepted)}")
        for name, value in (("image_size", image_size), ("num_frames", num_frames), ("tubelet_size", tubelet_size)):
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive integer, got {value!r}")
        if num_frames % tubelet_size:
            raise ValueError(f"num_frames={num_frames} must be a multiple of tubelet_size={tubelet_size}")
        self.image_size = image_size
        self.num_frames = num_frames
        self.tubelet_size = tubelet_size
        self.resize_mode = _check_resize_mode(resize_mode)
        if size is not None:
            self.size = size
        options = {name: kwargs.pop(name) for name in STANDARD_OPTIONS if kwargs.get(name) is not None}
        check_options(options)
        for name in ("crop_size", "do_center_crop", "default_to_square", "video_metadata"):
            value = options.pop(name, None)
            value = {"height": value, "width": value} if name == "crop_size" and isinstance(value, int) else value
            if value is not None and value != (ours := getattr(self, name, None)):
                raise ValueError(
                    f"{name}={value!r} is not that of image_size={self.image_size} and resize_mode={self.resize_mode!r}, "
                    f"which is {ours!r}; a call takes any"
                )
        super().__init__(**kwargs, **options)

    @property
    def size(self) -> dict[str, int]:
        """How frames are resized, in transformers' words."""
        if self.resize_mode == "crop":
            return {"shortest_edge": self.image_size}
        return {"height": self.image_size, "width": self.image_size}

    @size.setter
    def size(self, value: Any) -> None:
        size = resolve_size(value, self.default_to_square)
        if not isinstance(size, int):
            if size[0] != size[1]:
                raise ValueError(f"size={value!r}: clips are squares; a call takes any size")
            size, self.resize_mode = size[0], "squash" if isinstance(value, dict | list | tuple) else self.resize_mode
        elif self.resize_mode == "squash":
            self.resize_mode = "crop"
        self.image_size = size

    @property
    def crop_size(self) -> dict[str, int]:
        """The center that a call cuts out, in transformers' words."""
        return {"height": self.image_size, "width": self.image_size}

    @property
    def do_center_crop(self) -> bool:
        """Whether the center is cut out."""
        return self.resize_mode == "crop"

    @property
    def default_to_square(self) -> bool:
        """Whether a number given as `size` is that of both sides, not of the short one."""
        return self.resize_mode != "crop"

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args, **kwargs):
        """Load a processor as transformers does; any option may be overridden.

        Raises:
            OSError: if there is no such file.
            ValueError: if it is damaged, or an option is unknown or out of range.
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

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **kwargs):
        """Make a processor of what `to_dict` returned; an unknown option raises `TypeError` by name."""
        unknown = sorted(set(kwargs) - set(cls.valid_kwargs.__annotations__) - _LOADING_OPTIONS)
        if unknown and not kwargs.get("return_unused_kwargs"):
            raise TypeError(f"no option {unknown[0]!r}; accepted are {', '.join(cls.valid_kwargs.__annotations__)}")
        return super().from_dict(video_processor_dict, **kwargs)

    def preprocess(self, videos: Any, resize_mode: str | None = None, **kwargs) -> BatchFeature:
        """Return the first clip of each video; a shorter video is filled up with copies of its last frame.

        The options are those of a transformers video processor. One of a wrong value, and one that would do nothing, such
        as `fps` without `do_sample_frames`, raises by name.

        Args:
            videos: one video as `load` takes it, a list of them, or a 5-D array or tensor (a batch). A list of PIL images,
                of 2-D or 3-D arrays, or of picture files is one video.
            resize_mode: instead of the processor's; sets `size` and `do_center_crop`.
            kwargs: in place of the processor's:
                do_sample_frames, fps, num_frames: take `num_frames` frames of the whole video, evenly spaced, or as many
                per second as `fps` says, of these the first clip.
                do_resize, size, resample, default_to_square: of a frame; `{"height": 64, "width": 96}`, or
                `{"shortest_edge": 64}` to keep the proportions. `resample` is 0 (nearest), 2 (bilinear) or 3 (bicubic).
                do_center_crop, crop_size: after resizing; by default to the size.
                do_rescale, rescale_factor: multiply 0..255 by it. Without, values stay as they were given.
                do_normalize, image_mean, image_std: subtract, then divide.
                do_convert_rgb, do_pad: `True` and `False`, no others.
                input_data_format, data_format: `"channels_first"` or `"channels_last"`.
                video_metadata: of arrays, a `VideoMetadata` or dict, or one for each: their `fps`.
                return_metadata: add `video_metadata`, a list.
                return_tensors, device: `"pt"` or `"np"`, and where.

        Returns:
            `pixel_values_videos`, by default float32 in [0, 1], `(batch, num_frames, 3, image_size, image_size)`.

        Raises:
            TypeError: for an unknown option.
            ValueError: for a value that is not accepted, and as `load` does.
        """
        _check_resize_mode(resize_mode or self.resize_mode, RESIZE_MODES[:2])
        modes = self if resize_mode is None else _with_resize_mode(self, resize_mode)
        options = resolve_options(modes, kwargs)
        videos = videos if is_video_list(videos) else [videos]
        metadata = metadata_of_each(options.video_metadata, len(videos))
        clips, described = [], []
        for video, about in zip(videos, metadata, strict=True):
            clip, description = clip_for_call(self, video, about, options)
            clips.append(clip)
            described.append(description)
        if len({clip.shape for clip in clips}) > 1:
            sizes = ", ".join(sorted({"x".join(map(str, clip.shape)) for clip in clips}))
            raise ValueError(f"videos of different sizes {sizes} make no batch; give one per call, or do_resize and a size")
        height_and_width = (self.image_size,) * 2
        batch = torch.stack(clips) if clips else torch.empty(0, self.num_frames, 3, *height_and_width)
        if options.data_format == "channels_last":
            batch = batch.movedim(2, -1)
        if options.device is not None:
            batch = batch.to(options.device)
        batch = BatchFeature({"pixel_values_videos": batch.cpu() if options.return_tensors == "np" else batch})
        batch = batch.convert_to_tensors(options.return_tensors)
        if options.return_metadata:
            batch["video_metadata"] = described
        return batch

    def load(
        self, video: Any, fps: float | None = None, max_frames: int | None = None, input_data_format: str | None = None
    ) -> Video:
        """Read one video of any form.

        Args:
            video: a path (or the bytes of a file, both as datasets' `Video(decode=False)` has them, or a binary file
                object) of a video or a picture; a folder of pictures, sorted (frame2 before frame10); a PIL image; a numpy
                array or torch tensor `(T, H, W, 3)` or `(T, 3, H, W)` of integers 0..255 or of floats in [0, 1]; without
                `T` for one frame, with 1 in place of 3 for gray; a list of pictures: paths, PIL images or arrays; a
                torchcodec `VideoDecoder`, an open PyAV container (read from its start), or a `Video`.
            fps: only for pictures, arrays and tensors, which have no frame rate; 24 by default.
            max_frames: only the first frames.
            input_data_format: `"channels_first"` or `"channels_last"`, where an array's shape leaves it open.

        Returns:
            uint8 frames `(T, H, W, 3)`, fps and timestamps.

        Raises:
            FileNotFoundError, IsADirectoryError: where a path is not a file, and for a folder without pictures.
            ValueError: for anything that is not a video: see `read_video` for files; for arrays a wrong or ambiguous
                shape, another dtype, NaN, floats outside [0, 1]; images of different sizes; no frames.
        """
        if max_frames is not None and (not isinstance(max_frames, int) or max_frames < 1):
            raise ValueError(f"max_frames must be a positive integer or None, got {max_frames!r}")
        if hasattr(video, "convert") and hasattr(video, "mode"):
            video = [video]
        if is_file(video):
            return read_video(video, max_frames=max_frames, fps=fps)
        if isinstance(video, list | tuple | np.ndarray | torch.Tensor):
            fps = DEFAULT_FPS if fps is None else check_fps(fps)
            frames = frames_from_list(video, max_frames) if isinstance(video, list | tuple) else video
            frames = frames_from_array(frames, max_frames, input_data_format)
            return Video(frames, fps, np.arange(len(frames)) / fps)
        if fps is not None:
            raise ValueError(f"got fps={fps}, but a {type(video).__name__} has a frame rate")
        if _is_video(video):
            return Video(video.frames[:max_frames], video.fps, video.timestamps[:max_frames])
        if hasattr(video, "get_frames_in_range") and hasattr(video, "metadata"):  # torchcodec
            return read_decoder(video, max_frames)
        raise ValueError(f"cannot read a video from {type(video).__name__}; expected {ACCEPTED}")

    def clips(
        self, video: Any, fps: float | None = None, resize_mode: str | None = None, overlap_blocks: int = 0
    ) -> ClipBatch:
        """Cut a video of any length into clips of `num_frames` frames, resized to the square of `image_size`.

        Frames of a file are resized as they are decoded, so that a long video is never held at full size.

        Args:
            video: anything that `load` takes.
            fps: see `load`.
            resize_mode: instead of the processor's.
            overlap_blocks: blocks that each clip shares with the one before, at most half of a clip's.

        Returns:
            the clips and what is needed to turn them back into a video.

        Raises:
            ValueError: see `load`; an unknown `resize_mode`, and frames too narrow to crop.
        """
        resize_mode = _check_resize_mode(resize_mode or self.resize_mode, RESIZE_MODES[:2])
        most = self.num_frames // self.tubelet_size // 2
        if not isinstance(overlap_blocks, int) or not 0 <= overlap_blocks <= most:
            raise ValueError(f"overlap_blocks must be a whole number from 0 to {most}, got {overlap_blocks!r}")
        self._check_call_only()
        if is_file(video):
            source_size = None

            def shrink(frame):
                nonlocal source_size
                source_size = frame.shape[:2]
                return self._square(frame, resize_mode)

            video = read_video(video, transform=shrink, fps=fps)
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
        if overlap_blocks:
            return self._overlapping_clips(frames, overlap_blocks, source_size, video)
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

    def _overlapping_clips(
        self, frames: np.ndarray, overlap_blocks: int, source_size: tuple[int, int], video: Video
    ) -> ClipBatch:
        """Return the clips of (frames, 3, height, width), each beginning some blocks before the end of the last."""
        total, shared = len(frames), overlap_blocks * self.tubelet_size
        starts = np.arange(0, max(total - shared, 1), self.num_frames - shared)[:, None]
        return ClipBatch(
            frames=torch.from_numpy(frames[np.minimum(starts + np.arange(self.num_frames), total - 1)]),
            valid_blocks=torch.from_numpy(starts + np.arange(0, self.num_frames, self.tubelet_size) < total),
            num_frames=total,
            source_size=source_size,
            fps=video.fps,
            timestamps=video.timestamps,
            overlap_blocks=overlap_blocks,
        )

    def tiled_clips(self, video: Any, fps: float | None = None) -> TiledClips:
        """Cut a video of any length and size into clips and these into tiles: squares of `image_size` that overlap.

        A file is not held in memory; it is read again where its frames are needed.

        Args:
            video: anything that `load` takes.
            fps: see `load`.

        Raises:
            ValueError: see `load`.
        """
        self._check_call_only()
        can_be_read_again = is_file(video) and not (hasattr(video, "seekable") and not video.seekable())
        if not can_be_read_again:
            video, fps = self.load(video, fps), None
        return tile_video(video, fps, self.image_size, self.num_frames, self.tubelet_size)

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

    def _check_call_only(self) -> None:
        """Raise `ValueError` if an option of the configuration asks for clips that the models do not read."""
        for name in _CALL_ONLY:
            if getattr(self, name, None) != getattr(type(self), name, None):
                raise ValueError(f"{name}={getattr(self, name)!r} is for calls of the processor; clips are made without it")

    def _square(self, frames: np.ndarray, resize_mode: str) -> np.ndarray:
        """uint8 `(..., height, width, 3)` to `(..., image_size, image_size, 3)`."""
        size = self.image_size
        if resize_mode == "squash":
            return resize(frames, (size, size))
        return center_crop(resize_short_side(frames, size), size)


def _check_resize_mode(resize_mode: str, modes: tuple[str, ...] = RESIZE_MODES) -> str:
    if resize_mode not in modes:
        raise ValueError(f"resize_mode must be one of {', '.join(map(repr, modes))}, got {resize_mode!r}")
    return resize_mode


def _is_video(value: Any) -> bool:
    """Return whether it is a `Video`, also of another copy of this module (such as that in Hub code)."""
    return all(hasattr(value, name) for name in ("frames", "fps", "timestamps"))


def is_video_list(videos: Any) -> bool:
    """Return whether this is several videos: a 5-D array, or a list whose items are not single frames."""
    if isinstance(videos, np.ndarray | torch.Tensor):
        return videos.ndim == 5
    return isinstance(videos, list | tuple) and bool(videos) and not (is_frame(videos[0]) or is_picture_file(videos[0]))


def _with_resize_mode(processor: AdapTokVideoProcessor, resize_mode: str) -> AdapTokVideoProcessor:
    processor = copy(processor)
    processor.resize_mode = resize_mode
    return processor
