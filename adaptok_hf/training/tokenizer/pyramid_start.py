"""A random start from which a tokenizer learns at once: attention begins where it should look.

From a usual start the decoder ignores the latents for thousands of steps, since it must first find out where each of them
belongs. Here position tables hold sine and cosine waves of row and column. Latents have those of cells, coarse to fine: the
first covers the frame, the next four its quarters, and so on. Queries and keys of every head begin as scaled identities on
the waves, so that each latent reads its cell and each patch the latents that cover it.
"""

import copy
import math

import torch
from torch import nn

from ...models.configuration_adaptok import AdapTokConfig
from ...models.layers import AdapTokLayer
from ...models.modeling_adaptok import AdapTokModel
from .training_coordinates import BlockPositions, ComponentEmbedding, ComponentHead, PatchComponents

NUM_WAVES = 12  # for each of row and column, a sine and a cosine each
BLOCK_CHANNELS = 8
SHARPNESS = (0.25, 0.6, 1.2, 2.0)  # of the heads in turn: from looking around to looking at the place itself
CONTENT_SCALE = 0.7  # of patches after the embedding
HEAD_SCALE = 0.3  # of the last map
LEVEL_SCALE = 0.5  # of the content channels in which levels of cells differ
ATTENTION_SCALE = 0.5  # what attention adds to the residual stream
MLP_SCALE = 0.3


@torch.no_grad()
def start_as_pyramid(model: AdapTokModel, video: torch.Tensor, num_components: int) -> None:
    """Put the model into the coordinates of training, and set its weights.

    Args:
        model: with learned position tables.
        video: (batch, frames of one or more blocks, 3, height, width) in [0, 1], a sample of the training clips.
        num_components: principal components of patches that embedding and head work on.

    Raises:
        ValueError: for fixed position tables, for more blocks than block channels, and where the width leaves no channels
            for content.
    """
    config = model.config
    first_content = 4 * NUM_WAVES + BLOCK_CHANNELS
    kinds = ("encoder_patch_positions", "encoder_latent_queries", "decoder_latent_positions", "decoder_patch_queries")
    if fixed := [f"learned_{kind}" for kind in kinds if not getattr(config, f"learned_{kind}")]:
        raise ValueError(f"the pyramid start needs learned tables: set {fixed}")
    if config.num_blocks > BLOCK_CHANNELS or config.hidden_size <= first_content:
        raise ValueError(
            f"the pyramid start needs at most {BLOCK_CHANNELS} blocks and a width above {first_content}, got "
            f"{config.num_blocks} and {config.hidden_size}"
        )
    _set_positions(model, first_content)
    for layer in (*model.encoder.layers, *model.decoder.layers):
        _set_layer(layer, config, first_content)
    components = PatchComponents.measure(video, config, num_components)
    embedding, head = ComponentEmbedding(components, config), ComponentHead(copy.deepcopy(components), config)
    count = min(num_components, config.hidden_size - first_content)
    rotation = _rotation(config.hidden_size - first_content)[:, :count]
    embedding.weight[first_content:, :count] = CONTENT_SCALE * rotation
    head.weight[:count, first_content:] = HEAD_SCALE * rotation.T
    model.encoder.patch_embedding.projection, model.decoder.head.projection = embedding, head
    _set_quantizer(model, video[:, : config.tubelet_size])


