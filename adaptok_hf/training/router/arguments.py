"""The arguments of `train_router.py`, which its recipes fill."""

from dataclasses import dataclass, field

from ..arguments import LengthArguments, RunArguments


@dataclass(kw_only=True)
class Arguments(RunArguments, LengthArguments):
    data_root: str = field(metadata={"help": "Folder that the labelled videos are relative to."})
    labels: str = field(metadata={"help": "Folder that label_assignments.py wrote."})
    val_labels: str | None = field(default=None, metadata={"help": "Labels of other videos, to validate on."})
    prices: list[float] = field(
        default_factory=list,
        metadata={
            "help": "Lowest and highest price sampled (a conditioned router), or the one price; default: the labels'."
        },
    )
    quality_weight: float | None = field(
        default=None,
        metadata={"help": "EVATok's w_q, in place of one price; needs labels of all assignments, for their spread."},
    )
    scored_by: str | None = field(
        default=None, metadata={"help": "A pipeline with a scorer, whose choices are validated next to the router's."}
    )
    temperature: float = field(
        default=0.0,
        metadata={"help": "Of soft labels, softmax(-cost / temperature), in units of the loss; 0: the best choice alone."},
    )

    def __post_init__(self):
        for base in (RunArguments, LengthArguments):
            base.__post_init__(self)
        if any(not price > 0 for price in self.prices) or len(self.prices) > 2:
            raise ValueError(f"prices must be one or two numbers above 0, got {self.prices}")
        if self.quality_weight is not None and self.prices:
            raise ValueError(f"give either prices or quality_weight, got {self.prices} and {self.quality_weight}")
        if self.scored_by and not self.val_labels:
            raise ValueError(f"scored_by={self.scored_by} needs val_labels")
        if self.temperature < 0:
            raise ValueError(f"temperature must not be negative, got {self.temperature}")
