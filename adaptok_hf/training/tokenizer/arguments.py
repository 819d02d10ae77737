"""The arguments of `train_tokenizer.py`, which its recipes fill, and the stages of a run."""

from dataclasses import dataclass, field, fields
from typing import Literal

from ...losses import TokenizerLossWeights
from ..arguments import ClipArguments, RunArguments, epochs_to_steps, share_of_batch
from .assignments import check_options


@dataclass(kw_only=True)
class Arguments(ClipArguments, RunArguments):
    architecture: Literal["adaptok", "evatok"] = field(
        default="adaptok", metadata={"help": "Of the tokenizer: AdapTokModel or EVATokModel."}
    )
    assignments: dict = field(
        default_factory=dict,
        metadata={
            "help": "Token counts of blocks (in the recipe): `kind` random (the default), fixed with `counts`, or router "
            "with `router` (folder or Hub id) and `price`."
        },
    )
    decoder_only: bool = field(default=False, metadata={"help": "Train the decoder; the codes stay what they are."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Less memory for about a third more time."})
    shard_over: int = field(
        default=0,
        metadata={
            "help": "Cut weights, gradients, optimizer states and averages into this many parts (FSDP), each on another "
            "process: all of them, or those of one machine. 0: each process has the whole."
        },
    )

    # start
    patch_components: int = field(
        default=0,
        metadata={
            "help": "Train with patches in so many principal components; without init_from, from the weights of "
            "`pyramid_start`. 0: in pixels, from a usual random start or init_from."
        },
    )

    # length
    stages: list[dict] = field(
        default_factory=lambda: [{"steps": 1000, "num_blocks": 4, "batch_size": 8}],
        metadata={
            "help": "Curriculum: `steps`, `epochs` or `seconds`, `num_blocks` (leading blocks of a clip), `batch_size` "
            "(clips of a step, on all processes together) and what else `StageOptions` has."
        },
    )

    # optimization
    use_muon: bool = field(default=True, metadata={"help": "Muon for the matrices of the layers; Adam for all the rest."})
    adam_learning_rate_factor: float = field(default=1.0, metadata={"help": "Of what Adam updates, over learning_rate."})

    # losses
    l1_weight: float = field(default=1.0)
    mse_weight: float = field(default=0.0)
    log_mse_weight: float = field(default=0.0, metadata={"help": "Mean logarithm of the blocks' mean squared errors."})
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
    feature_adversarial_weight: float = field(default=0.0, metadata={"help": "Of a second discriminator, see there."})
    feature_discriminator: dict = field(
        default_factory=dict,
        metadata={
            "help": "`backbone`, folder or Hub id of a VideoMAEModel, and options of FeatureDiscriminator (in the recipe). "
            "Kind, start, turns and LeCam are those of the other."
        },
    )
    feature_discriminator_learning_rate: float = field(default=2e-5, metadata={"help": "Peak; the schedule is the same."})
    alignment_weight: float = field(default=0.0, metadata={"help": "Cosine to a frozen teacher; EVATok: 0.7."})
    alignment_teacher: str | None = field(default=None, metadata={"help": "A VJEPA2Model, folder or Hub id."})
    alignment_layer: int = field(default=3, metadata={"help": "The decoder's, from 1."})
    alignment_image_size: int | None = field(
        default=None, metadata={"help": "Pixels that the teacher sees; default: its configuration's."}
    )
    entropy_weight: float = field(default=0.0, metadata={"help": "Of the quantizer's choices; EVATok: 0.02."})
    lecam_weight: float = field(default=0.001)
    r1_weight: float = field(default=0.0, metadata={"help": "Of the first discriminator only."})
    prior_weight: float = field(default=0.0)
    prior: dict = field(default_factory=dict, metadata={"help": "AdapTokPriorConfig fields (in the recipe)."})
    prior_learning_rate_factor: float = field(default=50.0, metadata={"help": "Times the tokenizer's."})
    prior_num_rounds: int = field(default=2, metadata={"help": "Rounds of scheduled sampling."})
    prior_sampling_peak: float = field(default=0.5, metadata={"help": "Share of codes sampled from the prior ..."})
    prior_sampling_peak_at: float = field(default=0.3, metadata={"help": "... from this part of the run on."})
    prior_temperature: float = field(default=1.0)

    # codes
    count_groups: int = field(
        default=0,
        metadata={
            "help": "Groups of clips in a step that keep the same numbers of tokens, half of them few, half of them many. "
            "0: every clip has its own, as in the paper."
        },
    )
    codebook_decay: float = field(
        default=0.0,
        metadata={"help": "Of the average of latents that each code follows, instead of its gradient; 0: the gradient."},
    )
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
        check_options(self.assignments)
        if self.count_groups and self.assignments:
            raise ValueError(f"count_groups={self.count_groups} samples counts itself: leave out assignments")
        if self.architecture == "evatok":
            self._check_evatok()
        if self.shard_over:
            # what reaches into whole weights while training; Muon needs whole matrices
            names = ("use_muon", "reseed_every", "patch_components", "codebook_decay")
            if in_use := {name: getattr(self, name) for name in names if getattr(self, name)}:
                raise ValueError(f"with shard_over these must be off (as in the paper's recipes): {in_use}")
        if not 0 <= self.codebook_decay < 1:
            raise ValueError(f"codebook_decay must lie in [0, 1), got {self.codebook_decay}")
        if self.codebook_decay and (self.codebook_weight or self.reseed_every):
            raise ValueError(
                "with codebook_decay codes follow latents: codebook_weight and reseed_every must be 0, got "
                f"{self.codebook_weight} and {self.reseed_every}"
            )
        self.loss_weights  # noqa: B018 (raises ValueError)
        for name, entry, given in (
            ("alignment", "alignment_teacher", self.alignment_teacher),
            ("feature_adversarial", "backbone in feature_discriminator", self.feature_discriminator.get("backbone")),
        ):
            if self.uses(name) and not given:
                raise ValueError(f"{name} has a weight: give {entry}, a folder or Hub id")
        units = {unit for stage in self.stages for unit in ("steps", "epochs", "seconds") if unit in stage}
        for stage in self.stages:
            options = {name: value for name, value in stage.items() if name not in (*units, "num_blocks", "batch_size")}
            lengths = [value for name, value in stage.items() if name not in options]
            if len(lengths) != 3 or min(lengths) <= 0 or ("seconds" in units and len(units) > 1):
                raise ValueError(
                    "a stage has num_blocks, batch_size and one of steps, epochs and (all stages alike) seconds, all "
                    f"positive; got {stage}"
                )
            try:
                StageOptions(**options)
            except TypeError:
                known = [option.name for option in fields(StageOptions)]
                raise ValueError(f"options of a stage are {known}, got {stage}") from None

    def _check_evatok(self) -> None:
        """Raise `ValueError` for what only an AdapTok tokenizer can do."""
        names = ("patch_components", "count_groups")
        in_use = {name: getattr(self, name) for name in names if getattr(self, name)}
        for stage in self.stages:
            options = {"quantize": True, "noise": 0.0, "fit_codebook": False}
            in_use |= {name: stage[name] for name, usual in options.items() if stage.get(name, usual) != usual}
        if in_use:
            raise ValueError(f"architecture 'evatok' has no {in_use}")

    @property
    def loss_weights(self) -> TokenizerLossWeights:
        names = [weight.name for weight in fields(TokenizerLossWeights)]
        return TokenizerLossWeights(**{name: getattr(self, f"{name}_weight") for name in names})

    def uses(self, name: str) -> bool:
        """Return whether a term of the loss has a weight in any stage."""
        return bool(getattr(self, f"{name}_weight")) or any(
            stage.get("loss_weights", {}).get(name) for stage in self.stages
        )


@dataclass(frozen=True, kw_only=True)
class StageOptions:
    """What a stage may say next to its length and the size of its batches.

    Args:
        quantize: `False` leaves the quantizer out.
        noise: without quantizer, length of the noise that is added to unit latents.
        fit_codebook: set the codes to the result of k-means on encoder outputs at the beginning.
        drop_tails: `False` keeps all tokens.
        single_blocks: share of the steps that have first blocks only, as many as the clips of the others have blocks.
        loss_weights: weights of the losses that differ from the run's, by the names of `TokenizerLossWeights`.
    """

    quantize: bool = True
    noise: float = 0.0
    fit_codebook: bool = False
    drop_tails: bool = True
    single_blocks: float = 0.0
    loss_weights: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Stage:
    """A part of a run, from `start` to before `end`: steps counted from 0, or seconds."""

    start: float
    end: float
    num_blocks: int
    batch_size: int
    options: StageOptions = StageOptions()


def plan_stages(args: Arguments, num_videos: int | None, num_processes: int, num_blocks: int) -> list[Stage]:
    """Return the stages, in steps or in seconds.

    Args:
        num_videos: videos of an epoch, if they can be counted.
        num_blocks: of the model.

    Raises:
        ValueError: where epochs have no length, clips not enough blocks, or batches cannot be shared out evenly.
    """
    stages: list[Stage] = []
    for entries in args.stages:
        stage = dict(entries)
        blocks, batch_size = stage.pop("num_blocks"), stage.pop("batch_size")
        if blocks > num_blocks:
            raise ValueError(f"a stage has {blocks} blocks, the model {num_blocks}")
        share_of_batch(batch_size, num_processes, args.gradient_accumulation_steps)  # raises ValueError
        steps, epochs, seconds = (stage.pop(unit, None) for unit in ("steps", "epochs", "seconds"))
        length = seconds or steps or epochs_to_steps(epochs, batch_size, num_videos)
        start = stages[-1].end if stages else 0
        stages.append(Stage(start, start + length, blocks, batch_size, StageOptions(**stage)))
    return stages
