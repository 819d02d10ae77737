"""The training run of `train_ar.py`."""

from collections.abc import Iterator

import torch
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

from ..arguments import epochs_to_steps, share_of_batch
from ..run_folder import Progress, RunFolder
from ..trainer import Trainer
from .arguments import Arguments
from .model import add_adapters, build_model, is_class_conditional, merged
from .token_rows import TokenRows, model_inputs, read_description


class ARTrainer(Trainer):
    """Trains a generator, or adapters of one, on token sequences."""

    def __init__(self, args: Arguments, run: RunFolder):
        accelerator = run.accelerator
        num_processes = accelerator.num_processes
        self.share = share_of_batch(args.batch_size, num_processes, args.gradient_accumulation_steps)
        set_seed(args.seed)
        labeled = is_class_conditional(args)
        description = read_description(args.tokens, labeled)
        if args.validation_tokens and read_description(args.validation_tokens, labeled) != description:
            raise ValueError(
                f"validation_tokens {args.validation_tokens} and tokens {args.tokens} were made by different models, or "
                "have different classes"
            )
        self.generator = build_model(args, description, accelerator.print)
        if accelerator.device.type == "cpu":  # where the backward pass of fused attention takes half of the time
            self.generator.set_attn_implementation("eager")
        self.model = add_adapters(self.generator, args) if args.use_lora else self.generator
        with accelerator.local_main_process_first():  # the others use what it has put into the cache
            self.rows = TokenRows(args.tokens)
            val_rows = TokenRows(args.validation_tokens) if args.validation_tokens else None
        for rows in (self.rows, val_rows):
            if rows is not None:
                rows.check(self.generator)
        num_videos = self.rows.num_videos
        steps = args.steps or epochs_to_steps(args.epochs, args.batch_size, num_videos)
        super().__init__(args, run, steps, args.batch_size, num_videos, Progress(), "tokens")
        trained, all_weights = (
            sum(p.numel() for p in self.model.parameters() if p.requires_grad or frozen) / 1e6 for frozen in (False, True)
        )
        accelerator.print(f"{trained:.2f}M of {all_weights:.2f}M parameters are trained")
        accelerator.print(f"{len(self.rows)} windows of {num_videos} videos, {steps} steps on {num_processes} processes")
        self.wrapped, *self.optimizers = accelerator.prepare(self.model, build_optimizer(self.model, args))
        self.average_weights(self.model)
        self.ranks = {"rank": accelerator.process_index, "world_size": num_processes}
        self.batches: Iterator[dict[str, torch.Tensor]] | None = None
        self.val_batches = None
        if val_rows is not None:
            size = self.share // args.gradient_accumulation_steps
            self.val_batches = val_rows.validation_batches(size, args.validation_sequences, **self.ranks)

    def update(self, step: int) -> torch.Tensor:
        args, accelerator = self.args, self.accelerator
        rank, world_size = self.ranks.values()
        if self.batches is None:
            steps = range(step, self.last_step)
            options = {"seed": args.seed, "num_workers": args.num_workers}
            self.batches = iter(self.rows.training_batches(args.batch_size, steps, **options, **self.ranks))
        batch = next(self.batches)
        # dropout depends on the step alone, so that a resumed run has the same as the uninterrupted one
        torch.manual_seed((args.seed + 1) * 1_000_003 + step * world_size + rank)
        inputs = model_inputs(self.generator, batch)
        # the loss is the mean over the tokens of the whole batch, however it is cut into processes and parts
        targets = accelerator.reduce((inputs["labels"] != -100).sum())
        loss = torch.zeros((), device=accelerator.device)
        for part in self.parts(self.share, self.wrapped):
            part_inputs = {name: value[part] for name, value in inputs.items()}
            with accelerator.autocast():
                part_loss = self.wrapped(**part_inputs, use_cache=False, num_items_in_batch=targets / world_size).loss
            accelerator.backward(part_loss)
            loss += part_loss.detach()
        grad_norm = self.apply_gradients(self.wrapped, self.optimizers)
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        kept = batch["token_counts"].float().mean().to(loss.device)
        self.progress.means.add({"loss": loss, "grad_norm": grad_norm, "tokens_kept": kept})
        return targets

    def validate(self) -> dict[str, float]:
        if self.val_batches is None:
            return {}
        models = {"": self.model} | ({} if self.ema is None else {"ema_": self.ema.module})
        return {f"{prefix}val_loss": self._loss(model, self.val_batches) for prefix, model in models.items()}

    @torch.no_grad()
    def _loss(self, model: nn.Module, batches: DataLoader) -> float:
        """Return the mean cross-entropy per token, in nats, of the generator or its average, with their adapters."""
        model.eval()
        sums = torch.zeros(2, device=self.accelerator.device)
        for batch in batches:
            inputs = model_inputs(self.generator, batch)
            tokens = (inputs["labels"] != -100).sum()
            with self.accelerator.autocast():
                sums += torch.stack([model(**inputs, use_cache=False).loss.float() * tokens, tokens])
        model.train()
        total, count = self.accelerator.reduce(sums)
        return float(total / count)

    def save(self) -> None:
        model, average = self.model, self.ema and self.ema.module
        if self.args.use_lora:
            write = model.save_pretrained if self.accelerator.is_main_process else lambda path, **options: None
            self.run.replace("adapter", lambda path: write(path, save_embedding_layers=False))
            model, average = merged(model), average and merged(average)
        self.run.save(model, self.progress.step, self.args.checkpoints_total_limit, average)


def build_optimizer(model: nn.Module, args: Arguments) -> torch.optim.Optimizer:
    """Return AdamW for what is trained; the norms' weights do not decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": args.weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2))
