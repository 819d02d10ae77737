import io
import subprocess
import sys
from fractions import Fraction

import av
import numpy as np
import pytest
from builders.video_files import (
    assert_close,
    corrupt,
    make_frames,
    truncate,
    write_animation,
    write_audio_only,
    write_avi,
    write_empty,
    write_mp4,
    write_text,
    write_transparent_gif,
    write_webm,
    write_without_frames,
)
from PIL import Image

from adaptok_hf.video.video_io import Video, iter_video, pil_to_rgb, read_video


@pytest.mark.parametrize(
    ("writer", "name", "tolerance"), [(write_mp4, "a.mp4", 0), (write_webm, "a.webm", 1e-3), (write_avi, "a.avi", 0)]
)
@pytest.mark.parametrize("fps", [24, 30, Fraction(30000, 1001)])
def test_containers_and_frame_rates(tmp_path, writer, name, tolerance, fps):
    frames = make_frames(16)
    video = read_video(writer(tmp_path / name, frames=frames, fps=fps))
    assert_close(video.frames, frames)
    assert video.fps == pytest.approx(float(fps), rel=1e-4)
    np.testing.assert_allclose(video.timestamps, np.arange(16) / float(fps), atol=tolerance + 1e-4)


@pytest.mark.parametrize("num_frames", [1, 3, 16, 400])
def test_every_frame_is_read(tmp_path, num_frames):
    video = read_video(write_mp4(tmp_path / "a.mp4", frames=make_frames(num_frames, 32, 32)))
    assert len(video) == num_frames == len(video.timestamps)
    assert video.fps == 24 and video.timestamps[0] == 0


