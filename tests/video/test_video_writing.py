import os

import av
import numpy as np
import pytest
from builders.video_files import assert_close, make_frames

from adaptok_hf.video.video_io import read_video
from adaptok_hf.video.video_writing import write_video


@pytest.mark.parametrize("num_frames", [1, 3, 16])
@pytest.mark.parametrize("fps", [24, 29.97, 30000 / 1001, 12.5])
def test_write_then_read(tmp_path, num_frames, fps):
    frames = make_frames(num_frames)
    write_video(tmp_path / "a.mp4", iter(frames), fps)
    video = read_video(tmp_path / "a.mp4")
    assert_close(video.frames, frames, mean=3)
    assert video.fps == pytest.approx(fps, rel=1e-4)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_are_pictures_too(tmp_path, dtype):
    frames = make_frames(3)
    write_video(tmp_path / "bytes.mp4", frames, 24)
    write_video(tmp_path / "floats.mp4", (frames / 255).astype(dtype), 24)
    assert (tmp_path / "floats.mp4").read_bytes() == (tmp_path / "bytes.mp4").read_bytes()
    for bad in (frames / 127.5 - 1, frames.astype(np.float32), np.full((1, 8, 8, 3), np.nan)):
        with pytest.raises(ValueError, match="float"):
            write_video(tmp_path / "a.mp4", bad, 24)
    write_video(tmp_path / "a.png", (frames[:1] / 255).astype(dtype), 24)
    assert np.array_equal(read_video(tmp_path / "a.png").frames, frames[:1])
    for bad in (frames[:1].astype(np.float32), frames[:1, ..., 0], frames[:1].astype(np.uint16)):
        with pytest.raises(ValueError, match=f"{bad.dtype}"):
            write_video(tmp_path / "b.png", bad, 24)


def test_variable_frame_rate_survives_write_and_read(tmp_path):
    timestamps = np.array([0, 0.01, 0.5, 0.54, 2.0, 2.001]) + 7
    write_video(tmp_path / "a.mp4", make_frames(6), fps=3, timestamps=timestamps)
    np.testing.assert_allclose(read_video(tmp_path / "a.mp4").timestamps, timestamps - 7, atol=1 / 90000)


@pytest.mark.parametrize("size", [(33, 47), (32, 47), (33, 48), (1, 1)])
def test_odd_sizes_gain_a_copy_of_the_edge(tmp_path, size):
    frames = np.zeros((3, *size, 3), np.uint8)
    frames[:, -1], frames[:, :, -1] = 255, 255
    write_video(tmp_path / "a.mp4", frames, 24)
    expected = np.pad(frames, ((0, 0), (0, size[0] % 2), (0, size[1] % 2), (0, 0)), mode="edge")
    assert_close(read_video(tmp_path / "a.mp4").frames, expected)


def test_colors_are_tagged(tmp_path):
    write_video(tmp_path / "a.mp4", make_frames(3), 24)
    with av.open(tmp_path / "a.mp4") as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.pix_fmt, context.colorspace, context.color_range) == ("h264", "yuv420p", 1, 1)


def test_equal_frames_give_equal_files(tmp_path):
    """Whatever the process did before: reading leaves other contents in the memory that the next writer gets."""
    frames = np.random.default_rng(0).integers(0, 200, (12, 16, 24, 3), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    written = set()
    for index in range(8):
        write_video(tmp_path / "video.mp4", frames, 10)
        written.add((tmp_path / "video.mp4").read_bytes())
        write_video(tmp_path / "other.mp4", make_frames(4 + index, 24, 36), 10)
        read_video(tmp_path / "other.mp4")
    assert len(written) == 1


def test_index_comes_first(tmp_path):
    write_video(tmp_path / "a.mp4", make_frames(3), 24)
    data = (tmp_path / "a.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")


def broken_iterator():
    yield from make_frames(2)
    raise RuntimeError("the model failed")


@pytest.mark.parametrize(
    ("frames", "timestamps", "error", "message"),
    [
        (broken_iterator, None, RuntimeError, "the model failed"),
        (lambda: [], None, ValueError, "without frames"),
        (lambda: make_frames(3).astype(float), None, ValueError, "frame 0 is float64"),
        (lambda: make_frames(3)[..., :2], None, ValueError, "expected uint8"),
        (lambda: [make_frames(1)[0], make_frames(1, 32, 32)[0]], None, ValueError, "frame 1.*one size"),
        (lambda: make_frames(3), [0, 1], ValueError, "2 timestamps for more frames"),
        (lambda: make_frames(3), [0, 1, 2, 3], ValueError, "4 timestamps for 3 frames"),
        (lambda: make_frames(3), [0, 2, 1], ValueError, "increasing"),
        (lambda: make_frames(3), [0, 1e-7, 1], ValueError, "1/90000"),
    ],
)
def test_a_failed_write_leaves_nothing(tmp_path, frames, timestamps, error, message):
    (tmp_path / "a.mp4").write_bytes(b"the old file")
    with pytest.raises(error, match=message):
        write_video(tmp_path / "a.mp4", frames(), 24, timestamps)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
    assert (tmp_path / "a.mp4").read_bytes() == b"the old file"


def test_bad_destinations(tmp_path):
    with pytest.raises(ValueError, match="only .mp4"):
        write_video(tmp_path / "a.webm", make_frames(1), 24)
    with pytest.raises(FileNotFoundError, match="folder"):
        write_video(tmp_path / "missing" / "a.mp4", make_frames(1), 24)
    with pytest.raises(IsADirectoryError):
        write_video(tmp_path, make_frames(1), 24)
    for fps in (0, -1, float("nan"), "24", None, True):
        with pytest.raises(ValueError, match="fps"):
            write_video(tmp_path / "a.mp4", make_frames(1), fps)


def test_a_frame_that_lasts_for_days(tmp_path):
    with pytest.raises(ValueError, match="1e\\+06 s"):
        write_video(tmp_path / "a.mp4", make_frames(3), 24, timestamps=[0, 1, 1e6 + 1])
    write_video(tmp_path / "a.mp4", make_frames(3), 24, timestamps=[0, 1, 150])  # the reader wants 0.01 frames per second
    np.testing.assert_allclose(read_video(tmp_path / "a.mp4").timestamps, [0, 1, 150], atol=1e-3)


NAMES = ["10:30.mp4", "http:x.mp4", os.fsdecode(b"caf\xe9.mp4"), "-a.mp4", "50%d.mp4", "x" * 240 + ".mp4"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name(tmp_path, monkeypatch, name):
    """FFmpeg would take some for addresses or patterns; the index comes first all the same."""
    monkeypatch.chdir(tmp_path)
    write_video(name, make_frames(40, 64, 64), 24)
    content = open(name, "rb").read()
    assert content.find(b"moov") < content.find(b"mdat") and os.listdir() == [name]
    assert_close(read_video(content).frames, make_frames(40, 64, 64), mean=3)


def test_a_full_disk(tmp_path):
    resource = pytest.importorskip("resource")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    (tmp_path / "a.mp4").write_text("old")
    noise = np.random.default_rng(0).integers(0, 256, (8, 128, 128, 3), np.uint8)
    write_video(tmp_path / "whole.mp4", noise, 24)
    size = (tmp_path / "whole.mp4").stat().st_size
    for room in (0, 10, size // 2, size - 1):
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (room, limit[1]))
            with pytest.raises(OSError):
                write_video(tmp_path / "a.mp4", noise, 24)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        assert (tmp_path / "a.mp4").read_text() == "old" and len(list(tmp_path.iterdir())) == 2
