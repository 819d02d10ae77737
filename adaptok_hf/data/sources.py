"""Lists of video files from folders, csv files and archive layouts.

Each function returns `VideoFiles`, one of the kinds of `VideoSource`. Nothing is decoded here.
"""

import csv
import logging
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .video_item import NO_LABEL, VideoItem, as_utf8, is_video_file

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

    A file is a video by its suffix or, with an unknown one, by its first bytes. What is left out is named in a warning:
    other files, hidden ones, what cannot be opened.

    Args:
        folder: searched recursively; the key of a video is its path within the folder.
        class_names: classes in the order of their labels, such as those of the training folder. By default
            the sub-folders with videos, sorted.

    Raises:
        ValueError: if there is no video below the folder, or a sub-folder is not among `class_names`.
    """
    keys, left_out = _video_keys(Path(folder))
    if left_out:
        logger.warning("%s: %d entries are left out: %s", folder, len(left_out), _examples(left_out))
    if not keys:
        found = f"; left out: {_examples(left_out)}" if left_out else ""
        raise ValueError(f"{folder}: no video below this folder{found}")
    classes = {key: as_utf8(key).split("/")[0] if "/" in key else "" for key in keys}
    names = _check_class_names(set(classes.values()) - {""}, class_names, str(folder))
    labels = {name: index for index, name in enumerate(names)}
    items = [VideoItem(key, str(Path(folder) / key), labels.get(classes[key], NO_LABEL)) for key in keys]
    return VideoFiles(items, names)


def manifest(path: str | Path) -> VideoFiles:
    """Return the videos of a csv file with a column `path` (relative to the file) and, optionally, `label` (empty: none).

    The classes are the sorted labels.

    Raises:
        ValueError: for a file that is not a csv file in UTF-8, or lacks a column `path`, rows, or the path of a row.
    """
    path = Path(path)
    columns, rows = _read_csv(path)
    if "path" not in columns or not rows:
        raise ValueError(f"{path}: expected a column 'path' and rows; got {columns} and {len(rows)} rows")
    if empty := [number for number, row in rows.items() if not row["path"]]:
        raise ValueError(f"{path}: line {empty[0]} has no path")
    names = sorted({row["label"] for row in rows.values() if row.get("label")})
    labels = {name: index for index, name in enumerate(names)}
    items = [
        VideoItem(row["path"], str(path.parent / row["path"]), labels.get(row.get("label") or "", NO_LABEL))
        for row in rows.values()
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
    numbered = [line.split() for line in _lines(class_file) if line.strip()]
    if not numbered or any(len(words) != 2 for words in numbered):
        raise ValueError(f"{class_file}: expected lines such as '1 ApplyEyeMakeup'")
    names = [name for _, name in numbered]
    labels = {name: index for index, name in enumerate(names)}
    # a line of a training list ends in the class's number, one of a test list does not
    keys = [line.split()[0] for line in _lines(list_file) if line.strip()]
    if unknown := [key for key in keys if key.split("/")[0] not in labels]:
        raise ValueError(f"{list_file}: {unknown[0]!r} is in no class of {class_file}")
    present = set(_video_keys(Path(folder))[0])
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
        ValueError: for a file that is not a csv file in UTF-8, missing columns, a row without a label or with a time that
            is not a number (an empty one finds only `<youtube_id>.mp4`), a label that is not in `class_names`, and if no
            listed video is there.
    """
    columns, rows = _read_csv(Path(csv_path))
    needed = ("label", "youtube_id", "time_start", "time_end")
    if not rows or any(name not in columns for name in needed):
        raise ValueError(f"{csv_path}: expected the columns {needed}, got {columns} and {len(rows)} rows")
    if empty := [number for number, row in rows.items() if not row["youtube_id"] or not row["label"]]:
        raise ValueError(f"{csv_path}: line {empty[0]} has no youtube_id or no label")
    names = _check_class_names({row["label"] for row in rows.values()}, class_names, str(csv_path))
    labels = {name: index for index, name in enumerate(names)}
    by_stem = {os.path.splitext(os.path.basename(key))[0]: key for key in _video_keys(Path(folder))[0]}
    items, missing = [], []
    for number, row in rows.items():
        span = _span(f"{csv_path}: line {number}", row["time_start"], row["time_end"])
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


def _read_csv(path: Path) -> tuple[list[str], dict[int, dict[str, str]]]:
    """Return the columns of a csv file, and its rows by their line in the file; a missing or empty value is ''."""
    rows = {}
    try:
        with open(path, newline="", encoding="utf-8-sig") as file:  # Excel begins a file with a byte-order mark
            reader = csv.DictReader(file, restval="")
            columns = list(reader.fieldnames or [])
            for row in reader:
                rows[reader.line_num] = row
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{path}: not a csv file in UTF-8; line {max(rows, default=0) + 1} or after it: {error}"
        ) from error
    return columns, rows


def _span(where: str, start: str, end: str) -> str:
    """Return the times as in the names of Kinetics' files; '' where one is empty."""
    try:
        return "_".join(f"{int(float(time)):06d}" for time in (start, end)) if start and end else ""
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{where}: time_start and time_end must be seconds, got {start!r} and {end!r}") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not text in UTF-8: {error}") from error


def _video_keys(folder: Path) -> tuple[list[str], dict[str, str]]:
    """Return sorted paths, relative and with forward slashes, of all videos below a folder; and why others are not."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    keys, left_out, real = [], {}, {}
    unreadable = lambda error: left_out.update({str(error.filename): error.strerror})  # noqa: E731
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=unreadable):
        here, relative = Path(parent), Path(parent).relative_to(folder)
        real[here] = os.path.realpath(parent)
        if real[here] in (real.get(above) for above in here.parents):
            folders.clear()
            left_out[relative.as_posix()] = "a link to a folder above it"
            continue
        hidden = [name for name in folders + names if name.startswith(".")]
        left_out.update({(relative / name).as_posix(): "hidden" for name in hidden})
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in set(names).difference(hidden):
            key, path = (relative / name).as_posix(), os.path.join(parent, name)
            if not os.path.isfile(path):
                left_out[key] = "not a file" if os.path.exists(path) else "a broken link"
            elif is_video_file(path):
                keys.append(key)
            else:
                left_out[key] = "no video"
    return sorted(keys), left_out


def _examples(left_out: dict[str, str]) -> str:
    """Return how many entries were left out for each reason, with some of their names."""
    by_reason: dict[str, list[str]] = {}
    for key, reason in sorted(left_out.items()):
        by_reason.setdefault(reason, []).append(key)
    return "; ".join(
        f"{len(keys)} {reason} ({', '.join(keys[:3])}{', ...' if len(keys) > 3 else ''})"
        for reason, keys in by_reason.items()
    )


def _check_class_names(used: set[str], names: Sequence[str] | None, where: str) -> list[str]:
    if names is None:
        return sorted(used)
    if unknown := sorted(used - set(names)):
        raise ValueError(f"{where}: classes {unknown[:3]} are not among the {len(names)} class names")
    return list(names)
