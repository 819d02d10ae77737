import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tarfile
import time
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.video_files import make_frames, write_audio_only, write_mp4, write_text
from torch.utils.data import DataLoader

from adaptok_hf.data import ClipStream, TarShards, TooManySkippedVideos, first_window, random_window
from adaptok_hf.video.video_io import read_video

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "training_scripts"
LENGTHS = [6, 9, 7, 12, 6, 8, 10]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """7 videos of 24x36 pixels in 2 classes, brightness is the frame's number; and 2 files that are no videos."""
    root = tmp_path_factory.mktemp("videos")
    for index, length in enumerate(LENGTHS):
        (root / f"class{index % 2}").mkdir(exist_ok=True)
        frames = make_frames(length, 24, 36) // 4 + 12 * np.arange(length, dtype=np.uint8)[:, None, None, None]
        pts = [0, 1, 2, 5, 6, 7] if index == 4 else None  # a variable frame rate
        write_mp4(root / f"class{index % 2}" / f"a.b {index}.mp4", frames=frames, fps=10, pts=pts)
    write_text(root / "class1" / "text.mp4")
    write_audio_only(root / "class0" / "sound.mp4")
    return root


def start(folder, output, *options):
    command = [sys.executable, str(SCRIPTS / "write_shards.py"), "--folder", str(folder)]
    command += ["--output_folder", str(output), "--short_side", "16", "--videos_per_shard", "3", *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(*arguments):
    process = start(*arguments)
    return process, *process.communicate(timeout=600)


def run_script(monkeypatch, folder, output, *options):
    """Run the script in this process, which saves its imports."""
    monkeypatch.syspath_prepend(SCRIPTS)
    argv = ["write_shards.py", "--folder", str(folder), "--output_folder", str(output), "--short_side", "16"]
    monkeypatch.setattr(sys, "argv", [*argv, "--videos_per_shard", "3", *options])
    runpy.run_path(str(SCRIPTS / "write_shards.py"))["main"]()


@pytest.fixture
def run_here(monkeypatch, capsys):
    """Runs the script and returns what it printed."""

    def run_main(folder, output, *options):
        run_script(monkeypatch, folder, output, *options)
        return capsys.readouterr().out

    return run_main


@pytest.fixture(scope="module")
def shards(folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "new" / "shards"
    with pytest.MonkeyPatch.context() as patch:
        run_script(patch, folder, output)
    return output


def test_written_shards_hold_the_resized_videos(folder, shards):
    names = sorted(os.listdir(shards))
    tars = [f"shard-{i:05d}.tar" for i in range(3)]
    assert names == sorted(["class_names.txt", "plan.json", *tars, *(name.replace(".tar", ".json") for name in tars)])
    assert (shards / "class_names.txt").read_text() == "class0\nclass1\n"
    reports = [json.loads((shards / f"shard-{i:05d}.json").read_text()) for i in range(3)]
    assert sum(report["videos"] for report in reports) == 7
    assert sorted(key for report in reports for key in report["skipped"]) == ["class0/sound.mp4", "class1/text.mp4"]

    source = TarShards.from_folder(shards)
    items = [item for shard in range(source.num_shards) for item in source.read_shard(shard)]
    assert sorted(item.key for item in items) == [f"class{i % 2}/a.b {i}.mp4" for i in (0, 2, 4, 6, 1, 3, 5)]
    for item in items:
        original, written = read_video(folder / item.key), read_video(item.video.read())
        assert item.label == int(item.key[5])
        assert written.frames.shape == (len(original), 16, 24, 3)
        assert np.abs(written.frames.mean((1, 2, 3)) - original.frames.mean((1, 2, 3))).max() < 3
        np.testing.assert_allclose(written.timestamps, original.timestamps, atol=1e-4)
        assert written.fps == pytest.approx(original.fps)


def test_shards_are_webdataset_samples(shards):
    with tarfile.open(shards / "shard-00000.tar") as tar:
        names = tar.getnames()
        facts = json.load(tar.extractfile(names[0]))
    assert len(names) == 2 * json.loads((shards / "shard-00000.json").read_text())["videos"]
    assert all(a.endswith(".json") and b == a[:-5] + ".mp4" for a, b in zip(names[::2], names[1::2], strict=True))
    assert facts.keys() == {"key", "label", "class_name", "fps", "num_frames"}
    assert facts["class_name"] == f"class{facts['label']}" == facts["key"].split("/")[0]


def make_stream(shards, **options):
    return ClipStream(TarShards.from_folder(shards), partial(random_window, clip_length=6), 16, seed=1, **options)


@pytest.mark.parametrize("workers", [0, 2, 5])
def test_workers_read_every_video_once(shards, workers):
    """5 workers share 3 shards, 2 do not."""
    whole = {item["key"]: item for item in make_stream(shards, num_epochs=1)}
    shared = list(DataLoader(make_stream(shards, num_epochs=1), batch_size=None, num_workers=workers))
    assert sorted(item["key"] for item in shared) == sorted(whole) and len(whole) == 7
    for item in shared:
        assert torch.equal(item["pixel_values_videos"], whole[item["key"]]["pixel_values_videos"])


def test_videos_are_shuffled_within_shards(shards):
    keys = [item["key"] for item in islice(make_stream(shards), 28)]
    source = TarShards.from_folder(shards)
    orders = set()
    for epoch in range(4):
        order = keys[7 * epoch : 7 * epoch + 7]
        assert len(set(order)) == 7
        inside = [item.key for item in source.read_shard(0)]
        orders.add(tuple(key for key in order if key in inside))
    assert len(orders) > 1


def test_resuming_within_shards(shards):
    expected = list(make_stream(shards, num_epochs=2))
    for cut in (0, 3, 8, 14):
        stream = make_stream(shards, num_epochs=2)
        list(islice(stream, cut))
        resumed = make_stream(shards, num_epochs=2)
        resumed.load_state_dict(stream.state_dict())
        rest = list(resumed)
        assert [(i["key"], int(i["window"])) for i in rest] == [(i["key"], int(i["window"])) for i in expected[cut:]]


def test_finished_shards_are_kept(folder, shards, tmp_path, run_here):
    """The second run writes the missing shard only, and to the byte what the first run wrote."""
    output = tmp_path / "again"
    printed = run_here(folder, output)
    assert all(words in printed for words in ("7 videos", "3 shards", "2 skipped"))
    contents = {path.name: path.read_bytes() for path in output.iterdir()}
    assert contents == {path.name: path.read_bytes() for path in shards.iterdir()}

    (output / "shard-00001.tar").unlink()
    kept = (output / "shard-00000.tar").stat()
    printed = run_here(folder, output)
    assert "7 videos in 3 shards" in printed and "2 skipped" in printed
    assert {path.name: path.read_bytes() for path in output.iterdir()} == contents
    assert (output / "shard-00000.tar").stat().st_mtime_ns == kept.st_mtime_ns

    with pytest.raises(ValueError, match=r"'videos_per_shard': \(3, 4\)"):
        run_here(folder, output, "--videos_per_shard", "4")


@pytest.mark.slow
def test_two_processes_write_what_one_writes(folder, shards, tmp_path):
    process, _, err = run(folder, tmp_path, "--num_processes", "2")
    assert process.returncode == 0, err
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        path.name: path.read_bytes() for path in shards.iterdir()
    }
    bad = ("--num_processes", "2", "--max_skipped", "0", "--max_skipped_share", "0")
    process, _, err = run(folder, tmp_path / "bad", *bad)
    assert process.returncode != 0 and "at most 0, or 0.0%" in err


@pytest.mark.slow
def test_a_killed_run_leaves_no_half_shard(tmp_path, run_here):
    (tmp_path / "videos").mkdir()
    for index in range(6):
        write_mp4(tmp_path / "videos" / f"{index}.mp4", frames=make_frames(40, 120, 160))
    process = start(tmp_path / "videos", tmp_path / "out", "--videos_per_shard", "2", "--short_side", "120")
    while process.poll() is None and not list((tmp_path / "out").glob("shard-*.tar")):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=600)
    for path in (tmp_path / "out").glob("shard-*.tar"):
        with tarfile.open(path) as tar:
            assert len(tar.getnames()) == 4
    printed = run_here(tmp_path / "videos", tmp_path / "out", "--videos_per_shard", "2", "--short_side", "120")
    assert "6 videos in 3 shards" in printed and len(list((tmp_path / "out").glob("shard-*.tar"))) == 3
    assert not list((tmp_path / "out").glob(".*"))


