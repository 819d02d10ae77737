"""Building blocks shared by the tokenizer and the scorer: patches, position tables, attention, transformer layer."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_masks import Segment, cut, take


def sincos_1d(positions: torch.Tensor, dim: int, base: float = 10000.0) -> torch.Tensor:
    """Sine-cosine embedding of `positions` (any shape) -> (..., dim) float64: all sines, then all cosines."""
    frequencies = base ** (-torch.arange(dim // 2, dtype=torch.float64) / (dim / 2))
    angles = positions.to(torch.float64)[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def sincos_3d(time: torch.Tensor, row: torch.Tensor, column: torch.Tensor, dim: int) -> torch.Tensor:
    """Embedding of (time, row, column) positions -> (..., dim) float64.

    The first half of the channels encodes the column, the second half the row; the time embedding is added over all.
    """
    return torch.cat([sincos_1d(column, dim // 2), sincos_1d(row, dim // 2)], dim=-1) + sincos_1d(time, dim)


def patch_positions(num_blocks: int, grid_size: int, dim: int) -> torch.Tensor:
    """Table (1, num_blocks * grid_size**2, dim) float32 for patches ordered (time, row, column), column fastest."""
    time, row, column = torch.meshgrid(
        torch.arange(num_blocks), torch.arange(grid_size), torch.arange(grid_size), indexing="ij"
    )
    return sincos_3d(time, row, column, dim).reshape(1, -1, dim).float()


def latent_positions(length: int, dim: int, base: float) -> torch.Tensor:
    """Table (1, length, dim) float32 of 1-D positions 0..length-1."""
    return sincos_1d(torch.arange(length), dim, base)[None].float()


class SinCosPositions(nn.Module):
    """A fixed position table. The table is not saved: it is computed again wherever the model is built.

    Args:
        compute: function without arguments that returns the table, (1, sequence, width) float32.
    """

    def __init__(self, compute: Callable[[], torch.Tensor]):
        super().__init__()
        self.compute = compute
        self.register_buffer("weight", compute(), persistent=False)

    def reset(self):
        """Fills the table; called by `_init_weights`, since `from_pretrained` leaves unsaved buffers undefined."""
        with torch.device("cpu"):
            init.copy_(self.weight, self.compute())

    def forward(self) -> torch.Tensor:
        return self.weight


class LearnedPositions(nn.Module):
    """A learned position table, (1, sequence, width)."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(1, length, width))

    def forward(self) -> torch.Tensor:
        return self.weight


class PatchEmbedding(nn.Module):
    """Video (batch, frames, channels, height, width) -> patch tokens (batch, blocks * patches, width).

    Patches are ordered (time, row, column); inside a patch the order is (channel, time, row, column).
    """

    def __init__(self, config, width: int | None = None):
        super().__init__()
        self.tubelet_size, self.patch_size = config.tubelet_size, config.patch_size
        num_values = config.num_channels * config.tubelet_size * config.patch_size**2
        self.projection = nn.Linear(num_values, width or config.hidden_size)

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        batch, frames, channels, height, width = pixel_values_videos.shape
        t, p = self.tubelet_size, self.patch_size
        patches = pixel_values_videos.reshape(batch, frames // t, t, channels, height // p, p, width // p, p)
        patches = patches.permute(0, 1, 4, 6, 3, 2, 5, 7)  # (batch, time, row, column, channel, t, p, p)
        return self.projection(patches.reshape(batch, -1, channels * t * p * p))


class PatchHead(nn.Module):
    """Tokens (batch, blocks * patches, width) -> video (batch, frames, channels, height, width).

    Inside a patch the order is (time, row, column, channel), channel fastest.
    """

    def __init__(self, config, width: int | None = None, layer_norm_eps: float = 1e-6):
        super().__init__()
        self.tubelet_size, self.patch_size = config.tubelet_size, config.patch_size
        self.num_channels, self.grid_size = config.num_channels, config.grid_size
        width = width or config.hidden_size
        self.norm = nn.LayerNorm(width, eps=layer_norm_eps)
        self.projection = nn.Linear(width, config.num_channels * config.tubelet_size * config.patch_size**2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        batch, (t, p, c, g) = (
            hidden_states.shape[0],
            (self.tubelet_size, self.patch_size, self.num_channels, self.grid_size),
        )
        patches = self.projection(self.norm(hidden_states)).reshape(batch, -1, g, g, t, p, p, c)
        patches = patches.permute(0, 1, 4, 7, 2, 5, 3, 6)  # (batch, blocks, t, channel, row, p, column, p)
        return patches.reshape(batch, -1, c, g * p, g * p)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Return softmax(QK')V, (batch, sequence, heads, head_dim), and the weights.

    `attention_mask` is boolean, `True` where a query sees a key, or `None`.
    """
    logits = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        logits = logits.masked_fill(~attention_mask, float("-inf"))
    weights = nn.functional.softmax(logits, dim=-1)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


class AdapTokAttention(nn.Module):
    """Multi-head self-attention: one projection for query, key and value, without bias unless `config.attention_bias`;
    output projection with bias.
    """

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False  # causality comes from the segments
        bias = getattr(config, "attention_bias", False)
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=bias)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        segments: Sequence[Segment],
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return the attention of the segments' queries, and its weights.

        Args:
            hidden_states: (batch, tokens, width).
            segments: which tokens are answered, and what they see.
            past_key_values: a cache whose keys and values come before those of `hidden_states`.
            output_attentions: return weights, by one eager product over all keys.

        Returns:
            (batch, queries, width); (batch, heads, queries, keys), 0 where a query does not see a key, or `None`.
        """
        qkv = self.qkv(hidden_states).unflatten(-1, (3, self.num_heads, self.head_dim))
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, tokens, head_dim)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        if output_attentions:
            mask = merge_masks(segments, query.shape[2], key.shape[2], query.device)
            query = take(query, [segment.queries for segment in segments], 2)
            output, weights = attention(self, query, key, value, mask, scaling=self.scaling, dropout=0.0)
            return self.proj(output.flatten(2)), weights
        queries = cut(query, [(segment.queries,) for segment in segments], 2)
        keys, values = (cut(states, [segment.keys for segment in segments], 2) for states in (key, value))
        outputs = [hidden_states[:, :0]]
        for segment, *states in zip(segments, queries, keys, values, strict=True):
            output, _ = attention(self, *states, segment.mask, scaling=self.scaling, dropout=0.0)
            outputs.append(output.flatten(2))
        return self.proj(torch.cat(outputs, dim=1)), None


def merge_masks(segments: Sequence[Segment], num_queries: int, num_keys: int, device: torch.device) -> torch.Tensor:
    """Return the mask of all segments' queries, (batch or 1, 1, queries, num_keys) bool, `True` where one sees the key."""
    index, masks = torch.arange(num_keys, device=device), []
    for segment in segments:
        mask = segment.mask
        if mask is None:
            mask = index.new_ones(1, 1, len(range(num_queries)[segment.queries]), 1, dtype=torch.bool)
        seen = take(index, segment.keys, 0)
        mask = mask.expand(-1, -1, -1, len(seen))
        masks.append(mask.new_zeros(*mask.shape[:3], num_keys).index_copy(3, seen, mask))
    return torch.cat(masks, dim=2)


class AdapTokMLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_ratio * config.hidden_size)
        self.fc2 = nn.Linear(config.mlp_ratio * config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(hidden_states)))


class AdapTokLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer: attention and MLP, each added to the residual stream."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = AdapTokAttention(config, layer_idx)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = AdapTokMLP(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        segments: Sequence[Segment] = (Segment(),),
        past_key_values: Cache | None = None,
        output_attentions: bool = False,
    ) -> torch.Tensor:
        """Return the outputs at the segments' queries, (batch, queries, width); by default every token sees all."""
        attended, _ = self.attention(self.norm1(hidden_states), segments, past_key_values, output_attentions)
        if attended.shape[1] < hidden_states.shape[1]:
            hidden_states = take(hidden_states, [segment.queries for segment in segments], 1)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.norm2(hidden_states))


def recorded_outputs(config, options: dict, num_layers: int | None = None) -> dict[str, bool]:
    """Return `output_hidden_states` and `output_attentions` of a call: its options, or else the configuration's.

    `capture_outputs` records them; what computes them must know of it.

    Args:
        num_layers: of a part of the model. `capture_outputs` counts negative indices from the end of the whole.

    Raises:
        TypeError: for another option.
        ValueError: for an index of a hidden state that the part does not have.
    """
    names = ("output_hidden_states", "output_attentions")
    if unknown := options.keys() - {*names}:
        raise TypeError(f"unexpected keyword argument {min(unknown)!r}; accepted are {', '.join(names)} and return_dict")
    recorded = {name: options.get(name, getattr(config, name)) for name in names}
    selected = recorded["output_hidden_states"]
    selected = selected if isinstance(selected, list | tuple) else [selected or 0]
    if num_layers is not None and not all(0 <= index <= num_layers for index in selected):
        raise ValueError(f"output_hidden_states={selected}, expected True or indices from 0 to {num_layers}")
    return {name: bool(value) for name, value in recorded.items()}


def init_layer_weights(module: nn.Module, std: float) -> None:
    """The initialisation that all our models share; leaves parameters that a checkpoint has filled alone.

    Linear maps are Xavier-uniform with zero bias, norms are the identity, tables are normal with `std`.
    """
    if isinstance(module, nn.Linear):
        init.xavier_uniform_(module.weight)
        if module.bias is not None:
            init.zeros_(module.bias)
    elif isinstance(module, nn.LayerNorm):
        init.ones_(module.weight)
        init.zeros_(module.bias)
    elif isinstance(module, nn.Embedding | LearnedPositions):
        init.normal_(module.weight, std=std)
    elif isinstance(module, SinCosPositions):
        module.reset()
