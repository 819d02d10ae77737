import numpy as np
from builders.video_files import make_frames

from adaptok_hf.data.transforms import random_crop, random_flip


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
