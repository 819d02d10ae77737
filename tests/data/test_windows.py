from collections import Counter
from functools import partial

import numpy as np
import pytest

from adaptok_hf.data import all_windows, first_window, random_window


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("stride", "last_start"), [(1, 6), (2, 3), (3, 0)])
def test_random_windows_start_everywhere_alike(stride, last_start):
    generator = rng()
    drawn = [random_window(10, generator, clip_length=4, stride=stride) for _ in range(1000)]
    assert all(len(windows) == 1 and len(windows[0]) == 4 and windows[0].step == stride for windows in drawn)
    counts = Counter(windows[0].start for windows in drawn)
    assert set(counts) == set(range(last_start + 1))
    expected = 1000 / (last_start + 1)
    assert all(abs(count - expected) <= 0.3 * expected for count in counts.values())
    assert max(windows[0][-1] for windows in drawn) == last_start + 3 * stride < 10


def test_windows_depend_on_the_generator_only():
    choose = partial(random_window, clip_length=16)
    assert [choose(300, rng(seed)) for seed in range(20)] == [choose(300, rng(seed)) for seed in range(20)]
    assert len({choose(300, rng(seed))[0].start for seed in range(20)}) > 10


def test_first_and_all_windows():
    assert first_window(30, rng(), clip_length=16) == [range(0, 16)]
    assert first_window(30, rng(), clip_length=5, stride=4) == [range(0, 17, 4)]
    starts = [window.start for window in all_windows(10, rng(), clip_length=4, step=1)]
    assert starts == list(range(7))
    windows = all_windows(10, rng(), clip_length=4, step=3, stride=2)
    assert [list(window) for window in windows] == [[0, 2, 4, 6], [3, 5, 7, 9]]
    assert all_windows(4, rng(), clip_length=4, step=5) == [range(0, 4)]


@pytest.mark.parametrize("choose", [first_window, random_window, partial(all_windows, step=1)])
def test_too_short_videos_and_wrong_arguments(choose):
    assert len(choose(7, rng(), clip_length=4, stride=2)) == 1
    with pytest.raises(ValueError, match="6 frames.* 4 .* 2 .* 7"):
        choose(6, rng(), clip_length=4, stride=2)
    for arguments in ({"clip_length": 0}, {"clip_length": 4, "stride": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            choose(20, rng(), **arguments)


def test_step_of_all_windows():
    with pytest.raises(ValueError, match="step.*0"):
        all_windows(20, rng(), clip_length=4, step=0)
