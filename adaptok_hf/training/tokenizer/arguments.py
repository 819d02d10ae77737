"""The arguments of `train_tokenizer.py`, which its recipes fill, and the stages of a run."""

from dataclasses import dataclass, field
from typing import Literal

from ...losses import TokenizerLossWeights
from ..arguments import ClipArguments, RunArguments, epochs_to_steps, share_of_batch


@dataclass(kw_only=True)
class Arguments(ClipArguments, RunArguments):
    decoder_only: bool = field(default=False, metadata={"help": "Train the decoder; the codes stay what they are."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory for about a third more time."})
    shard_over: int = field(
        default=0,
        metadata={
            "help": "Cut weights, gradients, optimizer states and averages into this many parts (FSDP), each on another "
            "process: all of them, or those of one machine. 0: each process has the whole."
        },
    )

    # length
    stages: list[dict] = field(
        default_factory=lambda: [{"steps": 1000, "num_blocks": 4, "batch_size": 8}],
        metadata={
            "help": "Curriculum: `steps` or `epochs`, `num_blocks` (leading blocks of a clip) and `batch_size` (clips of a "
            "step, on all processes together)."
        },
    )

    # optimization
    use_muon: bool = field(default=True, metadata={"help": "Muon for the matrices of the layers; Adam for all the rest."})

    # losses
    l1_weight: float = field(default=1.0)
    mse_weight: float = field(default=0.0)
    commitment_weight: float = field(default=0.025, metadata={"help": "The paper's 0.1 x 0.25."})
    codebook_weight: float = field(default=0.1, metadata={"help": "The paper's 0.1 x 1."})
    perceptual_weight: float = field(default=0.0, metadata={"help": "LPIPS (vgg)."})
    perceptual_network: str | None = field(
        default=None, metadata={"help": "File with the weights of LPIPS; default: the cached or downloaded one."}
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
    prior_sampling_peak: float = field(default=0.5, metadata={"help": "Share of codes sampled from the prior ..."})
    prior_sampling_peak_at: float = field(default=0.3, metadata={"help": "... from this part of the run on."})
    prior_temperature: float = field(default=1.0)

    # codes
    quantize_after: int = field(
        default=0, metadata={"help": "Steps without quantizer; k-means of encoder outputs then initializes the codebook."}
    )
    drop_after: int = field(default=0, metadata={"help": "Steps without dropping tails."})
    reseed_every: int = field(default=25, metadata={"help": "Steps after which an unused code is re-seeded; 0 = never."})

    def __post_init__(self):
        ClipArguments.__post_init__(self)
        RunArguments.__post_init__(self)
        if self.decoder_only and not self.init_from:
            raise ValueError("decoder_only needs init_from: codes of a random encoder mean nothing")
        if self.decoder_only and (self.prior_weight or self.reseed_every):
            raise ValueError(
                "with decoder_only the codes are fixed: prior_weight and reseed_every must be 0, got "
                f"{self.prior_weight} and {self.reseed_every}"
            )
        if self.shard_over:
            # what reaches into whole weights while training; Muon needs whole matrices
            names = ("use_muon", "quantize_after", "reseed_every")
            if in_use := {name: getattr(self, name) for name in names if getattr(self, name)}:
                raise ValueError(f"with shard_over these must be off (as in the paper's recipes): {in_use}")
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
    """Return the stages in steps.

    Args:
        num_videos: videos of an epoch, if they can be counted.
        num_blocks: of the model.

    Raises:
        ValueError: where epochs have no length, clips not enough blocks, or batches cannot be shared out evenly.
    """
    stages: list[Stage] = []
    for stage in args.stages:
        if stage["num_blocks"] > num_blocks:
            raise ValueError(f"a stage has {stage['num_blocks']} blocks, the model {num_blocks}")
        share_of_batch(stage["batch_size"], num_processes, args.gradient_accumulation_steps)  # raises ValueError
        steps = stage.get("steps") or epochs_to_steps(stage["epochs"], stage["batch_size"], num_videos)
        start = stages[-1].end if stages else 0
        stages.append(Stage(start, start + steps, stage["num_blocks"], stage["batch_size"]))
    return stages
