"""What the training runs of tokenizer, scorer and generator have in common."""

import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .arguments import RunArguments
from .run_folder import Progress, RunFolder
from .schedule import Schedule
from .sharding import whole_tensor


class Trainer:
    """Trains from the last checkpoint to the last step; logs, validates and saves at the intervals of the arguments.

    Subclasses say what an update, a validation and a saved model are. They set `optimizers`, and register with the
    accelerator what a checkpoint must hold.

    Args:
        schedule: of the learning rate; a group of an optimizer may have a `factor`.
        progress: what a resumed run needs next to weights and optimizers.
        unit: what `update` counts, for the log's rate.
    """

    def __init__(self, args: RunArguments, run: RunFolder, schedule: Schedule, progress: Progress, unit: str):
        self.args, self.run, self.accelerator = args, run, run.accelerator
        self.schedule, self.progress, self.unit = schedule, progress, unit
        self.optimizers: Sequence[torch.optim.Optimizer] = []

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
        args, progress, schedule = self.args, self.progress, self.schedule
        if args.resume_from_checkpoint is not None and self.run.resume(args.resume_from_checkpoint):
            self.accelerator.print(f"resumed at step {progress.step}")
        begin, used = time.time(), 0
        while progress.step < schedule.last_step:
            learning_rate = schedule.learning_rate(progress.step)
            for optimizer in self.optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate * group.get("factor", 1.0)
            used = used + self.update(progress.step)
            progress.step += 1

            last = progress.step == schedule.last_step
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


def average_of_weights(model: nn.Module, decay: float) -> AveragedModel | None:
    """Return the exponential moving average of a model's weights, from now on; `None` if `decay` is 0."""
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay)) if decay else None
