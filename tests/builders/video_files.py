"""Small synthetic video files, written when a test needs them.

Each writer takes a path and returns it. Pictures are smooth (a color gradient that drifts), so that lossy codecs keep
them within a few gray levels.
"""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image


def make_frames(num_frames: int = 16, height: int = 48, width: int = 64) -> np.ndarray:
    """uint8 `(num_frames, height, width, 3)`; every frame differs from the one before."""
    t, y, x = np.ogrid[:num_frames, :height, :width]
    red, green, blue = x * 180 / width + 0 * y + t, y * 180 / height + 0 * x + t, 200 - (x + y) + 2 * t
    return np.stack(np.broadcast_arrays(red % 256, green % 256, blue % 256), axis=-1).clip(0, 255).astype(np.uint8)


def assert_close(actual: np.ndarray, expected: np.ndarray, mean: float = 4.0) -> None:
    """Equal up to lossy coding."""
    assert actual.shape == expected.shape
    assert np.abs(actual.astype(int) - expected).mean() < mean


def write_file(
    path: Path,
    frames: np.ndarray | None = None,
    fps: int | Fraction = 24,
    codec: str = "libx264",
    pts: list[int] | None = None,
    rotation: int = 0,
    faststart: bool = False,
    shift: int = 0,
) -> Path:
    """
    A video in the container that the ending names.

    `pts` are presentation times in 1/fps (variable frame rate), `rotation` is a display rotation in degrees
    counterclockwise, `faststart` puts the index first, `shift` hides that many frames at the start by an edit list.
    """
    frames = make_frames() if frames is None else frames
    with av.open(path, "w", options={"movflags": "faststart"} if faststart else {}) as container:
        stream = container.add_stream(codec, rate=fps)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 2_000_000
        if rotation:
            stream.set_display_rotation(rotation)
        packets = []
        for index, frame in enumerate(frames):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = index if pts is None else pts[index], 1 / Fraction(fps)
            packets += stream.encode(picture)
        for packet in packets + stream.encode(None):
            if shift:
                ticks = round(shift / fps / packet.time_base)
                packet.pts, packet.dts = packet.pts - ticks, packet.dts - ticks
            container.mux(packet)
    return path


def write_mp4(path: Path, **kwargs) -> Path:
    return write_file(path, **kwargs)


def write_webm(path: Path, **kwargs) -> Path:
    return write_file(path, codec="libvpx", **kwargs)


def write_avi(path: Path, **kwargs) -> Path:
    return write_file(path, codec="mpeg4", **kwargs)


def write_animation(path: Path, frames: np.ndarray | None = None, durations_ms: int | list[int] = 40) -> Path:
    """An animated GIF, WebP or PNG (lossless), by the ending."""
    images = [Image.fromarray(frame) for frame in (make_frames() if frames is None else frames)]
    options = {"lossless": True} if path.suffix == ".webp" else {}
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations_ms, loop=0, **options)
    return path


def write_transparent_gif(path: Path) -> Path:
    """Two 8x8 frames: the left half red, then the right half blue; all else transparent, the first stays below."""
    images = []
    for left, color in ((0, (255, 0, 0, 255)), (4, (0, 0, 255, 255))):
        image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
        image.paste(color, (left, 0, left + 4, 4))
        images.append(image)
    images[0].save(path, save_all=True, append_images=images[1:], duration=100, disposal=1)
    return path


def truncate(path: Path, fraction: float) -> Path:
    """Keep only the first part of a file."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def corrupt(path: Path, start: float = 0.5, num_bytes: int = 2000) -> Path:
    """Overwrite bytes in the middle of a file with zeros."""
    data = bytearray(path.read_bytes())
    position = int(len(data) * start)
    data[position : position + num_bytes] = bytes(len(data[position : position + num_bytes]))
    path.write_bytes(data)
    return path


def write_text(path: Path, text: str = "this is not a video\n" * 50) -> Path:
    path.write_text(text)
    return path


def write_empty(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def write_without_frames(path: Path) -> Path:
    """A container with a declared video stream and no frame in it."""
    with av.open(path, "w") as container:
        stream = container.add_stream("mpeg4" if path.suffix == ".avi" else "libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.start_encoding()
    return path


def write_audio_only(path: Path) -> Path:
    """An mp4 with sound only."""
    with av.open(path, "w") as container:
        stream = container.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        container.mux(stream.encode(sound) + stream.encode(None))
    return path
