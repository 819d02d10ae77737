#!/usr/bin/env python
"""Trains an AdapTok generator on the token sequences that `tokenize_dataset.py` wrote.

A generator is class-conditional, or continues given frames (frame prediction), as its `model` entries say. In minutes on a
CPU, with the tokens of the tiny tokenizer:

    accelerate launch --cpu training_scripts/train_ar.py training_scripts/recipes/ar_tiny.json \
        --tokens tokens/tiny --output_dir runs/ar_tiny

The paper's, on one machine with 8 GPUs:

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 training_scripts/train_ar.py \
        training_scripts/recipes/ar_paper.json --tokens tokens/ucf101 --num_workers 2 --output_dir runs/ar_paper

Adapters beside a trained generator, to teach it one's own classes (`docs/fine_tuning.md`):

    accelerate launch training_scripts/train_ar.py training_scripts/recipes/ar_lora.json --init_from MODEL \
        --tokens tokens/mine --output_dir runs/ar_lora

Number of processes and mixed precision are accelerate's; processes hold whole models: FSDP and DeepSpeed are refused.

`output_dir` gets `model/` and, with `ema_decay`, `model_ema/` (both load with `AutoModelForCausalLM.from_pretrained`;
adapters are merged into them), with `use_lora` also `adapter/` (loads with `peft.PeftModel`), `checkpoint-<step>/`
(everything that is needed to resume), `recipe.json` and `metrics.jsonl`. The same command with
`--resume_from_checkpoint latest` goes on where a run was killed, on a CPU bit for bit.
"""

import time
from contextlib import nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, set_seed
from torch import nn
from torch.utils.data import DataLoader

from adaptok_hf import AdapTokARForCausalLM
from adaptok_hf.training.ar.arguments import Arguments
from adaptok_hf.training.ar.model import add_adapters, build_model, is_class_conditional, merged
from adaptok_hf.training.ar.token_rows import TokenRows, model_inputs, read_description
from adaptok_hf.training.arguments import share_of_batch
from adaptok_hf.training.learning_rate import learning_rate_at
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.run_folder import Progress, RunFolder, average_of_weights, start_run


