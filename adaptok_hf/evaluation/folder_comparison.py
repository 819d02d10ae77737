"""Videos of any system against real ones: pairs by name, and the two sets as wholes."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..data import VideoFiles, VideoItem
from ..data.clip_reader import probe_video
from ..data.video_item import is_video_file
from ..metrics import Protocol
from ..video.frames import center_crop, resize_short_side
from ..video.picture_files import picture_files
from ..video.video_io import read_video
from .clip_chunks import open_videos
from .measuring import Networks, clip_features, device_of, measure_clips
from .summaries import summarize_features, summarize_pairs

_CLIPS_AT_ONCE = 8
# Suffixes of frames; a .webp or .gif is a video.
_FRAMES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What a video is, as far as that takes no decoding."""

    num_frames: int
    fps: float | None  # None for a folder of pictures
    size: tuple[int, int]  # height and width


def compare_videos(
    real: str | Path,
    fake: str | Path,
    *,
    networks: Networks | None = None,
    protocol: Protocol | None = None,
    window: str | None = None,
    num_frames: int | None = None,
    image_size: int | None = None,
) -> dict[str, Any]:
    """Measure PSNR, SSIM and LPIPS of videos with the same name on both sides (whatever their suffix), and FVD of the sets.

    Both sides are resized (short side) and center-cropped to one square. Frames are compared by their number. A pair that
    cannot be compared raises before anything is measured; `notes` name what was left out or changed.

    Args:
        real, fake: folders of videos, folders of folders of pictures (a video each), single videos (a pair whatever their
            names), or csv manifests. Where no path within the folders is on both sides, file names alone are matched.
        networks: for LPIPS and FVD; by default neither is measured.
        protocol: of reconstructions, such as `PROTOCOLS["adaptok_wild_val"]`, in place of the next three.
        window: `"first"` (the default) or `"all"` clips of `num_frames` frames (16) of each video.
        image_size: of the square; by default the short side of the fake videos, so that square videos stay as they are.

    Returns:
        `metrics`, a dict of results as in a report of `evaluate_reconstruction`; `num_pairs`; `pairs`, the numbers of each
        clip; `unpaired`, the names that only one side has; `notes`; `protocols`.

    Raises:
        ValueError, OSError: for paths without videos, videos that cannot be read or are shorter than a clip, pairs of
            different length, fake videos of different sizes without a size to bring them to, and where nothing can be
            compared.
    """
    networks = networks or Networks()
    sources = {"real": _open(real), "fake": _open(fake)}
    pairs, notes = _match_names(sources)
    paired = {side: {item.key for item in items} for side, items in pairs.items()}
    alone = {side: [item for item in source.items if item.key not in paired[side]] for side, source in sources.items()}
    unpaired = {side: [item.key for item in items] for side, items in alone.items()}
    if not pairs["fake"] and networks.features is None:
        raise ValueError(
            f"no video has the same name on both sides, such as {sources['real'].items[0].key} in {real} and "
            f"{sources['fake'].items[0].key} in {fake}, and FVD was not measured: there is nothing to compare"
        )
    used = pairs if networks.features is None else {side: [*pairs[side], *alone[side]] for side in pairs}
    facts = {side: {item.key: _facts(item) for item in items} for side, items in used.items()}
    own = {"window": window, "num_frames": num_frames, "image_size": image_size}
    protocol = _choose_protocol(protocol, own, facts["fake"], f"{Path(real).name} against {Path(fake).name}")
    _check_lengths(pairs, facts, protocol)
    for side, names in unpaired.items():
        if names:
            total = len(sources[side].items)
            notes.append(f"{side} videos without a partner of that name, {len(names)} of {total}: {_some(names)}")
    notes += _differences(pairs, facts, protocol)
    rows = _measure_pairs(pairs, protocol, networks)
    metrics = summarize_pairs(rows, networks, protocol)
    if networks.features is not None:
        features = [_features_of(items, protocol, networks) for items in used.values()]
        metrics |= summarize_features(*features, networks.features, protocol, paired=not any(unpaired.values()))
        if "fvd" not in metrics:
            notes.append("FVD needs at least 2 clips on each side")
    return {
        "task": "comparison",
        "real": str(real),
        "fake": str(fake),
        "num_pairs": len(pairs["fake"]),
        "metrics": metrics,
        "pairs": rows,
        "unpaired": unpaired,
        "notes": [*networks.missing, *notes],
        "protocols": {protocol.hash: dataclasses.asdict(protocol)},
    }


