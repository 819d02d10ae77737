"""The parts of a scorer's training: tokenizer and targets, statistics of inputs and targets, the scorer, its loss."""

import copy
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from ...metrics.lpips_network import LPIPSNetwork
from ...models.configuration_adaptok import AdapTokConfig
from ...models.configuration_adaptok_scorer import AdapTokScorerConfig
from ...models.modeling_adaptok import AdapTokModel
from ...models.modeling_adaptok_scorer import AdapTokScorerModel
from ..clips import StreamBatches
from ..folder_batches import FolderBatches
from .arguments import Arguments, ExampleArguments
from .examples import measure_example, sample_settings
from .targets import BlockLoss


class InputScale:
    """Standardizes the scorer's input channels while it is trained.

    A few channels of the latents are a hundred times larger than others; Adam's steps, equally long for all weights, would
    be too long for some and too short for others. The saved model has the scale in its first layer's weights.

    Args:
        mean, std: (2 * latent_size,), of latents and quantized latents.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor):
        self.mean, self.std = mean, std.clamp(min=1e-4)

    def __call__(self, latents: torch.Tensor, quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = (torch.cat([latents, quantized], dim=-1) - self.mean) / self.std
        return inputs.chunk(2, dim=-1)

    @torch.no_grad()
    def fold(self, scorer: AdapTokScorerModel) -> AdapTokScorerModel:
        """Return a copy, for evaluation, of a scorer of standardized inputs that takes them as they are.

        Its scores are the same wherever tokens are kept.
        """
        scorer = copy.deepcopy(scorer).eval()
        scorer.project_in.weight /= self.std
        scorer.project_in.bias -= scorer.project_in.weight @ self.mean
        return scorer

    @torch.no_grad()
    def unfold(self, scorer: AdapTokScorerModel) -> None:
        """Undo `fold`, in place."""
        scorer.project_in.bias += scorer.project_in.weight @ self.mean
        scorer.project_in.weight *= self.std


def load_tokenizer(args: ExampleArguments, device: torch.device) -> tuple[AdapTokModel, BlockLoss]:
    """Return the frozen tokenizer whose blocks are scored, and the loss that is measured.

    Raises:
        ValueError: if the tokenizer always keeps all tokens.
    """
    tokenizer = AdapTokModel.from_pretrained(args.tokenizer, dtype=torch.float32).eval().requires_grad_(False).to(device)
    if not tokenizer.config.adaptive:
        raise ValueError(
            f"{args.tokenizer} is not adaptive (CausalTok, LARP): it keeps all tokens, there is nothing to score"
        )
    lpips = None
    if args.target == "perceptual":
        lpips = LPIPSNetwork.from_pretrained("vgg", args.perceptual_network).to(device)
    return tokenizer, BlockLoss(args.target, lpips)


def build_config(
    args: ExampleArguments, tokenizer: AdapTokConfig, entries: dict, init_from: str | None = None
) -> AdapTokScorerConfig:
    """Return the configuration of a scorer for a tokenizer: that of `init_from`, or a new one.

    Args:
        entries: fields of a new one; sizes that the tokenizer fixes may be left out.

    Raises:
        ValueError: if it does not fit the tokenizer or the target.
    """
    if init_from:
        entries = AdapTokScorerConfig.from_pretrained(init_from).to_dict()
    sizes = {
        "latent_size": tokenizer.hidden_size,
        "num_blocks": tokenizer.num_blocks,
        "latents_per_block": tokenizer.latents_per_block,
    }
    config = AdapTokScorerConfig(**sizes | {"target": args.target, "target_span": args.score_target_span} | entries)
    for name, value in sizes.items():
        if getattr(config, name) != value:
            raise ValueError(f"the scorer's {name} is {getattr(config, name)}, the tokenizer's {value}")
    if config.target not in (None, args.target):
        raise ValueError(f"the scorer's target is {config.target!r}, that of this run {args.target!r}")
    if config.target_span not in (None, args.score_target_span):
        raise ValueError(f"the scorer's target_span is {config.target_span!r}, that of this run {args.score_target_span!r}")
    config.target, config.target_span = args.target, args.score_target_span
    if (args.levels_per_step or 1) > config.num_levels:
        raise ValueError(f"levels_per_step must be 1..{config.num_levels}, got {args.levels_per_step}")
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
    """Measure the statistics: the same on every process, whatever their number, and again in a resumed run. Every process
    must call this.

    Samples by torch's global generator, whose state must be the same on every process.

    Raises:
        ValueError: if the losses do not vary.
    """
    size, rank, num_processes = args.batch_size, accelerator.process_index, accelerator.num_processes
    num_parts = args.gradient_accumulation_steps
    means, variances, losses = [], [], []
    for videos in clips.sample(args.statistics_batches * size).split(size):
        settings = sample_settings(config, size, None, args.augment, args.score_target_span)
        for part in range(num_parts):
            share = slice(rank + part * num_processes, None, num_processes * num_parts)
            with accelerator.autocast():
                example = measure_example(tokenizer, videos[share], settings.of(share), config.score_step, block_loss)
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


def build_scorer(args: Arguments, config: AdapTokScorerConfig, statistics: Statistics) -> AdapTokScorerModel:
    """Return the scorer, of standardized inputs, in training mode, on the CPU."""
    if args.init_from:
        scorer = AdapTokScorerModel.from_pretrained(args.init_from, dtype=torch.float32)
        scorer.config.target, scorer.config.target_span = config.target, config.target_span
        InputScale(statistics.scale.mean.cpu(), statistics.scale.std.cpu()).unfold(scorer)
        return scorer.train()
    measured = {"score_mean": statistics.mean, "score_std": statistics.std}
    for name in measured.keys() - args.model.keys():
        setattr(config, name, measured[name])
    return AdapTokScorerModel(config).train()


def scorer_loss(
    predicted: torch.Tensor, target: torch.Tensor, std: float, typical_difference: torch.Tensor, difference_weight: float
) -> dict[str, torch.Tensor]:
    """Return the mean squared error of the standardized scores (the paper's loss) and, weighted, of their differences.

    Allocation depends on what a few more tokens gain. Between high levels that is a hundredth of what separates two clips,
    and the paper's loss alone hardly feels it; each difference therefore counts in units of its own typical size.

    Args:
        predicted, target: (batch, levels), levels in rising order.
        std: of the targets.
        typical_difference: (levels - 1,), root mean square of the targets' differences between neighbors.

    Returns:
        Scalars: `loss`, the weighted sum of `score_loss` and, where it has a weight, `difference_loss`.
    """
    terms = {"score_loss": ((predicted - target) / std).square().mean()}
    loss = terms["score_loss"]
    if difference_weight:
        terms["difference_loss"] = ((predicted - target).diff(dim=1) / typical_difference).square().mean()
        loss = loss + difference_weight * terms["difference_loss"]
    return {"loss": loss} | terms
