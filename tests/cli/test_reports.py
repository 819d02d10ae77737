import json
import os

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from adaptok_hf import Video, read_video
from adaptok_hf.cli.reports import measure, plot_tokens, side_by_side, write_report

HIGHLIGHT = (255, 176, 59)


def noisy_video(num_frames: int, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (num_frames, height, width, 3), dtype=np.uint8)


@pytest.fixture
def output(tiny_pipeline):
    """A squashed video of 18 frames: two clips, five blocks."""
    times = np.cumsum(np.linspace(0.05, 0.15, 18))
    return tiny_pipeline(Video(noisy_video(18, 24, 40), 10.0, times), budget=4.4, resize_mode="squash", output_type="uint8")


def test_identical_videos_have_100_db(output):
    output.frames = output.original.copy()
    quality = measure(output, 4)
    assert quality == {"psnr": 100.0, "ssim": 1.0, "psnr_per_block": [100.0] * 5}


def test_psnr_is_that_of_the_error(output):
    output.original = np.full((1, 18, 16, 16, 3), 100, np.uint8)
    output.frames = output.original.copy()
    output.frames[0, 4:8] += 20  # the second block
    output.frames[0, 16:] += 10  # the last, of two frames
    quality = measure(output, 4)
    expected = [-20 * np.log10(error / 255) for error in (20, 10)]
    assert quality["psnr_per_block"] == pytest.approx([100, expected[0], 100, 100, expected[1]], abs=1e-2)
    assert quality["psnr"] == pytest.approx(-10 * np.log10((4 * 20**2 + 2 * 10**2) / 18 / 255**2), abs=1e-2)
    assert 0.5 < quality["ssim"] < 0.999


def highlighted(frame: np.ndarray) -> np.ndarray:
    """Sorted (columns, rows) ranges of pixels in the highlight color."""
    rows, columns = np.nonzero((frame == HIGHLIGHT).all(-1))
    return np.array([columns.min(), columns.max(), rows.min(), rows.max()])


def test_side_by_side_layout():
    original = np.full((8, 16, 16, 3), 50, np.uint8)
    frames = list(side_by_side(original + 100, original, [3, 6], 6, 4))
    assert len(frames) == 8
    height, width = frames[0].shape[:2]
    assert height % 2 == 0 and width % 2 == 0 and all(frame.shape == frames[0].shape for frame in frames)
    levels = [(frames[0] == value).all(-1) for value in (50, 150)]
    assert all(level.sum() == 32 * 32 for level in levels)  # shown at twice their size
    assert levels[0].any(0).argmax() + 32 < levels[1].any(0).argmax()  # the original is on the left


def test_the_current_block_is_highlighted():
    original = np.zeros((12, 16, 16, 3), np.uint8)
    frames = list(side_by_side(original, original, [6, 3, 6], 6, 4))
    places = [highlighted(frame) for frame in frames]
    for block in range(3):
        assert all(np.array_equal(place, places[4 * block]) for place in places[4 * block : 4 * block + 4])
    (first, second, third) = places[0], places[4], places[8]
    assert first[1] < second[0] < second[1] < third[0]
    bottom = {place[3] for place in places}
    assert len(bottom) == 1
    full, half = (place[3] - place[2] for place in (first, second))
    assert full == 64 and half == 32


def test_long_videos_show_the_bars_around_the_current_block():
    original = np.zeros((50, 16, 16, 3), np.uint8)
    places = np.stack([highlighted(frame) for frame in side_by_side(original, original, [6] * 50, 6, 1)])
    assert (np.diff(places[:16, 0]) > 0).all()
    assert (places[16:34, 0] == places[16, 0]).all()  # the bars move instead
    assert (np.diff(places[34:, 0]) > 0).all()
    assert places[:, 1].max() < 2 * 32 + 3 * 8


