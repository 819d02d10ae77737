"""Closed-form initialization of a tokenizer as a working codec: principal components, shared among latents."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from ...models.configuration_adaptok import AdapTokConfig
from ...models.modeling_adaptok import AdapTokModel
from ..block_mask_sampler import sample_token_counts
from ..tokenizer.codebook import initialize_codebook
from .transform_codec_layout import TransformCodecLayout

CONTENT_SHARE = 0.04  # energy of a token's content over that of its position: layer norms then hardly bend the content
CODE_LENGTH = 0.08  # typical length of a token's code channels, next to a constant of 1


@torch.no_grad()
def initialize_as_transform_codec(model: AdapTokModel, video: torch.Tensor, coarse: bool = False) -> None:
    """Initialize the model as a product quantizer of principal components, which training can then improve.

    From a usual random initialization the decoder ignores the latents for thousands of steps, since their content drowns in
    the position tables. Here everything is in use from the first step:

    * The channels have roles: place, time, group and kind of a token, then `codebook_dim - 1` channels for the content of
      latents, then the content of patches, which the patch embedding fills with principal components of patches.
    * The latents of a block come in groups. Each group has one latent at every patch, in an order in which any beginning
      covers the frame evenly. The first group carries the first few principal components, the next group further ones.
      With `coarse`, the first group has one latent for 2 x 2 patches, with the mean of as many components as a code holds.
    * Each group has one attention head of the encoder, which copies the group's components from the patch at the
      latent's place, and one of the decoder, which copies them back. Where the latent was dropped, that head looks at the
      patch itself, and copies what the coarse latents say of these components, or nothing (mean content); for the
      first group it looks at the nearest latents that are left.
    * The codebook is the result of k-means on encoder outputs. Next to the content a latent has a constant, so that the
      unit sphere of codes is nearly flat where the contents lie.
    * Where heads and channels are left, the decoder also looks at the same place one block before, and in its last layer at
      the four neighbors of a patch.
    * The head of the decoder is the least-squares map from its states to the patches, at full and at random budgets.

    MLPs and the other heads have no effect at first.

    Args:
        model: needs learned position tables, and enough heads and channels for its latents.
        video: (batch, frames of one or more blocks, 3, height, width) in [0, 1], a sample of the training clips; codes
            are best if it makes at least 50 times as many latents.
        coarse: put a group of coarse latents first: small budgets show a blurred picture instead of single patches.

    Raises:
        ValueError: if the latents need more heads or channels than there are.
    """
    layout = TransformCodecLayout(model.config, coarse)
    latent_rows = _set_positions(model, layout)
    _set_attention(model.encoder.layers, layout, latent_rows, decoder=False)
    _set_attention(model.decoder.layers, layout, latent_rows, decoder=True)
    components = _measure_components(video, layout, latent_rows)
    _set_patch_embedding(model, layout, components)
    _scale_encoder(model, video, layout, components)
    quantized = _set_quantizer(model, video, layout)
    _scale_decoder(model, quantized, layout, components)
    _set_fallback(model.decoder.layers, layout, latent_rows)
    _set_context(model.decoder.layers, layout, latent_rows)
    _fit_head(model, video, quantized, layout)


@dataclass(frozen=True)
class _Components:
    """Principal components of patches.

    Args:
        mean: (values of a patch,).
        basis: (values, components), by falling deviation.
        deviation: (components,), standard deviations.
        gain: (components,), what the patch embedding multiplies them by: large ones are kept at bay.
        groups: deviations of the components that each group of latents carries.
    """

    mean: torch.Tensor
    basis: torch.Tensor
    deviation: torch.Tensor
    gain: torch.Tensor
    groups: list[torch.Tensor]


def _set_positions(model: AdapTokModel, layout: TransformCodecLayout) -> torch.Tensor:
    """Set position tables, and type embeddings to zero; return the rows of latents."""
    patch_rows, latent_rows = layout.position_tables()
    encoder, decoder = model.encoder, model.decoder
    for module, rows in (
        (encoder.patch_positions, patch_rows),
        (encoder.latent_queries, latent_rows),
        (decoder.latent_positions, latent_rows),
        (decoder.patch_queries, patch_rows),
    ):
        module.weight.copy_(rows[None])
    for type_embedding in (encoder.patch_type, encoder.latent_type, decoder.patch_type, decoder.latent_type):
        if type_embedding is not None:
            type_embedding.weight.zero_()
    return latent_rows


def _measure_components(video: torch.Tensor, layout: TransformCodecLayout, latent_rows: torch.Tensor) -> _Components:
    config = layout.config
    pixels = _patches(video, config)  # (patches, channels * tubelet_size * patch_size**2)
    mean = pixels.mean(0)
    count = min(layout.content.stop - layout.content.start, *pixels.shape)
    _, deviation, basis = torch.pca_lowrank(pixels - mean, q=count, center=False)
    deviation = deviation / len(pixels) ** 0.5
    energy = latent_rows.square().sum(-1).mean() * CONTENT_SHARE
    gain = (energy / deviation.sum() / deviation).sqrt()
    groups = [deviation[chunk] for chunk in layout.components]
    if layout.coarse:
        scores = ((pixels - mean) @ basis[:, layout.components[0]]).unflatten(0, (-1, config.grid_size, config.grid_size))
        groups[0] = nn.functional.avg_pool2d(scores.permute(0, 3, 1, 2), 2).std((0, 2, 3))
    return _Components(mean, basis, deviation, gain, groups)


def _set_patch_embedding(model: AdapTokModel, layout: TransformCodecLayout, components: _Components) -> None:
    weight = components.basis.T * components.gain[:, None]
    embedding = model.encoder.patch_embedding.projection
    embedding.weight.zero_()
    embedding.bias.zero_()
    embedding.weight[layout.content.start :][: len(weight)] = weight
    embedding.bias[layout.content.start :][: len(weight)] = -weight @ components.mean


def _scale_encoder(model: AdapTokModel, video: torch.Tensor, layout: TransformCodecLayout, components: _Components) -> None:
    """Measure how large the components of each group come out of the encoder, and scale its heads accordingly."""
    lengths = torch.stack([deviations.norm() for deviations in components.groups])
    unit = CODE_LENGTH / lengths.mean().sqrt()
    codes = model.encoder(video[:32, : model.config.tubelet_size])[..., layout.code]
    for group, deviations in enumerate(components.groups):
        target = unit * deviations / lengths[group].sqrt()
        size = codes[:, layout.group == group, : len(target)].flatten(0, 1).std(0)
        layer, columns = layout.head(model.encoder.layers, layout.slots[group])
        layer.attention.proj.weight[layout.code, columns][: len(target)] *= (target / size)[:, None]


def _set_quantizer(model: AdapTokModel, video: torch.Tensor, layout: TransformCodecLayout) -> torch.Tensor:
    """Make the quantizer see centered content next to a constant, and initialize the codebook.

    Returns:
        The quantized latents, (batch, blocks, latents_per_block, width).
    """
    d, quantizer = model.config.codebook_dim - 1, model.quantizer
    for linear in (quantizer.project_in, quantizer.project_out):
        linear.weight.zero_()
        linear.bias.zero_()
    latents = _in_batches(model.encoder, video)
    quantizer.project_in.weight[:d, layout.code] = torch.eye(d)
    quantizer.project_in.bias[:d] = -latents[..., layout.code].flatten(0, 1).mean(0)
    quantizer.project_in.bias[d] = 1.0
    quantizer.project_out.weight[layout.code, :d] = torch.eye(d)
    projected = quantizer.project(latents)
    count = int(layout.group.bincount().min())  # as many of each group, or the few coarse ones would count for little
    groups = [(layout.group == group).nonzero()[:count, 0] for group in layout.group.unique()]
    initialize_codebook(model, torch.cat([projected[:, group].flatten(0, 1) for group in groups]))
    quantized = _in_batches(lambda batch: quantizer(batch).quantized, latents)
    return quantized.unflatten(1, (video.shape[1] // model.config.tubelet_size, -1))


def _scale_decoder(
    model: AdapTokModel, quantized: torch.Tensor, layout: TransformCodecLayout, components: _Components
) -> None:
    """Scale the decoder's heads, as `_scale_encoder`: patches get back the components as they were embedded."""
    states = _decoder_states(model, quantized[:32, :1], None, normalized=False).flatten(0, 1)
    groups = zip(layout.components, components.groups, layout.writes, layout.slots, strict=True)
    for chunk, deviations, write, slot in groups:
        target = deviations * components.gain[chunk]
        layer, columns = layout.head(model.decoder.layers, slot)
        layer.attention.proj.weight[write, columns] *= (target / states[:, write].std(0))[:, None]


