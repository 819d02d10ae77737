"""The arguments of `train_tokenizer.py`, which its recipes fill, and the stages of a run."""

import math
from dataclasses import dataclass, field
from typing import Literal

from adaptok_hf.losses import TokenizerLossWeights


@dataclass
class Arguments:
    data_root: str = field(metadata={"help": "Folder that the paths of data below are relative to."})
    output_dir: str = field(metadata={"help": "Where models, checkpoints, pictures and the log go."})

    # data: either train_folders, or any of those below it, joined
    train_folders: list[str] = field(default_factory=list, metadata={"help": "Folders of videos to keep in memory."})
    train_weights: list[float] = field(
        default_factory=list, metadata={"help": "Share of the clips drawn from each of train_folders."}
    )
    stream_folders: list[str] = field(default_factory=list, metadata={"help": "Folders of videos to stream."})
    ucf101_folder: str | None = field(default=None, metadata={"help": "UCF-101 as its archive unpacks."})
    ucf101_splits: str | None = field(default=None, metadata={"help": "Its official lists; trainlist01 is used."})
    kinetics_folder: str | None = field(default=None, metadata={"help": "The training videos of Kinetics."})
    kinetics_csv: str | None = field(default=None, metadata={"help": "Its csv list."})
    shard_folders: list[str] = field(default_factory=list, metadata={"help": "Folders of tar shards (write_shards.py)."})
    num_workers: int = field(default=0, metadata={"help": "Decoding processes per training process, for streams."})
    val_folder: str | None = field(
        default=None, metadata={"help": "Some tens of videos to measure and draw reconstructions of, kept in memory."}
    )

    # model
    model: dict = field(default_factory=dict, metadata={"help": "AdapTokConfig fields (in the recipe file)."})
    init_from: str | None = field(default=None, metadata={"help": "Start from this trained tokenizer, folder or Hub id."})
    decoder_only: bool = field(default=False, metadata={"help": "Train the decoder; the codes stay what they are."})
    transform_codec_initialization: bool = field(
        default=False,
        metadata={"help": "Start as a rough codec; needs learned position tables (see the function of that name)."},
    )
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory for about a third more time."})

    # length
    stages: list[dict] = field(
        default_factory=lambda: [{"steps": 1000, "num_blocks": 4, "batch_size": 8}],
        metadata={
            "help": "Curriculum: `steps` or `epochs`, `num_blocks` (leading blocks of a clip) and `batch_size` (clips of a "
            "step, on all processes together)."
        },
    )
    videos_per_epoch: int | None = field(
        default=None, metadata={"help": "How many videos there are; tar shards are not opened to count them."}
    )
    max_train_steps: int | None = field(
        default=None, metadata={"help": "Stop after this many steps; the schedule is still that of all stages."}
    )
    gradient_accumulation_steps: int = field(
        default=1, metadata={"help": "Parts into which each process cuts its share of a batch, to save memory."}
    )

    # optimisation
    use_muon: bool = field(default=True, metadata={"help": "Muon for the matrices of the layers; Adam for all the rest."})
    learning_rate: float = field(default=1e-3)
    final_learning_rate: float = field(default=1e-5)
    warmup_steps: int = field(default=100)
    warmup_epochs: float | None = field(default=None, metadata={"help": "Instead of warmup_steps."})
    adam_beta1: float = field(default=0.9)
    adam_beta2: float = field(default=0.95)
    weight_decay: float = field(default=0.01)
    max_grad_norm: float = field(default=1.0)
    ema_decay: float = field(default=0.0, metadata={"help": "Of the average of the weights, model_ema/; 0: none."})

    # losses
    l1_weight: float = field(default=1.0)
    mse_weight: float = field(default=0.0)
    commitment_weight: float = field(default=0.025, metadata={"help": "The paper's 0.1 x 0.25."})
    codebook_weight: float = field(default=0.1, metadata={"help": "The paper's 0.1 x 1."})
    perceptual_weight: float = field(default=0.0, metadata={"help": "LPIPS (vgg)."})
    perceptual_network: str | None = field(
        default=None, metadata={"help": "File with the weights of LPIPS; default: found or downloaded."}
    )
    adversarial_weight: float = field(default=0.0)
    adversarial_kind: Literal["hinge", "non_saturating", "smoothed_non_saturating"] = field(
        default="smoothed_non_saturating"
    )
    adversarial_start_step: int = field(default=0)
    discriminator: dict = field(default_factory=dict, metadata={"help": "DiscriminatorConfig fields (in the recipe)."})
    discriminator_update_every: int = field(default=5, metadata={"help": "Steps."})
    discriminator_learning_rate: float = field(default=3e-5, metadata={"help": "Peak; the schedule is the same."})
    lecam_weight: float = field(default=0.001)
    r1_weight: float = field(default=0.0)
    prior_weight: float = field(default=0.0)
    prior: dict = field(default_factory=dict, metadata={"help": "AdapTokPriorConfig fields (in the recipe)."})
    prior_learning_rate_factor: float = field(default=50.0, metadata={"help": "Times the tokenizer's."})
    prior_num_rounds: int = field(default=2, metadata={"help": "Rounds of scheduled sampling."})
    prior_sampling_peak: float = field(default=0.5, metadata={"help": "Share of the prior's own draws ..."})
    prior_sampling_peak_at: float = field(default=0.3, metadata={"help": "... from this part of the run on."})
    prior_temperature: float = field(default=1.0)

    # codes
    quantize_after: int = field(
        default=0, metadata={"help": "Steps without quantiser; the codebook then starts from encoder outputs."}
    )
    drop_after: int = field(default=0, metadata={"help": "Steps without dropping tails."})
    reseed_every: int = field(default=25, metadata={"help": "Steps after which an unused code is re-seeded; 0 = never."})

    # the run
    seed: int = field(default=0)
    validation_steps: int = field(default=250)
    checkpointing_steps: int = field(default=250)
    checkpoints_total_limit: int = field(default=2, metadata={"help": "How many of the newest are kept."})
    logging_steps: int = field(default=25)
    report_to: Literal["none", "tensorboard", "wandb"] = field(default="none", metadata={"help": "A tracker for the log."})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "'latest' (from the start if there is none), or a name such as 'checkpoint-500'."}
    )

    def __post_init__(self):
        if len(self.train_folders) != len(self.train_weights):
            raise ValueError(f"{len(self.train_folders)} train_folders but {len(self.train_weights)} train_weights")
        for one, other in (("ucf101_folder", "ucf101_splits"), ("kinetics_folder", "kinetics_csv")):
            if (getattr(self, one) is None) != (getattr(self, other) is None):
                raise ValueError(f"{one} and {other} need each other; got {getattr(self, one)} and {getattr(self, other)}")
        streams = [*self.stream_folders, *self.shard_folders, self.ucf101_folder, self.kinetics_folder]
        streams = [name for name in streams if name]
        if bool(streams) == bool(self.train_folders):
            raise ValueError(
                "give either train_folders (kept in memory) or some of stream_folders, ucf101_folder, kinetics_folder, "
                f"shard_folders; got {self.train_folders} and {streams}"
            )
        for name in ("gradient_accumulation_steps", "checkpoints_total_limit", "logging_steps", "validation_steps",
                     "checkpointing_steps"):  # fmt: skip
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), got {self.ema_decay}")
        resume = self.resume_from_checkpoint
        if resume not in (None, "latest") and not (resume.startswith("checkpoint-") and resume[11:].isdigit()):
            raise ValueError(f"resume_from_checkpoint must be 'latest' or such as 'checkpoint-500', got {resume!r}")
        if self.init_from and (self.model or self.transform_codec_initialization or self.quantize_after):
            raise ValueError("with init_from, model, transform_codec_initialization and quantize_after have no place")
        if self.decoder_only and not self.init_from:
            raise ValueError("decoder_only needs init_from: codes of a random encoder mean nothing")
        if self.decoder_only and (self.prior_weight or self.reseed_every):
            raise ValueError(
                "with decoder_only the codes are fixed: prior_weight and reseed_every must be 0, got "
                f"{self.prior_weight} and {self.reseed_every}"
            )
        self.loss_weights  # noqa: B018 (raises ValueError)
        for stage in self.stages:
            known = {"num_blocks", "batch_size", "steps"}, {"num_blocks", "batch_size", "epochs"}
            if set(stage) not in known or min(stage.values()) <= 0:
                raise ValueError(
                    f"a stage has num_blocks, batch_size and either steps or epochs, all positive; got {stage}"
                )

    @property
    def loss_weights(self) -> TokenizerLossWeights:
        names = ("l1", "mse", "perceptual", "adversarial", "commitment", "codebook", "prior")
        return TokenizerLossWeights(**{name: getattr(self, f"{name}_weight") for name in names})


