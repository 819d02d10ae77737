"""Lists of videos for training and validation that share nothing."""

import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

# The key of a video -> what it was cut from. Videos of one group look alike and belong on one side of a split.
GroupOf = Callable[[str], str]


def ucf101_group(key: str) -> str:
    """`Archery/v_Archery_g07_c02.avi` -> `v_Archery_g07`: the clips of a group are pieces of one film."""
    return Path(key).stem.rpartition("_c")[0] or key


def kinetics_group(key: str) -> str:
    """`train/abseiling/-3B32lodo2M_000059_000069.mp4` -> `-3B32lodo2M`, the video on the web."""
    # identifiers have 11 characters and may hold underscores themselves
    return Path(key).stem[:11]


def check_no_leakage(train: Iterable[str], validation: Iterable[str], group_of: GroupOf = lambda key: key) -> None:
    """
    Args:
        train, validation: keys of videos.
        group_of (*optional*): by default every video is a group of its own; also a dictionary's `__getitem__`.

    Raises:
        ValueError: naming groups that are on both sides.
    """
    sides: tuple[dict[str, str], ...] = ({}, {})
    for side, keys in zip(sides, (train, validation), strict=True):
        for key in keys:
            side.setdefault(group_of(key), key)
    if shared := sorted(set(sides[0]) & set(sides[1])):
        examples = "; ".join(f"{g!r}: {sides[0][g]} and {sides[1][g]}" for g in shared[:3])
        raise ValueError(f"{len(shared)} groups are in both training and validation, such as {examples}")


def split_by_group(
    keys: Iterable[str], validation_share: float, group_of: GroupOf = lambda key: key, seed: int = 0
) -> tuple[list[str], list[str]]:
    """
    Whole groups go to validation, in random order, until it has at least this share of the videos.

    Returns:
        The sorted keys of training and of validation; they do not depend on the order of `keys`.

    Raises:
        ValueError: for a share outside 0 to 1, and where one side would be empty.
    """
    if not 0 < validation_share < 1:
        raise ValueError(f"the share of validation must be between 0 and 1, got {validation_share}")
    groups: dict[str, list[str]] = {}
    for key in sorted(set(keys)):
        groups.setdefault(group_of(key), []).append(key)
    total = sum(map(len, groups.values()))
    train, validation = [], []
    names = sorted(groups)
    for index in np.random.default_rng(seed).permutation(len(names)):
        side = validation if len(validation) < validation_share * total else train
        side += groups[names[index]]
    if not train or not validation:
        raise ValueError(f"{total} videos in {len(groups)} groups cannot be split: one side would be empty")
    return sorted(train), sorted(validation)


def write_split(path: str | os.PathLike, keys: Sequence[str]) -> None:
    """
    One key a line. Written beside its destination and renamed.

    Raises:
        ValueError: for an empty list, a key that appears twice, and a key that is empty or has a line break.
    """
    _check_keys(keys, "the list")
    path = Path(path)
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        partial.write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_split(path: str | os.PathLike) -> list[str]:
    """
    The keys of a list, in its order; empty lines are left out.

    Raises:
        ValueError: for an empty list and a key that appears twice.
    """
    keys = [line.rstrip("\r\n") for line in open(path, encoding="utf-8") if line.strip()]
    _check_keys(keys, str(path))
    return keys


def _check_keys(keys: Sequence[str], where: str) -> None:
    if not keys:
        raise ValueError(f"{where} names no video")
    if bad := [key for key in keys if not key.strip() or len(key.splitlines()) != 1]:
        raise ValueError(f"{where}: a key must be one line of text, got {bad[0]!r}")
    if len(set(keys)) < len(keys):
        double = next(key for index, key in enumerate(keys) if key in keys[:index])
        raise ValueError(f"{where} names {double!r} twice")
