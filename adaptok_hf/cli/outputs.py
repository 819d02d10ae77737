"""Places for a command's outputs, checked and claimed before its work begins."""

import argparse
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..atomic_files import claim_file, claim_folder

# What `write_report`, `write_generation` and evaluations write.
REPORT_FILES = ("reconstruction.mp4", "reconstruction.png", "side_by_side.mp4", "tokens.png", "report.json")
GENERATION_FILES = ("[0-9][0-9][0-9]*_*.mp4", "contact_sheet.png", "report.json")
EVALUATION_FILES = ("results.*", "per_video.csv", "scorer.json", "*.png")
# Outputs are not begun with less room than this.
LEAST_FREE_BYTES = 2**20


def add_overwrite_option(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--overwrite", action="store_true", help="replace outputs that exist")


@contextmanager
def output_file(
    file: str | os.PathLike, *inputs: str | os.PathLike, suffix: str | None = None, overwrite: bool = False
) -> Iterator[Path]:
    """Yield an output file as a path that no other run writes meanwhile.

    Args:
        inputs: files and folders that the output must not be in the place of. What is no path of a file is ignored.
        suffix: how its name must end.
        overwrite: whether it may exist.

    Raises:
        ValueError: if its name does not end in `suffix`, or it is an input.
        IsADirectoryError: if it is a folder.
        FileNotFoundError, FileExistsError, OSError: if its folder does not exist, it exists, or it cannot be written.
    """
    file = Path(file)
    if file.is_dir():
        raise IsADirectoryError(f"{file} is a folder, the output is a {suffix or ''} file".replace("  ", " "))
    if suffix is not None and file.suffix.lower() != suffix:
        raise ValueError(f"{file}: the name must end in {suffix}")
    if file.exists() and not file.is_file():
        raise ValueError(f"{file} is a device or a pipe, the output is a file")
    _check_place(file.absolute().parent, file)
    _check_files([file], inputs, overwrite)
    with claim_file(file):
        _check_files([file], inputs, overwrite)  # another run may have written it just now
        yield file


@contextmanager
def output_folder(
    folder: str | os.PathLike,
    names: Iterable[str],
    *inputs: str | os.PathLike,
    overwrite: bool = False,
    recursive: bool = False,
) -> Iterator[Path]:
    """Yield an output folder as a path that no other run writes into meanwhile; it is made, and removed if it stays empty.

    Args:
        names: of the files that will be written into it, or their patterns.
        inputs, overwrite: see `output_file`.
        recursive: clean what killed runs left in its sub-folders, too.

    Raises:
        NotADirectoryError: if it is a file.
        ValueError, FileNotFoundError, FileExistsError, OSError: see `output_file`.
    """
    folder = check_folder(folder)
    names = list(names)
    _check_place(folder if folder.exists() else folder.absolute().parent, folder)
    _check_files([file for name in names for file in folder.glob(name)], inputs, overwrite)
    with claim_folder(folder, recursive):
        _check_files([file for name in names for file in folder.glob(name)], inputs, overwrite)
        yield folder


def check_folder(folder: str | os.PathLike) -> Path:
    """Return an output folder as a path.

    Raises:
        NotADirectoryError: if it is a file.
        FileNotFoundError: if the folder that it lies in does not exist.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, the output goes into a folder")
    if not folder.absolute().parent.is_dir():
        raise FileNotFoundError(f"{folder}: the folder {folder.absolute().parent} does not exist")
    return folder


def _check_place(parent: Path, output: Path) -> None:
    """Raise `OSError` if nothing can be written into a folder."""
    if not parent.is_dir():
        raise FileNotFoundError(f"{output}: the folder {parent} does not exist")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"{output}: the folder {parent} cannot be written to")
    if (free := shutil.disk_usage(parent).free) < LEAST_FREE_BYTES:
        raise OSError(f"{output}: the disk is full, {free} bytes are free")


def _check_files(outputs: Iterable[Path], inputs: Iterable[str | os.PathLike], overwrite: bool) -> None:
    """Raise `OSError` if an output may not be replaced, `ValueError` if it is an input or in an input's folder."""
    outputs, inputs = [path for path in outputs if os.path.lexists(path)], [Path(path) for path in inputs]
    if folders := [path for path in outputs if path.is_dir()]:
        raise IsADirectoryError(f"{folders[0]} is a folder in the place of an output file")
    for path in inputs:
        for output in outputs:
            inside = path.is_dir() and output.resolve().is_relative_to(path.resolve())
            if inside or (path.is_file() and output.exists() and output.samefile(path)):
                raise ValueError(f"the output {output} would replace the input {path}; give another output")
    if outputs and not overwrite:
        raise FileExistsError(f"{outputs[0]} exists: give --overwrite to replace it, or another output with -o")
