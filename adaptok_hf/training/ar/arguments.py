"""The arguments of `train_ar.py`, which its recipes fill."""

from dataclasses import dataclass, field

from ..arguments import LengthArguments, RunArguments, check_positive, require


@dataclass(kw_only=True)
class Arguments(RunArguments, LengthArguments):
    tokens: list[str] = field(metadata={"help": "Folders of tokenize_dataset.py to train on."})
    validation_tokens: list[str] = field(default_factory=list, metadata={"help": "Folders to validate on."})
    validation_sequences: int = field(
        default=1024, metadata={"help": "At most so many of them, spread evenly, are measured."}
    )
    num_workers: int = field(default=0, metadata={"help": "Processes that read ahead, per training process."})

    use_lora: bool = field(default=False, metadata={"help": "Train adapters (peft) of init_from, whose weights stay."})
    lora: dict = field(
        default_factory=dict,
        metadata={"help": "peft.LoraConfig fields (in the recipe file); target_modules is needed."},
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory for about a third more time."})

    def __post_init__(self):
        RunArguments.__post_init__(self)
        LengthArguments.__post_init__(self)
        check_positive(self, "validation_sequences")
        if self.use_lora:
            require("peft")
            if not self.init_from:
                raise ValueError("use_lora needs init_from, the trained weights that adapters adapt")
            if not self.lora.get("target_modules"):
                raise ValueError('use_lora needs lora entries, at least target_modules, such as ["q_proj", "v_proj"]')
        elif self.lora:
            raise ValueError(f"lora entries {sorted(self.lora)} need use_lora")
