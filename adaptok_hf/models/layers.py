"""Building blocks shared by the tokenizer and the scorer: patches, position tables, attention, transformer layer."""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from .attention_masks import Segment


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
    """Video (batch, frames, channels, height, width) -> patch tokens (batch, blocks * patches, hidden_size).

    Patches are ordered (time, row, column); inside a patch the order is (channel, time, row, column).
    """

    def __init__(self, config):
        super().__init__()
        self.tubelet_size, self.patch_size = config.tubelet_size, config.patch_size
        self.projection = nn.Linear(config.num_channels * config.tubelet_size * config.patch_size**2, config.hidden_size)

    def forward(self, pixel_values_videos: torch.Tensor) -> torch.Tensor:
        batch, frames, channels, height, width = pixel_values_videos.shape
        t, p = self.tubelet_size, self.patch_size
        patches = pixel_values_videos.reshape(batch, frames // t, t, channels, height // p, p, width // p, p)
        patches = patches.permute(0, 1, 4, 6, 3, 2, 5, 7)  # (batch, time, row, column, channel, t, p, p)
        return self.projection(patches.reshape(batch, -1, channels * t * p * p))


class PatchHead(nn.Module):
    """Tokens (batch, blocks * patches, hidden_size) -> video (batch, frames, channels, height, width).

    Inside a patch the order is (time, row, column, channel), channel fastest.
    """

    def __init__(self, config):
        super().__init__()
        self.tubelet_size, self.patch_size = config.tubelet_size, config.patch_size
        self.num_channels, self.grid_size = config.num_channels, config.grid_size
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.projection = nn.Linear(config.hidden_size, config.num_channels * config.tubelet_size * config.patch_size**2)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        batch, (t, p, c, g) = (
            hidden_states.shape[0],
            (self.tubelet_size, self.patch_size, self.num_channels, self.grid_size),
        )
        patches = self.projection(self.norm(hidden_states)).reshape(batch, -1, g, g, t, p, p, c)
        patches = patches.permute(0, 1, 4, 7, 2, 5, 3, 6)  # (batch, blocks, t, channel, row, p, column, p)
        return patches.reshape(batch, -1, c, g * p, g * p)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """Plain softmax(QK')V; `attention_mask` is added to the logits. Returns (batch, sequence, heads, head_dim), weights."""
    logits = torch.matmul(query, key.transpose(-1, -2)) * scaling
    if attention_mask is not None:
        logits = logits + attention_mask
    weights = nn.functional.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def take(tokens: torch.Tensor, parts: list[slice], dim: int) -> torch.Tensor:
    """The parts of `tokens` along `dim`, one behind the other."""
    index = (slice(None),) * dim
    taken = [tokens[(*index, part)] for part in parts] or [tokens[(*index, slice(0))]]
    return taken[0] if len(taken) == 1 else torch.cat(taken, dim=dim)


class AdapTokAttention(nn.Module):
    """Multi-head self-attention: one projection without bias for query, key and value, output projection with bias."""

    def __init__(self, config, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False  # causality comes from the block mask
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask=None,
        past_key_values: Cache | None = None,
        segments: list[Segment] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, queries, width) -> the same shape, attention weights (eager only).

        With `past_key_values` the keys and values seen before are put in front, and `attention_mask` has their length.
        With `segments`, only their queries are answered, in their order, and without weights.
        """
        batch, length, width = hidden_states.shape
        qkv = self.qkv(hidden_states).reshape(batch, length, 3, self.num_heads, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # each (batch, heads, sequence, head_dim)
        if past_key_values is not None:
            key, value = past_key_values.update(key, value, self.layer_idx)
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        if segments is None:
            output, weights = attention(self, query, key, value, attention_mask, scaling=self.scaling, dropout=0.0)
            return self.proj(output.reshape(batch, length, width)), weights
        outputs = []
        for segment in segments:
            seen = (take(states, segment.keys, 2) for states in (key, value))
            asked = query[:, :, segment.queries]
            outputs.append(attention(self, asked, *seen, segment.mask, scaling=self.scaling, dropout=0.0)[0].flatten(2))
        return self.proj(torch.cat(outputs, dim=1) if outputs else hidden_states[:, :0]), None


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
        attention_mask=None,
        past_key_values: Cache | None = None,
        segments: list[Segment] | None = None,
    ) -> torch.Tensor:
        """(batch, sequence, width) -> the same shape; with `segments`, the outputs at their queries only."""
        attended, _ = self.attention(self.norm1(hidden_states), attention_mask, past_key_values, segments)
        if segments is not None and attended.shape[1] < hidden_states.shape[1]:
            hidden_states = take(hidden_states, [segment.queries for segment in segments], 1)
        hidden_states = hidden_states + attended
        return hidden_states + self.mlp(self.norm2(hidden_states))


def run_segments(
    layers: Sequence[AdapTokLayer], hidden_states: torch.Tensor, segments: list[Segment], read: list[Segment]
) -> torch.Tensor:
    """(batch, sequence, width) through `layers` -> the outputs at the queries of `read`; the last computes no others."""
    for layer in layers[:-1]:
        hidden_states = layer(hidden_states, segments=segments)
    return layers[-1](hidden_states, segments=read)


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
