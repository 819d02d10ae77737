"""Where the encoder's latent tokens look (the paper's Fig. I)."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from ..models.modeling_adaptok import AdapTokModel


@torch.no_grad()
def attention_maps(model: "AdapTokModel", video: torch.Tensor, tokens: Sequence[int], layer: int = -1) -> np.ndarray:
    """
    Attention of latent tokens to the patches of their own block, mean over heads.

    The fast attention functions do not return weights. So a hook takes what one attention layer is given, and its weights
    are computed again: softmax(Q K' / sqrt(d)) over all that the token may see; of these the block's patches are kept.

    Args:
        video: (frames, 3, size, size) in [0, 1], a whole clip.
        tokens: indices within a block, 0 (the first that is kept) to latents_per_block - 1.
        layer: of the encoder; by default its last.

    Returns:
        (tokens, blocks, grid, grid); a map sums to what the token spends on its block's patches, at most 1.

    Raises:
        ValueError: for tokens that a block does not have, or a model with flex attention (its masks are no tensors).
    """
    config = model.config
    if wrong := [token for token in tokens if not 0 <= token < config.latents_per_block]:
        raise ValueError(f"a block's tokens are 0 to {config.latents_per_block - 1}, got {wrong[0]}")
    if config._attn_implementation not in ("sdpa", "eager"):
        raise ValueError(f"attention maps need sdpa or eager attention, not {config._attn_implementation}")
    attention, seen = model.encoder.layers[layer].attention, {}
    handle = attention.register_forward_pre_hook(lambda module, given: seen.update(hidden=given[0], mask=given[1]))
    try:
        model.encoder(video[None].to(model.device, model.dtype))
    finally:
        handle.remove()
    hidden = seen["hidden"]
    query, key, _ = attention.qkv(hidden).view(1, hidden.shape[1], 3, attention.num_heads, -1).permute(2, 0, 3, 1, 4)
    blocks, per_block, grid = config.num_blocks, config.latents_per_block, config.grid_size
    patches = grid * grid
    rows = torch.tensor([[blocks * patches + block * per_block + token for block in range(blocks)] for token in tokens])
    rows = rows.flatten().to(hidden.device)
    logits = (query[:, :, rows] @ key.transpose(-1, -2)).float() * attention.scaling  # (1, heads, rows, sequence)
    mask = seen["mask"]
    if mask is not None:
        mask = mask.expand(1, -1, hidden.shape[1], hidden.shape[1])[:, :, rows]
        logits = logits.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else logits + mask
    weights = logits.softmax(-1).mean(1)[0, :, : blocks * patches]  # over all that is seen, latents included
    weights = weights.view(len(tokens), blocks, blocks, grid, grid)
    own = torch.arange(blocks)
    return weights[:, own, own].cpu().numpy()