def _choose_protocol(protocol: Protocol | None, own: dict[str, Any], fake: Mapping[str, _Facts], data: str) -> Protocol:
    """Return the protocol, or one of what the caller gave."""
    given = {name: value for name, value in own.items() if value is not None}
    if protocol is not None:
        if given:
            raise ValueError(f"the protocol {protocol.name} has its own {', '.join(given)}; give one or the other")
        if protocol.task != "reconstruction":
            raise ValueError(
                f"videos are compared under a protocol of reconstruction; {protocol.name} is of {protocol.task}"
            )
        return protocol
    if "image_size" not in given:
        by_size = {each.size: key for key, each in fake.items()}
        if len({min(size) for size in by_size}) > 1:
            sizes = _some(f"{key} is {width} x {height}" for (height, width), key in by_size.items())
            raise ValueError(f"the fake videos differ in size: {sizes}; give the size to measure at")
        given["image_size"] = min(next(iter(by_size)))
    if given.setdefault("window", "first") not in ("first", "all"):
        raise ValueError(f"window must be 'first' or 'all', got {given['window']!r}")
    for name in ("num_frames", "image_size"):
        if given.setdefault(name, 16) < 1:
            raise ValueError(f"{name} must be at least 1, got {given[name]}")
    return Protocol("own", data, task="reconstruction", source="given by the caller", **given)


def _open(path: str | Path) -> VideoFiles:
    """Open what `open_videos` opens, or folders of frames: the folder itself or those below it, each a video."""
    path = Path(path)
    files = [file for file in sorted(path.rglob("*")) if file.is_file()] if path.is_dir() else []
    if any(map(is_video_file, files)):
        return open_videos(path)
    folders = dict.fromkeys(file.parent for file in files if file.suffix.lower() in _FRAMES)
    if path in folders:
        return VideoFiles([VideoItem(path.name, str(path))])
    items = [VideoItem(folder.relative_to(path).as_posix(), str(folder)) for folder in folders]
    return VideoFiles(items) if items else open_videos(path)


def _match_names(sources: Mapping[str, VideoFiles]) -> tuple[dict[str, list[VideoItem]], list[str]]:
    """Return the videos of each side whose names both sides have, in the order of the real ones; and notes."""
    if all(len(source.items) == 1 for source in sources.values()):
        return {side: source.items for side, source in sources.items()}, []
    notes = []
    for of_path in (Path, lambda key: Path(Path(key).name)):
        named = {side: {} for side in sources}
        for side, source in sources.items():
            for item in source.items:
                path = of_path(item.key)
                name = str(path if Path(item.video).is_dir() else path.with_suffix(""))
                named[side].setdefault(name, []).append(item)
        common = [name for name in named["real"] if name in named["fake"]]
        if common:
            break
        notes = ["pairs have the same file name in different folders"]
    for side, names in named.items():
        if twice := next((names[name] for name in common if len(names[name]) > 1), None):
            raise ValueError(f"two {side} videos have the same name: {twice[0].key} and {twice[1].key}")
    pairs = {side: [names[name][0] for name in common] for side, names in named.items()}
    return pairs, notes if common else []


def _facts(item: VideoItem) -> _Facts:
    size = read_video(item.video, max_frames=1).frames.shape[1:3]
    if Path(item.video).is_dir():
        return _Facts(len(picture_files(item.video)), None, size)
    return _Facts(*probe_video(item.video), size)


