import numpy as np
import pytest
from builders.evaluations import moving_frames
from builders.metric_networks import PixelFeatures

from adaptok_hf import write_video
from adaptok_hf.evaluation import Networks, compare_videos


def test_compare_videos_by_name_and_as_sets(videos, tmp_path):
    networks = Networks(features=PixelFeatures())
    for index in range(4):
        noisy = moving_frames(index).astype(int) + np.random.default_rng(9).integers(-25, 26, (26, 16, 16, 3))
        write_video(tmp_path / f"v{index}.mp4", np.clip(noisy, 0, 255).astype(np.uint8), 12)
    result = compare_videos(videos, tmp_path, networks=networks, num_frames=12)
    assert result["num_pairs"] == 4 and len(result["pairs"]) == 4
    assert "1 of 5 real videos have no partner of that name" in result["notes"]
    same = compare_videos(videos, videos, networks=networks, num_frames=12, window="all")
    assert same["metrics"]["psnr"]["value"] is None and len(same["pairs"]) == 10
    assert abs(same["metrics"]["fvd"]["value"]) < 1e-6 < result["metrics"]["fvd"]["value"]
    pair = compare_videos(videos / "v0.mp4", tmp_path / "v1.mp4", num_frames=12)
    assert pair["metrics"]["psnr"]["low"] is None and 0 < pair["metrics"]["psnr"]["value"] < 30
    (tmp_path / "other").mkdir()
    write_video(tmp_path / "other" / "x.mp4", moving_frames(0, count=26), 12)
    write_video(tmp_path / "other" / "y.mp4", moving_frames(1, count=26), 12)
    with pytest.raises(ValueError, match="nothing to compare"):
        compare_videos(videos, tmp_path / "other", num_frames=12)
    unpaired = compare_videos(videos, tmp_path / "other", num_frames=12, networks=networks)
    assert unpaired["metrics"].keys() == {"fvd"} and unpaired["num_pairs"] == 0
    write_video(tmp_path / "other" / "v0.mp4", moving_frames(0, count=13), 12)
    with pytest.raises(ValueError, match="v0.mp4: 2 clips of 12 frames on the real side, 1 on the other"):
        compare_videos(videos, tmp_path / "other", num_frames=12, window="all")
