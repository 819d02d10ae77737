#!/usr/bin/env python
"""Trains an AdapTok scorer: it learns the loss that a block's reconstruction will have at each token count.

At each step one block q is chosen; the counts of earlier blocks are drawn at random; the clip is decoded with every level
of block q (or with `levels_per_step` of them, drawn at random), and the scorer regresses the measured loss of block q
(AdapTok, "scorer"). Decoding is causal, so blocks after q are left out.

    accelerate launch --cpu training_scripts/train_scorer.py training_scripts/recipes/scorer_demo.json \
        --data_root DATA --tokenizer runs/tokenizer_demo/model --output_dir runs/scorer_demo

`output_dir` gets `model/` (loads with `AutoModel.from_pretrained`), `checkpoint/` (to resume), `recipe.json` and
`metrics.jsonl`.
"""

import copy
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from learning_rate import learning_rate_at
from recipe_arguments import parse_arguments
from run_folder import RunFolder
from torch.utils.data import DataLoader
from torchmetrics.functional import spearman_corrcoef

from adaptok_hf import AdapTokModel, AdapTokScorerConfig, AdapTokScorerModel
from adaptok_hf.block_mask_sampler import sample_token_counts
from adaptok_hf.data import VideoFolderClips


@dataclass
class Arguments:
    data_root: str = field(metadata={"help": "Folder that train_folders and val_folder are relative to."})
    tokenizer: str = field(metadata={"help": "A trained AdapTokModel; it stays as it is."})
    output_dir: str = field(metadata={"help": "Where the model, the checkpoint and the log go."})
    train_folders: list[str] = field(default_factory=lambda: ["wild/train", "action32/train"])
    train_weights: list[float] = field(default_factory=lambda: [0.75, 0.25])
    val_folder: str = field(default="wild/val")
    model: dict = field(default_factory=dict, metadata={"help": "AdapTokScorerConfig fields (in the recipe file)."})
    init_from: str | None = field(
        default=None, metadata={"help": "Start from this trained scorer, whose configuration and statistics are kept."}
    )
    augment: bool = field(
        default=False, metadata={"help": "Vary zoom and contrast of the clips: a scorer overfits few videos quickly."}
    )
    target: str = field(default="rmse", metadata={"help": "Loss per block: 'rmse' or 'l1', both in [0, 1]."})
    max_train_steps: int = field(default=1000)
    batch_size: int = field(default=4, metadata={"help": "Clips per process and step."})
    levels_per_step: int | None = field(
        default=None,
        metadata={"help": "Levels measured per step, drawn at random; default: every level, as the paper does."},
    )
    difference_weight: float = field(
        default=0.0,
        metadata={"help": "Weight of the loss's second term, see `scorer_loss`; 0 is the paper's loss."},
    )
    learning_rate: float = field(default=1e-3)
    warmup_steps: int = field(default=50)
    weight_decay: float = field(default=0.01)
    max_grad_norm: float = field(default=1.0)
    statistics_batches: int = field(default=16, metadata={"help": "Batches that fix mean and deviation of the targets."})
    seed: int = field(default=0)
    validation_steps: int = field(default=250)
    checkpointing_steps: int = field(default=250)
    logging_steps: int = field(default=25)
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "'latest' goes on from checkpoint/."})

    def __post_init__(self):
        if len(self.train_folders) != len(self.train_weights):
            raise ValueError(f"{len(self.train_folders)} train_folders but {len(self.train_weights)} train_weights")
        if self.target not in ("rmse", "l1"):
            raise ValueError(f"target must be 'rmse' or 'l1', got {self.target!r}")
        if self.resume_from_checkpoint not in (None, "latest"):
            raise ValueError(f"resume_from_checkpoint must be 'latest', got {self.resume_from_checkpoint!r}")


