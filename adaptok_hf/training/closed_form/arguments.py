"""The arguments of `initialize_tokenizer.py` and `initialize_scorer.py`, which their recipes fill."""

from dataclasses import dataclass, field
from pathlib import Path

from ..arguments import ClipArguments, check_positive
from ..scorer.arguments import ExampleArguments


@dataclass(kw_only=True)
class InitializationArguments(ClipArguments):
    output_dir: str = field(metadata={"help": "The model's folder, which the training scripts' --init_from reads."})
    model: dict = field(default_factory=dict, metadata={"help": "Fields of the model's configuration (in the recipe)."})
    seed: int = field(default=0)

    def __post_init__(self):
        ClipArguments.__post_init__(self)
        folder = Path(self.output_dir)
        if folder.exists() and any(folder.iterdir()):
            raise ValueError(f"output_dir {folder} exists and is not empty")


@dataclass(kw_only=True)
class TokenizerInitialization(InitializationArguments):
    num_clips: int = field(default=256, metadata={"help": "Clips whose first blocks (at most 3) it is computed from."})
    coarse_latents: bool = field(
        default=False, metadata={"help": "Put a latent for every 2 x 2 patches before the others."}
    )

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "num_clips")


@dataclass(kw_only=True)
class ScorerInitialization(ExampleArguments, InitializationArguments):
    batch_size: int = field(default=16, metadata={"help": "Clips measured at once, with the same block and levels."})
    num_batches: int = field(default=100, metadata={"help": "Batches that it is fitted on."})
    group_starts: list[int] | None = field(
        default=None,
        metadata={"help": "Latents at which the groups of a block begin; default: equal groups, one per head."},
    )

    def __post_init__(self):
        ExampleArguments.__post_init__(self)
        InitializationArguments.__post_init__(self)
        check_positive(self, "batch_size", "num_batches")
