"""A start for the tokenizer's weights that already is a working codec: principal components, shared among latents."""

import torch
from torch import nn

from ...models.configuration_adaptok import AdapTokConfig
from ...models.modeling_adaptok import AdapTokModel
from ..block_mask_sampler import sample_token_counts
from ..tokenizer.code_reseeding import start_codebook
from .transform_codec_layout import TransformCodecLayout

CONTENT_SHARE = 0.04  # energy of a token's content over that of its position: layer norms then hardly bend the content
CODE_LENGTH = 0.08  # typical length of a token's code channels, beside a constant of 1


@torch.no_grad()
def initialize_as_transform_codec(model: AdapTokModel, video: torch.Tensor, coarse: bool = False) -> None:
    """Starts the model as a product quantiser of principal components, which the training then improves.

    From a usual random start the decoder ignores the latents for thousands of steps, since their content drowns in the
    position tables. Here everything is in use from the first step:

    * The channels have roles: place, time, group and kind of a token, then `codebook_dim - 1` channels for the content of
      latents, then the content of patches, which the patch embedding fills with principal components of patches.
    * The latents of a block come in groups. Each group has one latent at every patch, in an order in which any beginning
      covers the frame evenly. The first group carries the first few principal components, the next group further ones.
      With `coarse`, the first group has one latent for 2 x 2 patches, with the mean of as many components as a code holds.
    * Each group has one attention head of the encoder, which copies the group's components from the patch at the
      latent's place, and one of the decoder, which copies them back. Where the latent was dropped, that head looks at the
      patch itself, and copies what the coarse latents have told of these components, or nothing (mean content); for the
      first group it looks at the nearest latents that are left.
    * The codebook is the result of k-means on encoder outputs. Beside the content a latent has a constant, so that the
      unit sphere of codes is nearly flat where the contents lie.
    * Where heads and channels are left, the decoder also looks at the same place one block before, and in its last layer at
      the four neighbours of a patch.
    * The head of the decoder is the least-squares map from its states to the patches, at full and at random budgets.

    MLPs and the other heads start with no effect.

    Args:
        model: needs learned position tables, and enough heads and channels for its latents.
        video: (batch, frames of one or more blocks, 3, height, width) in [0, 1], a sample of the training clips; codes
            are found best if it makes at least 50 times as many latents.
        coarse: start with a group of coarse latents: small budgets show a blurred picture instead of single patches.

    Raises:
        ValueError: if the latents need more heads or channels than there are.
    """
    config = model.config
    layout = TransformCodecLayout(config, coarse)
    patch_rows, latent_rows = layout.position_tables()
    for module, rows in (
        (model.encoder.patch_positions, patch_rows),
        (model.encoder.latent_queries, latent_rows),
        (model.decoder.latent_positions, latent_rows),
        (model.decoder.patch_queries, patch_rows),
    ):
        module.weight.copy_(rows[None])
        module.initial_weight = rows[None]
    for type_embedding in (model.encoder.patch_type, model.encoder.latent_type,
                           model.decoder.patch_type, model.decoder.latent_type):  # fmt: skip
        if type_embedding is not None:
            type_embedding.weight.zero_()
    for layers, decoder in ((model.encoder.layers, False), (model.decoder.layers, True)):
        _set_attention(layers, layout, latent_rows, decoder)

    # Patch embedding: principal components of patches. The square root of their deviation keeps large ones at bay.
    pixels = _patches(video, config)  # (patches, channels * tubelet_size * patch_size**2)
    mean = pixels.mean(0)
    count = min(layout.content.stop - layout.content.start, *pixels.shape)
    _, deviation, components = torch.pca_lowrank(pixels - mean, q=count, center=False)
    deviation = deviation / len(pixels) ** 0.5
    energy = latent_rows.square().sum(-1).mean() * CONTENT_SHARE
    weight = components.T * (energy / deviation.sum() / deviation[:, None]).sqrt()
    embedding = model.encoder.patch_embedding.projection
    embedding.weight.zero_()
    embedding.bias.zero_()
    embedding.weight[layout.content.start :][:count] = weight
    embedding.bias[layout.content.start :][:count] = -weight @ mean

    deviations = [deviation[part] for part in layout.parts]
    if layout.coarse:
        scores = ((pixels - mean) @ components[:, layout.parts[0]]).unflatten(0, (-1, config.grid_size, config.grid_size))
        deviations[0] = nn.functional.avg_pool2d(scores.permute(0, 3, 1, 2), 2).std((0, 2, 3))

    # Encoder: how large the components of each group come out is measured, and then set.
    lengths = torch.stack([own.norm() for own in deviations])
    unit = CODE_LENGTH / lengths.mean().sqrt()
    codes = model.encoder(video[:32, : config.tubelet_size])[..., layout.code]
    for group, own in enumerate(deviations):
        wanted = unit * own / lengths[group].sqrt()
        found = codes[:, layout.group == group, : len(wanted)].flatten(0, 1).std(0)
        layer, columns = layout.head(model.encoder.layers, layout.slots[group])
        layer.attention.proj.weight[layout.code, columns][: len(wanted)] *= (wanted / found)[:, None]

    # Quantiser: the centred content beside the constant.
    d = config.codebook_dim - 1
    quantizer = model.quantizer
    for linear in (quantizer.project_in, quantizer.project_out):
        linear.weight.zero_()
        linear.bias.zero_()
    latents = _in_parts(model.encoder, video)
    quantizer.project_in.weight[:d, layout.code] = torch.eye(d)
    quantizer.project_in.bias[:d] = -latents[..., layout.code].flatten(0, 1).mean(0)
    quantizer.project_in.bias[d] = 1.0
    quantizer.project_out.weight[layout.code, :d] = torch.eye(d)
    projected = quantizer.project(latents)
    count = int(layout.group.bincount().min())  # as many of each group, or the few coarse ones would count for little
    start_codebook(
        model,
        torch.cat([projected[:, (layout.group == g).nonzero()[:count, 0]].flatten(0, 1) for g in layout.group.unique()]),
    )

    # Decoder: sizes as in the encoder, and then the head.
    num_blocks = video.shape[1] // config.tubelet_size
    quantized = _in_parts(lambda part: quantizer(part).quantized, latents).unflatten(1, (num_blocks, -1))
    states = _decoder_states(model, quantized[:32, :1], None, normalized=False).flatten(0, 1)
    for part, own, write, slot in zip(layout.parts, deviations, layout.writes, layout.slots, strict=True):
        wanted = own * (energy / deviation.sum() / deviation[part]).sqrt()
        layer, columns = layout.head(model.decoder.layers, slot)
        layer.attention.proj.weight[write, columns] *= (wanted / states[:, write].std(0))[:, None]
    _set_fallback(model.decoder.layers, layout, latent_rows)
    _set_context(model.decoder.layers, layout, latent_rows)
    counts = sample_token_counts(len(video), num_blocks, config.latents_per_block) if config.adaptive else None
    gram, product = 0.0, 0.0
    inputs = slice(layout.zero.start, layout.content.stop)
    for start in range(0, len(video), 8):
        own = slice(start, start + 8)
        target = _patches(video[own], config, channel_last=True)
        for kept in (None, counts[own]) if config.adaptive else (None,):
            features = _decoder_states(model, quantized[own], kept, normalized=True)[..., inputs].flatten(0, 1)
            features = torch.cat([features, torch.ones(len(features), 1)], 1)
            gram, product = gram + features.T @ features, product + features.T @ target
    gram.diagonal().add_(1e-6 * len(video) * num_blocks * config.grid_size**2)
    solution = torch.linalg.solve(gram, product)
    head = model.decoder.head.projection
    head.weight.zero_()
    head.weight[:, inputs] = solution[:-1].T
    head.bias.copy_(solution[-1])