def _fit_head(model: AdapTokModel, video: torch.Tensor, quantized: torch.Tensor, layout: TransformCodecLayout) -> None:
    """Set the decoder's head to the least-squares map from its states to the patches, at full and at random budgets."""
    config, num_blocks = model.config, quantized.shape[1]
    counts = sample_token_counts(len(video), num_blocks, config.latents_per_block) if config.adaptive else None
    gram, product = 0.0, 0.0
    inputs = slice(layout.zero.start, layout.content.stop)
    for start in range(0, len(video), 8):
        clips = slice(start, start + 8)
        target = _patches(video[clips], config, channel_last=True)
        for kept in (None, counts[clips]) if config.adaptive else (None,):
            features = _decoder_states(model, quantized[clips], kept, normalized=True)[..., inputs].flatten(0, 1)
            features = torch.cat([features, torch.ones(len(features), 1)], 1)
            gram, product = gram + features.T @ features, product + features.T @ target
    gram.diagonal().add_(1e-6 * len(video) * num_blocks * config.grid_size**2)
    solution = torch.linalg.solve(gram, product)
    head = model.decoder.head.projection
    head.weight.zero_()
    head.weight[:, inputs] = solution[:-1].T
    head.bias.copy_(solution[-1])


def _gain(rows: torch.Tensor) -> torch.Tensor:
    """Return what a layer norm multiplies rows of a position table by, with content next to them."""
    return 1 / rows.std(-1).mean() / (1 + CONTENT_SHARE) ** 0.5


