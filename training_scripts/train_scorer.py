#!/usr/bin/env python
"""Trains an AdapTok scorer: it learns the loss that a block's reconstruction will have at each token count.

At each step one block q is chosen; the counts of earlier blocks are drawn at random; the clip is decoded with every level
of block q (or with `levels_per_step` of them, drawn at random), and the scorer regresses the measured loss of block q
(AdapTok, "scorer"). Decoding is causal, so blocks after q are left out. What is measured, `--target`, is LPIPS by default.

A run that finishes in minutes on a CPU:

    accelerate launch --cpu training_scripts/train_scorer.py training_scripts/recipes/scorer_tiny.json \
        --data_root DATA --tokenizer runs/tokenizer_tiny/model_ema --output_dir runs/scorer_tiny

The paper's scorer, on one machine with 8 GPUs (16 of its 128 clips on each):

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 training_scripts/train_scorer.py \
        training_scripts/recipes/scorer_paper.json --data_root DATA --ucf101_folder UCF-101 \
        --ucf101_splits ucfTrainTestlist --val_folder val --num_workers 8 --tokenizer runs/tokenizer_paper/model_ema \
        --output_dir runs/scorer_paper --report_to tensorboard

The recipe holds every number of the run; an option on the command line overrides it. Number of processes and mixed
precision are accelerate's (`accelerate config`, or options of `accelerate launch`). Processes hold whole models: FSDP and
DeepSpeed are refused.

`output_dir` gets `model/` and, with `ema_decay`, `model_ema/` (both load with `AutoModel.from_pretrained`),
`checkpoint-<step>/` (everything that is needed to resume), `validation/` (pictures), `recipe.json` and `metrics.jsonl`.
The same command with `--resume_from_checkpoint latest` goes on where a run was killed, on a CPU bit for bit.
"""

import copy
import time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate.utils import DistributedType, set_seed

from adaptok_hf import AdapTokModel
from adaptok_hf.data import VideoFolderClips
from adaptok_hf.metrics.lpips_network import LPIPSNetwork
from adaptok_hf.training.arguments import share_of_batch
from adaptok_hf.training.clips import make_training_clips, shared_draws
from adaptok_hf.training.closed_form.energy_scorer import initialize_as_energy_scorer
from adaptok_hf.training.learning_rate import learning_rate_at
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.run_folder import Progress, average_of_weights, start_run
from adaptok_hf.training.scorer.arguments import Arguments
from adaptok_hf.training.scorer.examples import draw, measure_example
from adaptok_hf.training.scorer.input_scale import InputScale
from adaptok_hf.training.scorer.targets import BlockLoss
from adaptok_hf.training.scorer.training_step import (
    build_config,
    build_scorer,
    measure_blocks,
    measure_statistics,
    scorer_loss,
)
from adaptok_hf.training.scorer.validation import draw_scores, measure_scores, predict_scores, rank_correlations
from adaptok_hf.training.tokenizer.arguments import epochs_to_steps
from adaptok_hf.training.tokenizer.validation import save_picture


