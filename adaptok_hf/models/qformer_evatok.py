"""The transformer layers of EVATok: queries attend to each other, and to references that stay as they are.

Everything is causal over blocks: a query sees the queries and references of its own and earlier blocks. The kept latents of
a clip lie in a row without gaps, and shorter rows are padded at their end.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_masks import kept_tokens
from .block_cache import BlockCache
from .configuration_evatok import EVATokConfig, pyramid_cells
from .layers import eager_attention_forward


class LatentRows(NamedTuple):
    """Where the kept latents of clips lie. There is one row for a batch whose clips all have the same counts.

    Args:
        places: (batch or 1, length) long, block * latents_per_block + position in the block, counted from the first block.
        blocks: (batch or 1, length) long, the block of each in its clip; padding has one after all others.
        kept: (batch or 1, length) bool, `False` for padding.
    """

    places: torch.Tensor
    blocks: torch.Tensor
    kept: torch.Tensor

    @classmethod
    def of(cls, token_counts: torch.Tensor, config: EVATokConfig, first: int = 0) -> "LatentRows":
        """Return the rows of clips with these token counts, (batch, blocks); there are `first` blocks before."""
        latents_per_block = config.latents_per_block
        whole = torch.compiler.is_compiling()  # what is compiled must not depend on the counts' values
        counts = token_counts if whole or bool((token_counts != token_counts[:1]).any()) else token_counts[:1]
        kept = kept_tokens(counts, latents_per_block).flatten(1)
        length = kept.shape[1] if whole else max([1, *counts.sum(1).tolist()])  # no attention has 0 queries
        places = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :length]
        kept = kept.gather(1, places)
        blocks = torch.where(kept, first + places // latents_per_block, config.num_blocks)
        return cls(places, blocks, kept)

    def take(self, states: torch.Tensor) -> torch.Tensor:
        """Return the kept latents: (batch or 1, blocks * latents_per_block, width) -> (batch or 1, length, width)."""
        if len(self.places) == 1:
            return states[:, self.places[0]]
        index = self.places[..., None].expand(-1, -1, states.shape[2])
        return states.expand(len(index), -1, -1).gather(1, index)

    def put_back(self, states: torch.Tensor, num_places: int) -> torch.Tensor:
        """Return all latents, those that are not kept 0: (batch, length, ...) -> (batch, num_places, ...)."""
        rows, more = self.places.expand(len(states), -1), (1,) * (states.ndim - 2)
        states = states * self.kept.view(*self.kept.shape, *more)
        index = rows.view(*rows.shape, *more).expand(states.shape)
        return states.new_zeros(len(states), num_places, *states.shape[2:]).scatter(1, index, states)


def sees(query_blocks: torch.Tensor, key_blocks: torch.Tensor) -> torch.Tensor | None:
    """Return which queries see which keys, (batch or 1, 1, queries, keys) bool; `None` where each sees all.

    Padding, whose block comes after all others, sees everything and is seen by padding only.

    Args:
        query_blocks, key_blocks: (batch or 1, length) long.
    """
    mask = (key_blocks[:, None, None, :] <= query_blocks[:, None, :, None]).contiguous()
    return None if not torch.compiler.is_compiling() and bool(mask.all()) else mask


def take_row(cache: BlockCache, row: int) -> BlockCache:
    """Return one row of a cache that `run_qformer` filled, without padding."""
    taken = BlockCache()
    taken.num_blocks, kept = cache.num_blocks, []
    for name, blocks in cache.key_blocks.items():
        blocks = blocks[row if len(blocks) > 1 else 0]
        kept.append(blocks < cache.num_blocks)
        taken.key_blocks[name] = blocks[kept[-1]][None]
    for index, layer in enumerate(cache.layers):  # keys of queries and of references, in turn
        keys, values = (states[row, None][:, :, kept[index % 2]] for states in (layer.keys, layer.values))
        taken.update(keys, values, index)
    return taken


def average_cells(patches: torch.Tensor, num_queries: int) -> torch.Tensor:
    """Return the averages of a block's patches over finer and finer cells, coarse before fine, see `pyramid_cells`.

    Args:
        patches: (..., rows, columns, width).
        num_queries: a power of two.

    Returns:
        (..., num_queries, width).
    """
    *leading, rows, columns, width = patches.shape
    levels = []
    for height, breadth in pyramid_cells(num_queries, min(rows, columns)):
        cells = patches.reshape(*leading, height, rows // height, breadth, columns // breadth, width)
        levels.append(cells.mean((-4, -2)).reshape(*leading, height * breadth, width))
    return torch.cat(levels, dim=-2)


class EVATokAttention(nn.Module):
    """Multi-head attention with separate maps of queries, keys and values."""

    def __init__(self, config: EVATokConfig, cache_idx: int, width: int, num_heads: int):
        super().__init__()
        self.config, self.cache_idx = config, cache_idx
        self.head_dim = width // num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False  # causality comes from the mask
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps) if config.qk_norm else nn.Identity()
        self.k_norm = nn.LayerNorm(self.head_dim, eps=config.layer_norm_eps) if config.qk_norm else nn.Identity()

    def forward(
        self,
        queries: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        mask: torch.Tensor | None = None,
        past_key_values: BlockCache | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return (batch, queries, width), and the weights (batch, heads, queries, keys) if they are asked for.

        Args:
            queries, keys, values: (batch, length, width).
            mask: (batch or 1, 1, queries, keys) bool, `True` where a query sees a key; `None`: everywhere.
            past_key_values: a cache whose keys and values come before these.
            output_attentions: return weights, by an eager product.
        """
        query, key, value = (
            states.unflatten(-1, (-1, self.head_dim))
            for states in (self.q_proj(queries), self.k_proj(keys), self.v_proj(values))
        )
        query, key, value = (states.transpose(1, 2) for states in (self.q_norm(query), self.k_norm(key), value))
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.cache_idx)
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        output, weights = attention(self, query, key, value, mask, scaling=self.scaling, dropout=0.0)
        return self.out_proj(output.flatten(2)), weights if output_attentions else None