def test_too_many_bad_files_and_bad_arguments(folder, tmp_path, run_here):
    with pytest.raises(TooManySkippedVideos, match=r"at most 1.*class1/text.mp4"):
        run_here(folder, tmp_path / "a", "--max_skipped", "1", "--max_skipped_share", "0.1")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine.tar").touch()
    with pytest.raises(ValueError, match="mine.tar"):
        run_here(folder, tmp_path / "b")
    with pytest.raises(ValueError, match="short_side.*0"):
        run_here(folder, tmp_path / "c", "--short_side", "0")


@pytest.mark.slow
def test_disk_full(folder, tmp_path):
    """A limit on the size of files stands for the full disk: an error, not skipped videos, and nothing half written."""
    command = f"ulimit -f 8; exec {sys.executable} {ROOT}/training_scripts/write_shards.py --folder '{folder}'"
    command += f" --output_folder '{tmp_path / 'out'}' --short_side 16"
    done = subprocess.run(
        ["bash", "-c", command], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert done.returncode != 0 and "File too large" in done.stderr
    assert not list((tmp_path / "out").glob("*.tar")) and not list((tmp_path / "out").glob(".*"))


def write_tar(path, files):
    with tarfile.open(path, "w") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_tar_files_of_others(tmp_path, folder):
    video = (folder / "class0" / "a.b 0.mp4").read_bytes()
    files = {
        "x/1.mp4": video,
        "x/1.cls": b"7",
        "x/1.txt": b"words",
        "2.json": b'{"label": 3}',
        "2.MP4": video,
        "3.mp4": video,
    }
    files |= {"3.json": b"{}", "4.cls": b"1", "long/" + 120 * "n" + "/5.mp4": video}
    items = TarShards([write_tar(tmp_path / "a.tar", files)]).read_shard(0)
    assert [(item.key[-3:], item.label) for item in items] == [("x/1", 7), ("2", 3), ("3", -1), ("n/5", -1)]
    assert all(item.video.read() == video for item in items)
    write_tar(tmp_path / "b.tar", {"1.mp4": video, "1.json": b'{"label": "run"}'})
    with pytest.raises(ValueError, match="b.tar.*'run'"):
        TarShards([tmp_path / "b.tar"]).read_shard(0)
    with pytest.raises(ValueError, match="no .tar"):
        TarShards.from_folder(folder)


def test_damaged_shards_are_skipped_and_named(tmp_path, folder):
    video = (folder / "class0" / "a.b 0.mp4").read_bytes()
    files = {f"{index}.mp4": video for index in range(4)}
    write_tar(tmp_path / "good.tar", files)
    cut = write_tar(tmp_path / "cut.tar", files).read_bytes()
    (tmp_path / "cut.tar").write_bytes(cut[: cut.index(b"2.mp4") + 1000])
    write_text(tmp_path / "text.tar")
    (tmp_path / "empty.tar").touch()
    damaged = bytearray(write_tar(tmp_path / "header.tar", files).read_bytes())
    second = damaged.index(b"1.mp4")
    damaged[second : second + 512] = b"x" * 512
    (tmp_path / "header.tar").write_bytes(damaged)

    stream = ClipStream(
        TarShards.from_folder(tmp_path), partial(first_window, clip_length=6), 16, num_epochs=1, shuffle=False
    )
    keys = [item["key"] for item in stream]
    assert keys == ["0", "1", "0", "1", "2", "3"]  # of cut.tar, then of good.tar
    reasons = " ".join(stream.skipped.values())
    assert len(stream.skipped) == 4
    for words in (
        "cut.tar: ends in the middle",
        "text.tar: not a tar file",
        "empty.tar: not a tar",
        "header.tar: damaged after 1",
    ):
        assert words in reasons


@pytest.mark.parametrize("facts", [b"{", b"[1]", b"[" * 100_000, b'{"label": true}', b"\xff"])
def test_damaged_labels_name_the_sample(tmp_path, facts):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name, data in (("0.mp4", b"x"), ("0.json", facts)):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with pytest.raises(ValueError, match="a.tar: .* 0 "):
        TarShards([path]).read_shard(0)


def test_hidden_files_and_samples_without_video(tmp_path, caplog):
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("._0.mp4", "0.mp4", "1.txt"):
            tar.addfile(tarfile.TarInfo(name), io.BytesIO(b""))
    assert [item.key for item in TarShards([path]).read_shard(0)] == ["0"]
    assert "1 samples without a video" in caplog.text and "'1'" in caplog.text