def _gain(rows: torch.Tensor) -> torch.Tensor:
    """What a layer norm multiplies rows of a position table by, with content beside them."""
    return 1 / rows.std(-1).mean() / (1 + CONTENT_SHARE) ** 0.5


def _near(layout: TransformCodecLayout, sharpness: float = 1.0) -> torch.Tensor:
    """Logits as a product of place and time channels: in the frame like a bell, falling by 8 to the next patch."""
    size = (layout.place.stop - layout.place.start) // 4
    bell = torch.exp(-0.5 * torch.linspace(torch.pi / layout.config.grid_size, torch.pi, size).square() * 0.8**2)
    n_time = layout.time.stop - layout.time.start
    return torch.diag(torch.cat([sharpness * bell.repeat(4) * 14 / bell.sum(), torch.full((n_time,), 16.0 / n_time)]))


def _set_attention(layers: nn.ModuleList, layout: TransformCodecLayout, rows: torch.Tensor, decoder: bool) -> None:
    """Attention that looks at the same place and time, and in one head for each group copies the group's components.

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
    for group, part in enumerate(layout.parts):
        layer, columns = layout.head(layers, layout.slots[group])
        query, key, value = (x[columns] for x in layer.attention.qkv.weight.view(3, width, width))
        query[:n_near, :n_near] += near * to_logits * 0.5
        own = torch.full((layout.num_groups,), -1.0)  # +1 for latents of this group, -1 for others
        own[group] = 1.0
        for x in (query, key, value):
            x[n_near] = 0
        if decoder:  # patches look for latents of this group; in their absence at themselves
            query[n_near, layout.kind] = 5 * to_logits
            key[n_near, layout.groups] = own
            key[n_near, layout.kind] = -3.0 if group == 0 else 0.0
            if layout.coarse and group == 0:  # the others look at themselves
                same = slice(n_near + 1, n_near + 1 + layout.num_groups)
                query[same, layout.groups] = 10 * to_logits * torch.eye(layout.num_groups)
                key[same, layout.groups] = torch.eye(layout.num_groups)
            read, write = layout.code, layout.writes[group]
            read = slice(read.start, read.start + part.stop - part.start)
        else:  # latents of this group look at patches, those of others at latents
            query[n_near, layout.groups] = 5 * to_logits * own
            key[n_near, layout.kind] = 1.0
            read, write = layout.content, layout.code
            read = slice(read.start + part.start, read.start + part.stop)
            write = slice(write.start, write.start + part.stop - part.start)
        n = part.stop - part.start
        value[:n] = 0
        value[:n, read] = torch.eye(n)
        value[:n, layout.zero] = -1.0
        layer.attention.proj.weight[write, columns][:, :n] = torch.eye(n)


def _set_fallback(layers: nn.ModuleList, layout: TransformCodecLayout, rows: torch.Tensor) -> None:
    """Where a patch finds no latent of a group and looks at itself, it copies what the coarse group has told.

    Latents too have something in those channels: their own content, see `_set_attention`, which is subtracted.
    """
    first, columns = layout.head(layers, layout.slots[0])
    coarse = first.attention.proj.weight[layout.fallback, columns].diagonal()
    for part, write, slot in list(zip(layout.parts, layout.writes, layout.slots, strict=True))[layout.coarse :]:
        layer, columns = layout.head(layers, slot)
        value = layer.attention.qkv.weight.chunk(3)[2][columns]
        fine = layer.attention.proj.weight[write, columns].diagonal()
        for row, component in enumerate(range(part.start, min(part.stop, len(coarse)))):
            value[row, layout.fallback.start + component] += 1 / (_gain(rows) * fine[row])
            value[row, layout.code.start + component] -= coarse[component] / fine[row]
            value[row, layout.zero] -= 1 / (_gain(rows) * fine[row]) - coarse[component] / fine[row]


def _set_context(layers: nn.ModuleList, layout: TransformCodecLayout, rows: torch.Tensor) -> None:
    """Heads of the decoder that look at neighbours and one block back, beside those of `_set_attention`."""
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
        own = torch.full((layout.num_groups,), -1.0)
        own[group] = 1.0
        query[n_near, layout.kind] = 5 * to_logits  # patches look for latents of this group, as in `_set_attention`
        key[n_near, layout.groups] = own
        key[n_near, layout.kind] = -3.0 if group == 0 else 0.0
        n = write.stop - write.start
        layer, columns = layout.head(layers, layout.slots[group])
        value[:n, layout.code.start : layout.code.start + n] = torch.eye(n)
        value[:n, layout.zero] = -1.0
        proj[write, :n] = layer.attention.proj.weight[layout.writes[group], columns][:, :n]
    for head, (write, step) in enumerate(zip(layout.neighbours, ((-1, 0), (1, 0), (0, -1), (0, 1)), strict=False)):
        slot = heads * (len(layers) - 1) + head
        query, key, value, proj = aim(layout.head(layers, slot), layout.shift(*step, 0), 1.0)
        query[n_near, layout.kind] = 5 * to_logits
        key[n_near, layout.kind] = 1.0
        n = write.stop - write.start
        value[:n, layout.content.start : layout.content.start + n] = torch.eye(n)
        value[:n, layout.zero] = -1.0
        proj[write, :n] = torch.eye(n) / _gain(rows)


def _in_parts(function, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast(batch.device.type, torch.bfloat16):
        return torch.cat([function(part).float() for part in batch.split(8)])


def _decoder_states(model, quantized, counts, normalized) -> torch.Tensor:
    """(batch, patches, width), the decoder's last states, before or after the head's norm."""
    states = []

    def keep(module, inputs, output):
        states.append(output if normalized else inputs[0])

    hook = model.decoder.head.norm.register_forward_hook(keep)
    with torch.autocast(quantized.device.type, torch.bfloat16):
        for start in range(0, len(quantized), 8):
            own = slice(start, start + 8)
            model.decoder(quantized[own], None if counts is None else counts[own])
    hook.remove()
    return torch.cat(states).float()


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