class EVATokMLP(nn.Module):
    def __init__(self, config: EVATokConfig, width: int):
        super().__init__()
        self.fc1 = nn.Linear(width, config.mlp_ratio * width)
        self.fc2 = nn.Linear(config.mlp_ratio * width, width)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(hidden_states)))


class EVATokLayer(GradientCheckpointingLayer):
    """Q-Former layer: self-attention of the queries, attention to the references, MLP, each added to the queries.

    Positions are added to what makes queries and keys, not to values.
    """

    def __init__(self, config: EVATokConfig, layer_idx: int, width: int, num_heads: int):
        super().__init__()
        self.norm_first = config.norm_first
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width, eps=config.layer_norm_eps) for _ in range(3))
        self.self_attention = EVATokAttention(config, 2 * layer_idx, width, num_heads)
        self.cross_attention = EVATokAttention(config, 2 * layer_idx + 1, width, num_heads)
        self.mlp = EVATokMLP(config, width)

    def forward(
        self,
        hidden_states: torch.Tensor,
        references: torch.Tensor,
        positions: torch.Tensor | float = 0.0,
        reference_positions: torch.Tensor | float = 0.0,
        self_mask: torch.Tensor | None = None,
        cross_mask: torch.Tensor | None = None,
        past_key_values: BlockCache | None = None,
        output_attentions: bool = False,
    ) -> torch.Tensor:
        """Return the queries after the layer, (batch, queries, width); see `run_qformer` for the arguments."""
        rest = {"past_key_values": past_key_values, "output_attentions": output_attentions}

        def attend_to_queries(states):
            placed = states + positions
            return self.self_attention(placed, placed, states, self_mask, **rest)[0]

        def attend_to_references(states):
            keys = references + reference_positions
            return self.cross_attention(states + positions, keys, references, cross_mask, **rest)[0]

        for norm, part in (
            (self.norm1, attend_to_queries),
            (self.norm2, attend_to_references),
            (self.norm3, self.mlp),
        ):
            if self.norm_first:
                hidden_states = hidden_states + part(norm(hidden_states))
            else:
                hidden_states = norm(hidden_states + part(hidden_states))
        return hidden_states


def run_qformer(
    layers: Sequence[EVATokLayer],
    queries: torch.Tensor,
    references: torch.Tensor,
    positions: tuple[torch.Tensor, torch.Tensor],
    blocks: tuple[torch.Tensor, torch.Tensor],
    past_key_values: BlockCache | None = None,
    output_attentions: bool = False,
) -> torch.Tensor:
    """Run the queries of blocks through layers, causally over blocks.

    Args:
        layers: the `EVATokLayer`s.
        queries: (batch, queries, width).
        references: (batch, references, width).
        positions: of queries and of references, (batch or 1, length, width) each.
        blocks: the block of each query and of each reference, (batch or 1, length) long; counted on from the cache.
        past_key_values: keys and values of earlier blocks, to which those of these blocks are added.
        output_attentions: whether the attention's weights are recorded.

    Returns:
        (batch, queries, width).
    """
    cache, masks = past_key_values, []
    for name, own in zip(("queries", "references"), blocks, strict=True):
        keys = own
        if cache is not None and name in cache.key_blocks:
            parts = cache.key_blocks[name], own
            rows = max(map(len, parts))
            keys = torch.cat([part.expand(rows, -1) for part in parts], dim=1)
        if cache is not None:
            cache.key_blocks[name] = keys
        masks.append(sees(blocks[0], keys))
    for layer in layers:
        queries = layer(queries, references, *positions, *masks, past_key_values=cache, output_attentions=output_attentions)
    return queries
