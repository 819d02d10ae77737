"""Files that are right but unusual, and files that only look right."""

import math
import os
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from builders.video_files import assert_close, make_frames, truncate, write_animation, write_file, write_mp4
from PIL import Image

from adaptok_hf import AdapTokVideoProcessor
from adaptok_hf.data.clip_reader import probe_video
from adaptok_hf.video.damage import VideoError
from adaptok_hf.video.frame_stream import iter_frames
from adaptok_hf.video.video_io import iter_video, read_video

CASES = Path(os.environ.get("ADAPTOK_CASES", Path(__file__).parents[3] / "shared" / "cases"))


def patch(path, box, offset, data):
    """Overwrite bytes of an mp4 file, `offset` after the name of a box."""
    content = bytearray(path.read_bytes())
    start = content.index(box) + len(box) + offset
    content[start : start + len(data)] = data
    path.write_bytes(content)
    return path


# --- times ---


def write_with_b_frames(path, codec, b_frames):
    frames = make_frames(20)
    with av.open(path, "w") as container:
        stream = container.add_stream(codec, rate=25, options={"b_strategy": "0", "bf": str(b_frames)})
        stream.height, stream.width, stream.pix_fmt, stream.bit_rate = 48, 64, "yuv420p", 2_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path, frames


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
@pytest.mark.parametrize("b_frames", [0, 1, 2, 3])
@pytest.mark.parametrize("suffix", ["avi", "mkv", "mp4"])
def test_b_frames(tmp_path, codec, b_frames, suffix):
    path, frames = write_with_b_frames(tmp_path / f"a.{suffix}", codec, b_frames)
    video = read_video(path)
    assert_close(video.frames, frames)
    assert video.fps == 25
    np.testing.assert_allclose(video.timestamps, np.arange(20) / 25, atol=0 if suffix == "avi" else 1e-3)
    streamed = list(iter_frames(path, AdapTokVideoProcessor()))
    assert [rate for _, _, rate in streamed] == [25] * 20 and probe_video(path) == (20, 25)
    np.testing.assert_array_equal(video.timestamps, [seconds for _, seconds, _ in streamed])


def test_mp4_without_display_times(tmp_path):
    path, frames = write_with_b_frames(tmp_path / "a.mp4", "libx264", 2)
    assert b"ctts" in path.read_bytes()
    patch(path, b"ctts", -4, b"free")
    patch(path, b"edts", -4, b"free")  # it skips frames by the times that are gone
    video = read_video(path)
    assert_close(video.frames, frames)
    np.testing.assert_allclose(video.timestamps, np.arange(20) / 25)


def test_raw_streams_have_the_rate_of_their_headers(tmp_path):
    video = read_video(write_file(tmp_path / "a.h264", make_frames(8), fps=10))
    assert video.fps == 10 and video.timestamps[7] == 0.7


@pytest.mark.parametrize("rate", ["1:1000000", "2000:1"])
def test_absurd_rates_are_refused(tmp_path, rate):
    path = write_file(tmp_path / "a.y4m", make_frames(3), fps=25, codec="rawvideo")
    path.write_bytes(path.read_bytes().replace(b"F25:1", b"F" + rate.encode(), 1))
    for read in (read_video, lambda path: list(iter_video(path))):
        with pytest.raises(VideoError, match="a.y4m: (1e-06|2000) .*0.01.*1000"):
            read(path)


# --- geometry ---


@pytest.mark.parametrize(("aspect", "size"), [((2, 1), (48, 128)), ((1, 2), (96, 64)), ((16, 15), (48, 68))])
def test_pixels_are_square(tmp_path, aspect, size):
    path, frames = tmp_path / "a.mp4", make_frames(3)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=24)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(*aspect)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    video = read_video(path)
    expected = np.stack([np.array(Image.fromarray(frame).resize(size[::-1])) for frame in frames])
    assert_close(video.frames, expected)
    assert AdapTokVideoProcessor().clips(path).source_size == size


TURNS = {
    "left-right": ((-1, 0, 0, 1), lambda frame: frame[:, ::-1]),
    "upside down": ((1, 0, 0, -1), lambda frame: frame[::-1]),
    "main diagonal": ((0, 1, 1, 0), lambda frame: frame.transpose(1, 0, 2)),
    "other diagonal": ((0, -1, -1, 0), lambda frame: frame[::-1, ::-1].transpose(1, 0, 2)),
    "quarter": ((0, 1, -1, 0), lambda frame: np.rot90(frame, -1)),
    "half": ((-1, 0, 0, -1), lambda frame: frame[::-1, ::-1]),
    "none": ((0, 0, 0, 0), lambda frame: frame),
}


def turned(path, matrix):
    a, b, c, d = (round(65536 * value) for value in matrix)
    return patch(path, b"tkhd", 40, struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30))


@pytest.mark.parametrize("name", TURNS)
def test_display_matrices(tmp_path, name):
    matrix, turn = TURNS[name]
    frames = make_frames(3)
    video = read_video(turned(write_mp4(tmp_path / "a.mp4", frames=frames), matrix))
    assert_close(video.frames, np.stack([turn(frame) for frame in frames]))


