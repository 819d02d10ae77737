"""Finds video files that were cut short, which many decoders read without complaint.

Each check takes a file and its size and returns `True` (bytes are missing), `False` (nothing is), or `None`: the format, or
the program that wrote the file, left no trace by which to tell.
"""

import os
import struct
from collections.abc import Callable
from typing import BinaryIO

_MP4_BOXES = {b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"moof", b"styp", b"pnot", b"uuid", b"sidx"}
_MATROSKA = b"\x1a\x45\xdf\xa3"
_ASF = bytes.fromhex("3026b2758e66cf11a6d900aa0062ce6c")
_ASF_FILE_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_MXF = bytes.fromhex("060e2b34020501010d01020101")
_NUT_INDEX = bytes.fromhex("4e58dd672f23e64e")
# What ends a raw stream of MPEG-1/2, MPEG-4, H.264 and HEVC, if its encoder writes it, and an MPEG program.
_END_MARKS = tuple(b"\0\0\1" + mark for mark in (b"\xb7", b"\xb1", b"\x0a", b"\x0b", b"\x48\x01", b"\x4a\x01", b"\xb9"))


def video_is_cut_short(file: BinaryIO) -> bool | None:
    """Return whether bytes are missing at the end of a video file, `None` where that is unknown."""
    head, size = _at(file, 0, 16), file.seek(0, os.SEEK_END)
    return next((check(file, size) for begins, check in _MARKED + _UNMARKED if begins(head)), None)


def begins_like_a_video(head: bytes) -> bool:
    """Return whether the first 16 bytes are those of a container of videos; raw streams and MPEG-TS have no such mark."""
    still = head[4:8] == b"ftyp" and head[8:12] in (b"avif", b"heic", b"heix", b"mif1", b"msf1", b"crx ", b"M4A ", b"M4B ")
    return not still and any(begins(head) for begins, _ in _MARKED)


def _at(file: BinaryIO, position: int, count: int) -> bytes:
    file.seek(position)
    return file.read(count)


def _mp4(file: BinaryIO, size: int) -> bool | None:
    position, kinds = 0, set()
    while (head := _at(file, position, 16)) and head[4:8] in _MP4_BOXES | {b"mfra"}:
        kinds.add(head[4:8])
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        if length < 8:  # 0: up to the end of the file, wherever that is
            break
        position += length
        if position > size:
            return True
    # a file in fragments may end after any of them, except where an index of them was written last
    return None if b"moof" in kinds and b"mfra" not in kinds else False


def _avi(file: BinaryIO, size: int) -> bool | None:
    position = 0
    while position < size and (head := _at(file, position, 8))[:4] == b"RIFF":  # one for every GB
        length = int.from_bytes(head[4:], "little")
        if length in (0, 0xFFFFFFFF):  # the writer never came back to fill it in
            return None
        position += 8 + length
    return position > size


def _matroska(file: BinaryIO, size: int) -> bool | None:
    position = 0
    for name in (_MATROSKA, b"\x18\x53\x80\x67"):  # the header, then the segment
        element = _at(file, position, 12)
        if len(element) < 12:
            return True
        if element[:4] != name or element[4] == 0:
            return None
        width = 9 - element[4].bit_length()  # the leading zero bits of a number are one less than its bytes
        unknown = (1 << 7 * width) - 1
        length = int.from_bytes(element[4 : 4 + width], "big") & unknown
        position += 4 + width + length
    return None if length == unknown else position > size  # unknown: a live recording


def _flv(file: BinaryIO, size: int) -> bool | None:
    last = int.from_bytes(_at(file, size - 4, 4), "big")  # each tag is followed by its size
    if last < 11 or last + 17 > size or int.from_bytes(_at(file, size - 3 - last, 3), "big") + 11 != last:
        return True
    before, found, value = _at(file, 0, 4096).partition(b"\0\x08filesize\0")[:3]
    declared = _double(value[:8]) if found else 0
    return declared > size if declared > 0 else None


def _double(data: bytes) -> float:
    return struct.unpack(">d", data)[0] if len(data) == 8 else 0.0


def _asf(file: BinaryIO, size: int) -> bool | None:
    properties = _at(file, 0, 65536).partition(_ASF_FILE_PROPERTIES)[2]
    live = len(properties) < 76 or properties[72] & 1
    return None if live else int.from_bytes(properties[24:32], "little") > size


def _ogg(file: BinaryIO, size: int) -> bool | None:
    tail = _at(file, max(size - 65536, 0), 65536)
    page = tail[tail.rfind(b"OggS") :]
    lacing = page[27 : 27 + page[26]] if len(page) > 26 else b""
    whole = len(page) > 26 and len(lacing) == page[26] and len(page) >= 27 + len(lacing) + sum(lacing)
    return not whole or not page[5] & 4  # the last page of a stream is marked


