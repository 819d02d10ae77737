#!/usr/bin/env python
"""Trains an AdapTok generator on the token sequences that `tokenize_dataset.py` wrote.

A generator is class-conditional, or continues given frames (frame prediction), as its `model` entries say.

    accelerate launch --cpu --mixed_precision bf16 training_scripts/train_ar.py training_scripts/recipes/ar_demo.json \
        --tokens tokens/action32 --validation_tokens tokens/action32_val --output_dir runs/ar_demo

`output_dir` gets `model/` (loads with `AutoModelForCausalLM.from_pretrained`), `checkpoint/` (to resume), `recipe.json` and
`metrics.jsonl`.
"""

import json
import time
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator, DataLoaderConfiguration
from accelerate.utils import set_seed
from datasets import Dataset, concatenate_datasets, load_dataset
from learning_rate import learning_rate_at
from recipe_arguments import parse_arguments
from run_folder import RunFolder
from torch.utils.data import DataLoader

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM

COLUMNS = ("codes", "token_counts", "label", "condition_codes")
ENTRIES = ("model_hash", "codebook_size", "num_blocks", "latents_per_block")


@dataclass
class Arguments:
    tokens: list[str] = field(metadata={"help": "Folders of tokenize_dataset.py to train on."})
    output_dir: str = field(metadata={"help": "Where the model, the checkpoint and the log go."})
    validation_tokens: list[str] = field(default_factory=list, metadata={"help": "Folders to validate on."})
    model: dict = field(default_factory=dict, metadata={"help": "AdapTokARConfig fields (in the recipe file)."})
    max_train_steps: int = field(default=1000)
    batch_size: int = field(default=16, metadata={"help": "Sequences per process and step."})
    learning_rate: float = field(default=6e-4)
    final_learning_rate: float = field(default=1e-5)
    warmup_steps: int = field(default=100)
    weight_decay: float = field(default=0.05)
    max_grad_norm: float = field(default=1.0)
    seed: int = field(default=0)
    validation_steps: int = field(default=500)
    checkpointing_steps: int = field(default=500)
    logging_steps: int = field(default=50)
    resume_from_checkpoint: str | None = field(default=None, metadata={"help": "'latest' goes on from checkpoint/."})

    def __post_init__(self):
        if self.resume_from_checkpoint not in (None, "latest"):
            raise ValueError(f"resume_from_checkpoint must be 'latest', got {self.resume_from_checkpoint!r}")


def read_tokens(folders: list[str], labelled: bool) -> tuple[Dataset, dict]:
    """The rows of some folders, and what `dataset.json` says of all of them alike.

    Args:
        labelled: whether the labels count, so that all folders must have the same classes.

    Raises:
        ValueError: for a folder without shards, or folders that do not belong together.
    """
    parts, descriptions = [], []
    for folder in map(Path, folders):
        shards = sorted(map(str, folder.glob("*.parquet")))
        if not shards or not (folder / "dataset.json").is_file():
            raise ValueError(f"{folder} holds no tokens: no *.parquet and dataset.json of tokenize_dataset.py")
        parts.append(load_dataset("parquet", data_files=shards, split="train"))
        descriptions.append(json.loads((folder / "dataset.json").read_text()))
        for name in ENTRIES + (("class_names",) if labelled else ()):
            if descriptions[-1][name] != descriptions[0][name]:
                raise ValueError(f"{folder} has another {name} than {folders[0]}; they cannot be used together")
    rows = concatenate_datasets(parts)
    rows = rows.remove_columns([name for name in rows.column_names if name not in COLUMNS]).with_format("torch")
    names = descriptions[0]["class_names"] if labelled else []
    return rows, {name: descriptions[0][name] for name in ENTRIES} | {"class_names": names}


