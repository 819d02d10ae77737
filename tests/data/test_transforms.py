import numpy as np
import pytest
import torch
from builders.video_files import make_frames

from adaptok_hf import AdapTokVideoProcessor
from adaptok_hf.data.transforms import centre_crop, random_crop, random_flip, resize_short_side


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (32, 33), (20, 50), (32, 32), (99, 35)])
def test_centre_squares_are_those_of_the_video_processor(height, width):
    frames = np.random.default_rng(0).integers(0, 256, (4, height, width, 3), dtype=np.uint8)
    ours = centre_crop(np.stack([resize_short_side(frame, 32) for frame in frames]), 32)
    processor = AdapTokVideoProcessor(image_size=32, num_frames=4, tubelet_size=4)
    theirs = processor.preprocess(frames, return_tensors="pt").pixel_values_videos[0] * 255
    difference = torch.from_numpy(ours).permute(0, 3, 1, 2) - theirs
    assert ours.shape == (4, 32, 32, 3) and difference.abs().max() < 1.01


def test_random_crops_are_windows_of_all_frames_alike():
    frames = np.arange(3 * 4 * 7 * 3, dtype=np.uint8).reshape(3, 4, 7, 3)
    rng, lefts = np.random.default_rng(0), set()
    for _ in range(60):
        crop = random_crop(frames, 4, rng)
        matches = [left for left in range(4) if np.array_equal(crop, frames[:, :, left : left + 4])]
        assert len(matches) == 1
        lefts.update(matches)
    assert lefts == {0, 1, 2, 3}
    tall = random_crop(frames.transpose(0, 2, 1, 3), 4, rng)
    assert tall.shape == (3, 4, 4, 3)


def test_flips_mirror_half_of_the_clips():
    frames, rng = make_frames(2, 6, 8), np.random.default_rng(0)
    flips = [random_flip(frames, rng) for _ in range(200)]
    mirrored = [np.array_equal(flip, frames[:, :, ::-1]) for flip in flips]
    assert all(m or np.array_equal(f, frames) for m, f in zip(mirrored, flips, strict=True))
    assert 70 < sum(mirrored) < 130