def test_plot_is_a_picture(tmp_path, monkeypatch):
    """Tokens and quality have a panel each, from zero, so that a wobble of 1 dB looks like one."""
    report = {
        "tokens": 6,
        "tokens_per_second": 12.0,
        "token_counts": [4, 2],
        "psnr_db_per_block": [30.0, 100.0],
        "seconds_of_video": 0.5,
        "fps": 10.0,
        "tokens_per_block": 3.0,
        "latents_per_block": 6,
        "bits_per_second": 1234.5,
        "psnr_db": 33.3,
    }
    saved, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *args, **kwargs: saved.append(figure) or save(figure, *args, **kwargs)
    )
    plot_tokens(tmp_path / "plot.png", report, np.array([0.0, 0.4]))
    tokens, quality = saved[0].axes
    assert [[bar.get_height() for bar in ax.patches] for ax in (tokens, quality)] == [[4, 2], [30, 100]]
    assert tokens.get_ylim()[0] == quality.get_ylim()[0] == 0 and tokens.get_ylim()[1] >= 6 and quality.get_ylim()[1] >= 100
    with Image.open(tmp_path / "plot.png") as image:
        image.load()
        assert image.format == "PNG" and min(image.size) > 200
        assert len(np.unique(np.asarray(image.convert("RGB")).reshape(-1, 3), axis=0)) > 10


def test_report_files(output, tiny_pipeline, tmp_path):
    folder = tmp_path / "report"
    report = write_report(folder, output, tiny_pipeline, {"budget": 4.4})
    assert sorted(os.listdir(folder)) == ["reconstruction.mp4", "report.json", "side_by_side.mp4", "tokens.png"]
    assert os.listdir(tmp_path) == ["report"]
    assert json.loads((folder / "report.json").read_text()) == report
    for name, size in (("reconstruction.mp4", (24, 40)), ("side_by_side.mp4", (148, 88))):
        video = read_video(folder / name)
        assert video.frames.shape[:3] == (18, *size)
        assert video.timestamps == pytest.approx(output.timestamps - output.timestamps[0], abs=1e-4)
    assert (report["source_size"], report["model_size"], report["output_size"]) == ([24, 40], [16, 16], [24, 40])


def test_report_numbers(output, tiny_pipeline, tmp_path):
    report = write_report(tmp_path / "report", output, tiny_pipeline, {"budget": 4.4})
    counts = output.token_counts.flatten()[:5].tolist()
    assert report["token_counts"] == counts and report["tokens"] == sum(counts) == 22
    assert report["blocks"] == 5 and report["tokens_per_block"] == pytest.approx(4.4)
    assert report["frames"] == 18 and report["seconds_of_video"] == pytest.approx(1.8)
    assert report["tokens_per_second"] == pytest.approx(22 / 1.8)
    assert report["bits_per_second"] == pytest.approx((22 * np.log2(50) + 5 * np.log2(7)) / 1.8)
    assert len(report["psnr_db_per_block"]) == 5
    assert report["request"] == {"budget": 4.4} and report["allocation"]["strategy"] == "joint"
    assert report["model_hash"] == tiny_pipeline.model_hash


def test_a_report_leaves_other_files_alone(output, tiny_pipeline, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "report.json").write_text("old")
    write_report(tmp_path, output, tiny_pipeline, {})
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "report.json").read_text() != "old"


def test_nothing_is_left_of_a_failed_report(output, tiny_pipeline, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("adaptok_hf.cli.reports.plot_tokens", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(tmp_path / "report", output, tiny_pipeline, {})
    assert os.listdir(tmp_path) == []


def test_bad_folders_are_named(output, tiny_pipeline, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NotADirectoryError, match="file is a file"):
        write_report(tmp_path / "file", output, tiny_pipeline, {})
    for folder in (tmp_path / "file" / "report", tmp_path / "missing" / "report"):
        with pytest.raises(FileNotFoundError, match="does not exist"):
            write_report(folder, output, tiny_pipeline, {})
    assert os.listdir(tmp_path) == ["file"]
