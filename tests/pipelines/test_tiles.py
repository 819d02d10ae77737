"""Videos of any size in tiles, through the pipeline and its files."""

import json

import numpy as np
import pytest
import torch
from builders.video_files import make_frames
from safetensors import safe_open

from adaptok_hf import TokenizedVideo


@pytest.fixture
def frames():
    return make_frames(14, 20, 45)


def test_tiles_keep_size_frames_and_budget(tiny_pipeline, frames):
    output = tiny_pipeline.reconstruct(frames, budget=4, resize_mode="tile", fps=10, output_type="uint8")
    tokens = output.tokens
    assert output.frames.shape == (1, *frames.shape) and tokens.fps == 10
    np.testing.assert_array_equal(output.original[0], frames)
    assert (tokens.resize_mode, tokens.source_size, len(tokens.tiles)) == ("tile", (20, 45), 8)
    assert len(tokens.codes) == 2 * 8 and tokens.num_blocks == (3 + 1) * 8
    assert tokens.num_tokens == 4 * tokens.num_blocks
    assert tokens.bits_per_second == pytest.approx(tokens.num_bits / 1.4)


def test_each_tile_is_a_video_of_its_own(tiny_pipeline, frames):
    tokens = tiny_pipeline.tokenize(frames, resize_mode="tile")
    grid = tokens.tiles
    tiles = [frames[:, top : top + 16, left : left + 16] for top in grid.tops for left in grid.lefts]
    alone = tiny_pipeline.tokenize([np.ascontiguousarray(tile) for tile in tiles])
    for index, expected in enumerate(alone):
        assert torch.equal(tokens.codes[index :: len(grid)], expected.codes)
    decoded = [tiny_pipeline.decode(each) for each in alone]
    expected = np.stack(list(grid.join(decoded, 20, 45)))
    np.testing.assert_array_equal(tiny_pipeline.decode(tokens, batch_size=3), expected)


def test_videos_of_several_sizes_share_a_budget(tiny_pipeline, frames, clip_file):
    first, second = tiny_pipeline.tokenize([frames, clip_file], budget=4, resize_mode="tile")
    assert (first.num_tokens + second.num_tokens) / (first.num_blocks + second.num_blocks) == 4
    assert tiny_pipeline.decode(second).shape == (20, 40, 64, 3)
    measured = tiny_pipeline.tokenize(clip_file, budget=4, allocation="measured", resize_mode="tile")
    assert measured.num_tokens == 4 * measured.num_blocks


@pytest.mark.parametrize("size", [(1, 1), (7, 40), (16, 16)])
def test_small_and_odd_sizes(tiny_pipeline, size):
    frames = make_frames(1, *size)
    assert tiny_pipeline.reconstruct(frames, resize_mode="tile").frames.shape == (1, *frames.shape)


def test_tokens_file(tiny_pipeline, frames, tmp_path):
    tokens = tiny_pipeline.tokenize(frames, budget=4, resize_mode="tile")
    tokens.save(tmp_path / "a.safetensors")
    loaded = TokenizedVideo.load(tmp_path / "a.safetensors")
    assert loaded.tiles == tokens.tiles and loaded.resize_mode == "tile"
    np.testing.assert_array_equal(tiny_pipeline.decode(loaded), tiny_pipeline.decode(tokens))
    for name, version in (("a", "3"), ("b", "2")):
        tiny_pipeline.tokenize(frames).save(tmp_path / "b.safetensors")
        with safe_open(tmp_path / f"{name}.safetensors", "pt") as file:
            metadata = file.metadata()
        assert metadata["version"] == version and ("tiles" in json.loads(metadata["info"])) == (version == "3")
    tokens.tiles = None
    with pytest.raises(ValueError, match="'tile' with tiles=None"):
        tokens.save(tmp_path / "c.safetensors")
    loaded.source_size = (20, 60)
    with pytest.raises(ValueError, match="do not cover 60"):
        loaded.save(tmp_path / "c.safetensors")


def test_streams_and_predictions_refuse_tiles(complete_pipeline, frames):
    with pytest.raises(ValueError, match="'tile'"):
        next(complete_pipeline.stream(frames, resize_mode="tile"))
    with pytest.raises(ValueError, match="'tile'"):
        complete_pipeline.predict(frames, num_condition_frames=4, resize_mode="tile")


def test_a_picture_goes_through_the_pipeline(tiny_pipeline, tmp_path):
    from PIL import Image

    image = Image.fromarray(make_frames(1, 20, 45)[0])
    image.save(tmp_path / "a.png")
    for picture in (image, tmp_path / "a.png", [image], np.asarray(image)):
        output = tiny_pipeline.reconstruct(picture, budget=4, resize_mode="tile")
        assert output.frames.shape == (1, 1, 20, 45, 3) and output.tokens.num_blocks == 8
