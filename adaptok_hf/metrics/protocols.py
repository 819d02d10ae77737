"""Named protocols: all that a video metric's value depends on except the model, from the papers' public scripts."""

import dataclasses
import hashlib
import json
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How a number was measured. Two values may be compared only if their protocols have one `hash`.

    Args:
        name: in lists and options.
        data: the real videos.
        window: the frames of a video: its `"first"`, a `"random"` window, or `"all"` consecutive windows.
        num_frames: frames per clip.
        image_size: clips are resized (short side) and center-cropped to this square for the model.
        feature_size: real and generated clips are resized to this square before the feature network resizes them again;
            `None` for no such step.
        num_real, num_fake: clips on either side; `None` for all there are.
        task: of the model.
        num_condition_frames: frames that a prediction starts from.
        guidance_scale: of generation.
        precision: of the model.
        features: of distribution metrics.
        ddof: covariances are divided by N - ddof.
        allocation_batch: videos whose clips share one token budget; `None` where a clip's tokens do not depend on others.
        source: its authors.
    """

    name: str
    data: str
    window: Literal["first", "random", "all"]
    num_frames: int
    image_size: int
    task: Literal["reconstruction", "generation", "prediction"]
    num_real: int | None = None
    num_fake: int | None = None
    feature_size: int | None = None
    num_condition_frames: int = 0
    guidance_scale: float = 1.0
    precision: Literal["float32", "float16", "bfloat16"] = "float32"
    features: str = "I3D RGB Kinetics-400 logits"
    ddof: int = 0
    allocation_batch: int | None = None
    source: str = ""

    @property
    def hash(self) -> str:
        """12 hexadecimal digits over all fields but `name` and `source`."""
        fields = {key: value for key, value in dataclasses.asdict(self).items() if key not in ("name", "source")}
        if self.allocation_batch is None:  # hashes of results that were saved before this field was there stay valid
            del fields["allocation_batch"]
        return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


_ADAPTOK = "AdapTok, arXiv 2505.17011, and its public scripts"

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            name="adaptok_ucf_rfvd",
            data="UCF-101 train list",
            window="first",
            num_frames=16,
            image_size=128,
            task="reconstruction",
            num_real=9537,
            num_fake=9537,
            precision="float16",
            source=_ADAPTOK,
        ),
        Protocol(
            name="adaptok_ucf_gfvd",
            data="UCF-101 train list",
            window="random",
            num_frames=16,
            image_size=128,
            task="generation",
            num_real=10_000,
            num_fake=10_000,
            precision="bfloat16",
            source=_ADAPTOK,
        ),
        Protocol(
            name="adaptok_k600_fp64",
            data="Kinetics-600 val list",
            window="random",
            num_frames=16,
            image_size=128,
            task="prediction",
            num_real=50_000,
            num_fake=50_000,
            feature_size=64,
            num_condition_frames=5,
            precision="bfloat16",
            source=_ADAPTOK,
        ),
        Protocol(
            name="styleganv_fvd2048_16f",
            data="the training videos",
            window="random",
            num_frames=16,
            image_size=256,
            task="generation",
            num_real=2048,
            num_fake=2048,
            source="StyleGAN-V, arXiv 2112.14683, fvd2048_16f",
        ),
        Protocol(
            name="adaptok_wild_val",
            data="wild/val: 25 videos, 87 clips",
            window="all",
            num_frames=16,
            image_size=128,
            task="reconstruction",
            num_real=87,
            num_fake=87,
            source="adaptok_hf, the data its shipped checkpoint is checked on",
        ),
    )
}
