import numpy as np
import pytest
import torch
from PIL import Image

from adaptok_hf.video.frames import center_crop, resize_short_side, to_uint8


def test_to_uint8_clamps_and_rounds():
    values = torch.tensor([-0.5, 0.4999 / 255, 0.5001 / 255, 1.0, 2.0])
    for dtype in (torch.float32, torch.float64):
        assert to_uint8(values.to(dtype)).tolist() == [0, 0, 1, 255, 255]
    assert to_uint8(values.bfloat16()).dtype == torch.uint8


@pytest.mark.parametrize("size", [(90, 161), (161, 90), (20, 24), (33, 32)])
def test_resizing_is_pillows(size):
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    resized = resize_short_side(frames, 32)
    height, width = resized.shape[1:3]
    assert min(height, width) == 32 and abs(width / height - size[1] / size[0]) < 0.03
    expected = np.asarray(Image.fromarray(frames[0]).resize((width, height), Image.Resampling.BILINEAR))
    assert np.abs(resized[0].astype(int) - expected).max() <= 1
    assert np.array_equal(resize_short_side(frames[0], 32), resized[0])


def test_narrow_frames():
    with pytest.raises(ValueError, match="2x41.*20"):
        resize_short_side(np.zeros((2, 41, 3), np.uint8), 16)


def test_center_crop():
    frames = np.arange(3 * 5 * 3).reshape(1, 3, 5, 3)
    assert np.array_equal(center_crop(frames, 3), frames[:, :, 1:4])
