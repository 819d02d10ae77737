"""Arguments that the training scripts share: where clips come from, how weights are updated, what a run writes."""

import importlib
import math
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(kw_only=True)
class DatasetArguments:
    """Data sets of videos with a layout of their own."""

    ucf101_folder: str | None = field(default=None, metadata={"help": "UCF-101 as its archive unpacks."})
    ucf101_splits: str | None = field(default=None, metadata={"help": "Its official lists."})
    kinetics_folder: str | None = field(default=None, metadata={"help": "The videos of Kinetics."})
    kinetics_csv: str | None = field(default=None, metadata={"help": "Its csv list."})
    hub_dataset: str | None = field(
        default=None, metadata={"help": "A data set on the Hub with a column of videos, streamed."}
    )
    hub_split: str = field(default="train", metadata={"help": "Of hub_dataset."})
    hub_video_column: str | None = field(default=None, metadata={"help": "Of hub_dataset; default: the one of videos."})

    def __post_init__(self):
        for one, other in (("ucf101_folder", "ucf101_splits"), ("kinetics_folder", "kinetics_csv")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} and {other} need each other; got {getattr(self, one)} and {getattr(self, other)}")


@dataclass(kw_only=True)
class ClipArguments(DatasetArguments):
    """Videos: either train_folders, or any of the other sources, joined."""

    data_root: str = field(metadata={"help": "Folder that the paths of data below are relative to."})
    train_folders: list[str] = field(default_factory=list, metadata={"help": "Folders of videos to keep in memory."})
    train_weights: list[float] = field(
        default_factory=list, metadata={"help": "Share of the clips sampled from each of train_folders."}
    )
    stream_folders: list[str] = field(default_factory=list, metadata={"help": "Folders of videos to stream."})
    shard_folders: list[str] = field(default_factory=list, metadata={"help": "Folders of tar shards (write_shards.py)."})
    num_workers: int = field(default=0, metadata={"help": "Decoding processes per training process, for streams."})
    videos_per_epoch: int | None = field(
        default=None, metadata={"help": "How many videos there are; tar shards are not opened to count them."}
    )
    augment: bool = field(
        default=False,
        metadata={
            "help": "Change the clips of train_folders at random: place and size, direction of time, speed, brightness. "
            "All videos are then kept on the training device."
        },
    )
    photo_folders: list[str] = field(
        default_factory=list, metadata={"help": "With augment: folders of photos, over which a window moves."}
    )
    photo_weight: float = field(default=0.0, metadata={"help": "Share of the clips that photos give."})
    val_folder: str | None = field(default=None, metadata={"help": "Some tens of videos to validate on, kept in memory."})

    def __post_init__(self):
        DatasetArguments.__post_init__(self)
        if len(self.train_folders) != len(self.train_weights):
            raise ValueError(f"{len(self.train_folders)} train_folders but {len(self.train_weights)} train_weights")
        if bool(self.photo_folders) != bool(self.photo_weight) or (self.photo_folders and not self.augment):
            raise ValueError(
                "photo_folders and photo_weight need each other and augment; got "
                f"{self.photo_folders}, {self.photo_weight} and {self.augment}"
            )
        single = (self.ucf101_folder, self.kinetics_folder, self.hub_dataset)
        streams = [name for name in (*self.stream_folders, *self.shard_folders, *single) if name]
        if bool(streams) == bool(self.train_folders):
            raise ValueError(
                "give either train_folders (kept in memory) or some of stream_folders, ucf101_folder, kinetics_folder, "
                f"shard_folders, hub_dataset; got {self.train_folders} and {streams}"
            )


