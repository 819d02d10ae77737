"""Closed-form initialization of a scorer that already predicts: the energy of a block's latents, group by group."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from scipy.optimize import nnls
from torch import nn

from ...models.configuration_adaptok_scorer import AdapTokScorerConfig
from ...models.modeling_adaptok import AdapTokModel
from ...models.modeling_adaptok_scorer import AdapTokScorerModel
from ..clips import StreamBatches
from ..folder_batches import FolderBatches
from ..scorer.examples import measure_example, sample_settings
from ..scorer.targets import BlockLoss
from .arguments import ScorerInitialization

# Typical sizes next to the position's of about 3. What varies much, as content does from one latent to another, must be
# small, or layer norms would level it.
CONTENT, ENERGY, LENGTH = 0.03, 0.003, 0.2  # the last of standardized energies together, and of the estimate
CURVATURE = (2 / torch.pi) ** 0.5  # gelu(u) + gelu(-u) is this times u squared, for small u
SMALL = 0.1  # typical u
HEAD_STEPS, HEAD_BATCH, HEAD_RATE = 3000, 16, 5e-3


@dataclass(frozen=True)
class MeasuredBlocks:
    """The losses of a block of some clips.

    Args:
        latents: (clips, blocks, latents_per_block, latent_size) float32, up to and with the block that was measured.
        levels: (levels,) long, indices of the levels that were measured.
        losses: (clips, levels) float32.
    """

    latents: torch.Tensor
    levels: torch.Tensor
    losses: torch.Tensor


@torch.no_grad()
def measure_blocks(
    args: ScorerInitialization,
    config: AdapTokScorerConfig,
    tokenizer: AdapTokModel,
    clips: FolderBatches | StreamBatches,
    block_loss: BlockLoss,
    accelerator: Accelerator,
) -> list[MeasuredBlocks]:
    """Measure `num_batches` batches of random clips, by torch's global generator."""
    measured = []
    for videos in clips.sample(args.num_batches * args.batch_size).split(args.batch_size):
        settings = sample_settings(config, args.batch_size, args.levels_per_step, args.augment, args.score_target_span)
        with accelerator.autocast():
            example = measure_example(tokenizer, videos, settings, config.score_step, block_loss)
        measured.append(MeasuredBlocks(example.latents.cpu(), settings.levels, example.losses.cpu()))
    return measured


class _Roles:
    """Which channels do what: number of the block, group, constants, content, and results."""

    def __init__(self, config: AdapTokScorerConfig, num_groups: int, num_content: int):
        self.num_content = num_content
        sizes = {
            "blocks": config.num_blocks, "groups": num_groups, "one": 1, "zero": 1,
            "content": self.num_content, "energy": 1, "means": num_groups, "weights": num_groups, "estimate": 1,
        }  # fmt: skip
        stop = 0
        for name, size in sizes.items():
            setattr(self, name, slice(stop, stop + size))
            stop += size
        self.size = stop


