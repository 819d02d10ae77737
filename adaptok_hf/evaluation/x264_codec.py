"""x264 at a given number of bits: what a codec for people makes of the bits that a clip's tokens take."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
import torch
from av.video.reformatter import ColorRange, Colorspace

from ..video.frames import interpolate, to_uint8

# As strong as x264 is: the slowest sensible preset, tuned for PSNR. The constant rate factor is searched.
OPTIONS = {"preset": "veryslow", "tune": "psnr"}
_WORST, _STEPS = 51.0, 10
# Before each unit of a raw stream (Annex B). The five bits at its beginning are its type: 1 and 5 are slices of frames.
_START, _SLICES = re.compile(rb"\x00*\x00\x00\x01"), (1, 5)


@dataclass(frozen=True)
class X264Stream:
    """A coded clip.

    Args:
        packets: a raw H.264 stream, without container.
        crf: constant rate factor.
        size: height and width of the clip; its stream may be of half of it.
    """

    packets: tuple[bytes, ...]
    crf: float
    size: tuple[int, int]

    @property
    def num_bits(self) -> int:
        """Bits of the frames' slices.

        Start codes, parameter sets (about 40 bytes, the same for all clips) and x264's note about itself do not count.
        """
        units = [unit for packet in self.packets for unit in _START.split(packet) if unit]
        return 8 * sum(len(unit) for unit in units if unit[0] & 31 in _SLICES)


class X264Streams(list[X264Stream]):
    """Coded clips."""

    @property
    def num_bits(self) -> list[int]:
        """Bits of each clip."""
        return [stream.num_bits for stream in self]


class X264Codec:
    """libx264 as a codec for `evaluate_reconstruction`: of each clip the best quality that takes at most some bits.

    The constant rate factor is found by bisection, for each clip alone, at full and at half size (bicubic), and the better
    of both is taken: few bits do better on small frames. Frames are 4:2:0 and 8 bits.

    Args:
        max_bits: of a clip. Where no stream is that small, the smallest is taken: look at its `num_bits`.
        fps: of the stream; it hardly matters at a constant rate factor.
    """

    def __init__(self, max_bits: float, fps: float = 24.0):
        self.max_bits, self.fps = max_bits, Fraction(fps).limit_denominator(1001)

    def encode(self, videos: torch.Tensor) -> X264Streams:
        """Encode clips (clips, frames, 3, height, width), floats in [0, 1], of even height and width."""
        return X264Streams(map(self._choose, videos.float().cpu()))

    def decode(self, streams: Sequence[X264Stream]) -> torch.Tensor:
        """Return clips (clips, frames, 3, height, width) in [0, 1]."""
        return torch.stack([_decode(stream) for stream in streams])

    def _choose(self, video: torch.Tensor) -> X264Stream:
        size = tuple(video.shape[-2:])
        small = interpolate(video, tuple(2 * round(side / 4) for side in size), "bicubic")
        streams = [self._search(to_uint8(each).permute(0, 2, 3, 1).numpy(), size) for each in (video, small)]
        fitting = [stream for stream in streams if stream.num_bits <= self.max_bits]
        if not fitting:
            return min(streams, key=lambda stream: stream.num_bits)
        return min(fitting, key=lambda stream: (_decode(stream) - video).square().mean())

    def _search(self, frames: np.ndarray, size: tuple[int, int]) -> X264Stream:
        low, high = 0.0, _WORST
        best = self._encode(frames, high, size)
        if best.num_bits > self.max_bits:
            return best
        for _ in range(_STEPS):
            stream = self._encode(frames, (low + high) / 2, size)
            if stream.num_bits <= self.max_bits:
                best, high = stream, stream.crf
            else:
                low = stream.crf
        return best

    def _encode(self, frames: np.ndarray, crf: float, size: tuple[int, int]) -> X264Stream:
        encoder = av.CodecContext.create("libx264", "w")
        encoder.options = {**OPTIONS, "crf": f"{crf:.3f}"}
        encoder.height, encoder.width = frames.shape[1:3]
        encoder.pix_fmt, encoder.time_base, encoder.framerate, encoder.thread_count = "yuv420p", 1 / self.fps, self.fps, 1
        encoder.colorspace, encoder.color_range = Colorspace.ITU709, ColorRange.MPEG
        packets = []
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            picture.pts, picture.time_base = index, encoder.time_base
            packets += encoder.encode(picture)
        return X264Stream(tuple(map(bytes, [*packets, *encoder.encode(None)])), crf, size)


def _decode(stream: X264Stream) -> torch.Tensor:
    decoder = av.CodecContext.create("h264", "r")
    pictures = [picture for packet in stream.packets for picture in decoder.decode(av.Packet(packet))]
    pictures += decoder.decode(None)
    colors = {"src_colorspace": Colorspace.ITU709, "src_color_range": ColorRange.MPEG}
    frames = [picture.reformat(format="rgb24", **colors).to_ndarray() for picture in pictures]
    return interpolate(torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2) / 255, stream.size, "bicubic").clamp(0, 1)
