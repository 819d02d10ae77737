"""Checks of videos: a wrong range or layout would give a number too, so it raises an error instead."""

import torch

LAYOUT = "(videos, frames, 3, height, width) in [0, 1]"


def check_videos(videos: torch.Tensor, name: str = "videos", min_frames: int = 1) -> torch.Tensor:
    """Return (N, T, 3, H, W) videos as floats in [0, 1].

    Args:
        videos: floats in [0, 1], of which float16 and bfloat16 become float32; uint8 is divided by 255.
        name: for messages.

    Raises:
        ValueError: for another type, layout, range, integers other than uint8, NaN, fewer than `min_frames` frames.
    """
    if not isinstance(videos, torch.Tensor):
        raise ValueError(f"{name} must be a torch tensor {LAYOUT}, got {type(videos).__name__}")
    shape = tuple(videos.shape)
    if videos.ndim != 5 or shape[2] != 3 or 0 in shape:
        raise ValueError(f"{name} must be {LAYOUT}, got shape {shape}")
    if shape[1] < min_frames:
        raise ValueError(f"{name} must have at least {min_frames} frames, got {shape[1]}")
    if videos.dtype == torch.uint8:
        return videos.float() / 255
    if not videos.is_floating_point():
        raise ValueError(f"{name} must be floats in [0, 1] or uint8, got {videos.dtype}")
    low, high = videos.amin().item(), videos.amax().item()  # NaN if there is one
    if not (low >= 0 and high <= 1):
        raise ValueError(f"{name} must have values in [0, 1] and no NaN, got {low:g} to {high:g}")
    return videos if videos.dtype == torch.float64 else videos.float()


def check_pairs(videos: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return both as `check_videos` does; `ValueError` also where they differ in number, frames or size."""
    videos, target = check_videos(videos, "videos"), check_videos(target, "target")
    for axis, what in enumerate(("videos", "frames per video", "channels", "rows", "columns")):
        if videos.shape[axis] != target.shape[axis]:
            raise ValueError(f"videos and target differ: {videos.shape[axis]} and {target.shape[axis]} {what}")
    return videos, target
