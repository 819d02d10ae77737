#!/usr/bin/env python
"""Trains an AdapTok tokenizer: L1 + MSE + quantiser loss, with the block-mask sampler.

A run that finishes in a minute on a CPU:

    accelerate launch --cpu training_scripts/train_tokenizer.py training_scripts/recipes/tokenizer_smoke.json \
        --data_root DATA --output_dir runs/smoke

The checkpoint that ships with the package:

    accelerate launch --cpu --mixed_precision bf16 training_scripts/train_tokenizer.py \
        training_scripts/recipes/tokenizer_demo.json --data_root DATA --output_dir runs/tokenizer_demo

The recipe holds every number of the run; an option on the command line overrides it. `output_dir` gets `model/`
(loads with `AutoModel.from_pretrained`), `checkpoint/` (everything that is needed to resume, written every
`checkpointing_steps`), `recipe.json` and `metrics.jsonl`.
"""

import math
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import broadcast, set_seed
from recipe_arguments import parse_arguments
from run_folder import RunFolder
from torch import nn
from torch.utils.data import DataLoader
from transform_codec import copy_first_block_tables, initialize_as_transform_codec

from adaptok_hf import AdapTokConfig, AdapTokModel
from adaptok_hf.block_mask_sampler import sample_token_counts
from adaptok_hf.data import VideoFolderClips


@dataclass
class Arguments:
    data_root: str = field(metadata={"help": "Folder that train_folders and val_folder are relative to."})
    output_dir: str = field(metadata={"help": "Where the model, the checkpoint and the log go."})
    train_folders: list[str] = field(default_factory=lambda: ["wild/train", "action32/train"])
    train_weights: list[float] = field(
        default_factory=lambda: [0.75, 0.25], metadata={"help": "Share of the clips drawn from each training folder."}
    )
    val_folder: str = field(default="wild/val")
    model: dict = field(default_factory=dict, metadata={"help": "AdapTokConfig fields (in the recipe file)."})
    stages: list[dict] = field(
        default_factory=lambda: [{"steps": 1000, "num_blocks": 4, "batch_size": 8}],
        metadata={"help": "Curriculum: steps, num_blocks (leading blocks of a clip) and batch_size per process."},
    )
    max_train_steps: int | None = field(
        default=None, metadata={"help": "Stop after this many steps; the schedule is still that of all stages."}
    )
    learning_rate: float = field(default=1e-3)
    final_learning_rate: float = field(default=1e-5)
    warmup_steps: int = field(default=100)
    weight_decay: float = field(default=0.01)
    l1_weight: float = field(default=1.0)
    mse_weight: float = field(default=0.0)
    commitment_weight: float = field(default=0.025, metadata={"help": "The paper's 0.1 x 0.25."})
    codebook_weight: float = field(default=0.1, metadata={"help": "The paper's 0.1 x 1."})
    max_grad_norm: float = field(default=1.0)
    quantize_after: int = field(
        default=0, metadata={"help": "Steps without quantiser; the codebook then starts from encoder outputs."}
    )
    drop_after: int = field(default=0, metadata={"help": "Steps without dropping tails."})
    reseed_every: int = field(default=25, metadata={"help": "Steps after which an unused code is re-seeded; 0 = never."})
    transform_codec_initialization: bool = field(
        default=False,
        metadata={"help": "Start as a rough codec; needs learned position tables (see the function of that name)."},
    )
    seed: int = field(default=0)
    validation_steps: int = field(default=250)
    checkpointing_steps: int = field(default=250)
    logging_steps: int = field(default=25)
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "'latest' goes on from checkpoint/."})

    def __post_init__(self):
        if len(self.train_folders) != len(self.train_weights):
            raise ValueError(f"{len(self.train_folders)} train_folders but {len(self.train_weights)} train_weights")
        if self.resume_from_checkpoint not in (None, "latest"):
            raise ValueError(f"resume_from_checkpoint must be 'latest', got {self.resume_from_checkpoint!r}")