@dataclass(kw_only=True)
class RunArguments:
    """Of every training run: the model, the optimizer, and what is written when."""

    output_dir: str = field(metadata={"help": "Where models, checkpoints, pictures and the log go."})

    # model
    model: dict = field(default_factory=dict, metadata={"help": "Fields of the model's configuration (in the recipe)."})
    init_from: str | None = field(
        default=None, metadata={"help": "Start from this saved model, folder or Hub id, and keep its configuration."}
    )

    # length
    max_train_steps: int | None = field(
        default=None, metadata={"help": "Stop after this many steps; the schedule is still that of the whole run."}
    )

    # optimization
    learning_rate: float = field(default=1e-3, metadata={"help": "The peak, after a linear warm-up."})
    final_learning_rate: float = field(default=1e-5, metadata={"help": "At the end."})
    decay: Literal["cosine", "linear"] = field(default="cosine", metadata={"help": "How it falls from peak to end."})
    warmup_steps: int = field(default=100)
    warmup_epochs: float | None = field(default=None, metadata={"help": "Instead of warmup_steps."})
    weight_decay: float = field(default=0.01)
    adam_beta1: float = field(default=0.9)
    adam_beta2: float = field(default=0.95)
    max_grad_norm: float = field(default=1.0)
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Parts into which each process cuts its share of a batch, to save memory."}
    )
    ema_decay: float = field(default=0.0, metadata={"help": "Of the average of the weights, model_ema/; 0: none."})
    seed: int = field(default=0)

    # output
    validation_steps: int = field(default=250)
    checkpointing_steps: int = field(default=250)
    checkpoints_total_limit: int = field(default=2, metadata={"help": "How many of the newest are kept."})
    logging_steps: int = field(default=25)
    report_to: str = field(
        default="none",
        metadata={"help": "A tracker for the log: tensorboard, wandb, trackio or another of accelerate's; or all."},
    )
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "'latest' (from step 0 if there is none), or a name such as 'checkpoint-500'."}
    )

    def __post_init__(self):
        names = ("gradient_accumulation_steps", "checkpoints_total_limit", "logging_steps", "validation_steps",
                 "checkpointing_steps", "max_train_steps")  # fmt: skip
        check_positive(self, *names)
        check_tracker(self.report_to)
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        resume = self.resume_from_checkpoint
        if resume not in (None, "latest") and not (resume.startswith("checkpoint-") and resume[11:].isdigit()):
            raise ValueError(f"resume_from_checkpoint must be 'latest' or such as 'checkpoint-500', got {resume!r}")
        if self.init_from and self.model:
            raise ValueError(f"init_from keeps the configuration of {self.init_from}: leave out model, got {self.model}")


@dataclass(kw_only=True)
class LengthArguments:
    """Of runs whose batches all have one size."""

    batch_size: int = field(default=16, metadata={"help": "Clips or sequences of a step, on all processes together."})
    steps: int | None = field(default=None, metadata={"help": "Length of the run and of its schedule; or give epochs."})
    epochs: float | None = field(default=None, metadata={"help": "Instead of steps; one window of each video."})

    def __post_init__(self):
        if (self.steps is None) == (self.epochs is None):
            raise ValueError(f"give either steps or epochs, got {self.steps} and {self.epochs}")
        check_positive(self, "steps", "epochs", "batch_size")


def check_positive(args: Any, *names: str) -> None:
    """Raise `ValueError` for the first of the named arguments that is neither above 0 nor `None`."""
    for name in names:
        value = getattr(args, name)
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be positive, got {value}")


def check_tracker(name: str) -> None:
    """Raise an error unless accelerate has a tracker, which leaves out in silence what is not installed.

    Raises:
        ValueError: for an unknown tracker.
        ImportError: if its package is missing.
    """
    if name in ("none", "all"):
        return
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
    from accelerate.utils import LoggerType

    if name not in LOGGER_TYPE_TO_CLASS:
        raise ValueError(f"report_to must be one of none, all, {', '.join(LOGGER_TYPE_TO_CLASS)}; got {name!r}")
    if name in LoggerType and name not in map(str, get_available_trackers()):
        raise ImportError(f"report_to={name}: the package is missing: pip install {name.replace('_', '-')}")


def epochs_to_steps(epochs: float, batch_size: int, num_videos: int | None) -> int:
    """Return the number of steps of some epochs; raise `ValueError` if the number of videos is not known."""
    if num_videos is None:
        raise ValueError("the recipe counts in epochs and tar shards are not counted: give videos_per_epoch")
    return math.ceil(epochs * num_videos / batch_size)


def share_of_batch(batch_size: int, num_processes: int, gradient_accumulation_steps: int) -> int:
    """Return the size of each process' share of a batch; raise `ValueError` if it cannot be shared evenly."""
    if batch_size % (num_processes * gradient_accumulation_steps):
        raise ValueError(
            f"a batch of {batch_size} cannot be shared evenly by {num_processes} processes with "
            f"gradient_accumulation_steps {gradient_accumulation_steps}"
        )
    return batch_size // num_processes


def require(*names: str) -> None:
    """Raise `ImportError` unless libraries are installed that only `pip install "adaptok_hf[train]"` brings."""
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f'{name} is missing: pip install "adaptok_hf[train]"') from error
