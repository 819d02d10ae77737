"""Finds video files that were cut short, which some decoders read without complaint."""

import os
from typing import BinaryIO

_MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp", b"pnot", b"uuid", b"sidx"}
_MATROSKA = b"\x1a\x45\xdf\xa3"


def damage_error(name: str, count: int, declared: int | None = None) -> ValueError:
    """Return the error for a file of which `count` frames, of those `declared` if known, can be decoded."""
    of = f" of {declared}" if declared and declared > 0 else ""
    return ValueError(f"{name}: the file is damaged or truncated; only {count}{of} frames could be decoded")


def begins_like_a_video(head: bytes) -> bool:
    """Return whether the first 16 bytes are those of an mp4, mov, avi, webm or mkv file."""
    return head[4:8] in _MP4_BOXES or head[:4] == _MATROSKA or head[8:12] == b"AVI "


def gif_is_cut_short(file: BinaryIO) -> bool:
    """Return whether a GIF lacks its end mark: cut between two frames, it decodes without error."""
    file.seek(-16, os.SEEK_END)
    return not file.read().rstrip(b"\0\r\n ").endswith(b";")


def video_is_cut_short(file: BinaryIO, head: bytes) -> bool:
    """Return whether an mp4, mov, avi, webm or mkv file declares more bytes than it has."""
    size = file.seek(0, os.SEEK_END)
    if head[:4] == b"RIFF":
        return 8 + int.from_bytes(head[4:8], "little") > size
    if head[:4] == _MATROSKA:
        return _matroska_end(file) > size
    position = 0
    while head[4:8] in _MP4_BOXES and position <= size:
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end of the file, wherever that is
            break
        position += length
        file.seek(position)
        head = file.read(16)
    return position > size


def _matroska_end(file: BinaryIO) -> int:
    """Return where the segment of a webm or mkv file ends by its header, or 0 where that does not say (live recordings)."""
    position = 0
    for name in (_MATROSKA, b"\x18\x53\x80\x67"):  # the header, then the segment
        file.seek(position)
        element = file.read(12)
        if len(element) < 12 or element[:4] != name or element[4] == 0:
            return 0
        width = 9 - element[4].bit_length()  # the leading zero bits of a number are one less than its bytes
        unknown = (1 << 7 * width) - 1
        length = int.from_bytes(element[4 : 4 + width], "big") & unknown
        position += 4 + width + length
    return 0 if length == unknown else position
