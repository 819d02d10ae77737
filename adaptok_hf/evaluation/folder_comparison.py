"""Videos of any system against real ones: pairs by name, and the two sets as wholes."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from ..data import VideoFiles
from ..metrics import Protocol
from ..metrics.weight_formats import tensors_sha256
from ..video.video_io import read_video
from .clip_chunks import ClipChunks, open_videos
from .measuring import Networks, clip_features, measure_clips
from .reconstruction_results import metric_entry
from .summaries import METRIC_NAMES, summarize_clips, summarize_features

_VIDEOS_AT_ONCE = 8


def compare_videos(
    real: str | Path,
    fake: str | Path,
    *,
    networks: Networks | None = None,
    window: str = "first",
    num_frames: int = 16,
    image_size: int | None = None,
    protocol: Protocol | None = None,
) -> dict[str, Any]:
    """
    PSNR, SSIM and LPIPS of videos that have the same name on both sides (whatever their suffix), FVD of the two sets.

    Args:
        real, fake: folders of videos, single files (a pair whatever their names), or csv manifests.
        networks: for LPIPS and FVD; by default neither is measured.
        window: `"first"` or `"all"` clips of `num_frames` frames of each video.
        image_size: both are resized (short side) and centre-cropped to this square; by default the short side of the first
            fake video, so that square videos stay as they are.
        protocol: in place of the last three.

    Returns:
        `metrics`, a dict of results as in a report of `evaluate_reconstruction`; `num_pairs`; `pairs`, the numbers of each
        clip; `notes`; `protocols`.

    Raises:
        ValueError, OSError: for paths without videos, videos that cannot be read, pairs of different length, and where
            nothing can be compared.
    """
    networks = networks or Networks()
    sources = [open_videos(real), open_videos(fake)]
    if protocol is None:
        if window not in ("first", "all"):
            raise ValueError(f"window must be 'first' or 'all', got {window!r}")
        if image_size is None:
            first = sources[1].items[0].video
            image_size = min(read_video(first, max_frames=1).frames.shape[1:3])
        data = f"{Path(real).name} against {Path(fake).name}"
        protocol = Protocol("own", data, window, num_frames, image_size, "reconstruction", source="given by the caller")
    names = [_names(source) for source in sources]
    if all(len(source.items) == 1 for source in sources):
        names[1] = list(names[0])
    common = [name for name in names[0] if name in set(names[1])]
    notes = list(networks.missing)
    for side, own in (("real", names[0]), ("fake", names[1])):
        if alone := len(own) - len(common):
            notes.append(f"{alone} of {len(own)} {side} videos have no partner of that name")
    rows, features = [], []
    if common:
        pair_sources = [
            VideoFiles([source.items[own.index(name)] for name in common])
            for source, own in zip(sources, names, strict=True)
        ]
        rows = _measure_pairs(pair_sources, protocol, networks)
    if networks.features is not None:
        features = [_features_of(source, protocol, networks) for source in sources]
    videos = [row["video"] for row in rows]
    metrics = {}
    for name in ("psnr", "ssim", "lpips"):
        if rows and name in rows[0]:
            label, sha = METRIC_NAMES[name], None
            if name == "lpips":
                label += f" ({getattr(networks.lpips, 'net', type(networks.lpips).__name__)})"
                sha = tensors_sha256(networks.lpips.state_dict())
            metrics[name] = summarize_clips(label, [row[name] for row in rows], videos, protocol, sha)
    if features:
        paired = len(features[0]) == len(features[1]) and len(common) == len(names[0]) == len(names[1])
        fvd = summarize_features(*features, networks.features, protocol, paired=paired)
        if fvd is None:
            notes.append("FVD needs at least 2 clips on each side")
        else:
            metrics["fvd"] = fvd
    if not metrics:
        raise ValueError(f"no video of {fake} has the name of one of {real}, and FVD was not measured: nothing to compare")
    return {
        "task": "comparison",
        "real": str(real),
        "fake": str(fake),
        "num_pairs": len(common),
        "metrics": {name: metric_entry(result) for name, result in metrics.items()},
        "pairs": rows,
        "notes": notes,
        "protocols": {protocol.hash: dataclasses.asdict(protocol)},
    }


def _names(source: VideoFiles) -> list[str]:
    return [str(Path(item.key).with_suffix("")) for item in source.items]


def _measure_pairs(sources: list[VideoFiles], protocol: Protocol, networks: Networks) -> list[dict]:
    device = torch.device("cpu")
    if networks.lpips is not None:
        device = next((parameter.device for parameter in networks.lpips.parameters()), device)
    rows = []
    # one video at a time, so that a file that is skipped on one side is told
    chunks = [ClipChunks(source, protocol, 1) for source in sources]
    for index in range(len(chunks[0])):
        real, fake = chunks[0].read(index), chunks[1].read(index)
        key = sources[0].items[index].key
        if len(real) != len(fake):
            raise ValueError(
                f"{key}: {len(real)} clips of {protocol.num_frames} frames on the real side, {len(fake)} on the other"
            )
        for start in range(0, len(real), _VIDEOS_AT_ONCE):
            part = slice(start, start + _VIDEOS_AT_ONCE)
            pair = [(side.videos[part] / 255).to(device) for side in (fake, real)]
            for offset, numbers in enumerate(measure_clips(networks, *pair)):
                rows.append({"video": key, "first_frame": real.starts[start + offset], **numbers})
    return rows


def _features_of(source: VideoFiles, protocol: Protocol, networks: Networks) -> torch.Tensor:
    chunks = ClipChunks(source, protocol, _VIDEOS_AT_ONCE)
    features = []
    for index in range(len(chunks)):
        clips = chunks.read(index)
        if len(clips):
            features.append(clip_features(networks.features, clips.videos / 255, protocol.feature_size))
    return torch.cat(features) if features else torch.zeros(0, networks.features.num_features)