def _near(layout: TransformCodecLayout, sharpness: float = 1.0) -> torch.Tensor:
    """Return logits as a product of place and time channels: in the frame like a bell, falling by 8 to the next patch."""
    size = (layout.place.stop - layout.place.start) // 4
    bell = torch.exp(-0.5 * torch.linspace(torch.pi / layout.config.grid_size, torch.pi, size).square() * 0.8**2)
    n_time = layout.time.stop - layout.time.start
    return torch.diag(torch.cat([sharpness * bell.repeat(4) * 14 / bell.sum(), torch.full((n_time,), 16.0 / n_time)]))


def _set_attention(layers: nn.ModuleList, layout: TransformCodecLayout, rows: torch.Tensor, decoder: bool) -> None:
    """Make attention look at the same place and time, and in one head for each group copy the group's components.

    Args:
        rows: position table, see `_gain`.
    """
    config = layout.config
    width, head_dim = config.hidden_size, layout.head_dim
    to_logits = head_dim**0.5 / _gain(rows) ** 2
    near = _near(layout)
    n_near = len(near)
    for layer in layers:
        layer.attention.qkv.weight.mul_(0.1)
        layer.attention.proj.weight.zero_()
        layer.mlp.fc2.weight.zero_()
        query, key, _ = layer.attention.qkv.weight.view(3, config.num_attention_heads, head_dim, width)
        query[:, :n_near, :n_near] += near * to_logits * 0.5
        key[:, :n_near, :n_near] += torch.eye(n_near)
    for group, chunk in enumerate(layout.components):
        layer, columns = layout.head(layers, layout.slots[group])
        query, key, value = (x[columns] for x in layer.attention.qkv.weight.view(3, width, width))
        query[:n_near, :n_near] += near * to_logits * 0.5
        sign = torch.full((layout.num_groups,), -1.0)  # +1 for latents of this group, -1 for others
        sign[group] = 1.0
        for x in (query, key, value):
            x[n_near] = 0
        if decoder:  # patches look for latents of this group; in their absence at themselves
            query[n_near, layout.kind] = 5 * to_logits
            key[n_near, layout.groups] = sign
            key[n_near, layout.kind] = -3.0 if group == 0 else 0.0
            if layout.coarse and group == 0:  # the others look at themselves
                same = slice(n_near + 1, n_near + 1 + layout.num_groups)
                query[same, layout.groups] = 10 * to_logits * torch.eye(layout.num_groups)
                key[same, layout.groups] = torch.eye(layout.num_groups)
            read, write = layout.code, layout.writes[group]
            read = slice(read.start, read.start + chunk.stop - chunk.start)
        else:  # latents of this group look at patches, those of others at latents
            query[n_near, layout.groups] = 5 * to_logits * sign
            key[n_near, layout.kind] = 1.0
            read, write = layout.content, layout.code
            read = slice(read.start + chunk.start, read.start + chunk.stop)
            write = slice(write.start, write.start + chunk.stop - chunk.start)
        n = chunk.stop - chunk.start
        value[:n] = 0
        value[:n, read] = torch.eye(n)
        value[:n, layout.zero] = -1.0
        layer.attention.proj.weight[write, columns][:, :n] = torch.eye(n)


