import itertools

import numpy as np
import pytest
import torch
from builders.video_files import make_frames, write_mp4

from adaptok_hf.video.tiles import TileGrid
from adaptok_hf.video.video_processing_adaptok import AdapTokVideoProcessor


@pytest.mark.parametrize(("height", "width"), [(16, 16), (1, 1), (5, 40), (17, 33), (30, 100), (64, 48)])
def test_tiles_cover_a_frame_and_join_to_it(height, width):
    grid = TileGrid.cover(height, width, 16)
    grid.check(height, width)
    for starts in (grid.tops, grid.lefts):
        assert all(second - first <= 14 for first, second in itertools.pairwise(starts))  # an eighth overlaps
    frames = make_frames(3, height, width)
    tiles = grid.cut(frames, slice(None))
    assert tiles.shape == (len(grid), 3, 3, 16, 16)
    assert torch.equal(grid.cut(frames, slice(len(grid) - 1, len(grid))), tiles[-1:])
    joined = np.stack(list(grid.join(list(tiles.permute(0, 1, 3, 4, 2).numpy()), height, width)))
    np.testing.assert_array_equal(joined, frames)


def test_a_step_between_tiles_is_faded():
    grid = TileGrid.cover(16, 30, 16)
    assert grid.lefts == (0, 14)
    values = [np.full((1, 16, 16, 3), value, np.uint8) for value in (0, 90)]
    row = next(iter(grid.join(values, 16, 30)))[0, :, 0]
    assert row[:14].max() == 0 and row[16:].min() == 90 and 0 < row[14] < row[15] < 90


@pytest.mark.parametrize(
    ("tops", "lefts"), [((0, 17), (0,)), ((1,), (0,)), ((0,), (0, 14)), ((0, 0), (0,)), ((), (0,)), ((0.0,), (0,))]
)
def test_tiles_that_do_not_cover_are_refused(tops, lefts):
    with pytest.raises(ValueError, match="16 pixels with"):
        TileGrid(16, tops, lefts).check(16 if len(tops) < 2 else 33, 16)


def test_a_file_is_read_clip_by_clip(tmp_path):
    processor = AdapTokVideoProcessor(image_size=16, num_frames=8, tubelet_size=4)
    path = write_mp4(tmp_path / "a.mp4", frames=make_frames(19, 40, 30))
    video = processor.load(path)
    lazy, loaded = processor.tiled_clips(path), processor.tiled_clips(video)
    assert len(lazy) == len(loaded) == 3 * len(lazy.grid) and lazy.num_frames == 19 and lazy.source_size == (40, 30)
    assert lazy.valid_blocks.sum() == 5 * len(lazy.grid)
    whole = loaded.take(0, len(loaded))
    assert torch.equal(whole[-1][3:], whole[-1][2:3].expand(5, -1, -1, -1))
    for start in (0, 5, 13, 3, 17):  # forward, then again from the start
        assert torch.equal(lazy.take(start, start + 7), whole[start : start + 7])
    np.testing.assert_array_equal(lazy.original(), video.frames)
    with path.open("rb") as file:
        assert torch.equal(processor.tiled_clips(file).take(0, 40), whole)


def test_tiles_are_refused_where_there_are_none():
    processor = AdapTokVideoProcessor(image_size=16, num_frames=8, tubelet_size=4, resize_mode="tile")
    for call in (processor, processor.clips):
        with pytest.raises(ValueError, match="'crop', 'squash', got 'tile'"):
            call(make_frames(8))
