#!/usr/bin/env python
"""Trains an AdapTok tokenizer (or its CausalTok baseline: `"adaptive": false` in the recipe's model).

A run that finishes in minutes on a CPU:

    accelerate launch --cpu training_scripts/train_tokenizer.py training_scripts/recipes/tokenizer_tiny.json \
        --data_root DATA --output_dir runs/tokenizer_tiny

The paper's tokenizer, on one machine with 8 GPUs (its batch of 128 clips in 2 parts for each GPU):

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 training_scripts/train_tokenizer.py \
        training_scripts/recipes/tokenizer_paper.json --data_root DATA --ucf101_folder UCF-101 \
        --ucf101_splits ucfTrainTestlist --val_folder val --num_workers 8 --gradient_accumulation_steps 2 \
        --output_dir runs/tokenizer_paper --report_to tensorboard

More lines, for many machines too, are in `training_scripts/README.md`. The recipe holds every number of the run; an option
on the command line overrides it. Number of processes and mixed precision are accelerate's (`accelerate config`, or
options of `accelerate launch`). Processes hold whole models, or parts of them with `--shard_over`, which stands in for
accelerate's FSDP and DeepSpeed: these are refused.

`output_dir` gets `model/` and, with `ema_decay`, `model_ema/` (both load with `AutoModel.from_pretrained`),
`checkpoint-<step>/` (everything that is needed to resume), `validation/` (pictures), `recipe.json` and `metrics.jsonl`.
The same command with `--resume_from_checkpoint latest` goes on where a run was killed, on a CPU bit for bit.
"""

import time
from contextlib import nullcontext
from pathlib import Path

import torch
from accelerate import DistributedDataParallelKwargs
from accelerate.utils import DistributedType, set_seed

from adaptok_hf import AdapTokModel
from adaptok_hf.data import VideoFolderClips
from adaptok_hf.losses import TokenizerLoss, scheduled_sampling_ratio
from adaptok_hf.metrics.lpips_network import LPIPSNetwork
from adaptok_hf.training.block_mask_sampler import sample_token_counts
from adaptok_hf.training.clips import make_training_clips, shared_draws
from adaptok_hf.training.closed_form.transform_codec import copy_first_block_tables, initialize_as_transform_codec
from adaptok_hf.training.learning_rate import learning_rate_at
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.run_folder import Progress, average_of_weights, start_run
from adaptok_hf.training.sharding import ShardedAverage, save_shards_with_checkpoints, shard, whole_copy, whole_tensor
from adaptok_hf.training.tokenizer.arguments import Arguments, epochs_to_steps, plan_stages
from adaptok_hf.training.tokenizer.code_reseeding import reseed_codes, start_codebook
from adaptok_hf.training.tokenizer.training_step import (
    TrainingStep,
    build_adversarial_loss,
    build_model,
    build_optimizers,
    build_prior,
)
from adaptok_hf.training.tokenizer.validation import Reconstructor, draw_reconstructions, measure_psnr, save_picture


class TokenizerProgress(Progress):
    def __init__(self, codebook_size: int):
        super().__init__()
        self.last_used = torch.zeros(codebook_size, dtype=torch.long)
        self.recent = torch.zeros(codebook_size, dtype=torch.bool)  # the codes used since the last log entry

    def state_dict(self):
        return super().state_dict() | {"last_used": self.last_used, "recent": self.recent}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.last_used, self.recent = state["last_used"], state["recent"]