class TrainingStep(nn.Module):
    """The model with its loss, so that distributed wrappers see one forward pass."""

    def __init__(self, model: AdapTokModel, args: Arguments):
        super().__init__()
        self.model, self.args = model, args

    def forward(self, video: torch.Tensor, token_counts: torch.Tensor | None, quantize: bool):
        """Video (batch, frames, 3, height, width) in [0, 1] -> loss, loss terms, codes or `None`, unit latents."""
        model, args = self.model, self.args
        if quantize:
            output = model(video, token_counts)
            reconstruction, codes = output.pixel_values_videos, output.codes
            commitment_loss, codebook_loss = output.commitment_loss, output.codebook_loss
            with torch.no_grad():
                projected = model.quantizer.project(output.latents)
        else:
            projected = model.quantizer.project(model.encoder(video))
            quantized = model.quantizer.project_out(projected).unflatten(1, (-1, model.config.latents_per_block))
            reconstruction, codes = model.decoder(quantized, token_counts), None
            commitment_loss = codebook_loss = video.new_zeros(())
        error = reconstruction.float() - video
        terms = {"l1": error.abs().mean(), "mse": error.square().mean()}
        loss = (
            args.l1_weight * terms["l1"]
            + args.mse_weight * terms["mse"]
            + args.commitment_weight * commitment_loss
            + args.codebook_weight * codebook_loss
        )
        return loss, terms | {"commitment": commitment_loss}, codes, projected


