"""The arguments of `train_scorer.py`, which its recipes fill."""

from dataclasses import dataclass, field
from typing import get_args

from ..arguments import ClipArguments, RunArguments
from .targets import Target


@dataclass(kw_only=True)
class Arguments(ClipArguments, RunArguments):
    tokenizer: str = field(metadata={"help": "A trained AdapTokModel, folder or Hub id; it stays as it is."})

    # model
    model: dict = field(
        default_factory=dict,
        metadata={
            "help": "AdapTokScorerConfig fields (in the recipe file). score_mean and score_std, if they are not named, are "
            "measured; the sizes that the tokenizer has, too, are its."
        },
    )
    init_from: str | None = field(
        default=None,
        metadata={"help": "Start from this trained scorer, folder or Hub id; its configuration and statistics are kept."},
    )

    # what it learns
    target: Target = field(default="perceptual", metadata={"help": "Loss of a block, see scorer_targets.py."})
    perceptual_network: str | None = field(
        default=None, metadata={"help": "File with the weights of LPIPS; default: found or downloaded."}
    )
    levels_per_step: int | None = field(
        default=None,
        metadata={"help": "Levels measured per step, drawn at random; default: every level, as the paper does."},
    )
    difference_weight: float = field(
        default=0.0, metadata={"help": "Weight of the loss's second term, see `scorer_loss`; 0 is the paper's loss."}
    )
    augment: bool = field(
        default=False, metadata={"help": "Vary zoom and contrast of the clips: a scorer overfits few videos quickly."}
    )
    energy_initialization: bool = field(
        default=False, metadata={"help": "Start with layers that measure the latents' energy, see scorer_start.py."}
    )
    energy_parts: list[int] | None = field(
        default=None,
        metadata={"help": "Latents at which that start's parts of a block begin; default: equal parts, one per head."},
    )
    initialization_batches: int = field(default=100, metadata={"help": "Batches that this start's head is fitted on."})
    statistics_batches: int = field(
        default=16, metadata={"help": "Batches that fix mean and deviation of inputs and targets before the first step."}
    )

    # length
    batch_size: int = field(default=16, metadata={"help": "Clips of a step, on all processes together."})
    steps: int | None = field(default=None, metadata={"help": "Length of the run and of its schedule; or give epochs."})
    epochs: float | None = field(default=None, metadata={"help": "Instead of steps."})
    videos_per_epoch: int | None = field(
        default=None, metadata={"help": "How many videos there are; tar shards are not opened to count them."}
    )
    max_train_steps: int | None = field(
        default=None, metadata={"help": "Stop after so many steps of the whole run; 0 saves the start of the weights."}
    )

    # optimisation
    warmup_epochs: float | None = field(default=None, metadata={"help": "Instead of warmup_steps."})
    adam_beta1: float = field(default=0.9)
    adam_beta2: float = field(default=0.95)

    def __post_init__(self):
        ClipArguments.__post_init__(self)
        RunArguments.__post_init__(self)
        if self.target not in get_args(Target):
            raise ValueError(f"target must be one of {', '.join(get_args(Target))}; got {self.target!r}")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give either steps or epochs, got {self.steps} and {self.epochs}")
        for name in ("steps", "epochs", "batch_size", "statistics_batches", "levels_per_step", "initialization_batches"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.max_train_steps is not None and self.max_train_steps < 0:
            raise ValueError(f"max_train_steps must not be negative, got {self.max_train_steps}")
        if self.energy_parts is not None and not self.energy_initialization:
            raise ValueError("energy_parts needs energy_initialization")
        if self.difference_weight < 0:
            raise ValueError(f"difference_weight must not be negative, got {self.difference_weight}")
        if self.difference_weight and self.levels_per_step == 1:
            raise ValueError("differences need two levels: with difference_weight, levels_per_step must not be 1")
        if self.init_from and self.model:
            raise ValueError("with init_from the configuration is kept: model has no place")
