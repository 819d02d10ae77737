"""What the scorer learns to predict: how far a block's reconstruction is from the original, at each token count."""

from collections.abc import Sequence
from typing import Literal

import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from ...metrics.lpips_network import LPIPSNetwork
from ...models.modeling_adaptok import AdapTokModel
from ...pipelines.assignment_decoding import LOSSES

Target = Literal["perceptual", "mse", "psnr", "ssim", "rmse", "l1"]
Span = Literal["block", "clip"]
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
            if self.target == "l1":
                return (decoded - original).abs().flatten(1).mean(1)
            if self.target in LOSSES:
                return LOSSES[self.target](decoded, original)
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
    block: int,
    levels: Sequence[int],
    block_loss: BlockLoss,
) -> torch.Tensor:
    """Return the loss of a block at each of `levels`, and with it what these take from the blocks that follow.

    Blocks after `block` count by how much worse they are than if `block` had all its tokens. Decoders look at earlier
    blocks, so the first blocks of a clip are worth more than their own frames show.

    Args:
        video: (batch, frames, 3, height, width) in [0, 1], up to and with `block`, or more.
        quantized: (batch, blocks, latents_per_block, hidden_size) of these blocks.
        counts: (batch, blocks) long, the counts of the other blocks; those of `block` are ignored.
        block: the one whose count varies.
        levels: token counts.

    Returns:
        (batch, levels) float32.
    """
    frames, full = tokenizer.config.tubelet_size, tokenizer.config.latents_per_block
    follow = quantized.shape[1] > block + 1

    def measure(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        here = counts.clone()
        here[:, block] = count
        decoded = tokenizer.decode(quantized=quantized, token_counts=here).pixel_values_videos
        losses = [
            block_loss(*(each[:, q * frames : (q + 1) * frames] for each in (decoded, video)))
            for q in range(block, quantized.shape[1])
        ]
        return losses[0], sum(losses[1:], torch.zeros_like(losses[0]))

    measured = {count: measure(count) for count in sorted({*levels, full} if follow else levels)}
    rest = measured[full][1] if follow else 0.0
    return torch.stack([measured[count][0] + measured[count][1] - rest for count in levels], dim=1)