def build_optimizer(model: nn.Module, args: Arguments) -> torch.optim.Optimizer:
    """AdamW for what is trained; the norms' weights do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2))


@torch.no_grad()
def validation_loss(
    accelerator: Accelerator, model: nn.Module, generator: AdapTokARForCausalLM, batches: DataLoader
) -> float:
    """Mean cross-entropy per token, in nats.

    Args:
        model: what is measured: the generator, with its adapters if it has any.
        generator: knows how rows become inputs.
    """
    model.eval()
    sums = torch.zeros(2, device=accelerator.device)
    for batch in batches:
        inputs = model_inputs(generator, batch)
        tokens = (inputs["labels"] != -100).sum()
        with accelerator.autocast():
            sums += torch.stack([model(**inputs, use_cache=False).loss.float() * tokens, tokens])
    model.train()
    total, count = accelerator.reduce(sums)
    return float(total / count)


def save(run: RunFolder, args: Arguments, model: nn.Module, average: nn.Module | None, step: int) -> None:
    """Every process must call this."""
    if args.use_lora:
        write = model.save_pretrained if run.accelerator.is_main_process else lambda path, **options: None
        run.replace("adapter", lambda path: write(path, save_embedding_layers=False))
        model, average = merged(model), average and merged(average)
    run.save(model, step, average, args.checkpoints_total_limit)


def main() -> None:
    args = parse_arguments(Arguments)
    accelerator, run = start_run(args, "train_ar")
    whole = (DistributedType.NO, *(getattr(DistributedType, name) for name in dir(DistributedType) if "MULTI_" in name))
    if accelerator.distributed_type not in whole:
        raise ValueError(f"this script keeps whole models on each process, which {accelerator.distributed_type} does not")
    rank, world_size, num_parts = accelerator.process_index, accelerator.num_processes, args.gradient_accumulation_steps
    share = share_of_batch(args.batch_size, world_size, num_parts)

    set_seed(args.seed)
    labelled = is_class_conditional(args)
    description = read_description(args.tokens, labelled)
    if args.validation_tokens and read_description(args.validation_tokens, labelled) != description:
        raise ValueError("validation_tokens and tokens were made by different models, or have different classes")
    generator = build_model(args, description, accelerator.print)
    model = add_adapters(generator, args) if args.use_lora else generator
    with accelerator.local_main_process_first():  # the others find what it has put into the cache
        rows = TokenRows(args.tokens)
        validation_rows = TokenRows(args.validation_tokens) if args.validation_tokens else None
    for part in (rows, validation_rows):
        if part is not None:
            part.check(generator)
    total_steps, warmup_steps = args.plan(rows.num_videos)
    last_step = min(total_steps, args.max_train_steps or total_steps)
    sizes = [sum(p.numel() for p in model.parameters() if p.requires_grad or every) / 1e6 for every in (False, True)]
    accelerator.print(f"{sizes[0]:.2f}M of {sizes[1]:.2f}M parameters are trained")
    accelerator.print(f"{len(rows)} windows of {rows.num_videos} videos, {total_steps} steps on {world_size} processes")

    wrapped, optimizer = accelerator.prepare(model, build_optimizer(model, args))
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    ema = average_of_weights(model, args.ema_decay)
    if ema is not None:
        accelerator.register_for_checkpointing(ema)
    if args.resume_from_checkpoint is not None and run.resume(args.resume_from_checkpoint):
        accelerator.print(f"resumed at step {progress.step}")
    own = {"rank": rank, "world_size": world_size}
    validation_batches = None
    if validation_rows is not None:
        size = share // num_parts
        validation_batches = validation_rows.validation_batches(size, args.validation_sequences, **own)
    schedule = {"peak": args.learning_rate, "final": args.final_learning_rate, "warmup_steps": warmup_steps}

    seconds, seen = time.time(), torch.zeros((), device=accelerator.device)
    steps = range(progress.step, last_step)
    batches = rows.training_batches(args.batch_size, steps, seed=args.seed, num_workers=args.num_workers, **own)
    for step, batch in zip(steps, batches, strict=True):
        learning_rate = learning_rate_at(step, total_steps, **schedule)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        # dropout depends on the step alone, so that a resumed run draws what the uninterrupted one would have
        torch.manual_seed((args.seed + 1) * 1_000_003 + step * world_size + rank)
        inputs = model_inputs(generator, batch)
        # the loss is the mean over the tokens of the whole batch, however it is cut into processes and parts
        targets = accelerator.reduce((inputs["labels"] != -100).sum())
        loss = torch.zeros((), device=accelerator.device)
        for part in range(num_parts):
            cut = slice(part * share // num_parts, (part + 1) * share // num_parts)
            part_inputs = {name: value[cut] for name, value in inputs.items()}
            with nullcontext() if part == num_parts - 1 else accelerator.no_sync(wrapped):
                with accelerator.autocast():
                    part_loss = wrapped(**part_inputs, use_cache=False, num_items_in_batch=targets / world_size).loss
                accelerator.backward(part_loss)
            loss += part_loss.detach()
        grad_norm = accelerator.clip_grad_norm_(wrapped.parameters(), args.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        if ema is not None:
            ema.update_parameters(model)
        kept = batch["token_counts"].float().mean().to(loss.device)
        progress.means.add({"loss": loss, "grad_norm": torch.as_tensor(grad_norm), "tokens_kept": kept})
        progress.step = step + 1
        seen += targets

        last = progress.step == last_step
        if progress.step % args.logging_steps == 0:
            record = progress.means.pop(accelerator) | {"learning_rate": learning_rate}
            run.log({"step": progress.step} | record | {"tokens_per_s": float(seen) / (time.time() - seconds)})
            seconds, seen = time.time(), torch.zeros_like(seen)
        if validation_batches is not None and (progress.step % args.validation_steps == 0 or last):
            record = {"val_loss": validation_loss(accelerator, model, generator, validation_batches)}
            if ema is not None:
                record["ema_val_loss"] = validation_loss(accelerator, ema.module, generator, validation_batches)
            run.log({"step": progress.step} | record)
            seconds, seen = time.time(), torch.zeros_like(seen)
        if progress.step % args.checkpointing_steps == 0 or last:
            save(run, args, model, ema and ema.module, progress.step)
            seconds, seen = time.time(), torch.zeros_like(seen)
    accelerator.end_training()


if __name__ == "__main__":
    main()
