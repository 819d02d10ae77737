"""Clips that are changed at random, of videos and photos."""

import numpy as np
import pytest
import torch
from builders.video_files import make_frames, write_mp4
from PIL import Image

from adaptok_hf import AdapTokConfig
from adaptok_hf.training.augmented_clips import AugmentedBatches
from adaptok_hf.training.clips import shared_sampling

CONFIG = AdapTokConfig(image_size=32, patch_size=8)


@pytest.fixture
def folders(tmp_path):
    for name, brightness in (("dark", 30), ("bright", 220)):
        (tmp_path / name).mkdir()
        write_mp4(tmp_path / name / "0.mp4", frames=make_frames(40, 32, 32) * 0 + brightness)
    (tmp_path / "photos" / "below").mkdir(parents=True)
    colors = torch.zeros(300, 200, 3, dtype=torch.uint8)
    colors[:, 100:, 0] = 255  # red on the right
    Image.fromarray(colors.numpy()).save(tmp_path / "photos" / "below" / "a.PNG")
    return tmp_path


def open_batches(folders, photo_weight=0.0, weights=(1.0, 1.0)):
    photos = [folders / "photos"] if photo_weight else []
    return AugmentedBatches(
        [folders / "dark", folders / "bright"], weights, photos, photo_weight, CONFIG, torch.device("cpu")
    )


def test_samples_depend_on_seed_and_step(folders):
    batches = open_batches(folders, photo_weight=1.0)
    draws = []
    for step in (0, 1, 0):
        with shared_sampling(3, step):
            draws.append(batches.next_batch(6))
    assert draws[0].shape == (6, 16, 3, 32, 32) and draws[0].dtype == torch.uint8
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])


def test_shares_of_folders_and_photos(folders):
    torch.manual_seed(0)
    clips = open_batches(folders, photo_weight=1.0, weights=(3.0, 1.0)).sample(300).float()
    brightness = clips.mean((1, 3, 4))
    red = brightness[:, 0] > 2 * brightness[:, 1] + 30
    dark = ~red & (brightness.mean(1) < 120)
    assert int(dark.sum()) == pytest.approx(180, abs=30) and int((~red & ~dark).sum()) == pytest.approx(60, abs=25)


def test_photos_move_and_videos_change_in_time_only(folders):
    torch.manual_seed(0)
    batches = open_batches(folders, photo_weight=1.0)
    photos = batches._sample_photos(40)
    assert (photos[:, 1:] - photos[:, :-1]).abs().amax((1, 2, 3, 4)).gt(1).float().mean() > 0.5
    videos = batches._sample_videos(40)  # each video is of one color
    assert videos.std((1, 3, 4)).max() < 2


def test_every_frame_is_one_of_the_video(folders, tmp_path):
    (tmp_path / "count").mkdir()
    brightness = np.arange(0, 240, 6, dtype=np.uint8)[:, None, None, None]
    write_mp4(tmp_path / "count" / "0.mp4", frames=make_frames(40, 32, 32) * 0 + brightness)
    batches = AugmentedBatches([tmp_path / "count"], [1.0], [], 0.0, CONFIG, torch.device("cpu"))
    torch.manual_seed(0)
    values = batches._sample_videos(60).mean((2, 3, 4)) / 6
    steps = (values[:, 1:] - values[:, :-1]).mean(1).round()
    assert set(steps.abs().tolist()) == {1.0, 2.0} and {-1.0, 1.0} <= set(steps.tolist())  # 40 frames are too few for 3
    assert 0 <= values.min() and values.max() <= 40


def test_folders_without_photos_are_named(folders):
    with pytest.raises(ValueError, match="dark"):
        AugmentedBatches([folders / "dark"], [1.0], [folders / "dark"], 0.5, CONFIG, torch.device("cpu"))
