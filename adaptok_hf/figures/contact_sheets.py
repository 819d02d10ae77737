"""Pictures of videos: rows of frames, and a reconstruction next to its original."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

_BAR_HEIGHT = 64
_GAP = 8


def side_by_side(
    reconstruction: np.ndarray, original: np.ndarray, counts: list[int], maximum: int, frames_per_block: int
) -> Iterator[np.ndarray]:
    """Yield frames with the original on the left, the reconstruction on the right, and the tokens of each block as bars.

    Args:
        reconstruction, original: uint8 (frames, height, width, 3), shown at twice their size if small.
        counts: tokens of each block; at most 32 bars are shown, those around the current block.
        maximum: the height of a full bar in tokens.
    """
    from PIL import Image, ImageDraw

    height, width = original.shape[1:3]
    scale = 2 if width < 256 else 1
    size = (width * scale, height * scale)
    total = 2 * size[0] + 3 * _GAP
    for index, (left, right) in enumerate(zip(original, reconstruction, strict=True)):
        canvas = Image.new("RGB", (total, size[1] + 3 * _GAP + _BAR_HEIGHT + 28), (18, 20, 24))
        draw = ImageDraw.Draw(canvas)
        for column, (picture, title) in enumerate(((left, "original"), (right, "reconstruction"))):
            x = _GAP + column * (size[0] + _GAP)
            canvas.paste(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC), (x, _GAP + 14))
            draw.text((x, 4), title, fill=(200, 205, 212))
        current = index // frames_per_block
        first = max(0, min(current - 16, len(counts) - 32))
        shown = counts[first : first + 32]
        slot = (total - 2 * _GAP) / max(8, len(shown))
        base = canvas.height - _GAP
        draw.text(
            (_GAP, base - _BAR_HEIGHT - 14),
            f"block {current + 1} of {len(counts)}: {counts[current]} of {maximum} tokens",
            fill=(200, 205, 212),
        )
        for position, count in enumerate(shown):
            x = _GAP + position * slot
            right = x + max(slot - 3, slot / 2)
            bar = round(_BAR_HEIGHT * count / maximum)
            color = (255, 176, 59) if first + position == current else (86, 118, 168)
            draw.rectangle((x, base - _BAR_HEIGHT, right, base), fill=(34, 38, 46))
            if bar:
                draw.rectangle((x, base - bar, right, base), fill=color)
        yield np.asarray(canvas)


def contact_sheet(
    videos: np.ndarray, captions: list[str], num_condition_frames: int = 0, columns: int = 8
) -> "Image.Image":
    """Return a picture with one row per video: `columns` of its frames, evenly spaced, under its caption.

    Args:
        videos: uint8 (videos, frames, height, width, 3).
        num_condition_frames: frames that were given to the model; they get a colored border.
    """
    from PIL import Image, ImageDraw

    total, height, width = videos.shape[1:4]
    shown = np.linspace(0, total - 1, min(columns, total)).round().astype(int)
    row_height = height + _GAP + 14
    sheet = Image.new("RGB", (len(shown) * (width + _GAP) + _GAP, len(videos) * row_height + _GAP), (18, 20, 24))
    draw = ImageDraw.Draw(sheet)
    for row, (video, caption) in enumerate(zip(videos, captions, strict=True)):
        top = row * row_height + 4
        draw.text((_GAP, top), caption, fill=(200, 205, 212))
        for column, index in enumerate(shown):
            left = _GAP + column * (width + _GAP)
            sheet.paste(Image.fromarray(video[index]), (left, top + 14))
            if index < num_condition_frames:
                draw.rectangle((left - 2, top + 12, left + width + 1, top + 15 + height), outline=(255, 176, 59), width=2)
    return sheet