@torch.no_grad()
def measure_levels(
    tokenizer: AdapTokModel,
    video: torch.Tensor,
    quantized: torch.Tensor,
    counts: torch.Tensor,
    levels: Iterable[int],
    target: str,
) -> torch.Tensor:
    """The loss of the last block at each of `levels`.

    Args:
        video: (batch, frames, 3, height, width) in [0, 1], up to and with the block that is measured.
        quantized: (batch, blocks, latents_per_block, hidden_size) of these blocks.
        counts: (batch, blocks) long, the counts of the earlier blocks; the last column is ignored.
        levels: token counts of the last block.

    Returns:
        (batch, levels) float32.
    """
    frames = tokenizer.config.tubelet_size
    losses = []
    for count in levels:
        counts = counts.clone()
        counts[:, -1] = count
        decoded = tokenizer.decode(quantized=quantized, token_counts=counts).pixel_values_videos[:, -frames:]
        error = decoded.float().clamp(0, 1) - video[:, -frames:]
        per_clip = error.square().flatten(1).mean(1).sqrt() if target == "rmse" else error.abs().flatten(1).mean(1)
        losses.append(per_clip)
    return torch.stack(losses, dim=1)


def zoom_and_contrast(video: torch.Tensor) -> torch.Tensor:
    """Each clip (frames, channels, height, width), in [0, 1], cropped to a random square and enlarged again, and its
    contrast changed."""
    size = video.shape[-1]
    clips = []
    for clip in video:
        side = int(torch.randint(size // 2, size + 1, ()))
        top, left = torch.randint(size - side + 1, (2,)).tolist()
        crop = clip[..., top : top + side, left : left + side]
        clip = torch.nn.functional.interpolate(crop, size=(size, size), mode="bilinear", antialias=True)
        mean = clip.mean()
        clips.append(mean + (clip - mean) * (0.5 + 0.7 * torch.rand(())))
    return torch.stack(clips).clamp(0, 1)


class InputScale:
    """Standardises the scorer's input channels while it is trained.

    A few channels of the latents are a hundred times larger than others; Adam's steps, equally long for all weights, would
    be too long for the ones and too short for the others. The saved model has the scale in its first layer's weights.

    Args:
        inputs: (tokens, 2 * latent_size), latents and quantised latents of a sample of clips.
    """

    def __init__(self, inputs: torch.Tensor):
        self.mean, self.std = inputs.mean(0), inputs.std(0).clamp(min=1e-4)

    def __call__(self, latents: torch.Tensor, quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = (torch.cat([latents, quantized], dim=-1) - self.mean) / self.std
        return inputs.chunk(2, dim=-1)

    @torch.no_grad()
    def fold(self, scorer: AdapTokScorerModel) -> AdapTokScorerModel:
        """A copy of a scorer of standardised inputs that takes them as they are."""
        scorer = copy.deepcopy(scorer)
        scorer.project_in.weight /= self.std
        scorer.project_in.bias -= scorer.project_in.weight @ self.mean
        return scorer

    @torch.no_grad()
    def unfold(self, scorer: AdapTokScorerModel) -> None:
        """Undoes `fold`, in place."""
        scorer.project_in.bias += scorer.project_in.weight @ self.mean
        scorer.project_in.weight *= self.std


def scorer_loss(
    predicted: torch.Tensor, target: torch.Tensor, std: float, typical_difference: torch.Tensor, difference_weight: float
) -> torch.Tensor:
    """Mean squared error of the standardised scores (the paper's loss) and, weighted, of their differences.

    Allocation lives on what a few more tokens gain. Between high levels that is a hundredth of what separates two clips,
    and the paper's loss alone hardly feels it; each difference therefore counts in units of its own typical size
    (but not less than a tenth of `std`, or the measurement's noise would rule).

    Args:
        predicted, target: (batch, levels), levels in rising order.
        std: of the targets.
        typical_difference: (levels - 1,), root mean square of the targets' differences between neighbours.
    """
    loss = ((predicted - target) / std).square().mean()
    if difference_weight:
        error = (predicted - target).diff(dim=1) / typical_difference
        loss = loss + difference_weight * error.square().mean()
    return loss


@torch.no_grad()
def rank_correlations(
    scorer: AdapTokScorerModel, tokenizer: AdapTokModel, loader: DataLoader, target: str, device: torch.device
) -> dict[str, float]:
    """Spearman's rank correlation of predicted and measured losses.

    `across_levels`: per clip and block over the levels, then the mean. `across_clips`: per block and level over the
    clips, then the mean; this is what allocation between clips lives on. Earlier blocks keep half of their tokens.
    """
    config, step = tokenizer.config, scorer.config.score_step
    levels = range(step, config.latents_per_block + 1, step)
    predicted, measured = [], []
    for batch in loader:
        video = batch["pixel_values_videos"].to(device).float() / 255
        encoded = tokenizer.encode(video)
        rows = []
        for block in range(config.num_blocks):
            known = slice(0, block + 1)
            counts = torch.full((len(video), block + 1), config.latents_per_block // 2, device=device)
            frames = video[:, : (block + 1) * config.tubelet_size]
            truth = measure_levels(tokenizer, frames, encoded.quantized[:, known], counts, levels, target)
            counts[:, -1] = config.latents_per_block
            guess = scorer(encoded.latents[:, known], encoded.quantized[:, known], counts).scores[:, -1]
            rows.append(torch.stack([guess, truth]))
        predicted.append(torch.stack([row[0] for row in rows], 1))
        measured.append(torch.stack([row[1] for row in rows], 1))
    guess, truth = torch.cat(predicted).float().cpu(), torch.cat(measured).float().cpu()  # (clips, blocks, levels)
    levels = guess.shape[-1]
    across_levels = spearman_corrcoef(guess.reshape(-1, levels).T, truth.reshape(-1, levels).T)
    across_clips = spearman_corrcoef(guess.flatten(1), truth.flatten(1))
    return {
        "val_rmse": float((guess - truth).square().mean().sqrt()),
        "rank_correlation_across_levels": float(across_levels.mean()),
        "rank_correlation_across_clips": float(across_clips.mean()),
    }


class Progress:
    """What a resumed run needs beside weights and optimiser."""

    def __init__(self):
        self.step = 0

    def state_dict(self):
        return {"step": self.step}

    def load_state_dict(self, state):
        self.step = state["step"]


def main() -> None:
    args = parse_arguments(Arguments)
    # Every process draws its own clips, so the loaders need no sharding.
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=False))
    set_seed(args.seed)
    tokenizer = AdapTokModel.from_pretrained(args.tokenizer).eval().requires_grad_(False).to(accelerator.device)
    config = tokenizer.config
    geometry = {
        "latent_size": config.hidden_size,
        "num_blocks": config.num_blocks,
        "latents_per_block": config.latents_per_block,
    }
    if args.init_from:
        scorer_config = AdapTokScorerConfig.from_pretrained(args.init_from)
    else:
        scorer_config = AdapTokScorerConfig(**geometry, **args.model)
    if args.levels_per_step is not None and not 1 <= args.levels_per_step <= scorer_config.num_levels:
        raise ValueError(f"levels_per_step must be 1..{scorer_config.num_levels}, got {args.levels_per_step}")
    run = RunFolder(args.output_dir, args, accelerator)

    accelerator.print("decoding the videos ...")
    root = Path(args.data_root)
    train_set = VideoFolderClips([root / f for f in args.train_folders], config.num_frames, config.image_size)
    val_set = VideoFolderClips([root / args.val_folder], config.num_frames, config.image_size, random_clips=False)
    val_loader = DataLoader(val_set, batch_size=8)
    weights = train_set.sampling_weights(args.train_weights)

    def batches(count: int):
        return train_set.random_batches(weights, args.batch_size, count)

    @torch.no_grad()
    def example(batch, levels_per_step: int | None = args.levels_per_step):
        """Latents, quantized and counts up to a random block, the indices of the levels measured, the losses there."""
        block = int(torch.randint(config.num_blocks, ()))
        video = batch["pixel_values_videos"][:, : (block + 1) * config.tubelet_size]
        video = video.to(accelerator.device).float() / 255
        if args.augment:
            video = zoom_and_contrast(video)
        counts = sample_token_counts(len(video), block + 1, config.latents_per_block).to(accelerator.device)
        drawn = torch.randperm(scorer_config.num_levels)[:levels_per_step].sort().values
        levels = (drawn + 1) * scorer_config.score_step
        with accelerator.autocast():
            encoded = tokenizer.encode(video)
            target = measure_levels(tokenizer, video, encoded.quantized, counts, levels.tolist(), args.target)
        counts[:, -1] = config.latents_per_block
        return encoded.latents.float(), encoded.quantized.float(), counts, drawn, target

    # Statistics of inputs and targets: the same on every process, and on every resumed run.
    inputs, targets = [], []
    for batch in batches(args.statistics_batches):
        latents, quantized, _, _, target = example(batch, levels_per_step=None)
        inputs.append(torch.cat([latents, quantized], dim=-1)[:, :1].flatten(0, 2))
        targets.append(target)
    scale = InputScale(accelerator.gather(torch.cat(inputs)))
    targets = accelerator.gather(torch.cat(targets))
    # (levels, levels), root mean square difference of the targets at two levels
    typical_difference = (targets[:, :, None] - targets[:, None]).square().mean(0).sqrt()
    typical_difference = typical_difference.clamp(min=0.1 * float(targets.std()))
    if args.init_from:
        scorer = AdapTokScorerModel.from_pretrained(args.init_from, dtype=torch.float32).to(accelerator.device).train()
        scale.unfold(scorer)
    else:
        scorer_config.score_mean, scorer_config.score_std = float(targets.mean()), float(targets.std())
        set_seed(args.seed)
        scorer = AdapTokScorerModel(scorer_config).train()
    set_seed(args.seed, device_specific=True)
    accelerator.print(f"{sum(p.numel() for p in scorer.parameters()) / 1e6:.2f}M parameters")
    optimizer = torch.optim.AdamW(
        scorer.parameters(), lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=args.weight_decay
    )
    wrapped, optimizer = accelerator.prepare(scorer, optimizer)
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if args.resume_from_checkpoint == "latest" and run.resume():
        accelerator.print(f"resumed at step {progress.step}")

    seconds, peak = time.time(), args.learning_rate
    for batch in batches(args.max_train_steps - progress.step):
        latents, quantized, counts, drawn, target = example(batch)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(
                progress.step, args.max_train_steps, peak=peak, final=0.01 * peak, warmup_steps=args.warmup_steps
            )
        predicted = wrapped(*scale(latents, quantized), counts).scores[:, -1, drawn]
        typical = typical_difference[drawn[:-1], drawn[1:]]
        loss = scorer_loss(predicted, target, scorer_config.score_std, typical, args.difference_weight)
        accelerator.backward(loss)
        grad_norm = accelerator.clip_grad_norm_(wrapped.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        progress.step += 1
        last = progress.step == args.max_train_steps
        if progress.step % args.logging_steps == 0:
            rate = args.logging_steps * args.batch_size / (time.time() - seconds)
            run.log({"step": progress.step, "loss": loss.item(), "grad_norm": float(grad_norm), "clips_per_s": rate})
            seconds = time.time()
        if progress.step % args.validation_steps == 0 or last:
            with accelerator.autocast():
                record = rank_correlations(
                    scale.fold(scorer).eval(), tokenizer, val_loader, args.target, accelerator.device
                )
            run.log({"step": progress.step} | record)
            seconds = time.time()
        if progress.step % args.checkpointing_steps == 0 or last:
            run.save(scale.fold(scorer))
    accelerator.end_training()


if __name__ == "__main__":
    main()
