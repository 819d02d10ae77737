"""Features of an evaluation's clips, for metrics that compare whole sets: written part by part, then read together."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from accelerate import PartialState

from .class_accuracy import pixel_features
from .clip_chunks import ClipChunks
from .encoded_clips import autocast
from .measuring import Networks, clip_features
from .part_files import PartFiles
from .processes import unfinished_parts

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline


def features_of(
    videos: torch.Tensor, kinds: Sequence[str], networks: Networks, size: int | None
) -> dict[str, torch.Tensor]:
    """Return (clips, D) features by kind.

    Args:
        videos: (clips, frames, 3, height, width) in [0, 1].
        kinds: of `"network"` and `"pixels"`.
        size: see `measuring.clip_features`.
    """
    features = {}
    if "network" in kinds:
        features["network"] = clip_features(networks.features, videos, size)
    if "pixels" in kinds:
        features["pixels"] = pixel_features(videos)
    return features


def write_features(
    parts: PartFiles,
    name: str,
    chunks: ClipChunks,
    kinds: Sequence[str],
    networks: Networks,
    state: PartialState,
    pipeline: "AdapTokPipeline | None" = None,
) -> None:
    """Write features of this process's share of real clips; with a pipeline, of their reconstructions from all tokens."""
    if not kinds:
        return
    protocol = chunks.protocol
    for index in unfinished_parts(parts, name, len(chunks), state):
        clips = chunks.read(index)
        videos = clips.videos / 255
        if pipeline is not None and len(clips):
            with torch.no_grad(), autocast(pipeline.device, protocol.precision):
                codes = pipeline.tokenizer.encode(videos.to(pipeline.device)).codes
                videos = pipeline.tokenizer.decode(codes).pixel_values_videos.float().clamp(0, 1)
        rows = [{"video": key, "label": label} for key, label in zip(clips.keys, clips.labels, strict=True)]
        tensors = features_of(videos, kinds, networks, protocol.feature_size)
        parts.write(name, f"{index:05d}", rows=rows, tensors=tensors)
