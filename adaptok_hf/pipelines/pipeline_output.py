"""What the pipeline returns, and the forms in which it returns frames."""

from dataclasses import dataclass

import numpy as np
import torch
from diffusers.utils import BaseOutput

from ..video.tokenized_video import TokenizedVideo

OUTPUT_TYPES = ("np", "pt", "pil", "uint8")
Frames = np.ndarray | torch.Tensor | list


@dataclass
class AdapTokPipelineOutput(BaseOutput):
    """
    A reconstructed video.

    Args:
        frames: the reconstruction, a batch of one video, so `frames[0]` is the video. As in diffusers, `"np"` is float32
            (1, frames, height, width, 3) in [0, 1], `"pt"` float32 (1, frames, 3, height, width) in [0, 1], and `"pil"` a
            list of a list of images. `"uint8"` is (1, frames, height, width, 3).
        tokens: codes, counts, fps, timestamps, tokens and bits per second.
        original: the input as the model saw it (resized and cropped to a square), in the same form.
        seconds: wall-clock seconds of the stages `read`, `encode`, `score` (or `measure`, `search`, `route`), `allocate`
            and `decode`; for videos that share a budget, of all of them together.
    """

    frames: Frames
    tokens: TokenizedVideo
    original: Frames
    seconds: dict[str, float]

    @property
    def token_counts(self) -> torch.Tensor:
        """(clips, blocks) long, the tokens spent on each block."""
        return self.tokens.token_counts

    @property
    def fps(self) -> float:
        return self.tokens.fps

    @property
    def timestamps(self) -> np.ndarray:
        """(frames,) float64, seconds."""
        return self.tokens.timestamps

    @property
    def bits_per_second(self) -> float:
        return self.tokens.bits_per_second


class AdapTokPipelineOutputList(list):
    """The outputs of a list of videos, one [`AdapTokPipelineOutput`] for each."""

    @property
    def frames(self) -> Frames:
        """All videos: `frames[i]` is a video. See `join_videos`."""
        return join_videos([output.frames[0] for output in self])


@dataclass
class AdapTokGenerationOutput(BaseOutput):
    """
    Generated videos.

    Args:
        frames: a batch of videos, in the forms of [`AdapTokPipelineOutput`].
        codes: (videos, clips, blocks, latents_per_block) long.
        token_counts: (videos, clips, blocks) long, the tokens of each block.
        seeds: (videos, clips) long, the seed that each clip was sampled with.
        class_labels: class id of each video, or `None` for frame prediction.
        class_names: their names.
        num_condition_frames: frames at the start of a video that were given to the model (and are shown decoded); 0 for
            class-conditional generation.
        fps: frames per second to play them with.
    """

    frames: Frames
    codes: torch.Tensor
    token_counts: torch.Tensor
    seeds: torch.Tensor
    class_labels: list[int] | None
    class_names: list[str] | None
    num_condition_frames: int
    fps: float


@dataclass(eq=False)
class StreamBlock:
    """One temporal block of a stream.

    Args:
        index: position in the stream, from 0; a clip begins at every multiple of the tokenizer's `num_blocks`.
        codes: (latents_per_block,) long, at full width.
        token_count: how many leading codes are kept.
        num_frames: real frames; fewer than `tubelet_size` only in the last block.
        timestamps: (num_frames,) float64, seconds.
        fps: frames per second of the source.
        source_size: height and width of the source's frames.
        resize_mode: how they were made square.
        bits: log2(codebook_size) for each kept code and log2(latents_per_block + 1) for the count.
        price: score per token that decided the count, or `None`.
        model_hash: fingerprint of the tokenizer.
        frames: the reconstruction, `num_frames` frames without a batch axis, such as `"np"`: float32 (num_frames, height,
            width, 3) in [0, 1]; `None` if it was not asked for.
        original: the input as the model saw it (a square), in the same form.
        latency: seconds of computation between the arrival of the block's last frame and this object. A frame also waits
            for the rest of its block to arrive, at most `tubelet_size - 1` frames.
    """

    index: int
    codes: torch.Tensor
    token_count: int
    num_frames: int
    timestamps: np.ndarray
    fps: float
    source_size: tuple[int, int]
    resize_mode: str
    bits: float
    price: float | None
    model_hash: str
    frames: Frames | None
    original: Frames | None
    latency: float


def join_videos(videos: list[Frames]) -> Frames:
    """Return videos as one array or tensor where their shapes agree, else (and images) as a list."""
    if not videos or isinstance(videos[0], list) or len({video.shape for video in videos}) > 1:
        return videos
    if len(videos) == 1:  # without a copy
        return videos[0][None]
    return np.stack(videos) if isinstance(videos[0], np.ndarray) else torch.stack(videos)


def as_tuple(output: AdapTokPipelineOutput | AdapTokPipelineOutputList | AdapTokGenerationOutput) -> tuple:
    """Return the fields of an output, `frames` first, as `return_dict=False` gives them; of a list, lists of them."""
    if isinstance(output, AdapTokPipelineOutputList):
        return output.frames, *([getattr(each, name) for each in output] for name in ("tokens", "original", "seconds"))
    return tuple(vars(output).values())


def check_output_type(output_type: str) -> None:
    """Raise `ValueError` for an unknown output type."""
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(map(repr, OUTPUT_TYPES))}, got {output_type!r}")


def convert_frames(frames: np.ndarray, output_type: str) -> Frames:
    """Return uint8 (..., frames, height, width, 3) as the output type asks, see [`AdapTokPipelineOutput`]."""
    if output_type == "uint8":
        return frames
    if output_type == "np":
        return np.divide(frames, 255, dtype=np.float32)
    if output_type == "pt":
        return torch.from_numpy(frames).movedim(-1, -3).float() / 255
    from PIL import Image

    if frames.ndim > 4:
        return [convert_frames(video, output_type) for video in frames]
    return [Image.fromarray(frame) for frame in frames]
