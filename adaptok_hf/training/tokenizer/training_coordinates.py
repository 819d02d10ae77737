"""Coordinates in which a tokenizer trains well; saved models are written in their own.

Patches are worked on in scaled principal components, since raw pixels give the mean color nearly all of a token's energy.
Position tables are sums of a row for the token and a row for its block, so that every block trains the same rows.
"""

import copy

import torch
from torch import nn

from ...models.configuration_adaptok import AdapTokConfig
from ...models.layers import LearnedPositions
from ...models.modeling_adaptok import AdapTokModel


class PatchComponents(nn.Module):
    """Principal components of patches, each over the square root of its deviation.

    Args:
        mean: (values of a patch,), values in the order of the head: time, row, column, channel.
        basis: (values, components), orthonormal columns.
        scale: (components,), what a coordinate is divided by.
    """

    def __init__(self, mean: torch.Tensor, basis: torch.Tensor, scale: torch.Tensor):
        super().__init__()
        for name, value in (("mean", mean), ("basis", basis), ("scale", scale)):
            self.register_buffer(name, value)

    @classmethod
    def measure(cls, video: torch.Tensor, config: AdapTokConfig, count: int) -> "PatchComponents":
        """Return the first `count` components of a sample, (batch, frames, 3, height, width) in [0, 1]."""
        t, p, g = config.tubelet_size, config.patch_size, config.grid_size
        patches = video.unflatten(1, (-1, t)).unflatten(-2, (g, p)).unflatten(-1, (g, p))  # b, blocks, t, c, g, p, g, p
        patches = patches.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4).flatten(0, 3)
        patches = patches[torch.randperm(len(patches))[: 16 * patches.shape[1]]]
        mean = patches.mean(0)
        variance, basis = torch.linalg.eigh((patches - mean).T @ (patches - mean) / len(patches))
        variance, basis = variance.flip(0)[:count].clamp(min=1e-9), basis.flip(1)[:, :count].contiguous()
        scale = variance**0.25
        # coordinates have energy 1 on average
        return cls(mean, basis, scale * ((variance / scale.square()).sum() / count).sqrt())


class ComponentEmbedding(nn.Module):
    """The patch embedding of the encoder, as a map of components."""

    def __init__(self, components: PatchComponents, config: AdapTokConfig):
        super().__init__()
        self.components, self.shape = components, (config.tubelet_size, config.patch_size, config.patch_size, -1)
        count = len(components.scale)
        self.weight = nn.Parameter(torch.zeros(config.hidden_size, count))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def _order(self, values: torch.Tensor) -> torch.Tensor:
        """Values of patches along the first dimension, from the head's order to the embedding's, channels first."""
        return values.unflatten(0, self.shape).movedim(3, 0).flatten(0, 3)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        """(..., values in the embedding's order) -> (..., hidden_size)."""
        components = self.components
        coordinates = nn.functional.linear(patches - self._order(components.mean), self._order(components.basis).T)
        return nn.functional.linear(coordinates / components.scale, self.weight, self.bias)

    def folded(self) -> nn.Linear:
        """Return the same map of pixels."""
        components = self.components
        weight = self.weight @ (self._order(components.basis) / components.scale).T
        return _linear(weight, self.bias - weight @ self._order(components.mean))


class ComponentHead(nn.Module):
    """The last map of the decoder, to components."""

    def __init__(self, components: PatchComponents, config: AdapTokConfig):
        super().__init__()
        self.components = components
        count = len(components.scale)
        self.weight = nn.Parameter(torch.zeros(count, config.hidden_size))
        self.bias = nn.Parameter(torch.zeros(count))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., hidden_size) -> (..., values of a patch)."""
        components = self.components
        coordinates = nn.functional.linear(hidden_states, self.weight, self.bias)
        return nn.functional.linear(coordinates, components.basis * components.scale) + components.mean

    def folded(self) -> nn.Linear:
        """Return the same map to pixels."""
        basis = self.components.basis * self.components.scale
        return _linear(basis @ self.weight, basis @ self.bias + self.components.mean)


class BlockPositions(nn.Module):
    """A position table that is a sum: `tokens` (tokens of a block, width) and `blocks` (blocks, width)."""

    def __init__(self, tokens: torch.Tensor, blocks: torch.Tensor):
        super().__init__()
        self.tokens, self.blocks = nn.Parameter(tokens), nn.Parameter(blocks)

    def forward(self) -> torch.Tensor:
        """Return the table, (1, blocks * tokens, width)."""
        return (self.blocks[:, None] + self.tokens).flatten(0, 1)[None]

    def folded(self) -> LearnedPositions:
        positions = LearnedPositions(len(self.blocks) * len(self.tokens), self.tokens.shape[1])
        positions.weight = nn.Parameter(self().detach())
        return positions


def fold(model: AdapTokModel) -> AdapTokModel:
    """Return a copy of the model in its own coordinates; the model itself if it is in them."""
    if not any(isinstance(module, ComponentHead) for module in model.modules()):
        return model
    model = copy.deepcopy(model)
    with torch.no_grad():
        for module in list(model.modules()):
            for name, child in module.named_children():
                if isinstance(child, ComponentEmbedding | ComponentHead | BlockPositions):
                    setattr(module, name, child.folded())
    return model


def _linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    linear = nn.Linear(*weight.T.shape, device=weight.device)
    linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
    return linear
