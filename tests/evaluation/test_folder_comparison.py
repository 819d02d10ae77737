"""Outputs of other systems: here of MPEG-4, which stands in for tokenizers whose weights are not at hand."""

import json

import av
import numpy as np
import pytest
from builders.evaluations import moving_frames
from builders.metric_networks import PixelFeatures
from PIL import Image

from adaptok_hf import write_video
from adaptok_hf.cli.main import main
from adaptok_hf.evaluation import Networks, compare_videos
from adaptok_hf.metrics import PROTOCOLS


def frames_of(index: int, count: int = 16, size: int = 16) -> np.ndarray:
    return moving_frames(index, count).repeat(size // 16, axis=1).repeat(size // 16, axis=2)


def write_avi(path, frames, fps=24, step=2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=fps, options={"qmin": str(step), "qmax": str(step)})
        stream.height, stream.width = frames.shape[1:3]
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def write_pictures(folder, frames, suffix="png") -> None:
    folder.mkdir(parents=True)
    for number, frame in enumerate(frames, start=9):  # 10 comes after 9
        Image.fromarray(frame).save(folder / f"{number}.{suffix}")


@pytest.fixture
def compare(capsys):
    """`adaptok metrics compare`: its result, or its error as a string."""

    def run(*argv) -> dict | str:
        failed = main(["metrics", "compare", *map(str, argv), "--lpips", "none", "--no-fvd", "--json"])
        out, err = capsys.readouterr()
        return err.splitlines()[-1] if failed else json.loads(out)

    return run


@pytest.fixture
def real(tmp_path):
    """Three videos in folders of classes, without loss."""
    for index in range(3):
        write_pictures(tmp_path / "real" / f"class{index % 2}" / f"v{index}.5", frames_of(index))
    return tmp_path / "real"


def test_compare_videos_by_name_and_as_sets(videos, tmp_path):
    networks = Networks(features=PixelFeatures())
    for index in range(4):
        noisy = moving_frames(index).astype(int) + np.random.default_rng(9).integers(-25, 26, (26, 16, 16, 3))
        write_video(tmp_path / f"v{index}.mp4", np.clip(noisy, 0, 255).astype(np.uint8), 12)
    result = compare_videos(videos, tmp_path, networks=networks, num_frames=12)
    assert result["num_pairs"] == 4 and len(result["pairs"]) == 4
    assert result["unpaired"] == {"real": ["v4.mp4"], "fake": []} and "v4.mp4" in result["notes"][0]
    same = compare_videos(videos, videos, networks=networks, num_frames=12, window="all")
    assert same["metrics"]["psnr"]["value"] is None and len(same["pairs"]) == 10
    assert abs(same["metrics"]["fvd"]["value"]) < 1e-6 < result["metrics"]["fvd"]["value"]
    pair = compare_videos(videos / "v0.mp4", tmp_path / "v1.mp4", num_frames=12)
    assert pair["metrics"]["psnr"]["low"] is None and 0 < pair["metrics"]["psnr"]["value"] < 30
    (tmp_path / "other").mkdir()
    write_video(tmp_path / "other" / "x.mp4", moving_frames(0, count=26), 12)
    write_video(tmp_path / "other" / "y.mp4", moving_frames(1, count=26), 12)
    with pytest.raises(ValueError, match="v0.mp4 .* x.mp4"):
        compare_videos(videos, tmp_path / "other", num_frames=12)
    unpaired = compare_videos(videos, tmp_path / "other", num_frames=12, networks=networks)
    assert unpaired["metrics"].keys() == {"fvd"} and unpaired["num_pairs"] == 0
    assert unpaired["unpaired"]["fake"] == ["x.mp4", "y.mp4"] and len(unpaired["unpaired"]["real"]) == 5
    write_video(tmp_path / "other" / "v0.mp4", moving_frames(0, count=13), 12)
    with pytest.raises(ValueError, match="v0.mp4 has 26 .* 13"):
        compare_videos(videos, tmp_path / "other", num_frames=12, window="all")


def test_files_and_folders_of_frames_of_another_codec(real, tmp_path, compare):
    for index in range(3):
        write_avi(tmp_path / "files" / f"class{index % 2}" / f"v{index}.5.avi", frames_of(index))
        write_avi(tmp_path / "flat" / f"v{index}.5.avi", frames_of(index), step=31)
        write_pictures(tmp_path / "frames" / f"class{index % 2}" / f"v{index}.5", frames_of(index), "bmp")
    good, bad, same = (compare(real, tmp_path / name) for name in ("files", "flat", "frames"))
    assert [result["num_pairs"] for result in (good, bad, same)] == [3, 3, 3]
    assert bad["metrics"]["psnr"]["value"] < good["metrics"]["psnr"]["value"] < 40
    assert same["metrics"]["psnr"]["infinite"] and not same["notes"] and not good["notes"]
    assert "file name" in bad["notes"][0]
    one = compare(real / "class0" / "v0.5", tmp_path / "flat" / "v0.5.avi")
    assert one["metrics"]["psnr"]["value"] == pytest.approx(bad["pairs"][0]["psnr"])


def test_a_named_protocol_gives_its_hash(real, tmp_path):
    write_pictures(tmp_path / "fake" / "v0.5", frames_of(0))
    protocol = PROTOCOLS["adaptok_wild_val"]
    result = compare_videos(real / "class0", tmp_path / "fake", protocol=protocol)
    assert set(result["protocols"]) == {protocol.hash} == {result["metrics"]["psnr"]["protocol_hash"]}
    assert "1 clips where adaptok_wild_val has 87" in result["metrics"]["psnr"]["note"]
    assert "v0.5 (16 x 16)" in result["notes"][1] and "128 x 128" in result["notes"][1]
    with pytest.raises(ValueError, match="adaptok_wild_val has its own image_size"):
        compare_videos(real, tmp_path / "fake", protocol=protocol, image_size=16)
    with pytest.raises(ValueError, match="adaptok_ucf_gfvd is of generation"):
        compare_videos(real, tmp_path / "fake", protocol=PROTOCOLS["adaptok_ucf_gfvd"])


def test_what_differs_is_named(real, tmp_path, compare):
    fake = tmp_path / "fake"
    write_avi(fake / "class0" / "v0.5.avi", frames_of(0, count=17))
    write_avi(fake / "class1" / "v1.5.avi", frames_of(1, size=32))
    assert "class0/v0.5.avi is 16 x 16, class1/v1.5.avi is 32 x 32" in compare(real, fake)
    result = compare(real, fake, "--size", 16)
    missing, sizes, counts = result["notes"]
    assert "1 of 3: class0/v2.5" in missing and result["unpaired"] == {"real": ["class0/v2.5"], "fake": []}
    assert "class1/v1.5.avi (32 x 32)" in sizes and "class0/v0.5 (16 and 17)" in counts
    write_avi(tmp_path / "slow" / "v0.5.avi", frames_of(0), fps=12)
    write_avi(tmp_path / "fast" / "v0.5.avi", frames_of(0), fps=30)
    assert "v0.5.avi (12 and 30)" in compare(tmp_path / "slow", tmp_path / "fast")["notes"][0]


def test_what_cannot_be_compared_is_named(real, tmp_path, compare):
    write_avi(tmp_path / "other" / "a.avi", frames_of(0))
    assert "class0/v0.5 in" in (error := compare(real, tmp_path / "other")) and "a.avi in" in error
    write_avi(tmp_path / "short" / "v0.5.avi", frames_of(0, count=15))
    assert "16 frames, but fake v0.5.avi has 15" in compare(real, tmp_path / "short")
    (tmp_path / "short" / "v1.5.avi").write_bytes(b"no video")
    assert "v1.5.avi" in compare(real, tmp_path / "short")
    for name in ("v0.5.avi", "v0.5.mp4"):
        write_avi(tmp_path / "twice" / "class0" / name, frames_of(0))
    assert "class0/v0.5.avi and class0/v0.5.mp4" in compare(real, tmp_path / "twice")
    for wrong in ({"num_frames": 0}, {"image_size": -3}):
        ((name, value),) = wrong.items()
        with pytest.raises(ValueError, match=f"{name} .* {value}"):
            compare_videos(real, real, **wrong)
    (tmp_path / "empty").mkdir()
    assert "empty" in compare(real, tmp_path / "empty")
