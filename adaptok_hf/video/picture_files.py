"""Pictures as frames: one picture, a list of picture files, a folder of them."""

import os
import re
from pathlib import Path
from typing import Any

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".avif")


def is_picture_file(value: Any) -> bool:
    """Return whether it is the path of a picture; an animated PNG, WebP or AVIF is none."""
    if not isinstance(value, str | os.PathLike) or Path(os.fsdecode(value)).suffix.lower() not in PICTURE_SUFFIXES:
        return False
    from PIL import Image

    try:
        with Image.open(value) as image:
            return getattr(image, "n_frames", 1) == 1 or image.format in ("JPEG", "MPO")
    except Exception:  # it is missing, damaged or no picture: reading it says so
        return True


def picture_files(source: Any) -> list[str | os.PathLike] | None:
    """Return the frames' files of a picture, a folder, or a list of pictures; `None` for anything else.

    Raises:
        IsADirectoryError: for a folder without pictures.
    """
    if isinstance(source, list | tuple):
        return list(source) if source and all(map(is_picture_file, source)) else None
    if not isinstance(source, str | os.PathLike):
        return None
    if not os.path.isdir(source):
        return [source] if is_picture_file(source) else None
    names = [name for name in os.listdir(source) if not name.startswith(".") and name.lower().endswith(PICTURE_SUFFIXES)]
    if not names:
        raise IsADirectoryError(
            f"{source} is a folder without pictures; expected a video file, or a folder of frames "
            f"({', '.join(PICTURE_SUFFIXES)})"
        )
    return [Path(source, name) for name in sorted(names, key=_natural)]


def is_file(value: Any) -> bool:
    """Return whether it is a path, the bytes of a file, a file object, an open PyAV container, a list of pictures, or a
    file as datasets stores it."""
    if isinstance(value, list | tuple):
        return picture_files(value) is not None
    if isinstance(value, dict):
        return stored_file(value) is not value
    return isinstance(value, str | os.PathLike | bytes) or hasattr(value, "read") or hasattr(value, "demux")


def stored_file(source: Any) -> Any:
    """Return the bytes of a file as datasets stores it (`Video(decode=False)`), or else its path; others as they are."""
    if isinstance(source, dict) and source and source.keys() <= {"bytes", "path"}:
        return source.get("path") if source.get("bytes") is None else source["bytes"]
    return source


def _natural(name: str) -> tuple:
    """Return the key by which frame2.png comes before frame10.png."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]+)", name.lower())], name