def cells(num_latents: int, grid_size: int) -> list[tuple[int, int, int, int]]:
    """Return the cell of each latent: the index of its pass over the frame, cells along a side, row, column.

    Passes have 1, 4, 16, ... cells up to one for each patch, and repeat the last. In each pass, every beginning of it
    covers the frame evenly.
    """
    latents: list[tuple[int, int, int, int]] = []
    side = index = 0
    while len(latents) < num_latents:
        side = min(2 * side or 1, grid_size)
        latents += [(index, side, place // side, place % side) for place in _scattered(side)]
        index += 1
    return latents[:num_latents]


def _scattered(side: int) -> list[int]:
    """Return the places of a square of cells, each as far as can be from those before it; edges are joined."""
    places = torch.arange(side * side)
    points = torch.stack([places // side, places % side], -1)
    apart = (points[:, None] - points).abs()
    distance = torch.minimum(apart, side - apart).square().sum(-1)
    order, nearest = [0], distance[0].clone()
    for _ in range(1, side * side):
        order.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distance[order[-1]])
    return order


def _set_positions(model: AdapTokModel, first_content: int) -> None:
    config = model.config
    grid, width, num_content = config.grid_size, config.hidden_size, config.hidden_size - first_content
    frequencies = torch.linspace(math.pi / grid, math.pi, NUM_WAVES)
    angles = torch.arange(grid)[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], 1)

    def cell_waves(side: int, index: int) -> torch.Tensor:
        edges = index * grid // side, -(-(index + 1) * grid // side)
        return waves[slice(*edges)].mean(0)

    places = [(i // grid, i % grid) for i in range(grid * grid)]
    patch_waves = torch.stack([torch.cat([waves[row], waves[column]]) for row, column in places])
    latents = cells(config.latents_per_block, grid)
    latent_waves = torch.stack([torch.cat([cell_waves(side, r), cell_waves(side, c)]) for _, side, r, c in latents])
    passes = LEVEL_SCALE * torch.randn(latents[-1][0] + 1, num_content)
    latent_content = passes[[index for index, *_ in latents]] + 0.1 * torch.randn(len(latents), num_content)
    blocks = torch.zeros(config.num_blocks, width)
    directions = _rotation(BLOCK_CHANNELS)[: config.num_blocks]
    blocks[:, 4 * NUM_WAVES : first_content] = 0.9 * BLOCK_CHANNELS**0.5 * directions

    def table(position: torch.Tensor, content: torch.Tensor) -> BlockPositions:
        rows = torch.zeros(len(position), width)
        rows[:, : position.shape[1]], rows[:, first_content:] = position, content
        return BlockPositions(rows, blocks.clone())

    num_patches = len(patch_waves)
    query_content = LEVEL_SCALE * torch.randn(1, num_content) + 0.1 * torch.randn(num_patches, num_content)
    encoder, decoder = model.encoder, model.decoder
    encoder.patch_positions = table(patch_waves, 0.1 * torch.randn(num_patches, num_content))
    encoder.latent_queries = table(latent_waves, latent_content)
    decoder.latent_positions = table(latent_waves, latent_content)
    decoder.patch_queries = table(patch_waves, query_content)
    for embedding in (encoder.patch_type, encoder.latent_type, decoder.patch_type, decoder.latent_type):
        if embedding is not None:
            embedding.weight.zero_()


def _set_layer(layer: AdapTokLayer, config: AdapTokConfig, num_position: int) -> None:
    """Let every head see by position; values go through a random rotation and back."""
    width, heads = config.hidden_size, config.num_attention_heads
    attention, head_dim = layer.attention, config.hidden_size // config.num_attention_heads
    query, key, value = attention.qkv.weight.view(3, heads, head_dim, width)
    query.normal_(0, 0.03)
    key.normal_(0, 0.03)
    for head in range(heads):
        for channel in range(num_position):
            gain = SHARPNESS[head % len(SHARPNESS)] ** 0.5 * (1 if channel < 4 * NUM_WAVES else 1.2)
            query[head, channel % head_dim, channel] += gain
            key[head, channel % head_dim, channel] += gain
    rotation = _rotation(width)
    value.copy_(rotation.view(heads, head_dim, width))
    attention.proj.weight.copy_(ATTENTION_SCALE * rotation.T)
    attention.proj.bias.zero_()
    for linear in (layer.mlp.fc1, layer.mlp.fc2):
        nn.init.xavier_uniform_(linear.weight)
        nn.init.zeros_(linear.bias)
    layer.mlp.fc2.weight.mul_(MLP_SCALE)


def _set_quantizer(model: AdapTokModel, video: torch.Tensor) -> None:
    """Let codes hold the principal components of latents, all of one length."""
    config, quantizer = model.config, model.quantizer
    latents = torch.cat([model.encoder(some) for some in video.split(32)])
    mean = latents.mean((0, 1))
    centered = (latents - latents.mean(0)).flatten(0, 1)
    variance, basis = torch.linalg.eigh(centered.T @ centered / len(centered))
    deviation, basis = variance.flip(0)[: config.codebook_dim].sqrt(), basis.flip(1)[:, : config.codebook_dim]
    rotation = _rotation(config.codebook_dim)
    weight = rotation @ (basis / deviation).T
    quantizer.project_in.weight.copy_(weight)
    quantizer.project_in.bias.copy_(-weight @ mean)
    quantizer.project_out.weight.copy_((basis * deviation) @ rotation.T * config.codebook_dim**0.5)
    quantizer.project_out.bias.zero_()


def _rotation(size: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size))[0]
