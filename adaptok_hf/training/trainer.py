"""What the training runs of tokenizer, scorer and generator have in common."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .arguments import RunArguments, epochs_to_steps
from .run_folder import Progress, RunFolder
from .sharding import whole_tensor


class Trainer:
    """Trains from the last checkpoint to the last step; logs, validates and saves at the intervals of the arguments.

    Subclasses say what an update, a validation and a saved model are. They set `optimizers`, whose groups may have a
    `factor` of the learning rate, and register with the accelerator what a checkpoint must hold.

    Args:
        length: of the schedule, in steps, or in seconds with `timed`: then validating and saving count too.
        batch_size, num_videos: of an epoch, in which the warm-up may be counted.
        progress: what a resumed run needs next to weights and optimizers.
        unit: what `update` counts, for the log's rate.
    """

    def __init__(
        self,
        args: RunArguments,
        run: RunFolder,
        length: float,
        batch_size: int,
        num_videos: int | None,
        progress: Progress,
        unit: str = "clips",
        timed: bool = False,
    ):
        self.args, self.run, self.accelerator = args, run, run.accelerator
        self.progress, self.unit = progress, unit
        self.length, self.timed = length, timed
        self.last_step = min(length, args.max_train_steps or length)  # unless the run is timed
        self.warmup_steps = args.warmup_steps
        if args.warmup_epochs is not None:
            self.warmup_steps = epochs_to_steps(args.warmup_epochs, batch_size, num_videos)
        self.optimizers: Sequence[torch.optim.Optimizer] = []
        self.ema: AveragedModel | None = None
        self.accelerator.register_for_checkpointing(progress)

    def average_weights(self, model: nn.Module) -> None:
        """Keep the exponential moving average of a model's weights from now on, if the arguments say so."""
        if self.args.ema_decay:
            self.ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.args.ema_decay))
            self.accelerator.register_for_checkpointing(self.ema)

    @property
    def position(self) -> float:
        """Return where the run is in its schedule: steps or seconds."""
        return self.progress.seconds if self.timed else self.progress.step

    def is_over(self) -> bool:
        """Return whether the last update is done."""
        limit = self.args.max_train_steps
        return self.position >= self.length or (limit is not None and self.progress.step >= limit)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0: a linear warm-up, then a decay down to the last step's."""
        args = self.args
        if step < self.warmup_steps:
            return args.learning_rate * (step + 1) / self.warmup_steps
        warmup = 0 if self.timed else self.warmup_steps
        done = ((self.position if self.timed else step) - warmup) / max(1, self.length - warmup)
        left = 0.5 * (1 + math.cos(math.pi * min(1.0, done))) if args.decay == "cosine" else max(0.0, 1 - done)
        return args.final_learning_rate + (args.learning_rate - args.final_learning_rate) * left

    def update(self, step: int) -> int | torch.Tensor:
        """Update the weights; return how many clips or tokens were used, on all processes together."""
        raise NotImplementedError

    def validate(self) -> dict[str, float]:
        """Return the measures of the validation data; nothing without such data."""
        return {}

    def save(self) -> None:
        """Write models and checkpoint."""
        raise NotImplementedError

    def log_entries(self) -> dict[str, Any]:
        """Return what an entry of the log has next to the running means."""
        return {}

    def train(self) -> None:
        args, progress = self.args, self.progress
        if args.resume_from_checkpoint is not None and self.run.resume(args.resume_from_checkpoint):
            self.accelerator.print(f"resumed at step {progress.step}")
        begin, used, clock = time.time(), 0, time.time()
        while not self.is_over():
            learning_rate = self.learning_rate(progress.step)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * group.get("factor", 1.0)
            used = used + self.update(progress.step)
            progress.step += 1
            clock = self._count_seconds(clock)
            last = self.is_over()
            if progress.step % args.logging_steps == 0:
                record = {"step": progress.step} | progress.means.pop(self.accelerator) | {"learning_rate": learning_rate}
                rate = float(used) / (time.time() - begin)
                self.run.log(record | self.log_entries() | {f"{self.unit}_per_s": rate})
                begin, used = time.time(), 0
            if progress.step % args.validation_steps == 0 or last:
                if measures := self.validate():
                    self.run.log({"step": progress.step} | measures)
                begin, used = time.time(), 0
            if progress.step % args.checkpointing_steps == 0 or last:
                self.save()
                begin, used = time.time(), 0
        self.accelerator.end_training()
        self.run.claim.close()

    def _count_seconds(self, since: float) -> float:
        """Add the time since then to the run's, which must be the same on every process; return the time now."""
        now = time.time()
        if self.timed:
            self.progress.seconds += broadcast_object_list([now - since])[0]
        return now

    def parts(self, share: int, *modules: nn.Module) -> Iterator[slice]:
        """Cut a process' share of a batch for gradient accumulation. Only the last part's gradients are averaged over
        processes, so the backward passes of `modules` belong into the loop over the parts."""
        count = self.args.gradient_accumulation_steps
        for part in range(count):
            with ExitStack() as stack:
                for module in modules if part < count - 1 else ():
                    stack.enter_context(self.accelerator.no_sync(module))
                yield slice(part * share // count, (part + 1) * share // count)

    def apply_gradients(self, module: nn.Module, optimizers: Iterable[torch.optim.Optimizer]) -> torch.Tensor:
        """Clip a module's gradients and let its optimizers step; return the norm before clipping."""
        norm = self.accelerator.clip_grad_norm_(module.parameters(), self.args.max_grad_norm)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        return whole_tensor(torch.as_tensor(norm))
