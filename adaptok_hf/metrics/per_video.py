"""Metrics that give each video one number and average the numbers: PSNR, SSIM, LPIPS.

All take `update(videos, target)`, two (N, T, 3, H, W) tensors in [0, 1] or uint8 (see `check_videos`), and keep the
numbers, 8 bytes a video, so that a confidence interval can be computed. Processes are merged by torchmetrics.
"""

from typing import Literal

import torch
from torchmetrics import Metric
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.utilities.data import dim_zero_cat

from .lpips_network import LPIPSNetwork
from .video_checks import check_pairs

FRAMES_AT_ONCE = 32  # of the LPIPS network, which needs much memory


class PerVideoMetric(Metric):
    """The mean over videos of `measure`, which a subclass defines."""

    full_state_update = False

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        # before a network is attached: a process without videos contributes an empty state of this dtype
        self.set_dtype(torch.float64)
        self.add_state("values", default=[], dist_reduce_fx="cat")

    def measure(self, videos: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Return (N,) numbers for two (N, T, 3, H, W), checked floats in [0, 1]."""
        raise NotImplementedError

    def update(self, videos: torch.Tensor, target: torch.Tensor) -> None:
        """Add videos, both (N, T, 3, H, W) in [0, 1] or uint8; `ValueError` for others, see `check_pairs`."""
        self.values.append(self.measure(*check_pairs(videos, target)).double())

    def compute(self) -> torch.Tensor:
        """Return the mean, float64; `ValueError` where there was no video."""
        return self.per_video().mean()

    def per_video(self) -> torch.Tensor:
        """Return (videos,) float64, of this process before `compute`."""
        values = dim_zero_cat(self.values) if len(self.values) else torch.zeros(0, dtype=torch.float64)
        if not len(values):
            raise ValueError(f"{type(self).__name__}: no videos were given")
        return values


class VideoPSNR(PerVideoMetric):
    """Peak signal-to-noise ratio in dB; higher is better, infinite for equal videos.

    Args:
        per_frame: by default the squared error is averaged over all of a video before the logarithm, then the dB over
            videos: the paper's protocol. With `True` each frame has its dB, averaged over frames and videos (never
            lower, by Jensen's inequality).
    """

    higher_is_better = True

    def __init__(self, per_frame: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.per_frame = per_frame

    def measure(self, videos, target):
        error = (videos.double() - target.double()).square().mean(dim=(2, 3, 4))  # (N, T)
        if not self.per_frame:
            error = error.mean(dim=1, keepdim=True)
        return (-10 * torch.log10(error)).mean(dim=1)


class VideoSSIM(PerVideoMetric):
    """Structural similarity, at most 1; higher is better. torchmetrics' SSIM (11 x 11 Gaussian window, sigma 1.5) of each
    frame and color, averaged over frames and videos. Frames of at least 11 x 11 pixels.
    """

    higher_is_better = True

    def measure(self, videos, target):
        if min(videos.shape[3:]) < 11:
            raise ValueError(f"SSIM needs frames of at least 11 x 11 pixels, got {tuple(videos.shape[3:])}")
        values = [
            structural_similarity_index_measure(frames, target_frames, data_range=1.0, reduction="none").double().mean()
            for frames, target_frames in zip(videos.to(target.dtype), target, strict=True)
        ]
        return torch.stack(values)


class VideoLPIPS(PerVideoMetric):
    """LPIPS 0.1, mean over frames and videos; lower is better. State the network with every number.

    Args:
        net: `"vgg"` (the paper's) or `"alex"`, with its true weights (cached or downloaded, see `network_weights`).
        network: used instead: `network(x, y) -> (frames,)` for (frames, 3, H, W) in [0, 1].
    """

    higher_is_better = False

    def __init__(
        self,
        net: Literal["vgg", "alex"] = "vgg",
        network: torch.nn.Module | None = None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.network = LPIPSNetwork.from_pretrained(net) if network is None else network
        self.net = getattr(self.network, "net", type(self.network).__name__)

    def measure(self, videos, target):
        n = len(videos)
        pairs = zip(*(frames.float().flatten(0, 1).split(FRAMES_AT_ONCE) for frames in (videos, target)), strict=True)
        with torch.no_grad():
            distances = torch.cat([self.network(x, y) for x, y in pairs])
        return distances.double().view(n, -1).mean(dim=1)
