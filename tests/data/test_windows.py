from collections import Counter
from functools import partial

import numpy as np
import pytest

from adaptok_hf.data import all_windows, first_window, random_window


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("clip_length", "last_start"), [(4, 6), (7, 3), (10, 0)])
def test_random_windows_start_everywhere_alike(clip_length, last_start):
    generator = rng()
    drawn = [random_window(10, generator, clip_length=clip_length) for _ in range(1000)]
    assert all(len(windows) == 1 and len(windows[0]) == clip_length for windows in drawn)
    counts = Counter(windows[0].start for windows in drawn)
    assert set(counts) == set(range(last_start + 1))
    expected = 1000 / (last_start + 1)
    assert all(abs(count - expected) <= 0.3 * expected for count in counts.values())
    assert max(windows[0][-1] for windows in drawn) == 9


def test_windows_depend_on_the_generator_only():
    choose = partial(random_window, clip_length=16)
    assert [choose(300, rng(seed)) for seed in range(20)] == [choose(300, rng(seed)) for seed in range(20)]
    assert len({choose(300, rng(seed))[0].start for seed in range(20)}) > 10


def test_first_and_all_windows():
    assert first_window(30, rng(), clip_length=16) == [range(0, 16)]
    starts = [window.start for window in all_windows(10, rng(), clip_length=4, step=1)]
    assert starts == list(range(7))
    assert all_windows(10, rng(), clip_length=4, step=3) == [range(0, 4), range(3, 7), range(6, 10)]
    assert all_windows(4, rng(), clip_length=4, step=5) == [range(0, 4)]


@pytest.mark.parametrize("choose", [first_window, random_window, partial(all_windows, step=1)])
def test_too_short_videos_and_wrong_arguments(choose):
    assert len(choose(4, rng(), clip_length=4)) == 1
    with pytest.raises(ValueError, match="3 frames.* 4 "):
        choose(3, rng(), clip_length=4)
    with pytest.raises(ValueError, match="got 0"):
        choose(20, rng(), clip_length=0)


def test_step_of_all_windows():
    with pytest.raises(ValueError, match="step.*0"):
        all_windows(20, rng(), clip_length=4, step=0)