def model_inputs(model: AdapTokARForCausalLM, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Rows of a token data set -> arguments of the model."""
    config = model.config
    shape = (-1, config.num_blocks, config.latents_per_block)
    condition = (
        {"class_labels": batch["label"]}
        if config.is_class_conditional
        else {"condition_codes": batch["condition_codes"].reshape(shape)}
    )
    return model.build_inputs(batch["codes"].reshape(shape), batch["token_counts"], **condition)


@torch.no_grad()
def validation_loss(accelerator: Accelerator, model: AdapTokARForCausalLM, loader: DataLoader) -> float:
    """Mean cross-entropy per token, in nats."""
    model.eval()
    total = count = 0.0
    for batch in loader:
        inputs = model_inputs(model, batch)
        tokens = (inputs["labels"] != -100).sum()
        with accelerator.autocast():
            total += model(**inputs, use_cache=False).loss.float() * tokens
        count += tokens
    model.train()
    total, count = accelerator.reduce(torch.stack([total, count.float()]))
    return float(total / count)


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
    accelerator = Accelerator(dataloader_config=DataLoaderConfiguration(use_seedable_sampler=True))
    set_seed(args.seed)
    labelled = not args.model.get("num_condition_codes")
    rows, description = read_tokens(args.tokens, labelled)
    names = description["class_names"]
    entries = {name: description[name] for name in ("codebook_size", "num_blocks", "latents_per_block")} | args.model
    if labelled:
        entries = {"num_classes": len(names), "id2label": dict(enumerate(names))} | entries
    elif "condition_codes" not in rows.column_names:
        raise ValueError("frame prediction needs condition_codes; make the tokens with --num_condition_frames")
    config = AdapTokARConfig(**entries)
    if config.is_class_conditional and config.num_classes < int(rows["label"][:].max()) + 1:
        raise ValueError(f"num_classes={config.num_classes}, but the labels go up to {int(rows['label'][:].max())}")
    model = AdapTokARForCausalLM(config).train()
    run = RunFolder(args.output_dir, args, accelerator)
    accelerator.print(f"{model.num_parameters() / 1e6:.2f}M parameters, {len(rows)} sequences")

    loader = DataLoader(rows, batch_size=args.batch_size, shuffle=True, drop_last=True)
    validation_loader = None
    if args.validation_tokens:
        validation_rows, validation_description = read_tokens(args.validation_tokens, labelled)
        if validation_description != description:
            raise ValueError("validation_tokens and tokens were made by different models, or have different classes")
        validation_loader = accelerator.prepare(DataLoader(validation_rows, batch_size=args.batch_size))
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": args.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=args.learning_rate,
        betas=(0.9, 0.95),
    )
    wrapped, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    if not len(loader):
        raise ValueError(f"{len(rows)} sequences do not fill a batch of {args.batch_size} on each process")
    progress = Progress()
    accelerator.register_for_checkpointing(progress)
    if args.resume_from_checkpoint == "latest" and run.resume():
        accelerator.print(f"resumed at step {progress.step}")

    schedule = {
        "peak": args.learning_rate,
        "final": args.final_learning_rate,
        "warmup_steps": args.warmup_steps,
    }
    rank = accelerator.process_index
    seconds, tokens = time.time(), 0
    while progress.step < args.max_train_steps:
        epoch, done = divmod(progress.step, len(loader))
        loader.set_epoch(epoch)
        for batch in accelerator.skip_first_batches(loader, done) if done else loader:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(progress.step, args.max_train_steps, **schedule)
            # dropout depends on the step alone, so that a resumed run draws what the uninterrupted one would have
            torch.manual_seed((args.seed + 1) * 1_000_003 + progress.step * accelerator.num_processes + rank)
            inputs = model_inputs(model, batch)
            with accelerator.autocast():
                loss = wrapped(**inputs, use_cache=False).loss
            accelerator.backward(loss)
            grad_norm = accelerator.clip_grad_norm_(wrapped.parameters(), args.max_grad_norm)
            optimizer.step()
            optimizer.zero_grad()
            progress.step += 1
            tokens += int((inputs["labels"] != -100).sum())
            last = progress.step == args.max_train_steps
            if progress.step % args.logging_steps == 0:
                rate = tokens * accelerator.num_processes / (time.time() - seconds)
                run.log({"step": progress.step, "loss": loss.item(), "grad_norm": float(grad_norm), "tokens_per_s": rate})
                seconds, tokens = time.time(), 0
            if validation_loader is not None and (progress.step % args.validation_steps == 0 or last):
                run.log({"step": progress.step, "val_loss": validation_loss(accelerator, model, validation_loader)})
                seconds, tokens = time.time(), 0
            if progress.step % args.checkpointing_steps == 0 or last:
                run.save(model)
            if last:
                break
    accelerator.end_training()


if __name__ == "__main__":
    main()