def main() -> None:
    args = parse_arguments(Arguments)
    # without quantiser the codebook has no gradient
    unused = DistributedDataParallelKwargs(find_unused_parameters=args.quantize_after > 0)
    accelerator, run = start_run(args, "train_tokenizer", kwargs_handlers=[unused])
    whole = (DistributedType.NO, *(getattr(DistributedType, name) for name in dir(DistributedType) if "MULTI_" in name))
    if accelerator.distributed_type not in whole:
        raise ValueError(f"to shard models launch without {accelerator.distributed_type} and give --shard_over")
    device, rank, world_size = accelerator.device, accelerator.process_index, accelerator.num_processes
    set_seed(args.seed)
    model = build_model(args)
    config = model.config

    accelerator.print("looking for the videos ...")
    clips = make_training_clips(args, config)
    val_set = None
    if args.val_folder:
        folder = Path(args.data_root) / args.val_folder
        val_set = VideoFolderClips([folder], config.num_frames, config.image_size, random_clips=False)
    stages = plan_stages(args, clips.num_videos, world_size, config.num_blocks)
    total_steps = stages[-1].end
    last_step = total_steps if args.max_train_steps is None else min(total_steps, args.max_train_steps)
    warmup_steps = args.warmup_steps
    if args.warmup_epochs is not None:
        warmup_steps = epochs_to_steps(args, args.warmup_epochs, stages[0].batch_size, clips.num_videos)
    if args.transform_codec_initialization:
        frames = min(3, config.num_blocks) * config.tubelet_size
        sample = clips.sample(args.initialization_clips)[:, :frames].float() / 255
        initialize_as_transform_codec(model, sample, args.coarse_latents)
    step_module = TrainingStep(model, build_prior(args, config), args)
    adversarial = build_adversarial_loss(args, config)
    lpips = None
    if args.perceptual_weight:
        lpips = LPIPSNetwork.from_pretrained("vgg", args.perceptual_network).to(device)
    accelerator.print(f"{clips.num_videos or 'uncounted'} training videos, {len(val_set or [])} for validation")
    size = sum(p.numel() for p in step_module.parameters()) / 1e6
    accelerator.print(f"{size:.2f}M parameters, {total_steps} steps on {world_size} processes")

    set_seed(args.seed, device_specific=True)  # processes draw the same clips (`shared_draws`), but their own noise
    if args.shard_over:
        shard(step_module, accelerator, args.shard_over)
    optimizers = build_optimizers(step_module, args)
    if not args.shard_over:
        step_module, *optimizers = accelerator.prepare(step_module, *optimizers)
    tokenizer_loss = TokenizerLoss(args.loss_weights, lpips, adversarial)
    wrapped_adversarial = discriminator_optimizer = None
    if adversarial is not None:
        betas, rate = (args.adam_beta1, args.adam_beta2), args.discriminator_learning_rate
        discriminator_optimizer = torch.optim.Adam(adversarial.parameters(), lr=rate, betas=betas)
        wrapped_adversarial, discriminator_optimizer = accelerator.prepare(adversarial, discriminator_optimizer)
    progress = TokenizerProgress(config.codebook_size)
    accelerator.register_for_checkpointing(progress, clips)
    ema = None
    if args.shard_over:
        ema = ShardedAverage(model, args.ema_decay) if args.ema_decay else None
        save_shards_with_checkpoints(accelerator, step_module, optimizers, ema)
    elif args.ema_decay:
        ema = average_of_weights(model, args.ema_decay)
        accelerator.register_for_checkpointing(ema)

    def whole_models() -> dict[str, AdapTokModel]:
        """The model and its average to be measured or saved, by the prefix of what is measured of them."""
        if not args.shard_over:
            return {"": model} | ({"ema_": ema.module} if ema else {})
        return {"": whole_copy(model)} | ({"ema_": whole_copy(model, ema.weights)} if ema else {})

    def validate(num_blocks: int, quantize: bool) -> None:
        record = {}
        with accelerator.autocast():
            for prefix, measured in whole_models().items():
                reconstruct = Reconstructor(measured, num_blocks, quantize)
                psnr = measure_psnr(reconstruct, val_set, accelerator)
                record |= {prefix + name: value for name, value in psnr.items()}
            if accelerator.is_main_process:
                picture = draw_reconstructions(reconstruct, val_set, device)
                save_picture(picture, run.path / "validation" / f"step-{progress.step:06d}.png")
                run.log_picture("reconstructions", picture, progress.step)
        run.log({"step": progress.step} | record)

    def save() -> None:
        models = whole_models()
        run.save(models[""], progress.step, models.get("ema_"), args.checkpoints_total_limit)

    if args.resume_from_checkpoint is not None and run.resume(args.resume_from_checkpoint):
        accelerator.print(f"resumed at step {progress.step}")

    if last_step == 0:  # the start of the weights is all that is asked for
        if val_set is not None:
            validate(stages[0].num_blocks, args.quantize_after <= 0)
        save()
    seconds, seen = time.time(), 0
    while progress.step < last_step:
        step = progress.step
        index = next(i for i, stage in enumerate(stages) if step < stage.end)
        stage = stages[index]
        if args.transform_codec_initialization and index > 0 and step == stage.start:
            copy_first_block_tables(model, stages[index - 1].num_blocks)
        quantize = step >= args.quantize_after
        num_frames = stage.num_blocks * config.tubelet_size
        with shared_draws(args.seed, step):
            videos = clips.next_batch(stage.batch_size)
            start = int(torch.randint(config.num_frames - num_frames + 1, ()))
            counts = None
            if config.adaptive and step >= args.drop_after:
                counts = sample_token_counts(stage.batch_size, stage.num_blocks, config.latents_per_block)
                counts = counts[rank::world_size].to(device)
        videos = videos[:, start : start + num_frames].to(device)
        if step == args.quantize_after and step > 0:
            with torch.no_grad(), accelerator.autocast():
                start_codebook(model, model.quantizer.project(model.encoder(videos.float() / 255)).flatten(0, 1))
            progress.last_used.fill_(step)

        schedule = {"peak": args.learning_rate, "final": args.final_learning_rate, "warmup_steps": warmup_steps}
        learning_rate = learning_rate_at(step, total_steps, **schedule)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * group["factor"]
        sampling_ratio = scheduled_sampling_ratio(step, total_steps, args.prior_sampling_peak, args.prior_sampling_peak_at)
        discriminator_turn = adversarial is not None and adversarial.is_discriminator_turn(step)

        num_parts = args.gradient_accumulation_steps
        size = len(videos) // num_parts
        codes, projected = [], []
        for part in range(num_parts):
            own = slice(part * size, (part + 1) * size)
            video, own_counts = videos[own].float() / 255, None if counts is None else counts[own]
            last_part = part == num_parts - 1
            with nullcontext() if last_part else accelerator.no_sync(step_module):
                with accelerator.autocast():
                    output, own_projected, prior_term = step_module(video, own_counts, quantize, sampling_ratio)
                    terms = tokenizer_loss(video, output, step, prior_term)
                accelerator.backward(terms["total"] / num_parts)
            progress.means.add({"loss": terms.pop("total")} | terms)
            projected.append(own_projected.flatten(0, 1))
            if output.codes is not None:
                codes.append(output.codes)
            if discriminator_turn:
                reconstruction = output.pixel_values_videos.detach()
                with nullcontext() if last_part else accelerator.no_sync(wrapped_adversarial):
                    with accelerator.autocast():
                        terms = wrapped_adversarial(video, reconstruction)
                    accelerator.backward(terms.pop("total") / num_parts)
                progress.means.add(terms)
        grad_norm = accelerator.clip_grad_norm_(step_module.parameters(), args.max_grad_norm)
        progress.means.add({"grad_norm": whole_tensor(torch.as_tensor(grad_norm))})
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if discriminator_turn:
            grad_norm = accelerator.clip_grad_norm_(wrapped_adversarial.parameters(), args.max_grad_norm)
            progress.means.add({"discriminator_grad_norm": torch.as_tensor(grad_norm)})
            for group in discriminator_optimizer.param_groups:
                group["lr"] = args.discriminator_learning_rate * learning_rate / args.learning_rate
            discriminator_optimizer.step()
            discriminator_optimizer.zero_grad()
        if codes:
            used = accelerator.gather(torch.cat(codes)).flatten().unique().cpu()
            progress.last_used[used] = step
            progress.recent[used] = True
            if args.reseed_every and step < 0.8 * total_steps:
                reseed_codes(model, progress.last_used, step, torch.cat(projected), args.reseed_every)
        if counts is not None:
            kept = counts.float().mean(0)
            progress.means.add({"tokens_kept": kept.mean()} | {f"tokens_kept_{i}": n for i, n in enumerate(kept)})
        if ema is not None:
            ema.update_parameters(model)
        progress.step = step + 1
        seen += stage.batch_size

        last = progress.step == last_step
        if progress.step % args.logging_steps == 0:
            record = progress.means.pop(accelerator) | {"learning_rate": learning_rate}
            record["codes_used"] = int(progress.recent.sum())
            run.log({"step": progress.step} | record | {"clips_per_s": seen / (time.time() - seconds)})
            progress.recent.zero_()
            seconds, seen = time.time(), 0
        if val_set is not None and (progress.step % args.validation_steps == 0 or last):
            validate(stage.num_blocks, quantize)
            seconds, seen = time.time(), 0
        if progress.step % args.checkpointing_steps == 0 or last:
            save()
    accelerator.end_training()


if __name__ == "__main__":
    main()