@pytest.mark.parametrize("degrees", [30, -100, 89.5])
def test_odd_rotations(tmp_path, degrees):
    """Clockwise, by the exact angle; within a degree of a quarter turn it is one."""
    angle, frames = math.radians(degrees), np.full((2, 48, 64, 3), 200, np.uint8)
    frames[:, 20:28, 40:] = 0  # a bar from the center to the right
    matrix = (math.cos(angle), math.sin(angle), -math.sin(angle), math.cos(angle))
    frame = read_video(turned(write_mp4(tmp_path / "a.mp4", frames=frames), matrix)).frames[0]
    if degrees == 89.5:
        assert frame.shape == (64, 48, 3) and frame[60, 24].mean() < 40
    else:
        assert frame.shape == (48, 64, 3) and frame[0, 0].mean() < 40  # nothing is shown there
        assert frame[round(24 + 15 * math.sin(angle)), round(32 + 15 * math.cos(angle))].mean() < 60


# --- truncation ---

SURE = {"wmv": "wmv2", "mxf": "mpeg2video", "nut": "ffv1", "ivf": "libvpx", "flv": "flv", "ogv": "libvpx", "mkv": "libx264"}
UNSURE = {"ts": "libx264", "mpg": "mpeg1video", "y4m": "rawvideo", "h264": "libx264"}


@pytest.mark.parametrize("fraction", [0.55, 0.85, 0.98])
@pytest.mark.parametrize("suffix", SURE)
def test_cut_files_are_refused(tmp_path, caplog, suffix, fraction):
    path = write_file(tmp_path / f"a.{suffix}", make_frames(24), fps=25, codec=SURE[suffix])
    assert len(read_video(path)) == 24 and not caplog.text
    truncate(path, fraction)
    for read in (read_video, lambda path: list(iter_video(path)), probe_video):
        with pytest.raises(VideoError, match=path.name):
            read(path)


@pytest.mark.parametrize("suffix", UNSURE)
def test_formats_that_do_not_show_their_end_warn(tmp_path, caplog, suffix):
    path = write_file(tmp_path / f"a.{suffix}", make_frames(24), fps=25, codec=UNSURE[suffix])
    assert len(read_video(path)) == 24
    assert "a." + suffix in caplog.text and "24 frames" in caplog.text


