import json

import pytest

from adaptok_hf.atomic_files import atomic_file, atomic_folder, files_together, write_json


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
