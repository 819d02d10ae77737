import av
import pytest
import torch
from builders.evaluations import moving_frames

from adaptok_hf.evaluation import X264Codec, x264_codec
from adaptok_hf.metrics import VideoPSNR


@pytest.fixture(scope="module")
def clip():
    frames = torch.from_numpy(moving_frames(0, count=8)).permute(0, 3, 1, 2) / 255
    return torch.nn.functional.interpolate(frames, size=(32, 48), mode="bilinear")[None]


def coded_size(stream) -> tuple[int, int]:
    decoder = av.CodecContext.create("h264", "r")
    frames = [frame for packet in stream.packets for frame in decoder.decode(av.Packet(packet))]
    return frames[0].height, frames[0].width


def test_it_takes_the_bits_that_it_may(clip, monkeypatch):
    monkeypatch.setattr(x264_codec, "_STEPS", 6)
    psnr = []
    # many bits; few, which do better on small frames; and fewer than there are streams of
    for most, least, size in ((8_000, 7_000, (32, 48)), (700, 600, (16, 24)), (100, 101, (16, 24))):
        codec = X264Codec(most, fps=12)
        streams = codec.encode(clip)
        (bits,), (stream,) = streams.num_bits, streams
        assert least <= bits <= most or (most == 100 and stream.crf == 51)
        assert coded_size(stream) == size and stream.size == (32, 48)
        # not counted are start codes, parameter sets, and the note that x264 writes about itself
        total = 8 * sum(map(len, stream.packets))
        assert total - 8 * (700 + 100) < bits < total - 8 * 8 * 3 and b"x264 - core" in stream.packets[0]
        psnr.append(VideoPSNR().measure(codec.decode(streams), clip).item())
    assert psnr[0] - 1 > psnr[1] > psnr[2] > 10
