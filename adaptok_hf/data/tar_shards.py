"""Tar shards in WebDataset form: the files of a sample share their name up to the first dot."""

import json
import logging
import tarfile
from collections.abc import Iterable
from pathlib import Path

from .video_item import NO_LABEL, VIDEO_SUFFIXES, TarMember, VideoItem

logger = logging.getLogger(__name__)


class TarShards:
    """Videos in tar files on disk. A sample is a video (`0001.mp4`) and, next to it, `0001.json` with `label` (an integer)
    and `key`, or `0001.cls` with the label as text; both may be missing.

    Only headers and labels are read when a shard is opened; videos are read one by one, in any order. (For tar files on
    the Hub see `hub_videos`.)

    Args:
        paths: the tar files. The order counts: it is part of what makes a run repeatable.
    """

    def __init__(self, paths: Iterable[str | Path]):
        self.paths = [str(path) for path in paths]

    @classmethod
    def from_folder(cls, folder: str | Path) -> "TarShards":
        """Return all `*.tar` of a folder, sorted; raise `ValueError` if there is none."""
        paths = sorted(Path(folder).glob("*.tar"))
        if not paths:
            raise ValueError(f"{folder}: no .tar file in this folder")
        return cls(paths)

    @property
    def num_shards(self) -> int:
        return len(self.paths)

    def read_shard(self, shard: int) -> list[VideoItem]:
        """Return the shard's videos in the order of the file.

        Raises:
            ValueError: for a file that is not a tar file or whose headers or labels are damaged. Of a file that was cut
                short, the videos before the cut are returned, and the one that was cut fails when it is read.
        """
        path, samples = self.paths[shard], {}
        for name, member in _members(path):
            folder, _, base = name.rpartition("/")
            stem, _, suffix = base.partition(".")
            if not stem:  # a hidden file, such as the `._` files of macOS
                continue
            sample = samples.setdefault(f"{folder}/{stem}" if folder else stem, {})
            if f".{suffix.lower()}".endswith(VIDEO_SUFFIXES):
                sample["video"] = member
            elif suffix in ("json", "cls"):
                sample[suffix] = member
        items = [_item(path, name, sample) for name, sample in samples.items() if "video" in sample]
        if left_out := [name for name, sample in samples.items() if "video" not in sample]:
            logger.warning("%s: %d samples without a video are left out, such as %s", path, len(left_out), left_out[:3])
        return items


def _item(path: str, name: str, sample: dict[str, TarMember]) -> VideoItem:
    try:
        facts = json.loads(sample["json"].read()) if "json" in sample else {}
        label = facts.get("label", int(sample["cls"].read()) if "cls" in sample else NO_LABEL)
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: the json or cls file of {name} is damaged: {error}") from error
    if isinstance(label, bool) or not isinstance(label, int):
        raise ValueError(f"{path}: label of {name} must be an integer, got {label!r}")
    return VideoItem(str(facts.get("key", name)), sample["video"], label)


def _members(path: str) -> list[tuple[str, TarMember]]:
    """Return name and place of each file in a tar file; only headers are read."""
    members = []
    try:
        with tarfile.open(path, "r:") as tar:
            while info := tar.next():
                if info.isfile():
                    members.append((info.name, TarMember(path, info.offset_data, info.size)))
            end = tar.offset
    except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
        if members and "unexpected end of data" in str(error):
            return members
        raise ValueError(f"{path}: not a tar file, or damaged after {len(members)} files ({error})") from error
    with open(path, "rb") as file:
        file.seek(end)
        if file.read(512).strip(b"\0"):  # a tar file ends in empty blocks: this one has more, which tarfile cannot read
            raise ValueError(f"{path}: damaged after {len(members)} files")
    return members
