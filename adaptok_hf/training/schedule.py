"""The length of a run and its learning rate."""

import math
from dataclasses import dataclass

from .arguments import RunArguments


@dataclass(frozen=True)
class Schedule:
    """A learning rate that rises linearly to `peak`, then falls along a cosine to `final` at `total_steps`.

    Args:
        last_step: where this run stops, at most `total_steps`.
    """

    total_steps: int
    last_step: int
    warmup_steps: int
    peak: float
    final: float

    @classmethod
    def from_arguments(cls, args: RunArguments, total_steps: int, batch_size: int, num_videos: int | None) -> "Schedule":
        """Return the schedule of a run.

        Args:
            batch_size, num_videos: of an epoch, in which the warm-up may be counted.

        Raises:
            ValueError: for a warm-up in epochs of videos that cannot be counted.
        """
        warmup_steps = args.warmup_steps
        if args.warmup_epochs is not None:
            warmup_steps = epochs_to_steps(args.warmup_epochs, batch_size, num_videos)
        last_step = min(total_steps, args.max_train_steps or total_steps)
        return cls(total_steps, last_step, warmup_steps, args.learning_rate, args.final_learning_rate)

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step; steps count from 0."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps) / max(1, self.total_steps - self.warmup_steps)
        return self.final + (self.peak - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def epochs_to_steps(epochs: float, batch_size: int, num_videos: int | None) -> int:
    """Return the number of steps of some epochs.

    Raises:
        ValueError: if the number of videos is not known.
    """
    if num_videos is None:
        raise ValueError("the recipe counts in epochs and tar shards are not counted: give videos_per_epoch")
    return math.ceil(epochs * num_videos / batch_size)
