"""LPIPS of videos, as a training loss and as the target of the scorer."""

from collections.abc import Callable

import torch


def perceptual_loss(
    network: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    reconstruction: torch.Tensor,
    video: torch.Tensor,
    frames_per_block: int | None = None,
) -> torch.Tensor:
    """Return the mean over frames of the perceptual distance.

    Args:
        network: images (n, 3, height, width) twice -> (n,) distances: a `metrics.lpips_network.LPIPSNetwork`, frozen
            (the paper's is `"vgg"`).
        reconstruction, video: (batch, frames, 3, height, width) in [0, 1]. The reconstruction is not clamped, so that
            values outside have a gradient too.
        frames_per_block: `None` for the mean over everything, or the length of a block.

    Returns:
        float32, a scalar, or (batch, blocks) with `frames_per_block`.

    Raises:
        ValueError: for shapes that do not fit.
    """
    if video.ndim != 5 or video.shape[2] != 3 or reconstruction.shape != video.shape:
        raise ValueError(
            "reconstruction and video must both be (batch, frames, 3, height, width), got "
            f"{tuple(reconstruction.shape)} and {tuple(video.shape)}"
        )
    batch, frames = video.shape[:2]
    if frames_per_block is not None and (frames_per_block < 1 or frames % frames_per_block):
        raise ValueError(f"{frames} frames cannot be cut into blocks of {frames_per_block}")
    distances = network(reconstruction.flatten(0, 1), video.flatten(0, 1).to(reconstruction.dtype)).float()
    if frames_per_block is None:
        return distances.mean()
    return distances.reshape(batch, -1, frames_per_block).mean(-1)