def _set_fallback(layers: nn.ModuleList, layout: TransformCodecLayout, rows: torch.Tensor) -> None:
    """Make a patch that has no latent of a group, and looks at itself, copy what the coarse group says.

    Latents too have something in those channels: their own content, see `_set_attention`, which is subtracted.
    """
    first, columns = layout.head(layers, layout.slots[0])
    coarse = first.attention.proj.weight[layout.fallback, columns].diagonal()
    for chunk, write, slot in list(zip(layout.components, layout.writes, layout.slots, strict=True))[layout.coarse :]:
        layer, columns = layout.head(layers, slot)
        value = layer.attention.qkv.weight.chunk(3)[2][columns]
        fine = layer.attention.proj.weight[write, columns].diagonal()
        for row, component in enumerate(range(chunk.start, min(chunk.stop, len(coarse)))):
            value[row, layout.fallback.start + component] += 1 / (_gain(rows) * fine[row])
            value[row, layout.code.start + component] -= coarse[component] / fine[row]
            value[row, layout.zero] -= 1 / (_gain(rows) * fine[row]) - coarse[component] / fine[row]


def _set_context(layers: nn.ModuleList, layout: TransformCodecLayout, rows: torch.Tensor) -> None:
    """Add heads of the decoder that look at neighbors and one block back, to those of `_set_attention`."""
    config = layout.config
    width, heads = config.hidden_size, config.num_attention_heads
    to_logits = layout.head_dim**0.5 / _gain(rows) ** 2
    n_near = len(_near(layout))

    def aim(slot, shift, sharpness):
        layer, columns = slot
        query, key, value = (x[columns] for x in layer.attention.qkv.weight.view(3, width, width))
        query[: n_near + 1], key[: n_near + 1], value[:] = 0, 0, 0
        query[:n_near, :n_near] = _near(layout, sharpness) * to_logits @ shift
        key[:n_near, :n_near] = torch.eye(n_near)
        return query, key, value, layer.attention.proj.weight[layout.content, columns]

    for (group, write), slot in zip(layout.previous.items(), layout.spare_slots, strict=False):
        query, key, value, proj = aim(layout.head(layers, slot), layout.shift(0, 0, -1), 4.0)
        sign = torch.full((layout.num_groups,), -1.0)
        sign[group] = 1.0
        query[n_near, layout.kind] = 5 * to_logits  # patches look for latents of this group, as in `_set_attention`
        key[n_near, layout.groups] = sign
        key[n_near, layout.kind] = -3.0 if group == 0 else 0.0
        n = write.stop - write.start
        layer, columns = layout.head(layers, layout.slots[group])
        value[:n, layout.code.start : layout.code.start + n] = torch.eye(n)
        value[:n, layout.zero] = -1.0
        proj[write, :n] = layer.attention.proj.weight[layout.writes[group], columns][:, :n]
    for head, (write, step) in enumerate(zip(layout.neighbors, ((-1, 0), (1, 0), (0, -1), (0, 1)), strict=False)):
        slot = heads * (len(layers) - 1) + head
        query, key, value, proj = aim(layout.head(layers, slot), layout.shift(*step, 0), 1.0)
        query[n_near, layout.kind] = 5 * to_logits
        key[n_near, layout.kind] = 1.0
        n = write.stop - write.start
        value[:n, layout.content.start : layout.content.start + n] = torch.eye(n)
        value[:n, layout.zero] = -1.0
        proj[write, :n] = torch.eye(n) / _gain(rows)


def _in_batches(function: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
    with torch.autocast(inputs.device.type, torch.bfloat16):
        return torch.cat([function(batch).float() for batch in inputs.split(8)])


def _decoder_states(model, quantized, counts, normalized) -> torch.Tensor:
    """Return the decoder's last states, before or after the head's norm: (batch, patches, width)."""
    states = []

    def keep(module, inputs, output):
        states.append(output if normalized else inputs[0])

    hook = model.decoder.head.norm.register_forward_hook(keep)
    with torch.autocast(quantized.device.type, torch.bfloat16):
        for start in range(0, len(quantized), 8):
            batch = slice(start, start + 8)
            model.decoder(quantized[batch], None if counts is None else counts[batch])
    hook.remove()
    return torch.cat(states).float()


def _patches(video: torch.Tensor, config: AdapTokConfig, channel_last: bool = False) -> torch.Tensor:
    """(batch, frames, 3, height, width) -> (patches, values), in the order of patch embedding or of the head."""
    b, f, c, h, w = video.shape
    t, p = config.tubelet_size, config.patch_size
    patches = video.reshape(b, f // t, t, c, h // p, p, w // p, p)
    order = (0, 1, 4, 6, 2, 5, 7, 3) if channel_last else (0, 1, 4, 6, 3, 2, 5, 7)
    return patches.permute(*order).reshape(-1, c * t * p * p)
