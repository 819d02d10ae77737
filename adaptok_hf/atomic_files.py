"""Files and folders that appear complete or not at all: written next to their place, then renamed."""

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path with the suffix of `path`; the file written there replaces `path` if all goes well."""
    path = Path(path)
    partial = _partial(path, path.suffix)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` if all goes well.

    Raises:
        FileExistsError: if `path` exists by then and is not an empty folder.
    """
    path = Path(path)
    partial = _partial(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        if path.exists() and any(path.iterdir()):
            raise FileExistsError(f"{path} exists and is not empty")
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def files_together(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder; when all its files are complete, they are moved into `folder`, replacing files there."""
    folder = Path(folder)
    partial = _partial(folder)
    partial.mkdir()
    try:
        yield partial
        folder.mkdir(exist_ok=True)
        for file in partial.iterdir():
            os.replace(file, folder / file.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a JSON file.

    Raises:
        ValueError: for NaN and infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def _partial(path: Path, suffix: str = "") -> Path:
    return path.absolute().with_name(f".{path.absolute().name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp{suffix}")
