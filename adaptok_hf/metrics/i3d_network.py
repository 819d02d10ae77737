"""The I3D network of the Frechet video distance: Carreira and Zisserman, arXiv 1705.07750, RGB, Kinetics-400."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from .network_weights import load_network_weights
from .video_checks import check_videos

# Widths of the branches: 1x1; 1x1 then 3x3; 1x1 then 3x3; pooled then 1x1.
_MIXED = {
    "Mixed_3b": (192, (64, 96, 128, 16, 32, 32)),
    "Mixed_3c": (256, (128, 128, 192, 32, 96, 64)),
    "Mixed_4b": (480, (192, 96, 208, 16, 48, 64)),
    "Mixed_4c": (512, (160, 112, 224, 24, 64, 64)),
    "Mixed_4d": (512, (128, 128, 256, 24, 64, 64)),
    "Mixed_4e": (512, (112, 144, 288, 32, 64, 64)),
    "Mixed_4f": (528, (256, 160, 320, 32, 128, 128)),
    "Mixed_5b": (832, (256, 160, 320, 32, 128, 128)),
    "Mixed_5c": (832, (384, 192, 384, 48, 128, 128)),
}


def pad_same(x: torch.Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int], value: float) -> torch.Tensor:
    """Pad as TensorFlow's "SAME": the output has ceil(size / stride) places, and the odd place of padding comes last."""
    padding = []
    for size, k, s in zip(reversed(x.shape[2:]), reversed(kernel), reversed(stride), strict=True):
        total = max((-(-size // s) - 1) * s + k - size, 0)
        padding += [total // 2, total - total // 2]
    return F.pad(x, padding, value=value)


def _max_pool(x: torch.Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> torch.Tensor:
    return F.max_pool3d(pad_same(x, kernel, stride, float("-inf")), kernel, stride)


class ConvUnit(nn.Module):
    """Convolution, batch norm without scale (its statistics are fixed), ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, stride, bias=False)
        self.shift = nn.Parameter(torch.zeros(out_channels))
        self.register_buffer("mean", torch.zeros(out_channels))
        self.register_buffer("variance", torch.ones(out_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(pad_same(x, self.conv.kernel_size, self.conv.stride, 0.0))
        return F.relu(F.batch_norm(x, self.mean, self.variance, bias=self.shift, eps=1e-3))


class MixedBlock(nn.Module):
    """Four parallel branches, concatenated over channels."""

    def __init__(self, in_channels: int, widths: tuple[int, ...]):
        super().__init__()
        a, b_in, b, c_in, c, d = widths
        self.Branch_0 = nn.ModuleDict({"Conv3d_0a_1x1": ConvUnit(in_channels, a, 1)})
        self.Branch_1 = nn.ModuleDict(
            {"Conv3d_0a_1x1": ConvUnit(in_channels, b_in, 1), "Conv3d_0b_3x3": ConvUnit(b_in, b, 3)}
        )
        self.Branch_2 = nn.ModuleDict(
            {"Conv3d_0a_1x1": ConvUnit(in_channels, c_in, 1), "Conv3d_0b_3x3": ConvUnit(c_in, c, 3)}
        )
        self.Branch_3 = nn.ModuleDict({"Conv3d_0b_1x1": ConvUnit(in_channels, d, 1)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = []
        for branch in (self.Branch_0, self.Branch_1, self.Branch_2, self.Branch_3):
            h = _max_pool(x, (3, 3, 3), (1, 1, 1)) if branch is self.Branch_3 else x
            for unit in branch.values():
                h = unit(h)
            joined.append(h)
        return torch.cat(joined, dim=1)


class I3DNetwork(nn.Module):
    """Videos to Kinetics-400 logits. These logits, before the softmax, are the usual features of the Frechet video
    distance (Unterthiner et al., arXiv 1812.01717; StyleGAN-V's TorchScript file with `return_features=True`).

    `I3DNetwork()` has random weights, `I3DNetwork.from_pretrained()` the true ones. Layer names are TensorFlow's.
    """

    num_features = 400
    min_frames = 9  # below, the last pooling over two time steps has only one

    def __init__(self):
        super().__init__()
        self.Conv3d_1a_7x7 = ConvUnit(3, 64, 7, stride=2)
        self.Conv3d_2b_1x1 = ConvUnit(64, 64, 1)
        self.Conv3d_2c_3x3 = ConvUnit(64, 192, 3)
        for name, (in_channels, widths) in _MIXED.items():
            setattr(self, name, MixedBlock(in_channels, widths))
        self.logits = nn.Conv3d(1024, 400, 1)

    @classmethod
    def from_pretrained(cls, weights: str | Path | None = None) -> "I3DNetwork":
        """Return the network with DeepMind's weights, frozen and in eval mode.

        Args:
            weights: a file that `network_weights` accepts; by default from the cache or downloaded (see there).

        Raises:
            ValueError: for a file that does not hold this network.
            OSError: if the weights are not available.
        """
        return load_network_weights(cls(), "i3d_kinetics400", weights)

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        """Return (N, 400) logits, averaged over time.

        Args:
            videos: (N, T, 3, H, W) in [0, 1] or uint8, at least 9 frames. Every frame is squeezed to 224 x 224 by plain
                bilinear interpolation (no antialiasing, no crop), as StyleGAN-V does, and scaled to [-1, 1].
        """
        videos = check_videos(videos, "videos", min_frames=self.min_frames)
        n, t = videos.shape[:2]
        frames = videos.flatten(0, 1)
        if frames.shape[2:] != (224, 224):
            frames = F.interpolate(frames, size=(224, 224), mode="bilinear", align_corners=False)
        return self.classify(2 * frames.view(n, t, 3, 224, 224).transpose(1, 2) - 1)

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """Return (N, 400) logits for (N, 3, T, 224, 224) in [-1, 1], averaged over time."""
        x = _max_pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))
        x = _max_pool(self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x)), (1, 3, 3), (1, 2, 2))
        x = _max_pool(self.Mixed_3c(self.Mixed_3b(x)), (3, 3, 3), (2, 2, 2))
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))
        x = self.Mixed_5c(self.Mixed_5b(_max_pool(x, (2, 2, 2), (2, 2, 2))))
        return self.logits(F.avg_pool3d(x, (2, 7, 7), stride=1)).mean(dim=(2, 3, 4))