def check_groups(config: AdapTokScorerConfig, codebook_dim: int, starts: Sequence[int] | None) -> list[int]:
    """Return where the groups of a block's latents begin whose energies are measured apart, by one head each.

    Args:
        codebook_dim: the tokenizer's.
        starts: indices of latents, rising from 0; `None`: as many groups of equal size as there are heads.

    Raises:
        ValueError: for other indices, and for a scorer that is too small for them.
    """
    m, heads = config.latents_per_block, config.num_attention_heads
    starts = [m * head // heads for head in range(heads)] if starts is None else list(starts)
    if starts[:1] != [0] or starts != sorted(set(starts)) or starts[-1] >= m or len(starts) > heads:
        raise ValueError(f"groups must begin at rising latents, from 0 to below {m}, at most {heads} (heads); got {starts}")
    roles = _Roles(config, len(starts), codebook_dim)
    head_dim, units = config.hidden_size // heads, config.mlp_ratio * config.hidden_size
    needed = max(2 * roles.num_content, 4 * len(starts))
    if (
        roles.size > config.hidden_size
        or head_dim < 1 + config.num_blocks
        or units < needed
        or config.num_hidden_layers < 2
    ):
        raise ValueError(
            f"this initialization needs 2 layers, a hidden_size of at least {roles.size} whose heads have "
            f"{1 + config.num_blocks} channels or more, and {needed} units in an MLP; got {config.num_hidden_layers}, "
            f"{config.hidden_size}, {head_dim} and {units}"
        )
    return starts


@torch.no_grad()
def initialize_as_energy_scorer(
    scorer: AdapTokScorerModel,
    measured: list[MeasuredBlocks],
    project_in: nn.Linear,
    starts: Sequence[int] | None = None,
) -> None:
    """Initialize layers that estimate a squared loss from energies of latents, and a head fitted on the estimates.

    What a block loses without its later latents is, first of all, what they would have added. For a codec of orthogonal
    components the squared error is the sum of the dropped latents' energies, plus some share of the others' (their
    quantization). From random weights the scorer needs thousands of measured blocks to find that out. Here

    * the channels have roles; content is what the quantizer sees of a latent, about its mean, whose squares add up to the
      energy;
    * the first layer's MLP squares them: gelu(u) + gelu(-u) is proportional to the square of a small u;
    * each head of the second layer takes the mean energy of one group of latents;
    * the second layer's MLP multiplies these means by what they weigh at a level, which non-negative least squares finds:
      for each group one weight of dropped and one of kept latents;
    * the output head, two linear maps, is trained on the resulting estimates by AdamW, which takes seconds.

    The other weights have no effect at first. Samples by torch's global generator.

    Args:
        scorer: for latents as they are (not standardized), in float32 on the CPU.
        measured: some hundred clips in all.
        project_in: of the tokenizer's quantizer.
        starts: see `check_groups`; best those of the tokenizer's groups, if it was initialized as a transform codec.

    Raises:
        ValueError: see `check_groups`.
    """
    config = scorer.config
    starts = check_groups(config, project_in.out_features, starts)
    roles = _Roles(config, len(starts), project_in.out_features)
    m, step, width = config.latents_per_block, config.score_step, config.hidden_size
    group = torch.bucketize(torch.arange(m), torch.tensor(starts), right=True) - 1
    sizes = group.bincount()

    for layer in scorer.layers:
        for linear in (layer.attention.proj, layer.mlp.fc1, layer.mlp.fc2):
            linear.weight.zero_()
            linear.bias.zero_()
    rows = torch.zeros(config.num_blocks, m, width)
    rows[..., roles.blocks] = torch.eye(config.num_blocks)[:, None]
    rows[..., roles.groups] = nn.functional.one_hot(group, len(starts)).float()
    rows[..., roles.one] = 2.0
    gain = 1 / rows.std(-1).mean()  # of the layer norms
    _set_content(scorer, roles, rows, measured, project_in)
    scorer.positions.weight.copy_(rows.flatten(0, 1)[None])
    _set_energies(scorer, roles, gain)

    inputs = _states(scorer, measured, scorer.norm, inputs=True)
    energies = inputs[:, 0, roles.means]  # (clips, groups), the same at each level
    mean, std = energies.mean(0), energies.std(0).clamp(min=1e-8)
    levels = torch.cat([example.levels.expand(len(example.losses), -1) for example in measured])
    squared = torch.cat([example.losses for example in measured]).square()
    dropped = torch.stack([_dropped(count, group) for count in range(step, m + 1, step)])  # (levels, groups)
    weights, constant = _fit_weights(energies * sizes, dropped[levels], squared)
    weights = (weights[0] * dropped + weights[1] * (1 - dropped)) * sizes  # (levels, groups), of mean energies

    # The means standardized, their weights next to them, and the estimate as sum of products.
    projection = scorer.layers[1].attention.proj
    length = LENGTH / len(starts) ** 0.5
    projection.weight[roles.means] *= (length / std)[:, None]
    projection.bias[roles.means] = -mean * length / std
    unit = (weights * std).square().mean().sqrt()
    at_levels = torch.arange(m) // step  # each latent's level; read at the last of each
    weights, base = weights[at_levels] * std / unit * length, (weights @ mean + constant)[at_levels]
    center, scale = squared.mean(), squared.std()
    rows[..., roles.weights] = weights
    rows[..., roles.estimate] = ((base - center) / scale * LENGTH)[:, None]
    scorer.positions.weight.copy_(rows.flatten(0, 1)[None])
    mlp = scorer.layers[1].mlp
    sharpness = SMALL / (gain * length)
    for index in range(len(starts)):
        units = slice(4 * index, 4 * index + 4)
        for channels, signs in ((roles.means, (1, -1, 1, -1)), (roles.weights, (1, -1, -1, 1))):
            mlp.fc1.weight[units, channels.start + index] = sharpness * torch.tensor(signs)
        mlp.fc1.weight[units, roles.zero] = -mlp.fc1.weight[units].sum(1, keepdim=True)  # the layer norm's shift
        squares = torch.tensor((1.0, 1.0, -1.0, -1.0))  # (a + b)^2 - (a - b)^2 = 4 a b
        mlp.fc2.weight[roles.estimate, units] = squares / (4 * CURVATURE * SMALL**2) * unit / scale * LENGTH

    # The head reads the estimate alone: whatever else it could learn from misleads allocation.
    estimates = _states(scorer, measured, scorer.norm, inputs=False)[..., roles.estimate]
    _fit_head(scorer, estimates, torch.cat([example.losses for example in measured]), roles.estimate)


def _dropped(count: int, group: torch.Tensor) -> torch.Tensor:
    """Return the share of each group's latents from `count` on, (groups,)."""
    return group[count:].bincount(minlength=int(group.max()) + 1) / group.bincount()


def _set_content(
    scorer: AdapTokScorerModel, roles: _Roles, rows: torch.Tensor, measured: list[MeasuredBlocks], project_in: nn.Linear
) -> None:
    """Map latents to what the quantizer sees of them, about its mean, which goes into `rows`, in place."""
    size = scorer.config.latent_size
    content = torch.cat([project_in(example.latents[:, -1]) for example in measured]).flatten(0, 1)
    mean = content.mean(0)
    scale = CONTENT / (content - mean).square().sum(-1).mean().sqrt()
    scorer.project_in.weight.zero_()
    scorer.project_in.bias.zero_()
    scorer.project_in.weight[roles.content, :size] = project_in.weight * scale
    rows[..., roles.content] = (project_in.bias - mean) * scale


def _set_energies(scorer: AdapTokScorerModel, roles: _Roles, gain: torch.Tensor) -> None:
    """Square the content in the first layer; average over each group of the same block in the second."""
    config = scorer.config
    num_groups, heads = roles.groups.stop - roles.groups.start, config.num_attention_heads
    mlp = scorer.layers[0].mlp
    sharpness = SMALL / (gain * CONTENT / roles.num_content**0.5)
    for unit, sign in ((0, sharpness), (1, -sharpness)):
        units = slice(unit, 2 * roles.num_content, 2)
        mlp.fc1.weight[units, roles.content] = sign * torch.eye(roles.num_content)
        mlp.fc1.weight[units, roles.zero] = -sign
    mlp.fc2.weight[roles.energy, : 2 * roles.num_content] = ENERGY / (CURVATURE * SMALL**2 * roles.num_content)
    attention = scorer.layers[1].attention
    attention.qkv.weight.zero_()
    query, key, value = attention.qkv.weight.view(3, heads, -1, config.hidden_size)
    for index in range(num_groups):
        query[index, 0, roles.one] = 3.0
        key[index, 0, roles.groups.start + index] = 1.0
        query[index, 1 : 1 + config.num_blocks, roles.blocks] = 6 * torch.eye(config.num_blocks)
        key[index, 1 : 1 + config.num_blocks, roles.blocks] = torch.eye(config.num_blocks)
        value[index, 0, roles.energy] = 1.0
        value[index, 0, roles.zero] = -1.0
        attention.proj.weight[roles.means.start + index, index * (config.hidden_size // heads)] = 1.0


def _fit_weights(energies: torch.Tensor, dropped: torch.Tensor, squared: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Solve non-negative least squares for squared losses, each in units of its loss.

    Args:
        energies: (clips, groups), of all latents of a group together.
        dropped: (clips, levels, groups), see `_dropped`.
        squared: (clips, levels).

    Returns:
        (2, groups), the weights of dropped and of kept latents' energies, and the constant.
    """
    energies = energies[:, None]
    columns = torch.cat([energies * dropped, energies * (1 - dropped), torch.ones_like(squared)[..., None]], -1)
    columns, squared = columns.flatten(0, 1).double(), squared.flatten().double()
    size = columns.square().mean(0).sqrt().clamp(min=1e-12)
    importance = 1 / squared.sqrt().clamp(min=0.3 * squared.mean().sqrt())
    solution, _ = nnls((columns / size * importance[:, None]).numpy(), (squared * importance).numpy())
    solution = torch.from_numpy(solution) / size
    return solution[:-1].view(2, -1).float(), solution[-1].float()


def _states(scorer: AdapTokScorerModel, measured: list[MeasuredBlocks], module: nn.Module, inputs: bool) -> torch.Tensor:
    """Return what goes into a module or comes out of it, at the levels that were measured: (clips, levels, width)."""
    kept = []
    hook = module.register_forward_hook(lambda module, args, output: kept.append(args[0] if inputs else output))
    states = []
    for example in measured:
        kept.clear()
        scorer(example.latents, torch.zeros_like(example.latents))
        at_levels = kept[0].unflatten(1, (example.latents.shape[1], -1))[:, -1]
        states.append(at_levels[:, example.levels])
    hook.remove()
    return torch.cat(states)


def _fit_head(scorer: AdapTokScorerModel, estimates: torch.Tensor, losses: torch.Tensor, channel: slice) -> None:
    """Train the output head to turn estimates (clips, levels, 1), which are in `channel`, into losses (clips, levels)."""
    mean, scale = estimates.mean(), 1 / estimates.std()
    inputs = (estimates - mean) * scale
    targets = (losses - scorer.config.score_mean) / scorer.config.score_std
    importance = losses.mean() / losses.clamp(min=0.3 * losses.mean())
    head_in, head_out = nn.Linear(1, scorer.head_in.out_features), scorer.head_out
    with torch.enable_grad():
        parameters = [*head_in.parameters(), *head_out.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=HEAD_RATE, weight_decay=0.05)
        for step in range(HEAD_STEPS):
            optimizer.param_groups[0]["lr"] = HEAD_RATE * (1 - step / HEAD_STEPS)
            rows = torch.randint(len(inputs), (min(HEAD_BATCH, len(inputs)),))
            predicted = head_out(torch.tanh(head_in(inputs[rows])))[..., 0]
            loss = ((predicted - targets[rows]).square() * importance[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    scorer.head_in.weight.zero_()
    scorer.head_in.weight[:, channel] = head_in.weight * scale
    scorer.head_in.bias.copy_(head_in.bias - head_in.weight[:, 0] * scale * mean)