@dataclass(frozen=True)
class Stage:
    """Steps `start` to `end` - 1 of a run, counted from 0."""

    start: int
    end: int
    num_blocks: int
    batch_size: int


def plan_stages(args: Arguments, num_videos: int | None, num_processes: int, num_blocks: int) -> list[Stage]:
    """The stages in steps.

    Args:
        num_videos: videos of an epoch, if they can be counted.
        num_blocks: of the model.

    Raises:
        ValueError: where epochs have no length, clips not enough blocks, or batches cannot be shared out evenly.
    """
    parts = num_processes * args.gradient_accumulation_steps
    stages: list[Stage] = []
    for stage in args.stages:
        if stage["num_blocks"] > num_blocks:
            raise ValueError(f"a stage has {stage['num_blocks']} blocks, the model {num_blocks}")
        if stage["batch_size"] % parts:
            raise ValueError(
                f"a batch of {stage['batch_size']} clips cannot be shared evenly by {num_processes} processes with "
                f"gradient_accumulation_steps {args.gradient_accumulation_steps}"
            )
        steps = stage.get("steps") or epochs_to_steps(args, stage["epochs"], stage["batch_size"], num_videos)
        start = stages[-1].end if stages else 0
        stages.append(Stage(start, start + steps, stage["num_blocks"], stage["batch_size"]))
    return stages


def epochs_to_steps(args: Arguments, epochs: float, batch_size: int, num_videos: int | None) -> int:
    """
    Raises:
        ValueError: where neither the data nor `videos_per_epoch` says how long an epoch is.
    """
    videos = args.videos_per_epoch or num_videos
    if videos is None:
        raise ValueError("the recipe counts in epochs and tar shards are not counted: give videos_per_epoch")
    return math.ceil(epochs * videos / batch_size)