def _check_lengths(
    pairs: Mapping[str, Sequence[VideoItem]], facts: Mapping[str, Mapping[str, _Facts]], protocol: Protocol
) -> None:
    """Raise `ValueError` for videos shorter than a clip, and pairs with different numbers of clips."""
    length = protocol.num_frames
    short = [
        f"{side} {key} has {each.num_frames} frames"
        for side, of_side in facts.items()
        for key, each in of_side.items()
        if each.num_frames < length
    ]
    if short:
        raise ValueError(f"a clip has {length} frames, but {_some(short)}")
    problems = []
    if protocol.window == "all":
        for real, fake in zip(*pairs.values(), strict=True):
            counts = facts["real"][real.key].num_frames, facts["fake"][fake.key].num_frames
            if counts[0] // length != counts[1] // length:
                problems.append(f"{real.key} has {counts[0]} frames on the real side and {counts[1]} on the other")
    if problems:
        raise ValueError(f"pairs differ in their number of clips of {length} frames: {_some(problems)}")


def _differences(
    pairs: Mapping[str, Sequence[VideoItem]], facts: Mapping[str, Mapping[str, _Facts]], protocol: Protocol
) -> list[str]:
    """Return notes about sizes that are changed, and about frame rates and lengths that differ within pairs."""
    size, notes = protocol.image_size, []
    for side, of_side in facts.items():
        others = [f"{key} ({f.size[1]} x {f.size[0]})" for key, f in of_side.items() if f.size != (size, size)]
        if others:
            notes.append(f"{side} videos that are resized and cropped to {size} x {size}, {len(others)}: {_some(others)}")
    for name, unit in (("fps", "frames per second"), ("num_frames", "frames")):
        differing = []
        for real, fake in zip(*pairs.values(), strict=True):
            values = getattr(facts["real"][real.key], name), getattr(facts["fake"][fake.key], name)
            if None not in values and abs(values[0] - values[1]) > 0.05:
                differing.append(f"{real.key} ({values[0]:g} and {values[1]:g})")
        if differing:
            notes.append(f"pairs that differ in {unit}, compared frame by frame, {len(differing)}: {_some(differing)}")
    return notes


def _some(names) -> str:
    names = list(names)
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def _read_clips(item: VideoItem, protocol: Protocol) -> tuple[torch.Tensor, list[int]]:
    """Return uint8 clips (clips, frames, 3, size, size) of a video, and the first frame of each."""
    length, size = protocol.num_frames, protocol.image_size
    most = length if protocol.window == "first" else None
    frames = read_video(item.video, max_frames=most, transform=lambda frame: resize_short_side(frame, size)).frames
    frames = torch.from_numpy(np.ascontiguousarray(center_crop(frames, size))).permute(0, 3, 1, 2)
    count = len(frames) // length
    if not count:  # its file promised more
        raise ValueError(f"{item.key}: {len(frames)} frames, but a clip of {length} frames needs as many")
    return frames[: count * length].unflatten(0, (count, length)), list(range(0, count * length, length))


def _measure_pairs(pairs: Mapping[str, Sequence[VideoItem]], protocol: Protocol, networks: Networks) -> list[dict]:
    device, rows = device_of(networks.lpips), []
    for items in zip(*pairs.values(), strict=True):
        (real, starts), (fake, _) = (_read_clips(item, protocol) for item in items)
        if len(real) != len(fake):
            raise ValueError(f"{items[0].key}: {len(real)} clips on the real side, {len(fake)} on the other")
        numbers = []
        for clips in torch.arange(len(real)).split(_CLIPS_AT_ONCE):
            numbers += measure_clips(networks, *((side[clips] / 255).to(device) for side in (fake, real)))
        of_clips = zip(starts, numbers, strict=True)
        rows += [{"video": items[0].key, "first_frame": start, **values} for start, values in of_clips]
    return rows


def _features_of(items: Sequence[VideoItem], protocol: Protocol, networks: Networks) -> torch.Tensor:
    clips = (_read_clips(item, protocol)[0] for item in items)
    return torch.cat([clip_features(networks.features, each / 255, protocol.feature_size) for each in clips])
