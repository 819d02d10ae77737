"""Lists of video files from folders, csv files and archive layouts.

Each function returns `VideoFiles`, one of the kinds of `VideoSource`. Nothing is decoded here.
"""

import csv
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .video_item import NO_LABEL, VIDEO_SUFFIXES, VideoItem

logger = logging.getLogger(__name__)


class VideoFiles:
    """A list of video files, each a shard of one video.

    Args:
        items: the videos.
        class_names: the class of each label.
    """

    def __init__(self, items: Iterable[VideoItem], class_names: Sequence[str] = ()):
        self.items, self.class_names = list(items), list(class_names)

    @property
    def num_shards(self) -> int:
        return len(self.items)

    def read_shard(self, shard: int) -> list[VideoItem]:
        return [self.items[shard]]


def video_folder(folder: str | Path, class_names: Sequence[str] | None = None) -> VideoFiles:
    """Return all videos below a folder. The label is the first sub-folder; a video that lies in the folder itself has none.

    Args:
        folder: searched recursively; the key of a video is its path within the folder.
        class_names: classes in the order of their labels, such as those of the training folder. By default
            the sub-folders with videos, sorted.

    Raises:
        ValueError: if there is no video below the folder, or a sub-folder is not among `class_names`.
    """
    keys = _video_keys(Path(folder))
    if not keys:
        raise ValueError(f"{folder}: no video below this folder (looked for {', '.join(VIDEO_SUFFIXES)})")
    classes = {key: key.split("/")[0] if "/" in key else "" for key in keys}
    names = _check_class_names(set(classes.values()) - {""}, class_names, str(folder))
    labels = {name: index for index, name in enumerate(names)}
    items = [VideoItem(key, str(Path(folder) / key), labels.get(classes[key], NO_LABEL)) for key in keys]
    return VideoFiles(items, names)


def manifest(path: str | Path) -> VideoFiles:
    """Return the videos of a csv file with a column `path` (relative to the file) and, optionally, `label` (empty: none).

    The classes are the sorted labels.

    Raises:
        ValueError: for a file without a column `path` or without rows.
    """
    path = Path(path)
    with open(path, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns, rows = reader.fieldnames or [], list(reader)
    if "path" not in columns or not rows:
        raise ValueError(f"{path}: expected a column 'path' and rows; got {columns} and {len(rows)} rows")
    names = sorted({row["label"] for row in rows if row.get("label")})
    labels = {name: index for index, name in enumerate(names)}
    items = [
        VideoItem(row["path"], str(path.parent / row["path"]), labels.get(row.get("label") or "", NO_LABEL)) for row in rows
    ]
    return VideoFiles(items, names)


def ucf101(folder: str | Path, split_folder: str | Path, split: str = "train") -> VideoFiles:
    """Return a split of UCF-101 as its archives unpack.

    Videos are `folder/<Class>/v_<Class>_g01_c01.avi`; `split_folder` has the official files `classInd.txt`,
    `trainlist01.txt` and `testlist01.txt`.

    Raises:
        FileNotFoundError: for a missing list, as of a split that is not 'train' or 'test'.
        ValueError: for a list that is not one, and listed videos that are missing.
    """
    class_file, list_file = Path(split_folder) / "classInd.txt", Path(split_folder) / f"{split}list01.txt"
    numbered = [line.split() for line in class_file.read_text().splitlines() if line.strip()]
    if not numbered or any(len(words) != 2 for words in numbered):
        raise ValueError(f"{class_file}: expected lines such as '1 ApplyEyeMakeup'")
    names = [name for _, name in numbered]
    labels = {name: index for index, name in enumerate(names)}
    # a line of a training list ends in the class's number, one of a test list does not
    keys = [line.split()[0] for line in list_file.read_text().splitlines() if line.strip()]
    if unknown := [key for key in keys if key.split("/")[0] not in labels]:
        raise ValueError(f"{list_file}: {unknown[0]!r} is in no class of {class_file}")
    present = set(_video_keys(Path(folder)))
    if missing := [key for key in keys if key not in present]:
        raise ValueError(f"{len(missing)} of {len(keys)} listed videos are not there, such as {missing[:3]}")
    return VideoFiles((VideoItem(key, str(Path(folder) / key), labels[key.split("/")[0]]) for key in keys), names)


def kinetics(csv_path: str | Path, folder: str | Path, class_names: Sequence[str] | None = None) -> VideoFiles:
    """Return the Kinetics videos of a csv list (columns `label`, `youtube_id`, `time_start`, `time_end`).

    The videos are below a folder, in any sub-folders, named `<youtube_id>_<start>_<end>.mp4` (six digits each) or
    `<youtube_id>.mp4`.

    Videos that were never downloaded are counted in a warning: many have vanished from the web.

    Args:
        class_names: classes in the order of their labels; by default the sorted labels of this list. Give
            those of the training list where a list does not have every class.

    Raises:
        ValueError: for missing columns, a label that is not in `class_names`, and if no listed video is there.
    """
    with open(csv_path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    needed = ("label", "youtube_id", "time_start", "time_end")
    if not rows or any(name not in rows[0] for name in needed):
        raise ValueError(f"{csv_path}: expected the columns {needed}, got {tuple(rows[0]) if rows else 'no rows'}")
    names = _check_class_names({row["label"] for row in rows}, class_names, str(csv_path))
    labels = {name: index for index, name in enumerate(names)}
    by_stem = {os.path.splitext(os.path.basename(key))[0]: key for key in _video_keys(Path(folder))}
    items, missing = [], []
    for row in rows:
        span = f"{int(float(row['time_start'])):06d}_{int(float(row['time_end'])):06d}"
        stems = (f"{row['youtube_id']}_{span}", row["youtube_id"])
        key = next((by_stem[stem] for stem in stems if stem in by_stem), None)
        if key is None:
            missing.append(stems[0])
        else:
            items.append(VideoItem(key, str(Path(folder) / key), labels[row["label"]]))
    if not items:
        raise ValueError(f"{folder}: holds none of the {len(rows)} videos of {csv_path}, such as {missing[0]}.mp4")
    if missing:
        logger.warning("%s: %d of %d listed videos are not in %s, such as %s", csv_path, len(missing), len(rows), folder,
                       missing[:3])  # fmt: skip
    return VideoFiles(items, names)


def _video_keys(folder: Path) -> list[str]:
    """Return sorted paths, relative and with forward slashes, of all videos below a folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    keys = []
    for parent, _, names in os.walk(folder, followlinks=True):
        relative = Path(parent).relative_to(folder)
        keys += [(relative / name).as_posix() for name in names if name.lower().endswith(VIDEO_SUFFIXES)]
    return sorted(keys)


def _check_class_names(used: set[str], names: Sequence[str] | None, where: str) -> list[str]:
    if names is None:
        return sorted(used)
    if unknown := sorted(used - set(names)):
        raise ValueError(f"{where}: classes {unknown[:3]} are not among the {len(names)} class names")
    return list(names)
