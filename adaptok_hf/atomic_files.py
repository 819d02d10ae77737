"""Files and folders that appear complete or not at all: written next to their place, then renamed.

A run that writes for long claims its output: a second run gets one clear line, and what a killed run left is removed.
"""

import atexit
import glob
import json
import os
import re
import shutil
import socket
import uuid
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

LOCK = ".adaptok.lock"
# Seconds that the worker processes of a killed run may take to notice it and to let go of its lock.
WAIT_FOR_ORPHANS = 15
_PARTIAL = re.compile(r"\..*\.\d+-[0-9a-f]{8}\.tmp(\..*)?")


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
def atomic_folder(path: str | os.PathLike, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` if all goes well.

    Args:
        overwrite: replace a folder that exists.

    Raises:
        FileExistsError: see `check_new_folder`, which is called before and after unless the folder may be replaced.
    """
    path = Path(path)
    if not overwrite:
        check_new_folder(path)
    partial = _partial(path)
    partial.mkdir(parents=True)
    try:
        yield partial
        if not overwrite:
            check_new_folder(path)
        if path.exists():
            remove_folder(path)  # Windows does not rename over a folder, not even an empty one
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new_folder(path: str | os.PathLike) -> None:
    """Raise `FileExistsError` if a folder exists and is not empty, or is a file."""
    path = Path(path)
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise FileExistsError(f"{path} exists and is not an empty folder")


def remove_folder(path: str | os.PathLike) -> None:
    """Remove a folder at once: a kill in between leaves no half of it."""
    partial = _partial(Path(path))
    os.replace(path, partial)
    shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def files_together(folder: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary folder; when all its files are complete, they are moved into `folder`, replacing files there."""
    folder = Path(folder)
    with _existing(folder):
        partial = _partial(folder / "files")  # in the folder: the one above may be read-only or on another disk
        partial.mkdir()
        try:
            yield partial
            for file in partial.iterdir():
                os.replace(file, folder / file.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def claim_file(path: str | os.PathLike) -> Iterator[None]:
    """Keep other runs from writing `path` meanwhile, and remove what killed runs left next to it.

    Raises:
        BlockingIOError: if a run is writing it; the message has the host and the process id.
        OSError: if its folder cannot be written to.
    """
    path = Path(path).absolute()
    with _locked(path.with_name(f"{_hidden(path)}.lock"), path):
        _remove_debris(path.parent.glob(f"{glob.escape(_hidden(path))}.*"))
        for lock in path.parent.glob(".*.lock"):  # of killed runs with other outputs
            if re.fullmatch(r"\..*-[0-9a-f]{8}\.lock", lock.name) and lock.name != f"{_hidden(path)}.lock":
                with suppress(OSError), _locked(lock, lock, wait=0):
                    _remove_debris(path.parent.glob(f"{glob.escape(lock.stem)}.*"))
        yield


@contextmanager
def claim_folder(folder: str | os.PathLike, recursive: bool = False) -> Iterator[None]:
    """Keep other runs from writing into `folder` meanwhile, and remove what killed runs left in it.

    The folder is made if it does not exist, and removed if it is still empty in the end.

    Args:
        recursive: clean its sub-folders, too.

    Raises: see `claim_file`.
    """
    folder = Path(folder).absolute()
    with _existing(folder), _locked(folder / LOCK, folder):
        _remove_debris((folder.rglob if recursive else folder.glob)(".*.tmp*"))
        yield


def hold_folder(folder: str | os.PathLike) -> ExitStack:
    """Claim a folder and its sub-folders until the process ends or the result is closed; see `claim_folder`."""
    stack = ExitStack()
    stack.enter_context(claim_folder(folder, recursive=True))
    atexit.register(stack.close)
    return stack


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a UTF-8 text file; bytes of file names that are not UTF-8 become escapes."""
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a JSON file.

    Raises:
        ValueError: for NaN and infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


@contextmanager
def _existing(folder: Path) -> Iterator[None]:
    """Make a folder; remove it afterwards if it is empty."""
    made = not folder.exists()
    folder.mkdir(exist_ok=True)
    try:
        yield
    finally:
        if made:
            with suppress(OSError):  # it is not empty
                folder.rmdir()


@contextmanager
def _locked(lock: Path, output: Path, wait: float | None = None) -> Iterator[None]:
    """Hold a lock file, which the system unlocks when the process dies; a second claim of one process succeeds."""
    import psutil  # imported here, because the command line answers `--help` at once
    from filelock import FileLock, Timeout

    owner = _read_owner(lock)
    if wait is None:
        is_here = len(owner) == 2 and owner[0] == socket.gethostname()
        wait = 0 if not is_here or psutil.pid_exists(int(owner[1])) else WAIT_FOR_ORPHANS
    held = FileLock(lock, is_singleton=True)
    try:
        held.acquire(timeout=wait)
    except Timeout:
        host, pid = owner if len(owner) == 2 else ("this or another host", "unknown")
        raise BlockingIOError(
            f"{output} is in use by another run, process {pid} on {host}: wait until it ends, or give another output"
        ) from None
    try:
        if held.lock_counter == 1:
            with lock.open("r+b") as file:
                file.seek(1)  # Windows lets nobody read the first byte, which is locked
                file.write(f"{socket.gethostname()} {os.getpid()}\n".encode())
                file.truncate()
        yield
    finally:
        if held.lock_counter == 1:
            with suppress(OSError):  # Windows removes it when it is released
                lock.unlink()
        held.release()


def _read_owner(lock: Path) -> list[str]:
    """Return host and process id of a lock file, or nothing."""
    try:
        with lock.open("rb") as file:
            file.seek(1)
            owner = file.read(1000).decode(errors="replace").split()
    except OSError:
        return []
    return owner if len(owner) == 2 and owner[1].isdecimal() else []


def _remove_debris(paths: Iterator[Path]) -> None:
    for path in list(paths):
        if _PARTIAL.fullmatch(path.name):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _hidden(path: Path) -> str:
    """Return the beginning of the names of lock and temporary files; short, because names have at most 255 bytes."""
    return f".{path.name[:30]}-{zlib.crc32(os.fsencode(path.name)):08x}"


def _partial(path: Path, suffix: str = "") -> Path:
    path = Path(os.path.abspath(path))
    return path.with_name(f"{_hidden(path)}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp{suffix if len(suffix) < 20 else ''}")
