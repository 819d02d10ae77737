"""What `train_scorer.py` trains: statistics of its inputs and targets, the scorer, its loss."""

from dataclasses import dataclass

import torch
from accelerate import Accelerator

from ...models.configuration_adaptok import AdapTokConfig
from ...models.configuration_adaptok_scorer import AdapTokScorerConfig
from ...models.modeling_adaptok import AdapTokModel
from ...models.modeling_adaptok_scorer import AdapTokScorerModel
from ..clips import FolderBatches, StreamBatches
from ..closed_form.energy_scorer import MeasuredBlocks, part_starts
from .arguments import Arguments
from .examples import draw, measure_example
from .input_scale import InputScale
from .targets import BlockLoss


def build_config(args: Arguments, tokenizer: AdapTokConfig) -> AdapTokScorerConfig:
    """The scorer's configuration, with the statistics that it was told.

    Raises:
        ValueError: if it does not fit the tokenizer or the target.
    """
    if not tokenizer.adaptive:
        raise ValueError(f"{args.tokenizer} is not adaptive (CausalTok): it keeps all tokens, there is nothing to score")
    sizes = {
        "latent_size": tokenizer.hidden_size,
        "num_blocks": tokenizer.num_blocks,
        "latents_per_block": tokenizer.latents_per_block,
    }
    if args.init_from:
        config = AdapTokScorerConfig.from_pretrained(args.init_from)
    else:
        config = AdapTokScorerConfig(**sizes | {"target": args.target} | args.model)
    for name, value in sizes.items():
        if getattr(config, name) != value:
            raise ValueError(f"the scorer's {name} is {getattr(config, name)}, the tokenizer's {value}")
    if config.target not in (None, args.target):
        raise ValueError(f"the scorer's target is {config.target!r}, that of this run {args.target!r}")
    config.target = args.target
    if args.energy_initialization:
        part_starts(config, tokenizer.codebook_dim, args.energy_parts)  # raises ValueError, before minutes of measuring
    levels = args.levels_per_step or config.num_levels
    if levels > config.num_levels:
        raise ValueError(f"levels_per_step must be 1..{config.num_levels}, got {args.levels_per_step}")
    if args.difference_weight and levels < 2:
        raise ValueError(f"difference_weight needs two levels or more, score_step {config.score_step} gives {levels}")
    return config


@dataclass(frozen=True)
class Statistics:
    """What is measured before the first step, on some batches.

    Args:
        scale: of the inputs.
        mean, std: of the losses.
        typical_difference: (levels, levels), root mean square difference of the losses at two levels.
    """

    scale: InputScale
    mean: float
    std: float
    typical_difference: torch.Tensor


@torch.no_grad()
def measure_statistics(
    args: Arguments,
    config: AdapTokScorerConfig,
    tokenizer: AdapTokModel,
    clips: FolderBatches | StreamBatches,
    block_loss: BlockLoss,
    accelerator: Accelerator,
) -> Statistics:
    """The same on every process, whatever their number, and again in a resumed run. Every process must call this.

    Draws from torch's global generator, whose state must be the same on every process.

    Raises:
        ValueError: if the losses do not vary.
    """
    size, world_size = args.batch_size, accelerator.num_processes
    own = slice(accelerator.process_index, None, world_size)
    batches = clips.sample(args.statistics_batches * size).split(size)
    means, variances, losses = [], [], []
    for videos in batches:
        draws = draw(config, size, None, args.augment)
        for part in range(args.gradient_accumulation_steps):
            some = slice(own.start + part * world_size, None, world_size * args.gradient_accumulation_steps)
            with accelerator.autocast():
                example = measure_example(tokenizer, videos[some], draws.of(some), config.score_step, block_loss)
            inputs = torch.cat([example.latents, example.quantized], dim=-1)[:, 0]  # (clips, latents_per_block, channels)
            means.append(inputs.mean(1))
            variances.append(inputs.var(1, correction=0))
            losses.append(example.losses)
    means, variances, losses = (accelerator.gather(torch.cat(each)) for each in (means, variances, losses))
    std = float(losses.std())
    if not std > 0:
        raise ValueError(f"the {args.target} losses of {len(losses)} clips are all {float(losses.mean())}")
    # the variance of all tokens: that within clips and that of the clips' means
    scale = InputScale(means.mean(0), (variances.mean(0) + means.var(0, correction=0)).sqrt())
    typical_difference = (losses[:, :, None] - losses[:, None]).square().mean(0).sqrt()
    # not less than a tenth of the deviation, or the measurement's noise would rule
    return Statistics(scale, float(losses.mean()), std, typical_difference.clamp(min=0.1 * std))


@torch.no_grad()
def measure_blocks(
    args: Arguments,
    config: AdapTokScorerConfig,
    tokenizer: AdapTokModel,
    clips: FolderBatches | StreamBatches,
    block_loss: BlockLoss,
    accelerator: Accelerator,
) -> list[MeasuredBlocks]:
    """What `initialize_as_energy_scorer` learns from: `initialization_batches` batches; every process measures all of them.

    Draws from torch's global generator, whose state must be the same on every process.
    """
    measured = []
    for videos in clips.sample(args.initialization_batches * args.batch_size).split(args.batch_size):
        draws = draw(config, args.batch_size, args.levels_per_step, args.augment)
        with accelerator.autocast():
            example = measure_example(tokenizer, videos, draws, config.score_step, block_loss)
        measured.append(MeasuredBlocks(example.latents.cpu(), draws.levels, example.losses.cpu()))
    return measured


def build_scorer(args: Arguments, config: AdapTokScorerConfig, statistics: Statistics) -> AdapTokScorerModel:
    """The scorer, of standardised inputs, in training mode, on the CPU."""
    if args.init_from:
        scorer = AdapTokScorerModel.from_pretrained(args.init_from, dtype=torch.float32)
        scorer.config.target = config.target
        InputScale(statistics.scale.mean.cpu(), statistics.scale.std.cpu()).unfold(scorer)
        return scorer.train()
    measured = {"score_mean": statistics.mean, "score_std": statistics.std}
    for name in measured.keys() - args.model.keys():
        setattr(config, name, measured[name])
    return AdapTokScorerModel(config).train()


def scorer_loss(
    predicted: torch.Tensor, target: torch.Tensor, std: float, typical_difference: torch.Tensor, difference_weight: float
) -> dict[str, torch.Tensor]:
    """Mean squared error of the standardised scores (the paper's loss) and, weighted, of their differences.

    Allocation lives on what a few more tokens gain. Between high levels that is a hundredth of what separates two clips,
    and the paper's loss alone hardly feels it; each difference therefore counts in units of its own typical size.

    Args:
        predicted, target: (batch, levels), levels in rising order.
        std: of the targets.
        typical_difference: (levels - 1,), root mean square of the targets' differences between neighbours.

    Returns:
        Scalars: `loss`, the weighted sum of `score_loss` and, where it has a weight, `difference_loss`.
    """
    terms = {"score_loss": ((predicted - target) / std).square().mean()}
    loss = terms["score_loss"]
    if difference_weight:
        terms["difference_loss"] = ((predicted - target).diff(dim=1) / typical_difference).square().mean()
        loss = loss + difference_weight * terms["difference_loss"]
    return {"loss": loss} | terms
