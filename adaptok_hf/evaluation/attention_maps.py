"""Where the encoder's latent tokens look (the paper's Fig. I)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from ..models.modeling_adaptok import AdapTokModel


@torch.no_grad()
def attention_weights(model: "AdapTokModel", video: torch.Tensor, layer: int = -1) -> torch.Tensor:
    """Return what each latent token of the encoder attends to, mean over heads.

    Args:
        video: (frames, 3, size, size) in [0, 1], a whole clip.
        layer: of the encoder; by default its last.

    Returns:
        (blocks, latents_per_block, blocks, latents_per_block + patches_per_block) float32; the last two sum to 1.
    """
    config = model.config
    attentions = model.encode(video[None].to(model.device, model.dtype), output_attentions=True).attentions
    weights = attentions[layer].float().mean(1)[0]  # (tokens, tokens): block after block, latents before patches
    weights = weights.unflatten(1, (config.num_blocks, -1)).unflatten(0, (config.num_blocks, -1))
    return weights[:, : config.latents_per_block]


def attention_maps(model: "AdapTokModel", video: torch.Tensor, tokens: Sequence[int], layer: int = -1) -> np.ndarray:
    """Return the attention of latent tokens to the patches of their own block, mean over heads.

    Args:
        video, layer: see `attention_weights`.
        tokens: indices within a block, 0 (the first that is kept) to latents_per_block - 1.

    Returns:
        (tokens, blocks, grid, grid); a map sums to what the token spends on its block's patches, at most 1.

    Raises:
        ValueError: for tokens that a block does not have.
    """
    config = model.config
    if wrong := [token for token in tokens if not 0 <= token < config.latents_per_block]:
        raise ValueError(f"a block's tokens are 0 to {config.latents_per_block - 1}, got {wrong[0]}")
    block = torch.arange(config.num_blocks)
    maps = attention_weights(model, video, layer)[block, :, block][:, list(tokens), config.latents_per_block :]
    return maps.transpose(0, 1).unflatten(-1, (config.grid_size, config.grid_size)).cpu().numpy()
