import os

import pytest

from adaptok_hf.data import check_no_leakage, kinetics_group, read_split, split_by_group, ucf101_group, write_split

KEYS = [f"Bowling/v_Bowling_g{group:02d}_c{clip:02d}.avi" for group in range(1, 11) for clip in range(1, 4)]


def test_groups_of_the_benchmark_sets():
    assert ucf101_group("Archery/v_Archery_g07_c02.avi") == "v_Archery_g07"
    assert ucf101_group("v_Archery_g07_c05.avi") == "v_Archery_g07"
    # underscores belong to the identifier
    assert kinetics_group("val/abseiling/-3B_2lodo2M_000059_000069.mp4") == "-3B_2lodo2M"
    assert kinetics_group("__________a.mp4") == "__________a"


def test_leakage_is_found_by_group():
    train, validation = KEYS[:7], KEYS[8:]  # both have clips of the third group
    with pytest.raises(ValueError, match=r"1 groups are in both .*'v_Bowling_g03': .*g03_c01.avi and .*g03_c03.avi"):
        check_no_leakage(train, validation, ucf101_group)
    check_no_leakage(train, validation)
    check_no_leakage(KEYS[:6], KEYS[6:], ucf101_group)
    with pytest.raises(ValueError, match="2 groups are in both"):
        check_no_leakage(KEYS[:3], KEYS[1:])
    source_of = {"a.mp4": "film1", "b.mp4": "film2", "c.mp4": "film1"}
    with pytest.raises(ValueError, match="'film1': a.mp4 and c.mp4"):
        check_no_leakage(["a.mp4", "b.mp4"], ["c.mp4"], source_of.__getitem__)


def test_splits_keep_groups_together():
    train, validation = split_by_group(KEYS, 0.25, ucf101_group, seed=3)
    assert sorted(train + validation) == sorted(KEYS)
    assert len(validation) == 9  # the first multiple of three that is a quarter of thirty
    check_no_leakage(train, validation, ucf101_group)
    assert split_by_group(KEYS[::-1], 0.25, ucf101_group, seed=3) == (train, validation)
    assert split_by_group(KEYS, 0.25, ucf101_group, seed=4) != (train, validation)
    with pytest.raises(ValueError, match="one side would be empty"):
        split_by_group(KEYS[:3], 0.5, ucf101_group)
    for share in (0, 1, 1.5):
        with pytest.raises(ValueError, match="share of validation must be between 0 and 1"):
            split_by_group(KEYS, share)


def test_lists_round_trip(tmp_path):
    keys = ["b c/ä.mp4", "a.mp4"]
    write_split(tmp_path / "train.txt", keys)
    assert read_split(tmp_path / "train.txt") == keys
    assert os.listdir(tmp_path) == ["train.txt"]
    (tmp_path / "windows.txt").write_bytes(b"a.mp4\r\n\r\nb.mp4")
    assert read_split(tmp_path / "windows.txt") == ["a.mp4", "b.mp4"]


def test_bad_lists(tmp_path):
    path = tmp_path / "list.txt"
    for keys, message in (
        ([], "names no video"),
        (["a", "b", "a"], "'a' twice"),
        (["a\nb"], "one line"),
        ([" "], "one line"),
    ):
        with pytest.raises(ValueError, match=message):
            write_split(path, keys)
    assert not path.exists()
    path.write_text("\n")
    with pytest.raises(ValueError, match="list.txt names no video"):
        read_split(path)
    path.write_text("a\nb\nb\n")
    with pytest.raises(ValueError, match="list.txt names 'b' twice"):
        read_split(path)
    with pytest.raises(FileNotFoundError):
        write_split(tmp_path / "nowhere" / "list.txt", ["a"])
