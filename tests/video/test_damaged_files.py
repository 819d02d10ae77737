"""Thousands of damaged files: every reader gives the same frames as the others, or the one promised error with the name."""

import csv
import io
import logging
import tarfile
from collections import Counter

import numpy as np
import pytest
from builders.video_files import make_frames, write_animation, write_file

from adaptok_hf import AdapTokVideoProcessor
from adaptok_hf.data import TarShards, kinetics, manifest
from adaptok_hf.data.clip_reader import EndedEarly, probe_video, read_clips
from adaptok_hf.video.damage import VideoError
from adaptok_hf.video.frame_stream import iter_frames
from adaptok_hf.video.video_io import read_video

CODECS = {
    "mp4": "libx264", "mov": "mpeg4", "webm": "libvpx-vp9", "mkv": "libx264", "avi": "libx264", "ts": "libx264",
    "mpg": "mpeg1video", "wmv": "wmv2", "flv": "flv", "ogv": "libvpx", "mxf": "mpeg2video", "nut": "ffv1", "ivf": "libvpx",
    "y4m": "rawvideo", "h264": "libx264",
}  # fmt: skip
ANIMATIONS = ("gif", "webp", "png")
LISTS = ("manifest.csv", "kinetics.csv", "tar")
PER_KIND = 120


def seed_file(folder, kind):
    """Return the bytes of a good file of a few KB."""
    path, frames = folder / f"seed.{kind}", make_frames(8, 32, 48)
    if kind in CODECS:
        write_file(path, frames, fps=25, codec=CODECS[kind])
    elif kind in ANIMATIONS:
        write_animation(path, frames)
    elif kind == "tar":
        with tarfile.open(path, "w") as tar:
            for name, data in (
                ("0.mp4", b"x" * 300),
                ("0.json", b'{"label": 3, "key": "a"}'),
                ("1.mp4", b"y"),
                ("1.cls", b"7"),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    else:
        rows = [["path", "label", "youtube_id", "time_start", "time_end"]]
        rows += [[f"{i}.mp4", f"class {i % 3}", f"id{i}", 10 * i, 10 * i + 10] for i in range(20)]
        with open(path, "w", newline="") as file:
            csv.writer(file).writerows(rows)
    return path.read_bytes()


def damage(data, rng, others):
    """Return a copy that is damaged in one of the ways in which files are."""
    data, length = bytearray(data), len(data)
    start, count = int(rng.integers(length)), int(rng.integers(1, 64))
    kind = rng.choice(["flips", "cut", "zeros", "ones", "copy", "noise", "drop", "head", "head of another"])
    if kind == "flips":
        for _ in range(count):
            data[int(rng.integers(length))] ^= 1 << int(rng.integers(8))
    elif kind == "cut":
        del data[start:]
    elif kind in ("zeros", "ones"):
        data[start : start + count] = bytes([0 if kind == "zeros" else 255]) * count
    elif kind == "copy":
        data[start:start] = data[start : start + 20 * count]
    elif kind == "noise":
        data[start : start + count] = rng.bytes(count)
    elif kind == "drop":
        del data[start : start + count]
    elif kind == "head":
        data[: 2 * count] = rng.bytes(2 * count)
    else:
        data[:count] = others[int(rng.integers(len(others)))][:count]
    return bytes(data)


def check_video(path):
    """Return "read" or "refused" after comparing all readers."""
    processor = AdapTokVideoProcessor(image_size=16, num_frames=1, tubelet_size=1)
    results = []
    for read in (read_video, lambda path: list(iter_frames(path, processor))):
        try:
            results.append(read(path))
        except VideoError as error:
            assert str(path) in str(error) and "\n" not in str(error), error
            results.append(None)
    video, streamed = results
    # a file whose average rate makes no sense raises an error as a whole, which a stream cannot know at its start
    if video is None:
        try:
            list(read_clips(path, [range(probe_video(path)[0])]))
        except (VideoError, EndedEarly):
            pass
        return "refused"
    assert streamed is not None and len(streamed) == len(video)
    np.testing.assert_array_equal(video.timestamps, [seconds for _, seconds, _ in streamed])
    assert all(np.array_equal(frame, other) for frame, (other, _, _) in zip(video.frames, streamed, strict=True))
    count, fps = probe_video(path)
    try:
        (clip,) = read_clips(path, [range(count)], nominal_fps=fps)
    except EndedEarly as ended:
        assert ended.num_frames == len(video)
    else:
        assert count <= len(video) and np.array_equal(clip.timestamps, video.timestamps[:count])
    return "read"


def check_list(path, kind, folder):
    try:
        if kind == "tar":
            TarShards([path]).read_shard(0)
        elif kind == "manifest.csv":
            manifest(path)
        else:
            kinetics(path, folder)
    except ValueError as error:
        assert str(path) in str(error), error
        return "refused"
    return "read"


@pytest.mark.slow
def test_damaged_files(tmp_path, monkeypatch, capsys, caplog):
    """2,520 files; prints the table of docs/reliability.md."""
    monkeypatch.setenv("ADAPTOK_MAX_PIXELS", "4e6")
    monkeypatch.setenv("ADAPTOK_MAX_SECONDS", "20")
    caplog.set_level(logging.ERROR)
    kinds = [*CODECS, *ANIMATIONS, *LISTS]
    (tmp_path / "videos").mkdir()
    for i in range(20):
        (tmp_path / "videos" / f"id{i}.mp4").touch()
    seeds = {kind: seed_file(tmp_path, kind) for kind in kinds}
    counts, wrong = {kind: Counter() for kind in kinds}, []
    for number, kind in enumerate(kinds):
        rng = np.random.default_rng([17, number])
        for index in range(PER_KIND):
            path = tmp_path / f"{index}.{kind}"
            path.write_bytes(damage(seeds[kind], rng, list(seeds.values())))
            try:
                outcome = check_list(path, kind, tmp_path / "videos") if kind in LISTS else check_video(path)
            except Exception as error:
                wrong.append(f"{path.name}: {type(error).__name__}: {error}")
                continue
            counts[kind][outcome] += 1
            path.unlink()
    with capsys.disabled():
        print("\n| format | tried | right | read | refused |\n|---|---|---|---|---|")
        for kind, count in counts.items():
            print(f"| {kind} | {PER_KIND} | {count.total()} | {count['read']} | {count['refused']} |")
        print(f"| all | {PER_KIND * len(kinds)} | {sum(count.total() for count in counts.values())} | | |")
    assert not wrong, "\n".join(wrong)
