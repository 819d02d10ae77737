"""Videos of any system against real ones: pairs by name, and the two sets as wholes."""

import dataclasses
from pathlib import Path
from typing import Any

import torch

from ..data import VideoFiles
from ..metrics import Protocol
from ..video.video_io import read_video
from .clip_chunks import ClipChunks, open_videos
from .measuring import Networks, clip_features, device_of, measure_clips
from .summaries import summarize_features, summarize_pairs

_CLIPS_AT_ONCE = 8


def compare_videos(
    real: str | Path,
    fake: str | Path,
    *,
    networks: Networks | None = None,
    window: str = "first",
    num_frames: int = 16,
) -> dict[str, Any]:
    """Measure PSNR, SSIM and LPIPS of videos with the same name on both sides (whatever their suffix), and FVD of the sets.

    Both sides are resized (short side) and center-cropped to the short side of the first fake video, so that square videos
    stay as they are.

    Args:
        real, fake: folders of videos, single files (a pair whatever their names), or csv manifests.
        networks: for LPIPS and FVD; by default neither is measured.
        window: `"first"` or `"all"` clips of `num_frames` frames of each video.

    Returns:
        `metrics`, a dict of results as in a report of `evaluate_reconstruction`; `num_pairs`; `pairs`, the numbers of each
        clip; `notes`; `protocols`.

    Raises:
        ValueError, OSError: for paths without videos, videos that cannot be read, pairs of different length, and where
            nothing can be compared.
    """
    networks = networks or Networks()
    sources = {"real": open_videos(real), "fake": open_videos(fake)}
    if window not in ("first", "all"):
        raise ValueError(f"window must be 'first' or 'all', got {window!r}")
    image_size = min(read_video(sources["fake"].items[0].video, max_frames=1).frames.shape[1:3])
    data = f"{Path(real).name} against {Path(fake).name}"
    protocol = Protocol("own", data, window, num_frames, image_size, "reconstruction", source="given by the caller")
    pairs = _match_names(sources)
    num_pairs, notes = len(pairs["real"].items), list(networks.missing)
    alone = {side: len(source.items) - num_pairs for side, source in sources.items()}
    for side, number in alone.items():
        if number:
            notes.append(f"{number} of {len(sources[side].items)} {side} videos have no partner of that name")
    rows = _measure_pairs(pairs, protocol, networks)
    metrics = summarize_pairs(rows, networks, protocol)
    if networks.features is not None:
        features = [_features_of(source, protocol, networks) for source in sources.values()]
        paired = len(features[0]) == len(features[1]) and not any(alone.values())
        metrics |= summarize_features(*features, networks.features, protocol, paired=paired)
        if "fvd" not in metrics:
            notes.append("FVD needs at least 2 clips on each side")
    if not metrics:
        raise ValueError(f"no video of {fake} has the name of one of {real}, and FVD was not measured: nothing to compare")
    return {
        "task": "comparison",
        "real": str(real),
        "fake": str(fake),
        "num_pairs": num_pairs,
        "metrics": metrics,
        "pairs": rows,
        "notes": notes,
        "protocols": {protocol.hash: dataclasses.asdict(protocol)},
    }


def _match_names(sources: dict[str, VideoFiles]) -> dict[str, VideoFiles]:
    """Return the videos of each side whose names both sides have, in the order of the real ones."""
    if all(len(source.items) == 1 for source in sources.values()):
        return sources
    # of names that a side has twice, the first video
    by_name = {
        side: {str(Path(item.key).with_suffix("")): item for item in reversed(source.items)}
        for side, source in sources.items()
    }
    common = [str(Path(item.key).with_suffix("")) for item in sources["real"].items]
    common = [name for name in dict.fromkeys(common) if name in by_name["fake"]]
    return {side: VideoFiles([items[name] for name in common]) for side, items in by_name.items()}


def _measure_pairs(pairs: dict[str, VideoFiles], protocol: Protocol, networks: Networks) -> list[dict]:
    device, rows = device_of(networks.lpips), []
    # one video at a time, so that a file that is skipped on one side is noticed
    chunks = {side: ClipChunks(source, protocol, 1) for side, source in pairs.items()}
    for index, item in enumerate(pairs["real"].items):
        real, fake = chunks["real"].read(index), chunks["fake"].read(index)
        if len(real) != len(fake):
            raise ValueError(
                f"{item.key}: {len(real)} clips of {protocol.num_frames} frames on the real side, {len(fake)} on the other"
            )
        numbers = []
        for start in range(0, len(real), _CLIPS_AT_ONCE):
            clips = slice(start, start + _CLIPS_AT_ONCE)
            numbers += measure_clips(networks, *((side.videos[clips] / 255).to(device) for side in (fake, real)))
        starts = zip(real.starts, numbers, strict=True)
        rows += [{"video": item.key, "first_frame": start, **values} for start, values in starts]
    return rows


def _features_of(source: VideoFiles, protocol: Protocol, networks: Networks) -> torch.Tensor:
    chunks = ClipChunks(source, protocol, _CLIPS_AT_ONCE)
    features = []
    for index in range(len(chunks)):
        clips = chunks.read(index)
        if len(clips):
            features.append(clip_features(networks.features, clips.videos / 255, protocol.feature_size))
    return torch.cat(features) if features else torch.zeros(0, networks.features.num_features)
