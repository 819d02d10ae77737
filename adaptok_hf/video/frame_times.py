"""When the frames of a container are shown."""

import heapq
from fractions import Fraction
from typing import Any

from .damage import VideoError

_SLOWEST, _FASTEST = Fraction(1, 100), Fraction(1000)
_STEP = Fraction(1, 24)  # between frames that have no time and no rate


def nominal_rate(container: Any, stream: Any) -> float | None:
    """Return the frames per second that a file declares, `None` where it does not or the number makes no sense."""
    rate = _declared_rate(container, stream)
    return float(rate) if rate and _SLOWEST <= rate <= _FASTEST else None


def _declared_rate(container: Any, stream: Any) -> Fraction | None:
    import av

    # a raw stream has no times to average, only what its headers say
    timeless = container.format.flags & av.format.Flags.no_timestamps.value
    return (None if timeless else stream.average_rate) or stream.guessed_rate


class FrameTimes:
    """Gives each decoded frame its time in seconds from the first, strictly increasing.

    Most containers store when a frame is shown. AVI, and an mp4 without a table of display times, store the order of
    decoding only, which differs where there are B-frames. Frames leave the decoder in the order of display, so the
    smallest time that was read and not yet given belongs to the next frame.

    Args:
        container, stream: of PyAV.
        name: of the file, for the error.
    """

    def __init__(self, container: Any, stream: Any, name: str):
        self.name, self.stream = name, stream
        self.rate = _declared_rate(container, stream)
        self.without_display_times = container.format.name == "avi"
        self.reordered = False  # whether a packet's times of decoding and of display differ
        self._waiting: list[Fraction] = []  # decoding times of packets whose frames are not out yet
        self._start: Fraction | None = None
        self._last: Fraction | None = None

    def add(self, packet: Any) -> None:
        """Take the times of a packet that is about to be decoded."""
        self.reordered |= packet.pts != packet.dts
        if packet.dts is not None and packet.size and not packet.is_discard:
            heapq.heappush(self._waiting, packet.dts * packet.time_base)

    def next(self, frame: Any) -> float:
        """Return the seconds of the next frame.

        Raises:
            VideoError: at the second frame, if the rate is not between 0.01 and 1000 frames per second.
        """
        decoded = heapq.heappop(self._waiting) if self._waiting else None
        time = None if frame.pts is None else frame.pts * frame.time_base
        if self.stream.codec_context.has_b_frames and (self.without_display_times or not self.reordered):
            time = decoded
        if self._last is None:
            self._start, self._last = time, Fraction(0)
            return 0.0
        step = 1 / self.rate if self.rate else _STEP
        if time is not None and self._start is not None and time - self._start > self._last:
            step = time - self._start - self._last  # otherwise it has no time, or one that goes backwards
        if self._last == 0:
            self._check_rate(1 / step)
        self._last += step
        return float(self._last)

    def _check_rate(self, between_frames: Fraction) -> None:
        """Raise for a rate that is as absurd as the time between the first two frames."""
        if self.rate and not any(_SLOWEST <= rate <= _FASTEST for rate in (self.rate, between_frames)):
            raise VideoError(
                f"{self.name}: {float(self.rate):g} frames per second; expected a number between {float(_SLOWEST)} and "
                f"{_FASTEST}"
            )
