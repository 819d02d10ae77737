"""The arguments of `train_ar.py`, which its recipes fill."""

import dataclasses
import math
from dataclasses import dataclass, field

from ..arguments import RunArguments


@dataclass(kw_only=True)
class Arguments(RunArguments):
    # data
    tokens: list[str] = field(metadata={"help": "Folders of tokenize_dataset.py to train on."})
    validation_tokens: list[str] = field(default_factory=list, metadata={"help": "Folders to validate on."})
    validation_sequences: int = field(
        default=1024, metadata={"help": "At most so many of them, spread evenly, are measured."}
    )
    num_workers: int = field(default=0, metadata={"help": "Processes that read ahead, per training process."})

    # model
    model: dict = field(default_factory=dict, metadata={"help": "AdapTokARConfig fields (in the recipe file)."})
    init_from: str | None = field(
        default=None,
        metadata={"help": "Start from this trained generator, folder or Hub id; it gets the classes of the tokens."},
    )
    use_lora: bool = field(default=False, metadata={"help": "Train adapters beside the weights of init_from (peft)."})
    lora: dict = field(
        default_factory=dict,
        metadata={"help": "peft.LoraConfig fields (in the recipe file); target_modules is needed."},
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory for about a third more time."})

    # length
    batch_size: int = field(default=16, metadata={"help": "Sequences of a step, on all processes together."})
    steps: int | None = field(default=None, metadata={"help": "Length of the run and of its schedule; or give epochs."})
    epochs: float | None = field(
        default=None, metadata={"help": "Instead of steps. An epoch takes one random window of each video."}
    )
    max_train_steps: int | None = field(
        default=None, metadata={"help": "Stop after this many steps; the schedule is still that of the whole run."}
    )

    # optimisation
    warmup_epochs: float | None = field(default=None, metadata={"help": "Instead of warmup_steps."})
    adam_beta1: float = field(default=0.9)
    adam_beta2: float = field(default=0.95)

    def __post_init__(self):
        super().__post_init__()
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give either steps or epochs, got {self.steps} and {self.epochs}")
        for name in ("steps", "epochs", "batch_size", "max_train_steps", "validation_sequences"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} must be positive, got {value}")
        if self.init_from and self.model:
            raise ValueError("with init_from the configuration is kept: model has no place")
        if self.use_lora:
            self._check_lora()
        elif self.lora:
            raise ValueError(f"lora entries {sorted(self.lora)} need use_lora")

    def _check_lora(self) -> None:
        from peft import LoraConfig

        if not self.init_from:
            raise ValueError("use_lora needs init_from: adapters stand beside trained weights")
        if not self.lora.get("target_modules"):
            raise ValueError('use_lora needs lora entries, at least target_modules, such as ["q_proj", "v_proj"]')
        if unknown := set(self.lora) - {entry.name for entry in dataclasses.fields(LoraConfig)}:
            raise ValueError(f"lora has unknown entries {sorted(unknown)}; they are those of peft.LoraConfig")

    def plan(self, num_videos: int) -> tuple[int, int]:
        """Steps of the whole run and of its warm-up, for tokens of so many videos."""
        total = self.steps or math.ceil(self.epochs * num_videos / self.batch_size)
        if self.warmup_epochs is None:
            return total, self.warmup_steps
        return total, math.ceil(self.warmup_epochs * num_videos / self.batch_size)
