"""Named protocols: all that a video metric's value depends on except the model, from papers and public scripts."""

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
        source: its authors, and what is ours because they do not state it.
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
_EVATOK = "EVATok, arXiv 2603.12267; not stated there, so ours: "
_UCF, _K600, _WILD = "UCF-101 train list", "Kinetics-600 val list", "wild/val: 25 videos, 87 clips"
_OURS = "adaptok_hf, the data its shipped checkpoint is checked on"
_FVD2048 = "StyleGAN-V, arXiv 2112.14683, fvd2048_16f"
_AT_64 = {"feature_size": 64, "num_condition_frames": 5}

# name, data, window, frames, size, task, clips on either side, precision, source, others
_ROWS = (
    ("adaptok_ucf_rfvd", _UCF, "first", 16, 128, "reconstruction", 9537, "float16", _ADAPTOK, {}),
    ("adaptok_ucf_gfvd", _UCF, "random", 16, 128, "generation", 10_000, "bfloat16", _ADAPTOK, {}),
    ("adaptok_k600_fp64", _K600, "random", 16, 128, "prediction", 50_000, "bfloat16", _ADAPTOK, _AT_64),
    ("evatok_webvid_rfvd", "WebVid-10M val, 3 fps", "first", 16, 128, "reconstruction", None, "float32",
     _EVATOK + "frame rate of evaluation, window, number of clips, precision", {}),
    ("evatok_ucf_rfvd", _UCF, "first", 16, 128, "reconstruction", None, "float32",
     _EVATOK + "window, number of clips, precision", {}),
    ("evatok_ucf_gfvd", _UCF, "random", 16, 128, "generation", 10_000, "float32",
     _EVATOK + "window and number of real clips, precision", {"guidance_scale": 2.5}),
    ("styleganv_fvd2048_16f", "the training videos", "random", 16, 256, "generation", 2048, "float32", _FVD2048, {}),
    ("adaptok_wild_val", _WILD, "all", 16, 128, "reconstruction", 87, "float32", _OURS, {}),
)  # fmt: skip
PROTOCOLS = {
    name: Protocol(name, *clips, num_real=count, num_fake=count, precision=precision, source=source, **others)
    for name, *clips, count, precision, source, others in _ROWS
}
