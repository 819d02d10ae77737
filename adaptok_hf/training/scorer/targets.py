"""What the scorer learns to predict: how far a block's reconstruction is from the original, at each token count."""

from collections.abc import Iterable
from typing import Literal

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from ...metrics.lpips_network import LPIPSNetwork
from ...models.modeling_adaptok import AdapTokModel

Target = Literal["perceptual", "mse", "psnr", "ssim", "rmse", "l1"]
FRAMES_AT_ONCE = 64  # of the perceptual network, which needs much memory


class BlockLoss:
    """The loss of blocks of frames. Less is better whatever the target, for allocation minimizes the sum of scores.

    * `"perceptual"`: LPIPS (vgg), the mean over frames. The paper's choice (AdapTok, Table 7).
    * `"mse"`: mean squared error.
    * `"psnr"`: minus the peak signal-to-noise ratio in dB, the mean over frames; a frame has at most 100 dB.
    * `"ssim"`: 1 - structural similarity (11 x 11 Gaussian window), the mean over frames.
    * `"rmse"`: the root of the mean squared error of all of a block's pixels.
    * `"l1"`: mean absolute error.

    Table 7 compares the first four. The signs of PSNR and SSIM, and the 1, are ours: any constant would do, because targets
    are standardized and allocation only compares sums of scores.

    Args:
        lpips: the network, for `"perceptual"`.

    Raises:
        ValueError: for `"perceptual"` without network.
    """

    def __init__(self, target: Target, lpips: LPIPSNetwork | None = None):
        if target == "perceptual" and lpips is None:
            raise ValueError("the perceptual target needs an LPIPSNetwork")
        self.target, self.lpips = target, lpips

    @torch.no_grad()
    def __call__(self, decoded: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        """Return the loss of each block.

        Args:
            decoded, original: (batch, frames, 3, height, width), the original in [0, 1]; the other is clamped to it.

        Returns:
            (batch,) float32.

        Raises:
            ValueError: for frames of less than 11 ("ssim") or 16 ("perceptual") pixels.
        """
        # half precision would drown what a few more tokens gain
        with torch.autocast(decoded.device.type, enabled=False):
            decoded, original = decoded.float().clamp(0, 1), original.float()
            error = decoded - original
            if self.target == "l1":
                return error.abs().flatten(1).mean(1)
            if self.target == "rmse":
                return error.square().flatten(1).mean(1).sqrt()
            if self.target == "mse":
                return error.square().flatten(1).mean(1)
            if self.target == "psnr":
                return 10 * error.square().flatten(2).mean(2).clamp(min=1e-10).log10().mean(1)
            frames, targets = decoded.flatten(0, 1), original.flatten(0, 1)
            if self.target == "ssim":
                if min(frames.shape[2:]) < 11:
                    raise ValueError(f"SSIM needs frames of at least 11 x 11 pixels, got {tuple(frames.shape[2:])}")
                per_frame = 1 - structural_similarity_index_measure(frames, targets, data_range=1.0, reduction="none")
            else:
                chunks = zip(frames.split(FRAMES_AT_ONCE), targets.split(FRAMES_AT_ONCE), strict=True)
                per_frame = torch.cat([self.lpips(some, originals) for some, originals in chunks])
            return per_frame.unflatten(0, original.shape[:2]).mean(1)


@torch.no_grad()
def measure_levels(
    tokenizer: AdapTokModel,
    video: torch.Tensor,
    quantized: torch.Tensor,
    counts: torch.Tensor,
    levels: Iterable[int],
    block_loss: BlockLoss,
) -> torch.Tensor:
    """Return the loss of the last block at each of `levels`.

    Args:
        video: (batch, frames, 3, height, width) in [0, 1], up to and with the block that is measured.
        quantized: (batch, blocks, latents_per_block, hidden_size) of these blocks.
        counts: (batch, blocks) long, the counts of the earlier blocks; the last column is ignored.
        levels: token counts of the last block.

    Returns:
        (batch, levels) float32.
    """
    frames = tokenizer.config.tubelet_size
    losses = []
    for count in levels:
        counts = counts.clone()
        counts[:, -1] = count
        decoded = tokenizer.decode(quantized=quantized, token_counts=counts).pixel_values_videos
        losses.append(block_loss(decoded[:, -frames:], video[:, -frames:]))
    return torch.stack(losses, dim=1)
