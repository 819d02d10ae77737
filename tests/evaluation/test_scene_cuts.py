import numpy as np
from builders.evaluations import moving_frames

from adaptok_hf.evaluation.scene_cuts import find_cuts


def test_scene_cuts():
    first, second = moving_frames(0, 20), 255 - moving_frames(1, 20)
    second = (second.astype(int) // 3).astype(np.uint8)
    assert find_cuts(np.concatenate([first, second])) == [20]
    assert find_cuts(first) == []
    assert find_cuts(first[:1]) == [] and find_cuts(np.repeat(first[:1], 9, axis=0)) == []
