"""The LPIPS network: perceptual distance of two images from the features of a classifier.

Zhang et al., "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (arXiv 1801.03924), version 0.1.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from .network_weights import load_network_weights

# The statistics of ImageNet, for images in [-1, 1].
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


def _vgg16() -> tuple[list[nn.Module], tuple[int, ...]]:
    """Return layers and the indices of relu1_2, relu2_2, relu3_3, relu4_3, relu5_3."""
    layers, channels = [], 3
    for width in (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512):
        if width:
            layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
            channels = width
        else:
            layers += [nn.MaxPool2d(2)]
    return layers, (3, 8, 15, 22, 29)


def _alexnet() -> tuple[list[nn.Module], tuple[int, ...]]:
    """Return layers and the indices of relu1 to relu5."""
    layers = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    layers += [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    for before, after in ((192, 384), (384, 256), (256, 256)):
        layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
    return layers, (1, 4, 7, 9, 11)


class LPIPSNetwork(nn.Module):
    """Perceptual distance between images; lower is more alike, 0 for equal images.

    `LPIPSNetwork(net)` has random weights; `LPIPSNetwork.from_pretrained(net)` the true ones. The trunk `features` has
    torchvision's state-dict keys; `heads` holds one non-negative weight per channel of each of its five taps.

    Args:
        net: `"vgg"` (VGG16, what AdapTok trains with and reports) or `"alex"` (AlexNet). Values of the two differ.
    """

    def __init__(self, net: Literal["vgg", "alex"] = "vgg"):
        super().__init__()
        if net not in ("vgg", "alex"):
            raise ValueError(f"net must be 'vgg' or 'alex', got {net!r}")
        self.net = net
        self.min_size = 16 if net == "vgg" else 31  # below, a pooling layer has nothing left
        layers, self.taps = _vgg16() if net == "vgg" else _alexnet()
        self.features = nn.Sequential(*layers)
        widths = [layers[tap - 1].out_channels for tap in self.taps]
        self.heads = nn.ModuleList(nn.Conv2d(width, 1, 1, bias=False) for width in widths)
        for head in self.heads:
            nn.init.uniform_(head.weight, 0, 1)

    @classmethod
    def from_pretrained(cls, net: Literal["vgg", "alex"] = "vgg", weights: str | Path | None = None) -> "LPIPSNetwork":
        """Return the network with ImageNet trunk and trained heads, frozen and in eval mode.

        Args:
            weights: a file that `network_weights` accepts; by default from the cache or downloaded (see there).

        Raises:
            ValueError: for another net, or a file that does not hold this network.
            OSError: if the weights are not available.
        """
        return load_network_weights(cls(net), f"lpips_{net}", weights)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return (N,) distances.

        Args:
            x, y: (N, 3, H, W) float in [0, 1]; gradients flow to both. The range is not checked: this is also a loss.

        Raises:
            ValueError: for another shape, images smaller than 16 (vgg) or 31 (alex) pixels, integers.
        """
        if x.shape != y.shape or x.ndim != 4 or x.shape[1] != 3:
            raise ValueError(f"expected two (N, 3, H, W) tensors of one shape, got {tuple(x.shape)} and {tuple(y.shape)}")
        if not (x.is_floating_point() and y.is_floating_point()):
            raise ValueError(f"expected float images in [0, 1], got {x.dtype} and {y.dtype}")
        if min(x.shape[2:]) < self.min_size:
            raise ValueError(f"LPIPS-{self.net} needs images of at least {self.min_size} pixels, got {tuple(x.shape[2:])}")
        distance = 0
        for head, a, b in zip(self.heads, self._tapped(x), self._tapped(y), strict=True):
            distance = distance + head((a - b).square()).mean(dim=(1, 2, 3))
        return distance

    def _tapped(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return the five feature maps, each position of unit length over its channels."""
        h = (2 * x - 1 - x.new_tensor(_SHIFT).view(3, 1, 1)) / x.new_tensor(_SCALE).view(3, 1, 1)
        tapped = []
        for index, layer in enumerate(self.features):
            h = layer(h)
            if index in self.taps:
                # vector_norm has a gradient where all channels are 0; the square root of a sum has none
                tapped.append(h / (torch.linalg.vector_norm(h, dim=1, keepdim=True) + 1e-10))
        return tapped


def lpips_of_blocks(device: torch.device | str = "cpu") -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """Return LPIPS (vgg) as a loss of blocks: decoded and original, (rows, frames, 3, height, width) -> (rows,), the mean
    over frames."""
    network = LPIPSNetwork.from_pretrained("vgg").to(device)

    def lpips(decoded: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
        network.to(decoded.device)
        return network(decoded.flatten(0, 1), original.flatten(0, 1)).unflatten(0, decoded.shape[:2]).mean(1)

    return lpips