def build_optimizers(model: nn.Module, args: Arguments) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the transformer layers, AdamW for the rest; both at the same learning rate."""
    matrices = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
    others = [p for n, p in model.named_parameters() if not (".layers." in n and p.ndim == 2)]
    return [
        torch.optim.Muon(matrices, lr=args.learning_rate, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def learning_rate_at(step: int, total: int, args: Arguments) -> float:
    """Linear warm-up, then cosine to `final_learning_rate`."""
    if step < args.warmup_steps:
        return args.learning_rate * (step + 1) / args.warmup_steps
    progress = (step - args.warmup_steps) / max(1, total - args.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return args.final_learning_rate + (args.learning_rate - args.final_learning_rate) * cosine


@torch.no_grad()
def reseed_codes(model: AdapTokModel, last_used: torch.Tensor, step: int, projected: torch.Tensor, every: int) -> int:
    """Moves codes that nothing chose for `every` steps onto latents of the current batch; returns how many."""
    dead = (step - last_used >= every).nonzero().flatten()
    if len(dead) == 0:
        return 0
    pool = projected.reshape(-1, projected.shape[-1])
    dead = dead[torch.randperm(len(dead))[: len(pool)]]
    model.quantizer.codebook.weight[dead] = pool[torch.randperm(len(pool))[: len(dead)]].to(model.quantizer.codebook.weight)
    last_used[dead] = step
    return len(dead)


@torch.no_grad()
def validate(model: AdapTokModel, loader: DataLoader, num_blocks: int, quantize: bool, device) -> dict[str, float]:
    """Mean PSNR in dB at 1/16, 1/4 and all of the tokens (per clip over all its pixels, then the mean)."""
    model.eval()
    m = model.config.latents_per_block
    totals: dict[str, list[float]] = {}
    for batch in loader:
        video = batch["pixel_values_videos"][:, : num_blocks * model.config.tubelet_size].to(device).float() / 255
        if quantize:
            quantized = model.encode(video).quantized
        else:
            projected = model.quantizer.project(model.encoder(video))
            quantized = model.quantizer.project_out(projected).unflatten(1, (-1, m))
        for name, count in (("psnr_1/16", m // 16), ("psnr_1/4", m // 4), ("psnr_full", m)):
            counts = torch.full(quantized.shape[:2], count, device=device)
            reconstruction = model.decode(quantized=quantized, token_counts=counts).pixel_values_videos
            mse = (reconstruction.float().clamp(0, 1) - video).square().flatten(1).mean(1)
            totals.setdefault(name, []).extend((-10 * mse.log10()).tolist())
    model.train()
    return {name: sum(values) / len(values) for name, values in totals.items()}


class Progress:
    """What a resumed run needs beside weights and optimisers."""

    def __init__(self, codebook_size: int):
        self.step = 0
        self.last_used = torch.zeros(codebook_size, dtype=torch.long)

    def state_dict(self):
        return {"step": self.step, "last_used": self.last_used}

    def load_state_dict(self, state):
        self.step, self.last_used = state["step"], state["last_used"]


def main() -> None:
    args = parse_arguments(Arguments)
    # Every process draws its own clips, so the loaders need no sharding.
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(dispatch_batches=False))
    set_seed(args.seed)
    config = AdapTokConfig(**args.model)
    model = AdapTokModel(config)
    run = RunFolder(args.output_dir, args, accelerator)

    accelerator.print("decoding the videos ...")
    root = Path(args.data_root)
    train_set = VideoFolderClips([root / f for f in args.train_folders], config.num_frames, config.image_size)
    val_set = VideoFolderClips([root / args.val_folder], config.num_frames, config.image_size, random_clips=False)
    val_loader = DataLoader(val_set, batch_size=8)
    weights = train_set.sampling_weights(args.train_weights)
    accelerator.print(f"{len(train_set)} training videos, {len(val_set)} validation videos")
    accelerator.print(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters")

    if args.transform_codec_initialization:
        sample = torch.stack([train_set[int(i)]["pixel_values_videos"] for i in torch.multinomial(weights, 64, True)])
        initialize_as_transform_codec(model, sample[:, : config.tubelet_size].float() / 255)
    set_seed(args.seed, device_specific=True)
    step_module = TrainingStep(model, args)
    optimizers = build_optimizers(step_module, args)
    step_module, *optimizers = accelerator.prepare(step_module, *optimizers)
    progress = Progress(config.codebook_size)
    accelerator.register_for_checkpointing(progress)
    total_steps = sum(stage["steps"] for stage in args.stages)
    last_step = min(total_steps, args.max_train_steps or total_steps)
    if args.resume_from_checkpoint == "latest" and run.resume():
        accelerator.print(f"resumed at step {progress.step}")
    model.train()
    stage_end, trained_blocks = 0, 0
    seconds, clips, recent = time.time(), 0, torch.zeros(config.codebook_size, dtype=torch.bool)
    for stage in args.stages:
        stage_start, stage_end = stage_end, stage_end + stage["steps"]
        if args.transform_codec_initialization and progress.step == stage_start and trained_blocks:
            copy_first_block_tables(model, trained_blocks)
        trained_blocks = stage["num_blocks"]
        remaining = min(stage_end, last_step) - max(progress.step, stage_start)
        if remaining <= 0:
            continue
        num_frames = stage["num_blocks"] * config.tubelet_size
        for batch in train_set.random_batches(weights, stage["batch_size"], remaining):
            step = progress.step
            video = batch["pixel_values_videos"]
            start = int(torch.randint(config.num_frames - num_frames + 1, ()))
            video = video[:, start : start + num_frames].to(accelerator.device).float() / 255
            quantize, drop = step >= args.quantize_after, step >= args.drop_after
            counts = None
            if drop:
                counts = sample_token_counts(len(video), stage["num_blocks"], config.latents_per_block).to(video.device)
            if step == args.quantize_after and step > 0:  # the codebook starts from the latents of this batch
                with torch.no_grad(), accelerator.autocast():
                    projected = model.quantizer.project(model.encoder(video)).flatten(0, 1).float()
                    pick = torch.randint(len(projected), (config.codebook_size,))
                    codebook = projected[pick] + 0.02 * torch.randn_like(projected[pick])
                    model.quantizer.codebook.weight.copy_(broadcast(codebook))
                progress.last_used.fill_(step)
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate_at(step, total_steps, args)
            with accelerator.autocast():
                loss, terms, codes, projected = step_module(video, counts, quantize)
            accelerator.backward(loss)
            grad_norm = accelerator.clip_grad_norm_(step_module.parameters(), args.max_grad_norm)
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
            clips += len(video)
            if codes is not None:
                used = accelerator.gather(codes).flatten().unique().cpu()
                progress.last_used[used] = step
                recent[used] = True
                if args.reseed_every and step < 0.8 * total_steps:
                    with torch.no_grad(), accelerator.autocast():
                        reseed_codes(model, progress.last_used, step, projected, args.reseed_every)
                        # each process drew from its own batch
                        model.quantizer.codebook.weight.copy_(broadcast(model.quantizer.codebook.weight.detach()))
            progress.step = step + 1
            if progress.step % args.logging_steps == 0:
                elapsed = time.time() - seconds
                run.log(
                    {"step": progress.step, "loss": loss.item(), **{k: v.item() for k, v in terms.items()}}
                    | {"grad_norm": float(grad_norm), "codes_used": int(recent.sum()), "clips_per_s": clips / elapsed}
                )
                seconds, clips, recent = time.time(), 0, torch.zeros_like(recent)
            if progress.step % args.validation_steps == 0 or progress.step == last_step:
                with accelerator.autocast():
                    run.log(
                        {"step": progress.step} | validate(model, val_loader, stage["num_blocks"], quantize, video.device)
                    )
                seconds = time.time()
            if progress.step % args.checkpointing_steps == 0 or progress.step == last_step:
                run.save(model)
    accelerator.end_training()


if __name__ == "__main__":
    main()
