"""A discriminator that looks through a frozen video encoder (EVATok's, in the mold of StyleGAN-T and V-RAE)."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import leaky_relu
from torch.nn.utils.parametrizations import spectral_norm

from .frozen_backbones import HoldsBackbone, backbone_pixels


class FeatureDiscriminator(HoldsBackbone):
    """Small heads on several layers of a frozen backbone; one logit for each layer and token.

    For [`AdversarialLoss`]. The gradient goes through the backbone to the video.

    Args:
        backbone: a `transformers.VideoMAEModel`. It is neither trained nor part of the state dictionary.
        layers: whose outputs heads read: 0 is the patch embedding, 1 the first layer.
        kernel_size: tokens that the head's residual convolution sees, odd.
        augment: whether color, place and a hole of the videos are changed at random (DiffAugment).
        cutout: side of the hole over that of the video.

    Raises:
        ValueError: for layers that the backbone does not have, an even kernel, or a cutout outside [0, 1].
    """

    uses_batch_statistics = True

    def __init__(
        self,
        backbone: nn.Module,
        layers: Sequence[int] = (0, 3, 6, 9, 12),
        kernel_size: int = 9,
        augment: bool = True,
        cutout: float = 0.2,
    ):
        super().__init__(backbone)
        last = backbone.config.num_hidden_layers
        if not layers or any(not 0 <= layer <= last for layer in layers):
            raise ValueError(f"layers must be some of 0 (the embedding) to {last} of the backbone, got {list(layers)}")
        if kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        if not 0 <= cutout <= 1:
            raise ValueError(f"cutout must lie in [0, 1], got {cutout}")
        self.layers, self.augment, self.cutout = list(layers), augment, cutout
        self.heads = nn.ModuleList(_Head(backbone.config.hidden_size, kernel_size) for _ in layers)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Return float32 logits (batch, layers * tokens), high for "real".

        Args:
            video: (batch, frames, 3, height, width), [0, 1] but not clamped; of any size and number of frames.
        """
        config = self.backbone.config
        size = config.image_size if isinstance(config.image_size, Sequence) else (config.image_size,) * 2
        video = augmented(video.float(), self.cutout) if self.augment else video
        pixels = backbone_pixels(video, tuple(size), config.num_frames)
        states = self.backbone(pixels, output_hidden_states=True).hidden_states
        logits = [head(states[layer].transpose(1, 2)) for layer, head in zip(self.layers, self.heads, strict=True)]
        return torch.cat(logits, dim=1).float()


class _Head(nn.Module):
    """Convolutions along the tokens of a layer, (batch, width, tokens) -> (batch, tokens)."""

    def __init__(self, width: int, kernel_size: int):
        super().__init__()
        self.mix = spectral_norm(nn.Conv1d(width, width, 1))
        self.mix_norm = _GroupedBatchNorm(width)
        self.look = spectral_norm(nn.Conv1d(width, width, kernel_size, padding=kernel_size // 2, padding_mode="circular"))
        self.look_norm = _GroupedBatchNorm(width)
        self.judge = spectral_norm(nn.Conv1d(width, 1, 1))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        states = leaky_relu(self.mix_norm(self.mix(states)), 0.2)
        states = (states + leaky_relu(self.look_norm(self.look(states)), 0.2)) / 2**0.5
        return self.judge(states).squeeze(1)


class _GroupedBatchNorm(nn.Module):
    """Normalizes by the statistics of at most eight clips at a time; it has no running averages."""

    def __init__(self, width: int):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(width, 1)), nn.Parameter(torch.zeros(width, 1))

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        groups = []
        for group in states.float().chunk(-(-len(states) // 8)):
            variance, mean = torch.var_mean(group, (0, 2), correction=0, keepdim=True)
            groups.append((group - mean) * (variance + 1e-6).rsqrt())
        return torch.cat(groups) * self.weight + self.bias


def augmented(video: torch.Tensor, cutout: float) -> torch.Tensor:
    """Return clips with other brightness, saturation, contrast and place, and a gray hole; each clip by its own chance.

    DiffAugment (Zhao et al., arXiv 2006.10738), alike for all frames of a clip and differentiable.

    Args:
        video: (batch, frames, 3, height, width) in [0, 1].
        cutout: side of the hole over that of the video.
    """
    batch, _, _, height, width = video.shape
    video = 2 * video - 1
    brightness, saturation, contrast = torch.rand(3, batch, 1, 1, 1, 1, device=video.device)
    video = video + (brightness - 0.5)
    gray = video.mean(2, keepdim=True)
    video = gray + (video - gray) * 2 * saturation
    mean = video.mean((1, 2, 3, 4), keepdim=True)
    video = mean + (video - mean) * (contrast + 0.5)
    down, right, top, left = torch.rand(4, batch, 1, device=video.device)
    row, column = torch.arange(height, device=video.device), torch.arange(width, device=video.device)
    inside = []
    for axis, (index, length, shift, hole) in enumerate(((row, height, down, top), (column, width, right, left))):
        most, side = round(length / 8), round(length * cutout)
        source = index - (shift * (2 * most + 1)).long() + most  # (batch, length)
        middle = (hole * (length + 1 - side % 2)).long() - side // 2
        start = middle.clamp(max=length)
        there = (source >= 0) & (source < length)
        shape = (batch, 1, 1, -1, 1) if axis == 0 else (batch, 1, 1, 1, -1)
        video = video.gather(3 + axis, source.clamp(0, length - 1).view(shape).expand_as(video)) * there.view(shape)
        inside.append(((index >= start) & (index < start + side)).view(shape))
    return (video * ~(inside[0] & inside[1]) + 1) / 2
