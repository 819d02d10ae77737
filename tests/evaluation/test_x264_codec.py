import pytest
import torch
from builders.evaluations import moving_frames

from adaptok_hf.evaluation import X264Codec
from adaptok_hf.metrics import VideoPSNR


@pytest.fixture(scope="module")
def clip():
    frames = torch.from_numpy(moving_frames(0, count=8)).permute(0, 3, 1, 2) / 255
    return torch.nn.functional.interpolate(frames, size=(32, 48), mode="bilinear")[None]


def test_it_takes_the_bits_that_it_may(clip):
    codec = X264Codec(8_000, fps=12)
    streams = codec.encode(clip)
    (bits,), (stream,) = streams.num_bits, streams
    assert 0.9 * 8_000 < bits <= 8_000
    # not counted are start codes, parameter sets, and the note that x264 writes about itself
    size = 8 * sum(map(len, stream.packets))
    assert size - 8 * (700 + 100) < bits < size - 8 * 8 * 3 and b"x264 - core" in stream.packets[0]
    # and where no stream is that small, the smallest
    (smallest,) = streams_below = X264Codec(100).encode(clip)
    assert smallest.crf == 51 and 100 < smallest.num_bits < bits / 2
    psnr = [VideoPSNR().measure(codec.decode(each), clip).item() for each in (streams_below, streams)]
    assert 15 < psnr[0] < psnr[1] - 1
