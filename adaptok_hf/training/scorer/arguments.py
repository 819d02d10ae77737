"""The arguments of `train_scorer.py`, which its recipes fill."""

from dataclasses import dataclass, field
from typing import get_args

from ..arguments import ClipArguments, LengthArguments, RunArguments, check_positive
from .targets import Span, Target


@dataclass(kw_only=True)
class ExampleArguments:
    """What the scorer learns to predict, of which clips."""

    tokenizer: str = field(metadata={"help": "A trained AdapTokModel, folder or Hub id; it stays as it is."})
    target: Target = field(default="perceptual", metadata={"help": "Loss of a block, see `BlockLoss`."})
    score_target_span: Span = field(
        default="block",
        metadata={"help": "'block': a block's own loss, as the paper; 'clip': with what it costs the blocks that follow."},
    )
    perceptual_network: str | None = field(
        default=None, metadata={"help": "File with the weights of LPIPS; default: the cached or downloaded one."}
    )
    levels_per_step: int | None = field(
        default=None,
        metadata={"help": "Levels measured per batch, a random sample; default: all, as the paper does."},
    )
    augment: bool = field(
        default=False, metadata={"help": "Vary zoom and contrast of the clips: a scorer overfits few videos quickly."}
    )

    def __post_init__(self):
        if self.target not in get_args(Target):
            raise ValueError(f"target must be one of {', '.join(get_args(Target))}; got {self.target!r}")
        if self.score_target_span not in get_args(Span):
            raise ValueError(f"score_target_span must be 'block' or 'clip', got {self.score_target_span!r}")
        check_positive(self, "levels_per_step")


@dataclass(kw_only=True)
class Arguments(ExampleArguments, ClipArguments, RunArguments, LengthArguments):
    difference_weight: float = field(
        default=0.0, metadata={"help": "Weight of the loss's second term, see `scorer_loss`; 0 is the paper's loss."}
    )
    measured_batches: int | None = field(
        default=None,
        metadata={"help": "Measure so many batches and learn them again and again, from memory; default: each once."},
    )
    statistics_batches: int = field(
        default=16, metadata={"help": "Batches that fix mean and deviation of inputs and targets before the first step."}
    )
    schedule_clips: int = field(
        default=0,
        metadata={
            "help": "Training clips on which the best constant schedules are measured, for the scorer's configuration."
        },
    )

    def __post_init__(self):
        for base in (ExampleArguments, ClipArguments, RunArguments, LengthArguments):
            base.__post_init__(self)
        check_positive(self, "statistics_batches", "measured_batches")
        if self.schedule_clips < 0:
            raise ValueError(f"schedule_clips must not be negative, got {self.schedule_clips}")
        if self.difference_weight < 0:
            raise ValueError(f"difference_weight must not be negative, got {self.difference_weight}")
        if self.difference_weight and self.levels_per_step == 1:
            raise ValueError("differences need two levels: with difference_weight, levels_per_step must not be 1")
