"""Clips that share blocks with the one before."""

import numpy as np
import pytest
import torch
from builders.video_files import make_frames

from adaptok_hf import TokenizedVideo
from adaptok_hf.video.overlaps import fade_clips


def test_the_fade_is_linear():
    clips = [np.full((4, 1, 1, 3), value, np.uint8) for value in (0, 90, 90)]
    assert [frame.item(0) for frame in fade_clips(clips, 2)] == [0, 0, 30, 60, 90, 90, 90, 90]
    assert [frame.item(0) for frame in fade_clips(clips, 0)] == [0] * 4 + [90] * 8


@pytest.mark.parametrize(("num_frames", "num_clips"), [(1, 1), (12, 1), (13, 2), (20, 2), (21, 3), (28, 3)])
def test_clips_overlap_and_lengths_stay(tiny_pipeline, num_frames, num_clips, tmp_path):
    frames = make_frames(num_frames, 16, 16)
    output = tiny_pipeline.reconstruct(frames, budget=4, overlap_blocks=1, output_type="uint8")
    tokens = output.tokens
    assert len(tokens.codes) == num_clips and output.frames.shape == (1, *frames.shape)
    np.testing.assert_array_equal(output.original[0], frames)
    assert tokens.num_tokens == 4 * tokens.num_blocks == tokens.counts_over_time().sum()
    assert len(tokens.counts_over_time()) == 3 + 2 * (num_clips - 1)
    for index, start in enumerate(range(0, 8 * num_clips, 8)):
        alone = tiny_pipeline.tokenize(frames[start : start + 12])
        assert torch.equal(alone.codes[0], tokens.codes[index])
    tokens.save(tmp_path / "a.safetensors")
    loaded = TokenizedVideo.load(tmp_path / "a.safetensors")
    assert loaded.overlap_blocks == 1
    np.testing.assert_array_equal(tiny_pipeline.decode(loaded, batch_size=1), output.frames[0])


def test_overlaps_that_cannot_be(tiny_pipeline):
    frames = make_frames(20, 16, 16)
    for overlap in (-1, 2, 1.0, "1"):
        with pytest.raises(ValueError, match=f"overlap_blocks.* 1, got {overlap!r}"):
            tiny_pipeline.tokenize(frames, overlap_blocks=overlap)
    with pytest.raises(ValueError, match="overlap_blocks=1.*'tile'"):
        tiny_pipeline.tokenize(frames, overlap_blocks=1, resize_mode="tile")
    tokens = tiny_pipeline.tokenize(frames)
    tokens.overlap_blocks = 2
    with pytest.raises(ValueError, match="overlap_blocks=2"):
        tokens.check()