def main() -> None:
    args = parse_arguments(Arguments)
    accelerator, run = start_run(args, "train_scorer")
    whole = (DistributedType.NO, *(getattr(DistributedType, name) for name in dir(DistributedType) if "MULTI_" in name))
    if accelerator.distributed_type not in whole:
        raise ValueError(f"this script keeps whole models on each process, which {accelerator.distributed_type} does not")
    device, rank, world_size = accelerator.device, accelerator.process_index, accelerator.num_processes
    num_parts = args.gradient_accumulation_steps
    part_size = share_of_batch(args.batch_size, world_size, num_parts) // num_parts
    tokenizer = AdapTokModel.from_pretrained(args.tokenizer, dtype=torch.float32)
    tokenizer = tokenizer.eval().requires_grad_(False).to(device)
    scorer_config = build_config(args, tokenizer.config)
    lpips = None
    if args.target == "perceptual":
        lpips = LPIPSNetwork.from_pretrained("vgg", args.perceptual_network).to(device)
    block_loss = BlockLoss(args.target, lpips)

    accelerator.print("looking for the videos ...")
    clips = make_training_clips(args, tokenizer.config)
    val_set = None
    if args.val_folder:
        folder, config = Path(args.data_root) / args.val_folder, tokenizer.config
        val_set = VideoFolderClips([folder], config.num_frames, config.image_size, random_clips=False)
        measured = measure_scores(tokenizer, val_set, scorer_config.score_step, block_loss, accelerator)
    total_steps = args.steps or epochs_to_steps(args, args.epochs, args.batch_size, clips.num_videos)
    last_step = total_steps if args.max_train_steps is None else min(total_steps, args.max_train_steps)
    warmup_steps = args.warmup_steps
    if args.warmup_epochs is not None:
        warmup_steps = epochs_to_steps(args, args.warmup_epochs, args.batch_size, clips.num_videos)
    accelerator.print(f"{clips.num_videos or 'uncounted'} training videos, {len(val_set or [])} for validation")

    set_seed(args.seed)
    statistics = measure_statistics(args, scorer_config, tokenizer, clips, block_loss, accelerator)
    scale = statistics.scale
    set_seed(args.seed)
    scorer = build_scorer(args, scorer_config, statistics)
    goes_on = args.resume_from_checkpoint is not None and run.checkpoints()  # then the start would be overwritten
    if args.energy_initialization and not goes_on:
        measured_blocks = measure_blocks(args, scorer_config, tokenizer, clips, block_loss, accelerator)
        project_in = copy.deepcopy(tokenizer.quantizer.project_in).cpu()
        initialize_as_energy_scorer(scorer, measured_blocks, project_in, args.energy_parts)
        del measured_blocks
        InputScale(scale.mean.cpu(), scale.std.cpu()).unfold(scorer)
    size = sum(p.numel() for p in scorer.parameters()) / 1e6
    accelerator.print(f"{size:.2f}M parameters, {total_steps} steps on {world_size} processes")
    betas = (args.adam_beta1, args.adam_beta2)
    optimizer = torch.optim.AdamW(scorer.parameters(), lr=args.learning_rate, betas=betas, weight_decay=args.weight_decay)
    wrapped, optimizer = accelerator.prepare(scorer, optimizer)
    progress = Progress()
    accelerator.register_for_checkpointing(progress, clips)
    ema = average_of_weights(scorer, args.ema_decay)
    if ema is not None:
        accelerator.register_for_checkpointing(ema)
    if args.resume_from_checkpoint is not None and run.resume(args.resume_from_checkpoint):
        accelerator.print(f"resumed at step {progress.step}")

    def validate() -> None:
        record = {}
        for prefix, trained in (("", scorer), *((("ema_", ema.module),) if ema is not None else ())):
            predicted = predict_scores(scale.fold(trained), tokenizer, val_set, accelerator)
            record |= {prefix + name: value for name, value in rank_correlations(predicted, measured).items()}
        if accelerator.is_main_process:
            picture = draw_scores(predicted, measured, scorer.config.score_step, args.target)
            save_picture(picture, run.path / "validation" / f"step-{progress.step:06d}.png")
            run.log_picture("scores", picture, progress.step)
        run.log({"step": progress.step} | record)

    def save() -> None:
        average = None if ema is None else scale.fold(ema.module)
        run.save(scale.fold(scorer), progress.step, average, args.checkpoints_total_limit)

    if last_step == 0:  # the start of the weights is all that is asked for
        if val_set is not None:
            validate()
        save()
    seconds, seen = time.time(), 0
    while progress.step < last_step:
        step = progress.step
        with shared_draws(args.seed, step):
            # before the clips: a stream draws from the same generator, but only when it begins
            draws = draw(scorer.config, args.batch_size, args.levels_per_step, args.augment)
            videos = clips.next_batch(args.batch_size)
        draws = draws.of(slice(rank, None, world_size))
        schedule = {"peak": args.learning_rate, "final": args.final_learning_rate, "warmup_steps": warmup_steps}
        learning_rate = learning_rate_at(step, total_steps, **schedule)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        typical_difference = statistics.typical_difference[draws.levels[:-1], draws.levels[1:]]

        for part in range(num_parts):
            own = slice(part * part_size, (part + 1) * part_size)
            with accelerator.autocast():
                example = measure_example(tokenizer, videos[own], draws.of(own), scorer.config.score_step, block_loss)
            with nullcontext() if part == num_parts - 1 else accelerator.no_sync(wrapped):
                inputs = scale(example.latents, example.quantized)
                predicted = wrapped(*inputs, example.counts).scores[:, -1, draws.levels]
                std, weight = scorer.config.score_std, args.difference_weight
                terms = scorer_loss(predicted, example.losses, std, typical_difference, weight)
                accelerator.backward(terms["loss"] / num_parts)
            progress.means.add(terms | {"target": example.losses.mean()})
            if draws.block > 0:
                progress.means.add({"tokens_kept": example.counts[:, :-1].float().mean()})  # of the earlier blocks
        grad_norm = accelerator.clip_grad_norm_(wrapped.parameters(), args.max_grad_norm)
        progress.means.add({"grad_norm": torch.as_tensor(grad_norm)})
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.update_parameters(scorer)
        progress.step = step + 1
        seen += args.batch_size

        last = progress.step == last_step
        if progress.step % args.logging_steps == 0:
            record = progress.means.pop(accelerator) | {"learning_rate": learning_rate}
            run.log({"step": progress.step} | record | {"clips_per_s": seen / (time.time() - seconds)})
            seconds, seen = time.time(), 0
        if val_set is not None and (progress.step % args.validation_steps == 0 or last):
            validate()
            seconds, seen = time.time(), 0
        if progress.step % args.checkpointing_steps == 0 or last:
            save()
    accelerator.end_training()


if __name__ == "__main__":
    main()