@pytest.mark.parametrize("size", [(64, 36), (36, 64)])
def test_portrait_and_landscape(tmp_path, size):
    assert read_video(write_mp4(tmp_path / "a.mp4", frames=make_frames(3, *size))).frames.shape == (3, *size, 3)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_display_rotation_is_applied(tmp_path, rotation):
    frames = make_frames(3)
    video = read_video(write_mp4(tmp_path / "a.mp4", frames=frames, rotation=rotation))
    assert_close(video.frames, np.rot90(frames, rotation // 90, axes=(1, 2)))


@pytest.mark.parametrize("writer", [write_mp4, write_webm, write_avi])
def test_variable_frame_rate(tmp_path, writer):
    pts = [0, 1, 2, 10, 11, 30]
    name = tmp_path / f"a.{writer.__name__.removeprefix('write_')}"
    video = read_video(writer(name, frames=make_frames(6), fps=25, pts=pts))
    np.testing.assert_allclose(video.timestamps, np.array(pts) / 25, atol=1e-3)
    assert video.fps == pytest.approx(5 / (30 / 25), rel=1e-3)


def test_frames_hidden_by_an_edit_list_are_not_missed(tmp_path):
    frames = make_frames(40)
    video = read_video(write_mp4(tmp_path / "a.mp4", frames=frames, shift=15))
    assert_close(video.frames, frames[15:])
    assert video.timestamps[0] == 0


@pytest.mark.parametrize("suffix", ["gif", "webp", "png"])
def test_animations(tmp_path, suffix):
    frames = make_frames(6)
    video = read_video(write_animation(tmp_path / f"a.{suffix}", frames, durations_ms=[40, 80] * 3))
    assert_close(video.frames, frames, mean=8 if suffix == "gif" else 0.5)
    np.testing.assert_allclose(video.timestamps, [0, 0.04, 0.12, 0.16, 0.24, 0.28])
    assert video.fps == pytest.approx(5 / 0.28)


def test_animation_is_composited_on_white(tmp_path):
    frames = read_video(write_transparent_gif(tmp_path / "a.gif")).frames
    red, blue, white = [255, 0, 0], [0, 0, 255], [255, 255, 255]
    assert [frames[0, 0, 0].tolist(), frames[0, 0, 7].tolist(), frames[0, 7, 7].tolist()] == [red, white, white]
    assert [frames[1, 0, 0].tolist(), frames[1, 0, 7].tolist(), frames[1, 7, 7].tolist()] == [red, blue, white]


def test_max_frames(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", frames=make_frames(16))
    whole, part = read_video(path), read_video(path, max_frames=5)
    np.testing.assert_array_equal(part.frames, whole.frames[:5])
    assert part.fps == whole.fps
    assert len(read_video(path, max_frames=99)) == 16
    with pytest.raises(ValueError, match="max_frames.*0"):
        read_video(path, max_frames=0)


def test_iter_video_yields_what_read_video_holds(tmp_path):
    path = write_mp4(tmp_path / "a.mp4")
    video = read_video(path)
    frames, timestamps, rates = zip(*iter_video(path), strict=True)
    np.testing.assert_array_equal(np.stack(frames), video.frames)
    np.testing.assert_array_equal(timestamps, video.timestamps)
    assert set(rates) == {24}


def test_bytes_file_objects_and_containers(tmp_path):
    path = write_mp4(tmp_path / "a.mp4")
    expected = read_video(str(path)).frames
    np.testing.assert_array_equal(read_video(path.read_bytes()).frames, expected)
    np.testing.assert_array_equal(read_video(io.BytesIO(path.read_bytes())).frames, expected)
    with av.open(path) as container:
        next(container.decode(video=0))
        np.testing.assert_array_equal(read_video(container).frames, expected)
        assert len(read_video(container, max_frames=2)) == 2


# --- errors ---


@pytest.mark.parametrize(
    ("writer", "name", "message"),
    [
        (write_empty, "a.mp4", "empty"),
        (write_text, "a.mp4", "not a video"),
        (write_text, "a.txt", "not a video"),
        (write_without_frames, "a.mp4", "no frames"),
        (write_without_frames, "a.avi", "no video frames"),
        (write_without_frames, "a.mkv", "no video frames"),
        (write_audio_only, "a.mp4", "no video stream.*audio"),
        # the index of an mp4 comes last unless asked otherwise
        (lambda path: truncate(write_mp4(path), 0.6), "a.mp4", "truncated.* 0 frames"),
        (lambda path: truncate(write_mp4(path, faststart=True), 0.9), "a.mp4", r"truncated.* \d+ of 16"),
        (lambda path: truncate(write_mp4(path, faststart=True), 0.99), "a.mp4", "damaged or truncated"),
        (lambda path: truncate(write_mp4(path, faststart=True), 0.2), "a.mp4", "damaged or truncated; only 0"),
        (lambda path: truncate(write_webm(path), 0.6), "a.webm", r"damaged or truncated; only \d+ frames"),
        (lambda path: truncate(write_avi(path), 0.6), "a.avi", "damaged or truncated"),
        (lambda path: truncate(write_animation(path), 0.6), "a.gif", r"truncated; only \d+ frames"),
        (lambda path: truncate(write_animation(path), 0.6), "a.webp", "damaged or truncated"),
        (lambda path: truncate(write_animation(path), 0.6), "a.png", r"truncated; only \d+ frames"),
        (lambda path: corrupt(write_mp4(path, faststart=True)), "a.mp4", "damaged or truncated"),
    ],
)
def test_bad_files_are_refused_by_name(tmp_path, writer, name, message):
    path = writer(tmp_path / name)
    with pytest.raises(ValueError, match=message) as error:
        read_video(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_even_the_last_frame_is_missed(tmp_path):
    path = write_mp4(tmp_path / "a.mp4", frames=make_frames(100), faststart=True)
    with av.open(path) as container:
        last = max(packet.pos for packet in container.demux(video=0) if packet.size)
    path.write_bytes(path.read_bytes()[:last])
    with pytest.raises(ValueError, match="99 of 100"):
        read_video(path)


def test_gif_cut_between_frames(tmp_path):
    path = write_animation(tmp_path / "a.gif")
    path.write_bytes(path.read_bytes()[:-1])  # only the end mark is gone
    with pytest.raises(ValueError, match="16 frames"):
        read_video(path)


def test_missing_index_entries_are_noticed(tmp_path):
    """An mp4 whose bytes are all there but whose samples point beyond its end."""
    path = write_mp4(tmp_path / "a.mp4", faststart=True)
    data = path.read_bytes()
    start = data.index(b"mdat") - 4
    path.write_bytes(data[:start] + (0).to_bytes(4, "big") + data[start + 4 : -len(data) // 4])
    with pytest.raises(ValueError, match=r"only \d+ of 16"):
        read_video(path)


def test_playlists_do_not_open_other_files(tmp_path):
    write_mp4(tmp_path / "a.mp4")
    path = write_text(tmp_path / "list.mp4", "ffconcat version 1.0\nfile a.mp4\n")
    with pytest.raises(ValueError, match="not a video"):
        read_video(path)


def test_paths_that_are_not_files(tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder"):
        read_video(tmp_path)
    with pytest.raises(FileNotFoundError, match="nothing.mp4"):
        read_video(tmp_path / "nothing.mp4")
    with pytest.raises(FileNotFoundError, match="downloaded first"):
        read_video("https://example.org/a.mp4")
    with pytest.raises(ValueError, match="int"):
        read_video(3)


@pytest.mark.parametrize(
    ("frames", "fps", "timestamps", "message"),
    [
        (np.zeros((2, 4, 4, 3)), 24, [0, 1], "uint8"),
        (np.zeros((2, 4, 4), np.uint8), 24, [0, 1], "uint8"),
        (np.zeros((0, 4, 4, 3), np.uint8), 24, [], "at least one frame"),
        (np.zeros((2, 4, 4, 3), np.uint8), 0, [0, 1], "fps"),
        (np.zeros((2, 4, 4, 3), np.uint8), 24, [0], "1 timestamps for 2 frames"),
        (np.zeros((2, 4, 4, 3), np.uint8), 24, [0, 0], "increasing"),
        (np.zeros((2, 4, 4, 3), np.uint8), 24, [0, np.nan], "finite"),
    ],
)
def test_video_checks_its_fields(frames, fps, timestamps, message):
    with pytest.raises(ValueError, match=message):
        Video(frames, fps, timestamps)


def test_pil_to_rgb():
    assert pil_to_rgb(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).tolist() == [[[255, 255, 255]]]
    assert pil_to_rgb(Image.new("L", (1, 1), 7)).tolist() == [[[7, 7, 7]]]
    with pytest.raises(ValueError, match="mode 'F'"):
        pil_to_rgb(Image.new("F", (1, 1)))


def test_importing_is_cheap():
    code = (
        "import sys, adaptok_hf.video.video_io; "
        "print([name for name in ('av', 'PIL', 'torch', 'transformers') if name in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "[]", run.stderr
