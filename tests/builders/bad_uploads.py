"""Files that the Space does not take, and the form of its error messages."""

from pathlib import Path

import numpy as np
from builders.video_files import (
    corrupt,
    make_frames,
    truncate,
    write_animation,
    write_audio_only,
    write_empty,
    write_file,
    write_mp4,
    write_text,
    write_webm,
    write_without_frames,
)


def write_long_4k(path: Path) -> Path:
    """Three frames of 3840x2160 that last ten minutes."""
    return write_file(path, frames=np.zeros((3, 2160, 3840, 3), np.uint8), pts=[0, 7200, 14400])


def write_4k(path: Path) -> Path:
    return write_file(path, frames=np.zeros((1, 2160, 3840, 3), np.uint8))


def write_sparse(path: Path, size: int = 2 << 30) -> Path:
    """Starts like an mp4, then a hole of 2 GiB."""
    with open(path, "wb") as file:
        file.write(b"\0\0\0\x18ftypisom")
        file.truncate(size)
    return path


def write_html(path: Path) -> Path:
    return write_text(path, "<!doctype html><html><script>alert(1)</script></html>" * 20)


def write_gif_bomb(path: Path) -> Path:
    """A GIF whose header declares 65535x65535 pixels."""
    data = bytearray(write_animation(path).read_bytes())
    data[6:10] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    return path


BAD_FILES = [
    (write_empty, "a.mp4", "empty"),
    (write_text, "a.mp4", "not a video"),
    (write_html, "page.mp4", "not a video"),
    (write_without_frames, "a.mp4", "no frames"),
    (write_without_frames, "a.avi", "no video frames"),
    (write_audio_only, "a.mp4", "no video stream"),
    (lambda path: truncate(write_mp4(path), 0.6), "a.mp4", "truncated"),
    (lambda path: truncate(write_mp4(path, faststart=True), 0.9), "a.mp4", "truncated"),
    (lambda path: truncate(write_webm(path), 0.6), "a.webm", "truncated"),
    (lambda path: truncate(write_animation(path), 0.6), "a.gif", "truncated"),
    (lambda path: corrupt(write_mp4(path, faststart=True)), "a.mp4", "damaged"),
    (lambda path: write_mp4(path, frames=make_frames(4, 8, 400)), "a.mp4", "too narrow"),
    (write_4k, "a.mp4", "3840×2160"),
    (write_long_4k, "a.mp4", r"\d+ seconds.*120"),
    (write_gif_bomb, "a.gif", "more pixels"),
]


def refused(message: str, folder: Path) -> None:
    """The message names no folder of this machine and is one line without markup."""
    assert str(folder) not in message and "/tmp" not in message and "gradio" not in message, message
    assert "\n" not in message and "<" not in message and "Traceback" not in message
