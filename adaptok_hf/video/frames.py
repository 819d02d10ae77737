"""Float to uint8, resizing and cropping: the same for every reader, so that training, validation and users see the same."""

import numpy as np
import torch

# Resizing the short side of a narrower frame would make the long one enormous.
_MAX_ASPECT = 20


def to_uint8(frames: torch.Tensor) -> torch.Tensor:
    """Return floats in [0, 1] as uint8 on the same device, rounded; values outside are clamped."""
    return frames.float().clamp(0, 1).mul(255).round().to(torch.uint8)


def interpolate(frames: torch.Tensor, size: tuple[int, int], mode: str = "bilinear") -> torch.Tensor:
    """Return (batch, channels, height, width) in another size, by antialiased interpolation: a mode of torch's."""
    if tuple(frames.shape[2:]) == tuple(size):
        return frames
    return torch.nn.functional.interpolate(frames, size=tuple(size), mode=mode, antialias=mode != "nearest-exact")


def resize(frames: np.ndarray, size: tuple[int, int], mode: str = "bilinear") -> np.ndarray:
    """Return uint8 (..., height, width, 3) in another size."""
    height, width = frames.shape[-3:-1]
    if (height, width) == tuple(size):
        return frames
    writable = np.require(frames, requirements=["C", "W"])  # torch warns of arrays that cannot be written
    pixels = torch.from_numpy(writable).view(-1, height, width, 3).permute(0, 3, 1, 2)
    resized = interpolate(pixels, size, mode).permute(0, 2, 3, 1)
    return resized.reshape(*frames.shape[:-3], *size, 3).numpy()


def resize_short_side(frames: np.ndarray, size: int, mode: str = "bilinear") -> np.ndarray:
    """Return uint8 (..., height, width, 3) with a short side of `size` pixels and the same proportions.

    Raises:
        ValueError: for frames whose long side is more than 20 times the short one.
    """
    height, width = frames.shape[-3:-1]
    short, long = sorted((height, width))
    if long > _MAX_ASPECT * short:
        raise ValueError(
            f"frames of {height}x{width} are too narrow to crop a square: the long side may be {_MAX_ASPECT} times the "
            'short one (the video processor\'s resize_mode="squash" takes any)'
        )
    return resize(frames, (round(height * size / short), round(width * size / short)), mode)


def center_crop(frames: np.ndarray, size: int | tuple[int, int]) -> np.ndarray:
    """Return the center of (..., height, width, 3), a square or of a height and width.

    Raises:
        ValueError: for frames that are smaller.
    """
    height, width = (size, size) if isinstance(size, int) else size
    sides = frames.shape[-3:-1]
    if sides[0] < height or sides[1] < width:
        raise ValueError(f"frames of {sides[0]}x{sides[1]} (height x width) are too small to crop {height}x{width}")
    top, left = (sides[0] - height) // 2, (sides[1] - width) // 2
    return frames[..., top : top + height, left : left + width, :]
