"""Frames as a player shows them: square pixels, turned and mirrored as the container asks."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .decoding_limits import check_size


def display_converter(stream: Any, first: Any, name: str) -> Callable[[Any], np.ndarray]:
    """Return the function that turns decoded frames into what is shown, uint8 RGB `(height, width, 3)`.

    Where pixels are not square, frames are enlarged in one direction, as browsers do. All frames get the geometry
    of the first one.

    Args:
        stream: the PyAV stream.
        first: its first frame.
        name: of the file, for the error.

    Raises:
        VideoError: for frames that are too large (`check_size`).
    """
    width, height = first.width, first.height
    if aspect := stream.sample_aspect_ratio:
        width, height = (round(width * aspect), height) if aspect > 1 else (width, round(height / aspect))
    check_size(name, width, height)
    mirrored, angle = _orientation(first)

    def convert(frame: Any) -> np.ndarray:
        picture = frame.to_ndarray(format="rgb24", width=width, height=height)
        return _turn(picture[:, ::-1] if mirrored else picture, angle)

    return convert


def _orientation(frame: Any) -> tuple[bool, float]:
    """Return whether to mirror a frame horizontally, and the degrees by which to turn it counterclockwise after that."""
    # A look at the side data of a frame keeps it until the next garbage collection, and with it the decoder's threads: that
    # would hang a process which was forked meanwhile. A small copy has the same side data and none of the threads.
    matrix = frame.reformat(width=8, height=8, format="gray").side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, 0.0
    # row vectors: (x, y) of the frame is shown at (ax + cy, bx + dy), with y pointing down
    a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].astype(float)
    mirrored = a * d - b * c < 0
    if mirrored:
        a, b = -a, -b
    across, down = math.hypot(a, c), math.hypot(b, d)
    if not across or not down:  # it would show nothing
        return False, 0.0
    return mirrored, -math.degrees(math.atan2(b / down, a / across))


def _turn(picture: np.ndarray, angle: float) -> np.ndarray:
    turns = round(angle / 90)
    if abs(angle - 90 * turns) <= 1:  # FFmpeg's tolerance
        return np.ascontiguousarray(np.rot90(picture, turns))
    from PIL import Image

    # as FFmpeg does: the frame keeps its size, corners turn out of it and leave black ones
    return np.array(Image.fromarray(picture).rotate(angle, Image.Resampling.BILINEAR))
