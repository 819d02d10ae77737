"""What evaluations of generators have in common."""

import dataclasses
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..metrics import Protocol
    from ..pipelines.pipeline_adaptok import AdapTokPipeline


@dataclasses.dataclass(frozen=True)
class SamplingSettings:
    """How tokens are sampled; what is `None` is left to the model's generation configuration.

    Args:
        temperature: 0 takes the likeliest token.
        top_k: sample from so many likeliest tokens.
        top_p: sample from the likeliest tokens that have this probability together.
        max_tokens: the most tokens to write for a clip.
    """

    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    max_tokens: int | None = None

    @property
    def chosen(self) -> dict[str, Any]:
        """The settings that are not `None`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


def check_clip_size(pipeline: "AdapTokPipeline", protocol: "Protocol") -> None:
    """Raise `ValueError` if a model's clips are not those of a protocol."""
    config = pipeline.tokenizer.config
    if (config.num_frames, config.image_size) != (protocol.num_frames, protocol.image_size):
        raise ValueError(
            f"the model makes {config.num_frames} frames of {config.image_size} x {config.image_size}, the protocol "
            f"{protocol.name} has {protocol.num_frames} of {protocol.image_size} x {protocol.image_size}"
        )