@pytest.mark.parametrize(("suffix", "unit"), [("ts", 188), ("y4m", 6 + 48 * 64 * 3 // 2)])
def test_cuts_within_a_packet_are_refused(tmp_path, suffix, unit):
    path = write_file(tmp_path / f"a.{suffix}", make_frames(24), fps=25, codec=UNSURE[suffix])
    path.write_bytes(path.read_bytes()[: -unit - 7])
    with pytest.raises(VideoError, match="truncated"):
        read_video(path)


def test_positions_outside_the_file_are_damage(tmp_path, capfd):
    """FFmpeg looks for the index where the last bytes say; an exception there would end up on the screen."""
    path = write_file(tmp_path / "a.nut", make_frames(4), codec="ffv1")
    data = path.read_bytes()
    for size in range(500, len(data), 100):
        path.write_bytes(data[:size])
        with pytest.raises(VideoError, match="a.nut: .*damaged or truncated; only [0-4] frames"):
            read_video(path)
    assert "Error" not in capfd.readouterr().err


# --- names, pipes and devices ---


def test_names_that_look_like_addresses(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("10:30.mp4", "file:a.mp4", "-a.mp4", "pipe:0", "a?b#c%20.mp4"):
        write_mp4(tmp_path / "a.mp4", frames=make_frames(4, 16, 16)).rename(tmp_path / name)
        assert len(read_video(name)) == len(list(iter_frames(name, AdapTokVideoProcessor()))) == 4
        assert probe_video(name) == (4, 24)


def test_pipes_and_devices_are_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    for path in (tmp_path / "pipe.mp4", Path("/dev/zero"), Path("/dev/null")):
        for read in (read_video, probe_video, lambda path: list(iter_frames(path, AdapTokVideoProcessor()))):
            with pytest.raises(VideoError, match=f"{path}.*not a regular file"):
                read(path)
    with open("/dev/zero", "rb") as zeros, pytest.raises(VideoError, match="/dev/zero: not a video"):
        read_video(zeros)


def test_file_objects_that_cannot_be_rewound(tmp_path, caplog):
    path = write_file(tmp_path / "a.mkv", make_frames(6))
    code = f"import sys; sys.stdout.buffer.write(open({str(path)!r}, 'rb').read())"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        frames = [frame for frame, _, _ in iter_video(process.stdout)]
    np.testing.assert_array_equal(frames, read_video(path).frames)
    assert "6 frames" in caplog.text


# --- limits ---


def test_large_frames_are_refused(tmp_path, monkeypatch):
    paths = [write_mp4(tmp_path / "a.mp4"), write_animation(tmp_path / "a.gif"), write_animation(tmp_path / "a.webp")]
    for path in paths:
        monkeypatch.setenv("ADAPTOK_MAX_PIXELS", "3072")
        assert len(read_video(path)) == 16
        monkeypatch.setenv("ADAPTOK_MAX_PIXELS", "3071")
        with pytest.raises(VideoError, match=f"{path.name}: .*64x48 .*3071"):
            read_video(path)
    monkeypatch.setenv("ADAPTOK_MAX_PIXELS", "many")
    with pytest.raises(ValueError, match="ADAPTOK_MAX_PIXELS.*'many'"):
        read_video(paths[0])


def test_declared_sizes_are_refused_before_memory_is_taken(tmp_path):
    canvas = struct.pack("<4sIII", b"VP8X", 10, 2, 0)[:12] + (16382).to_bytes(3, "little") * 2
    files = {
        "a.gif": b"GIF89a" + struct.pack("<HH", 65535, 65535) + bytes(30),
        "a.png": b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 60000, 60000) + bytes(30),
        "a.webp": b"RIFF" + struct.pack("<I", 4 + len(canvas)) + b"WEBP" + canvas,
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(VideoError, match=f"{name}: .*(65535|60000|16383).*67108864"):
            read_video(tmp_path / name)


def test_slow_files_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPTOK_MAX_SECONDS", "1e-9")
    for path in (write_mp4(tmp_path / "a.mp4"), write_animation(tmp_path / "a.gif")):
        with pytest.raises(VideoError, match=f"{path.name}.*ADAPTOK_MAX_SECONDS"):
            read_video(path)


def test_time_of_the_caller_does_not_count(tmp_path, monkeypatch):
    clock = iter(range(10**6))  # each look takes a second
    monkeypatch.setattr("adaptok_hf.video.decoding_limits.time.monotonic", lambda: next(clock))
    path = write_mp4(tmp_path / "a.mp4", frames=make_frames(8, 16, 16))
    decoded, seen = iter_video(path), 0
    for _ in decoded:
        seen += 1
        for _ in range(1000):
            next(clock)
    assert seen == 8


def test_more_frames_than_bytes_are_damage(tmp_path):
    path = patch(write_mp4(tmp_path / "a.mp4"), b"stsz", 4, struct.pack(">II", 1, 400_000_000))
    patch(path, b"stts", 8, struct.pack(">I", 400_000_000))
    for read in (read_video, probe_video):
        with pytest.raises(VideoError, match="a.mp4: .* of 400000000 frames"):
            read(path)


# --- whatever a decoder raises ---


@pytest.mark.parametrize(
    "error", [IndexError("i"), struct.error("s"), OverflowError("o"), RecursionError("r"), MemoryError(), KeyError("k")]
)
def test_foreign_exceptions_become_one(tmp_path, monkeypatch, error):
    def fail(*args, **kwargs):
        raise error

    for path, target in (
        (write_mp4(tmp_path / "a.mp4"), "av.open"),
        (write_animation(tmp_path / "a.gif"), "PIL.Image.open"),
    ):
        with monkeypatch.context() as context:
            context.setattr(target, fail)
            for read in (read_video, probe_video):
                with pytest.raises(VideoError, match=path.name):
                    read(path)


def test_frames_beyond_memory_name_the_file(tmp_path):
    path = write_mp4(tmp_path / "a.mp4")

    def transform(frame):
        raise MemoryError

    with pytest.raises(VideoError, match="a.mp4.*memory"):
        read_video(path, transform=transform)


@pytest.mark.skipif(not CASES.is_dir(), reason="the folder of cases is not here")
@pytest.mark.parametrize(
    ("name", "frames", "shape"),
    [
        ("faults/10:30.mp4", 5, (48, 64)),
        ("faults/sar_2_1.mp4", 24, (48, 128)),
        ("faults/trunc.ts", 12, (48, 64)),
        ("reports/h264_bframes.avi", 20, (64, 96)),
        ("reports/circle_pixel_aspect_2to1.mp4", 16, (64, 128)),
        *((f"faults/{name}", 0, None) for name in ("gif_bomb.gif", "cut_at_388.gif", "y4m_slowfps.y4m", "box_len1.mp4")),
        *(
            (f"faults/{name}", 0, None)
            for name in ("apng_short_actl.png", "trunc.nut_badmsg.nut", "trunc.nut", "trunc.mxf")
        ),
        *((f"faults/{name}", 0, None) for name in ("trunc.wmv", "trunc.h264")),
        ("reports/huge_header.gif", 0, None),
    ],
)
def test_cases(name, frames, shape, caplog):
    path = CASES / name
    if frames:
        video = read_video(path)
        assert len(video) == frames and video.frames.shape[1:3] == shape
        assert [seconds for _, seconds, _ in iter_video(path)] == video.timestamps.tolist()
        assert name != "faults/trunc.ts" or "12 frames" in caplog.text
    else:
        with pytest.raises(VideoError, match=path.name):
            read_video(path)
