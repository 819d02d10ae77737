"""A start for the scorer's weights that already predicts: how much content the latents of a block have, part by part."""

from dataclasses import dataclass

import torch
from torch import nn

from adaptok_hf import AdapTokScorerModel

CONTENT, DIRECTIONS, FEATURES = 15, 64, 4  # components of latents; random directions of each feature; features
FREQUENCIES = (1.0, 3.0, 9.0, 27.0)  # of a level's place in the block, in radians over the block
SHARPNESS = 24.0  # of the MLP's units: their pairs are nearly absolute values
CONTENT_LENGTH, MEANS = 0.3, 0.15  # small beside the position's: layer norms then hardly bend them
HEAD_STEPS, HEAD_BATCH, HEAD_RATE = 3000, 64, 2e-3


@dataclass(frozen=True)
class MeasuredBlocks:
    """
    Args:
        latents: (clips, blocks, latents_per_block, latent_size) float32, up to and with the block that was measured.
        counts: (clips, blocks) long, the last block full.
        levels: (levels,) long, indices of the levels that were measured.
        losses: (clips, levels) float32.
    """

    latents: torch.Tensor
    counts: torch.Tensor
    levels: torch.Tensor
    losses: torch.Tensor


@torch.no_grad()
def initialize_as_energy_scorer(scorer: AdapTokScorerModel, measured: list[MeasuredBlocks]) -> None:
    """Starts the scorer with lower layers that measure content, and a head that has been fitted on what they measure.

    What a block loses without its later latents is, first of all, what they would have told. From a random start the scorer
    needs thousands of measured blocks to find that out. Here

    * the channels have roles: place in the block, number of the block, part of the block, then principal components of the
      latents (about their mean at each place), which the first layer's MLP turns into lengths;
    * each head of the second layer takes the mean of these lengths over one part of the latents of a block;
    * the output head, two linear maps, is trained on these means by AdamW, which takes seconds.

    The other weights start with no effect. Draws from torch's global generator.

    Args:
        scorer: for latents as they are (not standardised), in float32 on the CPU; needs two layers or more.
        measured: some hundred clips in all.

    Raises:
        ValueError: if the scorer is too small.
    """
    config = scorer.config
    width, heads, m = config.hidden_size, config.num_attention_heads, config.latents_per_block
    num_content = min(CONTENT, config.latent_size)
    sizes = (2 * len(FREQUENCIES), config.num_blocks, heads, 1, 1, num_content, FEATURES, heads * FEATURES)
    starts = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    waves, blocks, parts, one, zero, content, lengths, means = map(slice, starts[:-1], starts[1:])
    head_dim, units = width // heads, scorer.layers[0].mlp.fc1.out_features
    if (
        starts[-1] > width
        or head_dim < 1 + config.num_blocks
        or units < 2 * FEATURES * DIRECTIONS
        or len(scorer.layers) < 2
    ):
        raise ValueError(
            f"this start of the scorer needs 2 layers, a hidden_size of at least {starts[-1]} whose heads have "
            f"{1 + config.num_blocks} channels or more, and {2 * FEATURES * DIRECTIONS} units in an MLP; got "
            f"{len(scorer.layers)}, {width}, {head_dim} and {units}"
        )

    # Content: principal components of the latents, about their mean at each place.
    last = torch.cat([example.latents[:, -1] for example in measured])
    mean = last.mean(0)
    _, deviation, components = torch.pca_lowrank((last - mean).flatten(0, 1), q=num_content, center=False)
    weight = (components / deviation * last[..., 0].numel() ** 0.5).T * (CONTENT_LENGTH / num_content**0.5)
    scorer.project_in.weight.zero_()
    scorer.project_in.bias.zero_()
    scorer.project_in.weight[content, : config.latent_size] = weight
    index = torch.arange(m)
    rows = torch.zeros(config.num_blocks, m, width)
    angles = (index + 1)[:, None] / m * torch.tensor(FREQUENCIES)
    rows[..., waves] = torch.cat([angles.sin(), angles.cos()], 1)
    rows[..., blocks] = torch.eye(config.num_blocks)[:, None]
    rows[..., parts] = nn.functional.one_hot(index * heads // m, heads).float()
    rows[..., one] = 2.0
    rows[..., content] = -mean @ weight.T
    scorer.positions.weight.copy_(rows.flatten(0, 1)[None])

    for layer in scorer.layers:
        for linear in (layer.attention.proj, layer.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
    # First layer: |direction . content| as the sum of two units each, averaged.
    directions = nn.functional.normalize(torch.randn(FEATURES * DIRECTIONS, num_content), dim=1) * SHARPNESS
    mlp = scorer.layers[0].mlp
    mlp.fc1.weight.zero_()
    mlp.fc1.bias.zero_()
    for unit, sign in ((0, 1.0), (1, -1.0)):
        mlp.fc1.weight[unit : 2 * len(directions) : 2, content] = sign * directions
        mlp.fc1.weight[unit : 2 * len(directions) : 2, zero] = -sign * directions.sum(1, keepdim=True)  # the norm's shift
    for feature in range(FEATURES):
        own = slice(2 * feature * DIRECTIONS, 2 * (feature + 1) * DIRECTIONS)
        mlp.fc2.weight[lengths.start + feature, own] = 1 / (SHARPNESS * DIRECTIONS)
    # Second layer: each head looks at one part of the own block.
    attention = scorer.layers[1].attention
    attention.qkv.weight.zero_()
    query, key, value = attention.qkv.weight.view(3, heads, head_dim, width)
    query[:, 0, one] = 3.0
    key[torch.arange(heads), 0, torch.arange(parts.start, parts.stop)] = 1.0
    query[:, 1 : 1 + config.num_blocks, blocks] = 6 * torch.eye(config.num_blocks)
    key[:, 1 : 1 + config.num_blocks, blocks] = torch.eye(config.num_blocks)
    value[:, :FEATURES, lengths] = torch.eye(FEATURES)
    value[:, :FEATURES, zero] = -1.0
    for head in range(heads):
        rows = torch.arange(FEATURES)
        attention.proj.weight[means.start + head * FEATURES + rows, head * head_dim + rows] = 1.0
    states = _states(scorer, measured, scorer.norm, inputs=True)[..., means].flatten(0, 1)
    attention.proj.weight[means] *= (MEANS / states.std(0).clamp(min=1e-3))[:, None]
    attention.proj.bias[means] = -states.mean(0) * (MEANS / states.std(0).clamp(min=1e-3))

    read = torch.zeros(width)  # not the content of the one latent at which a level is read
    for channels in (waves, blocks, means):
        read[channels] = 1.0
    states = _states(scorer, measured, scorer.norm, inputs=False)
    _fit_head(scorer, states, torch.cat([example.losses for example in measured]), read)


def _states(scorer: AdapTokScorerModel, measured: list[MeasuredBlocks], module: nn.Module, inputs: bool) -> torch.Tensor:
    """(clips, levels, width), what goes into a module or comes out of it, at the levels that were measured."""
    kept = []
    hook = module.register_forward_hook(lambda module, args, output: kept.append(args[0] if inputs else output))
    states = []
    for example in measured:
        kept.clear()
        scorer(example.latents, torch.zeros_like(example.latents), example.counts)
        at_levels = kept[0].unflatten(1, (example.latents.shape[1], -1))[:, -1]
        states.append(at_levels[:, example.levels])
    hook.remove()
    return torch.cat(states)


def _fit_head(scorer: AdapTokScorerModel, states: torch.Tensor, losses: torch.Tensor, read: torch.Tensor) -> None:
    """Trains the output head on standardised states, in the channels that `read` marks; the scale goes into its weights."""
    mean, scale = states.mean((0, 1)), read / states.std((0, 1)).clamp(min=0.05)
    inputs = (states - mean) * scale
    wanted = (losses - scorer.config.score_mean) / scorer.config.score_std
    head = (scorer.head_in, scorer.head_out)
    with torch.enable_grad():
        optimizer = torch.optim.AdamW([p for linear in head for p in linear.parameters()], lr=HEAD_RATE, weight_decay=0.05)
        for step in range(HEAD_STEPS):
            optimizer.param_groups[0]["lr"] = HEAD_RATE * (1 - step / HEAD_STEPS)
            rows = torch.randint(len(inputs), (min(HEAD_BATCH, len(inputs)),))
            predicted = head[1](torch.tanh(head[0](inputs[rows])))[..., 0]
            loss = nn.functional.mse_loss(predicted, wanted[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    head[0].weight *= scale
    head[0].bias -= head[0].weight @ mean
