import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock, Timeout

from adaptok_hf.atomic_files import (
    LOCK,
    atomic_file,
    atomic_folder,
    claim_file,
    claim_folder,
    files_together,
    remove_folder,
    write_json,
    write_text,
)


def test_a_file_appears_complete(tmp_path):
    path = tmp_path / "clip.mp4"
    with atomic_file(path) as partial:
        partial.write_text("half")
        assert partial.suffix == ".mp4" and partial.parent == tmp_path and not path.exists()
    assert path.read_text() == "half" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("atomically", [atomic_file, files_together, atomic_folder])
def test_a_failure_leaves_nothing(tmp_path, atomically):
    path = tmp_path / "result"
    with pytest.raises(KeyError), atomically(path) as partial:
        (partial / "file" if partial.is_dir() else partial).write_text("half")
        raise KeyError
    assert not list(tmp_path.iterdir())


def test_a_failure_keeps_what_was_there(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(KeyError), atomic_file(tmp_path / "a.txt") as partial:
        partial.write_text("new")
        raise KeyError
    assert (tmp_path / "a.txt").read_text() == "old"


def test_files_replace_their_namesakes_only(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "kept").write_text("kept")
    (tmp_path / "out" / "report").write_text("old")
    with files_together(tmp_path / "out") as partial:
        (partial / "report").write_text("new")
    assert {file.name: file.read_text() for file in (tmp_path / "out").iterdir()} == {"kept": "kept", "report": "new"}


def test_a_folder_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as partial:  # an empty one is fine
        (partial / "file").write_text("1")
    with pytest.raises(FileExistsError, match="out"), atomic_folder(tmp_path / "out") as partial:
        (partial / "file").write_text("2")
    assert (tmp_path / "out" / "file").read_text() == "1" and len(list(tmp_path.iterdir())) == 1


def test_json_is_valid_or_not_written(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, None]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}
    with pytest.raises(ValueError):
        write_json(tmp_path / "a.json", {"a": float("nan")})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, None]}


# --- one run at a time --------------------------------------------------------------------------------------------

CLAIM = {"file": claim_file, "folder": claim_folder}
PROGRAM = """
import os, signal, sys
from pathlib import Path
from adaptok_hf.atomic_files import atomic_file, claim_file, claim_folder
path = Path(sys.argv[2])
with {"file": claim_file, "folder": claim_folder}[sys.argv[1]](path):
    with atomic_file(path if sys.argv[1] == "file" else path / "a.json") as partial:
        partial.write_text("half")
        print("claimed", flush=True)
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGKILL)
"""


def other_run(kind: str, path: Path) -> subprocess.Popen:
    """Start a process that holds a claim until it is killed, or kills itself when it reads a line."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", PROGRAM, kind, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "claimed\n"
    return process


@pytest.mark.parametrize("kind", CLAIM)
@pytest.mark.parametrize("name", ["out.json", "caf\udce9: 1%d", "x" * 240])
def test_a_second_run_is_refused_until_the_first_is_dead(tmp_path, kind, name):
    path = tmp_path / name
    process = other_run(kind, path)
    with pytest.raises(BlockingIOError, match=rf"process {process.pid} on {socket.gethostname()}"), CLAIM[kind](path):
        pass
    with CLAIM[kind](tmp_path / "another"):  # is free
        pass
    left = [file for file in tmp_path.rglob(".*") if ".tmp" in file.name]
    assert len(left) == 1 and left[0].read_text() == "half", "the other run still writes it"
    process.communicate("die\n")
    assert left[0].exists()
    with CLAIM[kind](path):
        assert not left[0].exists()
    assert not list(tmp_path.rglob(".*")) and not path.is_file()


def test_what_a_killed_run_left_goes_at_the_start_of_another(tmp_path):
    alive = other_run("file", tmp_path / "b")
    other_run("file", tmp_path / "a").communicate("die\n")
    (tmp_path / ".mine.tmp").write_text("")
    assert len(list(tmp_path.iterdir())) == 5
    with claim_file(tmp_path / "c"):
        pass
    names = [path.name for path in tmp_path.iterdir()]
    assert len(names) == 3 and ".mine.tmp" in names and all(name.startswith((".b-", ".mine")) for name in names)
    alive.communicate("die\n")


def test_a_lock_file_alone_locks_nothing(tmp_path):
    """One that a machine that lost its power left, whoever owned it, also with the number of a living process."""
    for owner in (b"", b"\0elsewhere 1\n", b"\0" + f"{socket.gethostname()} {os.getppid()}\n".encode(), b"\xff" * 99):
        (tmp_path / LOCK).write_bytes(owner)
        with claim_folder(tmp_path):
            assert (tmp_path / LOCK).read_bytes()[1:] == f"{socket.gethostname()} {os.getpid()}\n".encode()
            with claim_folder(tmp_path):  # of the same run
                pass
            with pytest.raises(Timeout):
                FileLock(tmp_path / LOCK).acquire(timeout=0)
        assert not (tmp_path / LOCK).exists()


def test_a_claim_cleans_sub_folders_if_asked(tmp_path):
    debris = tmp_path / "parts" / ".x-0a1b2c3d.12-0a1b2c3d.tmp.json"
    debris.parent.mkdir()
    debris.write_text("")
    with claim_folder(tmp_path):
        assert debris.exists()
    with claim_folder(tmp_path, recursive=True):
        assert not debris.exists()


def test_a_folder_is_replaced_if_asked(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "old").write_text("")
    with atomic_folder(tmp_path / "out", overwrite=True) as partial:
        (partial / "new").write_text("")
        assert (tmp_path / "out" / "old").exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "new"]
    remove_folder(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_windows_does_not_rename_over_a_folder(tmp_path, monkeypatch):
    """What can be emulated of it: `os.replace` fails for folders, and a locked or open file cannot be removed."""
    replace = os.replace

    def replace_as_windows(source, target):
        if os.path.isdir(target):
            raise PermissionError(5, "Access is denied", target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", replace_as_windows)
    (tmp_path / "out").mkdir()
    with atomic_folder(tmp_path / "out") as partial:
        (partial / "new").write_text("")
    with files_together(tmp_path / "out") as partial:
        (partial / "new").write_text("newer")
    unlink = Path.unlink
    monkeypatch.setattr(Path, "unlink", lambda path, **_: (_ for _ in ()).throw(PermissionError(32, "in use", path)))
    with claim_folder(tmp_path / "out"):
        pass
    monkeypatch.setattr(Path, "unlink", unlink)
    assert (tmp_path / "out" / "new").read_text() == "newer"


def test_a_text_with_any_name(tmp_path):
    write_text(tmp_path / "a.md", "caf\udce9 é\n")
    assert (tmp_path / "a.md").read_text(encoding="utf-8") == "caf\\udce9 é\n"
