"""The transformer that distinguishes videos from reconstructions (AdapTok, adversarial loss)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from ..models.layers import AdapTokLayer, PatchEmbedding, SinCosPositions, init_layer_weights, patch_positions


@dataclass(frozen=True)
class DiscriminatorConfig:
    """The defaults are the paper's discriminator; the names are those of `AdapTokConfig`.

    Raises `ValueError` where the numbers do not fit together.
    """

    image_size: int = 128
    num_frames: int = 16
    num_channels: int = 3
    tubelet_size: int = 4
    patch_size: int = 8
    hidden_size: int = 512
    num_attention_heads: int = 8
    num_hidden_layers: int = 12
    mlp_ratio: int = 4
    layer_norm_eps: float = 1e-5

    _attn_implementation: ClassVar[str] = "sdpa"  # read by the attention layers

    def __post_init__(self):
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size={self.image_size} must be a multiple of patch_size={self.patch_size}")
        if self.num_frames % self.tubelet_size:
            raise ValueError(f"num_frames={self.num_frames} must be a multiple of tubelet_size={self.tubelet_size}")
        if self.hidden_size % self.num_attention_heads or self.hidden_size % 4:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads} and "
                "of 4, for the position table"
            )


class VideoDiscriminator(nn.Module):
    """A class token, then patches with fixed positions; every token sees every other; one logit from the class token."""

    def __init__(self, config: DiscriminatorConfig):
        super().__init__()
        self.config = config
        num_blocks, grid_size = config.num_frames // config.tubelet_size, config.image_size // config.patch_size
        self.patch_embedding = PatchEmbedding(config)
        self.positions = SinCosPositions(lambda: patch_positions(num_blocks, grid_size, config.hidden_size))
        self.class_token = nn.Parameter(torch.empty(1, 1, config.hidden_size))
        self.layers = nn.ModuleList(AdapTokLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.head = nn.Linear(config.hidden_size, 1)
        self.apply(lambda module: init_layer_weights(module, std=0.02))
        nn.init.normal_(self.class_token, std=0.02)

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Return (batch,) float32 logits, high for what looks like a real video.

        Args:
            video: (batch, frames, channels, image_size, image_size), [0, 1] but not clamped; as many frames as the
                configuration says, or fewer in whole blocks.

        Raises:
            ValueError: for a shape that does not fit the configuration.
        """
        config = self.config
        size = (config.num_channels, config.image_size, config.image_size)
        if video.ndim != 5 or tuple(video.shape[2:]) != size:
            raise ValueError(f"video has shape {tuple(video.shape)}, expected (batch, frames, *{size})")
        frames = video.shape[1]
        if frames == 0 or frames % config.tubelet_size or frames > config.num_frames:
            raise ValueError(
                f"a clip has {frames} frames, expected a multiple of {config.tubelet_size} up to {config.num_frames}"
            )
        patches = self.patch_embedding(video.to(self.class_token.dtype))
        patches = patches + self.positions()[:, : patches.shape[1]]
        hidden_states = torch.cat([self.class_token.expand(len(patches), -1, -1), patches], dim=1)
        for layer in self.layers:
            hidden_states = layer(hidden_states)
        return self.head(self.norm(hidden_states[:, 0])).squeeze(-1).float()


# Names in the original, as patterns, and here.
_NAMES = (
    (r"cls_token", r"class_token"),
    (r"x_embedder\.proj\.(weight|bias)", r"patch_embedding.projection.\1"),
    (r"transformer_encoder\.blocks\.(\d+)\.attn\.(qkv|proj)\.(weight|bias)", r"layers.\1.attention.\2.\3"),
    (r"transformer_encoder\.blocks\.(\d+)\.(norm[12]|mlp\.fc[12])\.(weight|bias)", r"layers.\1.\2.\3"),
    (r"norm_final\.(weight|bias)", r"norm.\1"),
    (r"fc\.(weight|bias)", r"head.\1"),
)


def convert_discriminator_weights(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the state dictionary of a `VideoDiscriminator` for that of the original's discriminator.

    The original's position table is fixed, and left out: here it is computed.

    Raises:
        ValueError: naming an entry that is not known.
    """
    state = {}
    for name, tensor in tensors.items():
        if name == "encoder_pos_embed":
            continue
        renamed = [re.sub(pattern, target, name) for pattern, target in _NAMES if re.fullmatch(pattern, name)]
        if not renamed:
            raise ValueError(f"not part of a discriminator: {name}")
        # the patch embedding is a convolution there, with a kernel (width, channel, time, row, column)
        state[renamed[0]] = tensor.flatten(1) if name == "x_embedder.proj.weight" else tensor
    return state
