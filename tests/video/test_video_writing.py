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
