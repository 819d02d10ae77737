"""A start for the tokenizer's weights from which the latents are used at once: a rough transform codec."""

import torch
from torch import nn

from adaptok_hf import AdapTokConfig, AdapTokModel
from adaptok_hf.layers import sincos_1d


@torch.no_grad()
def initialize_as_transform_codec(model: AdapTokModel, video: torch.Tensor) -> None:
    """Starts the model as a rough codec: patches -> principal components -> nearest latents -> codes -> patches.

    From a usual random start the decoder ignores the latents for thousands of steps, since their content drowns in the
    position tables. Here the channels get a role each at the start (space, time, kind of token, content): attention
    looks at tokens of the other kind that are near in space and time and copies their content; the patch embedding
    computes principal components of patches; the head is the least-squares map back. All of it is trained afterwards.

    Args:
        model: needs learned position tables, and heads of at least 20 channels.
        video: (batch, frames, 3, height, width) in [0, 1], a sample of the training clips.
    """
    config = model.config
    width, m, g, blocks = config.hidden_size, config.latents_per_block, config.grid_size, config.num_blocks
    n_time, n_type = 8, 8
    n_space = (width // config.num_attention_heads - n_time - n_type) // 4 * 4  # what one head can compare
    space, time_ = slice(0, n_space), slice(n_space, n_space + n_time)
    kind, content = slice(n_space + n_time, n_space + n_time + n_type), slice(n_space + n_time + n_type, width)
    n_content = width - content.start

    def table(block, row, column, sign):
        rows = torch.zeros(len(row), width)
        half = n_space // 2
        rows[:, space] = torch.cat([sincos_1d(1.6 * column, half, 8), sincos_1d(1.6 * row, half, 8)], -1).float()
        rows[:, time_] = sincos_1d(torch.full_like(row, 3 * block), n_time, 10).float()
        rows[:, kind] = sign
        return rows

    # Latents sit on points of the frame such that every prefix covers it evenly (the R2 low-discrepancy sequence).
    plastic = 1.32471795724474602596  # real root of x^3 = x + 1
    n = torch.arange(1, m + 1, dtype=torch.float64)
    latent_row, latent_column = ((0.5 + n / plastic) % 1) * g - 0.5, ((0.5 + n / plastic**2) % 1) * g - 0.5
    patch_row = torch.arange(g, dtype=torch.float64).repeat_interleave(g)
    patch_column = torch.arange(g, dtype=torch.float64).repeat(g)
    latents = torch.cat([table(float(b), latent_row, latent_column, -1.0) for b in range(blocks)])
    patches = torch.cat([table(float(b), patch_row, patch_column, 1.0) for b in range(blocks)])
    for module, rows in (
        (model.encoder.patch_positions, patches),
        (model.encoder.latent_queries, latents),
        (model.decoder.latent_positions, latents),
        (model.decoder.patch_queries, patches),
    ):
        module.weight.copy_(rows[None])
        module.initial_weight = rows[None]

    sharpness = 3.0
    for layer in [*model.encoder.layers, *model.decoder.layers]:
        attention = layer.attention
        query, key, value = attention.qkv.weight.view(3, width, width)
        heads, head_dim = attention.num_heads, attention.head_dim
        query.mul_(0.1)
        key.mul_(0.1)
        for head in range(heads):
            q, k, v = (x[head * head_dim : (head + 1) * head_dim] for x in (query, key, value))
            near = torch.eye(n_space + n_time) * sharpness
            q[: len(near), : len(near)] += near
            k[: len(near), : len(near)] += near
            q[-n_type:, kind] -= 3 * torch.eye(n_type)  # the other kind of token attracts
            k[-n_type:, kind] += 3 * torch.eye(n_type)
            nn.init.orthogonal_(v[:, content])
            attention.proj.weight[:, head * head_dim : (head + 1) * head_dim] *= 0.1
            attention.proj.weight[content, head * head_dim : (head + 1) * head_dim] += v[:, content].T / heads
        layer.mlp.fc2.weight.mul_(0.1)

    # Patch embedding: principal components of patches, the first one with standard deviation 2.
    model.encoder.patch_embedding.projection.weight.zero_()
    model.encoder.patch_embedding.projection.bias.zero_()
    pixels = _patches(video, config)  # (patches, channels * tubelet_size * patch_size**2)
    mean = pixels.mean(0)
    _, deviation, components = torch.pca_lowrank(pixels - mean, q=n_content, center=False)
    scale = 2 / (deviation[0] / len(pixels) ** 0.5)
    weight = components.T * scale
    model.encoder.patch_embedding.projection.weight[content] = weight
    model.encoder.patch_embedding.projection.bias[content] = -weight @ mean

    # Quantiser: the principal components of the latents' content, beside a constant that keeps the magnitude.
    sample = model.encoder(video).flatten(0, 1)[:, content]
    center, d = sample.mean(0), config.codebook_dim - 1
    _, deviation, components = torch.pca_lowrank(sample - center, q=d, center=False)
    std = deviation / len(sample) ** 0.5
    gain = 1 / (std * std[0]).sqrt()  # between whitening and none
    model.quantizer.project_in.weight.zero_()
    model.quantizer.project_in.weight[:d, content] = components.T * gain[:, None]
    model.quantizer.project_in.bias[:d] = -(components.T * gain[:, None]) @ center
    model.quantizer.project_in.bias[d:] = 1.0
    model.quantizer.project_out.weight.mul_(0.1)
    model.quantizer.project_out.weight[content, :d] += components / gain
    std = model.quantizer.project_out(model.quantizer.project(model.encoder(video))).flatten(0, 1).std(0)
    model.quantizer.project_out.weight.mul_(1.5 / std.max())

    # Head: least squares from the decoder's last states to the patches.
    states = []
    hook = model.decoder.head.norm.register_forward_hook(lambda module, inputs, output: states.append(output))
    projected = model.quantizer.project(model.encoder(video))
    model.decoder(model.quantizer.project_out(projected).unflatten(1, (-1, m)))
    hook.remove()
    features = torch.cat([states[0].flatten(0, 1), torch.ones(states[0].shape[0] * states[0].shape[1], 1)], 1)
    target = _patches(video, config, channel_last=True)
    gram = features.T @ features + 1e-3 * len(features) * torch.eye(width + 1)
    solution = torch.linalg.solve(gram, features.T @ target)
    model.decoder.head.projection.weight.copy_(solution[:-1].T)
    model.decoder.head.projection.bias.copy_(solution[-1])


@torch.no_grad()
def copy_first_block_tables(model: AdapTokModel, first_new_block: int) -> None:
    """Gives the position tables of blocks that were not trained yet what the first block has learned.

    Only the part that tells the blocks apart at the start (`initialize_as_transform_codec`) stays different.
    """
    for module in (
        model.encoder.patch_positions,
        model.encoder.latent_queries,
        model.decoder.latent_positions,
        model.decoder.patch_queries,
    ):
        rows = module.weight[0].unflatten(0, (model.config.num_blocks, -1))  # (blocks, tokens, width)
        initial_first = module.initial_weight[0].to(rows.device).unflatten(0, (model.config.num_blocks, -1))
        for block in range(first_new_block, model.config.num_blocks):
            rows[block] = rows[0] + initial_first[block] - initial_first[0]


def _patches(video: torch.Tensor, config: AdapTokConfig, channel_last: bool = False) -> torch.Tensor:
    """(batch, frames, 3, height, width) -> (patches, values), in the order of patch embedding or of the head."""
    b, f, c, h, w = video.shape
    t, p = config.tubelet_size, config.patch_size
    patches = video.reshape(b, f // t, t, c, h // p, p, w // p, p)
    order = (0, 1, 4, 6, 2, 5, 7, 3) if channel_last else (0, 1, 4, 6, 3, 2, 5, 7)
    return patches.permute(*order).reshape(-1, c * t * p * p)