def _mxf(file: BinaryIO, size: int) -> bool | None:
    head = _at(file, 0, 64)
    start = 17 + (head[16] & 127 if head[16] & 128 else 0)
    footer = int.from_bytes(head[start + 24 : start + 32], "big")
    return footer + 16 > size if footer else None


def _nut(file: BinaryIO, size: int) -> bool | None:
    index = int.from_bytes(_at(file, size - 12, 8), "big")
    return not 16 < index < size or _at(file, size - index, 8) != _NUT_INDEX


def _ivf(file: BinaryIO, size: int) -> bool | None:
    declared = int.from_bytes(_at(file, 24, 4), "little")  # of frames, or the duration, by another writer
    position, count, time = int.from_bytes(_at(file, 6, 2), "little"), 0, -1
    while len(frame := _at(file, position, 12)) == 12:
        position += 12 + int.from_bytes(frame[:4], "little")
        count, time = count + 1, int.from_bytes(frame[4:], "little")
    if frame or position > size:
        return True
    return None if declared in (0, 0xFFFFFFFF) else count < declared and time + 1 < declared


def _y4m(file: BinaryIO, size: int) -> bool | None:
    line = _at(file, 0, 256).partition(b"\n")[0]
    fields = {field[:1]: field[1:].decode("latin-1") for field in line.split(b" ")[1:]}
    width, height, color = int(fields[b"W"]), int(fields[b"H"]), fields.get(b"C", "420")
    half = -(-width // 2)
    chroma = {"420": 2 * half * -(-height // 2), "422": 2 * half * height, "444": 2 * width * height, "mono": 0}
    name = color.removesuffix("jpeg").removesuffix("mpeg2").removesuffix("paldv")
    if name not in chroma or _at(file, len(line) + 1, 6) != b"FRAME\n":
        return None  # more bits per pixel, or frames with headers of their own
    # a cut between two frames leaves no trace
    return True if (size - len(line) - 1) % (6 + width * height + chroma[name]) else None


def _mpeg_program(file: BinaryIO, size: int) -> bool | None:
    """Check that the last packet is whole: its length follows the start code of a stream."""
    start = max(size - 70_000, 0)
    tail = _at(file, start, 70_000)
    if tail.rstrip(b"\0\xff").endswith(_END_MARKS):
        return False
    position = max(tail.rfind(b"\0\0\1" + bytes([code])) for code in (0xBD, 0xBE, 0xBF, 0xC0, *range(0xE0, 0xF0)))
    if position < 0:
        return None
    length = int.from_bytes(tail[position + 4 : position + 6], "big")
    return True if length and (len(tail) < position + 6 + length) else None


def _mpeg_transport(file: BinaryIO, size: int) -> bool | None:
    width = next((n for n, first in ((188, 0), (192, 4), (204, 0)) if _synchronized(file, n, first)), None)
    return True if width and size % width else None


def _synchronized(file: BinaryIO, width: int, first: int) -> bool:
    head = _at(file, first, 4 * width + 1)
    return len(head) > width and set(head[::width]) == {0x47}


def _raw(file: BinaryIO, size: int) -> bool | None:
    return False if _at(file, max(size - 16, 0), 16).rstrip(b"\0").endswith(_END_MARKS) else None


_Rows = tuple[tuple[Callable[[bytes], bool], Callable[[BinaryIO, int], bool | None]], ...]
_MARKED: _Rows = (
    (lambda head: head[4:8] in _MP4_BOXES, _mp4),
    (lambda head: head[:4] == b"RIFF" and head[8:11] == b"AVI", _avi),
    (lambda head: head[:4] == _MATROSKA, _matroska),
    (lambda head: head[:3] == b"FLV", _flv),
    (lambda head: head[:16] == _ASF, _asf),
    (lambda head: head[:4] == b"OggS", _ogg),
    (lambda head: head[:13] == _MXF, _mxf),
    (lambda head: head.startswith(b"nut/multimedia "), _nut),
    (lambda head: head[:4] == b"DKIF", _ivf),
    (lambda head: head.startswith(b"YUV4MPEG2"), _y4m),
    (lambda head: head[:4] == b"\0\0\1\xba", _mpeg_program),
)
_UNMARKED: _Rows = (
    (lambda head: head[:1] == b"\x47" or head[4:5] == b"\x47", _mpeg_transport),
    (lambda head: head[:3] == b"\0\0\1" or head[:4] == b"\0\0\0\1", _raw),
)
