"""Which files a command works on, from the files, folders and patterns that it was given, and names for their outputs."""

import glob
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from ..video.picture_files import is_picture_file, picture_files


def is_one_file(arguments: list[str]) -> bool:
    """Return whether a command was given one file, which need not exist, and no folder, pattern or second file."""
    (first, *more) = arguments
    return not more and (not os.path.isdir(first) or is_folder_of_frames(first)) and not _is_pattern(first)


def is_folder_of_frames(path: str) -> bool:
    """Return whether a folder holds the pictures of one video, and nothing below it is a video or a tokens file."""
    from ..data.video_item import is_video_file

    try:
        if not os.path.isdir(path) or not picture_files(path):
            return False
    except IsADirectoryError:
        return False
    below = [os.path.join(parent, name) for parent, _, names in os.walk(path) for name in names if name[0] != "."]
    return not any(file.endswith(".safetensors") or (is_video_file(file) and not is_picture_file(file)) for file in below)


def find_files(
    arguments: list[str], list_folder: Callable[[str], list[str]], output: str | os.PathLike | None = None
) -> dict[str, str]:
    """Return the files of a command's arguments in order, each once, with a name for its output.

    The name is the file's without its suffix, below a folder with the path in it. Files that would share a name get the
    path from the folder that all have in common, or keep their suffix: `a/clip` and `b/clip`, `clip.mp4` and `clip.avi`.

    Args:
        arguments: files, folders (searched with all below them) and patterns such as `"videos/*.mp4"`.
        list_folder: returns the paths of the files below a folder that the command can read, relative to it.
        output: the output folder; files in it are left out where it lies in a folder that is searched.

    Raises:
        ValueError, OSError: for an argument that is no file, folder or matching pattern, and a folder without such files.
    """
    names: dict[str, str] = {}
    for argument in arguments:
        for path, name in _expand(argument, list_folder, output):
            names.setdefault(os.path.normpath(path), os.path.splitext(name)[0])
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in names])
    full = {path: os.path.relpath(os.path.abspath(path), common) for path in names}
    for longer in ({path: os.path.splitext(name)[0] for path, name in full.items()}, full):
        shared = Counter(names.values())
        names = {path: longer[path] if shared[name] > 1 else name for path, name in names.items()}
    if len(set(names.values())) < len(names):
        ((name, _),) = Counter(names.values()).most_common(1)
        raise ValueError(f"{' and '.join(path for path in names if names[path] == name)} would have one output, {name}")
    return names


def list_videos(folder: str) -> list[str]:
    """Return the relative paths of the videos below a folder; raise `ValueError` if there is none."""
    from ..data.sources import video_folder

    return [item.key for item in video_folder(folder).items]


def list_tokens(folder: str) -> list[str]:
    """Return the relative paths of the tokens files below a folder; raise `ValueError` if there is none."""
    paths = sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("[!.]*.safetensors"))
    if not paths:
        raise ValueError(f"{folder}: no tokens file (.safetensors) below this folder")
    return paths


def check_file(path: str) -> None:
    """Raise `OSError` or `ValueError` if an input is no file, before a model is loaded for it."""
    if not os.path.exists(path):
        raise FileNotFoundError(f"{path}: no such file")
    if os.path.isdir(path):
        picture_files(path)  # raises an error, unless there are some
        return
    if not os.path.isfile(path):
        raise ValueError(f"{path} is a device or a pipe, expected a file (`adaptok stream -` reads standard input)")


def _is_pattern(argument: str) -> bool:
    return glob.has_magic(argument) and not os.path.lexists(argument)


def _expand(argument: str, list_folder: Callable[[str], list[str]], output: str | os.PathLike | None) -> list:
    """Return the paths of an argument's files, and their paths from the folder that was given."""
    if _is_pattern(argument):
        matches = sorted(glob.glob(argument, recursive=True))
        if not matches:
            raise FileNotFoundError(f"{argument}: no file matches this pattern")
        return [pair for match in matches for pair in _expand(match, list_folder, output)]
    if not os.path.isdir(argument) or is_folder_of_frames(argument):
        check_file(argument)
        return [(argument, os.path.basename(argument))]
    pairs = [(os.path.join(argument, name), name) for name in list_folder(argument)]
    folder, outputs = Path(argument).resolve(), None if output is None else Path(output).resolve()
    if outputs is not None and folder in outputs.parents:
        pairs = [(path, name) for path, name in pairs if not Path(path).resolve().is_relative_to(outputs)]
    return pairs
