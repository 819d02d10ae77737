"""Frames as what a page shows: videos and pictures inside the page itself, so that no files remain."""

import base64
import io
import math
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from adaptok_hf import TokenizedVideo, write_video


def video_uri(frames: np.ndarray, fps: float) -> str:
    """uint8 (frames, height, width, 3) as an mp4 in a `data:` address."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.mp4"
        write_video(path, frames, fps)
        return "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()


def tokens_uri(tokens: TokenizedVideo) -> str:
    """The file that `tokens.save` writes in a `data:` address."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "video.safetensors"
        tokens.save(path)
        return "data:application/octet-stream;base64," + base64.b64encode(path.read_bytes()).decode()


def image_uri(picture: np.ndarray) -> str:
    """uint8 (height, width, 3) as a WebP in a `data:` address."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "WEBP", quality=88)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def mosaic(frames: np.ndarray) -> np.ndarray:
    """Frames (count, height, width, 3) side by side in one picture, as square as can be; empty places are black."""
    count, height, width, _ = frames.shape
    columns = math.ceil(math.sqrt(count))
    rows = -(-count // columns)
    picture = np.zeros((rows * height, columns * width, 3), np.uint8)
    for index, frame in enumerate(frames):
        top, left = index // columns * height, index % columns * width
        picture[top : top + height, left : left + width] = frame
    return picture
