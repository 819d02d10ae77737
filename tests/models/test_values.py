"""Values that models take and refuse: pixels of other ranges, empty batches, NaN and infinity, devices without float64."""

import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from adaptok_hf import AllocationRequest

NOT_FINITE = (math.nan, math.inf, -math.inf)


class NoFloat64(TorchDispatchMode):
    """Refuses what makes a float64 tensor, as Apple's MPS does."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(isinstance(each, torch.Tensor) and each.dtype == torch.float64 for each in tree_flatten(result)[0]):
            raise TypeError(f"{func}: no float64")
        return result


def test_sampling_needs_no_float64(complete_pipeline):
    model = complete_pipeline.ar_model
    with NoFloat64():
        assert len(model.generate(class_labels=[1], seeds=[0], max_tokens=5)) == 1
        assert len(model.generate(class_labels=[1], do_sample=False, max_tokens=5)) == 1


def test_pixels_of_other_types_are_scaled(tiny_tokenizer, tiny_video):
    pixels = (tiny_video * 255).round()
    codes = tiny_tokenizer.encode(pixels / 255).codes
    for dtype in (torch.uint8, torch.int16, torch.int64):
        assert torch.equal(tiny_tokenizer.encode(pixels.to(dtype)).codes, codes)
        assert torch.equal(tiny_tokenizer(pixels.to(dtype)).codes, codes)


@pytest.mark.parametrize(
    "change",
    [
        lambda video: video * 2 - 1,
        lambda video: video * 255,
        lambda video: video + math.nan,
        lambda video: video.masked_fill(video > 0.9, math.inf),
        lambda video: (video * 255).long() + 50,
        lambda video: (video * 255).long() - 1,
        lambda video: video > 0.5,
        lambda video: video.to(torch.complex64),
    ],
)
def test_pixels_of_other_ranges_are_refused(tiny_tokenizer, tiny_video, change):
    for method in (tiny_tokenizer.encode, tiny_tokenizer):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            method(change(tiny_video))
    tiny_tokenizer.encode(tiny_video * 1.0005)  # rounding
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        tiny_tokenizer.train()(change(tiny_video))


def test_empty_batches_give_empty_results(tiny_pipeline, tiny_video):
    tokenizer, none = tiny_pipeline.tokenizer, tiny_video[:0]
    codes = tokenizer.encode(none).codes
    assert codes.shape == (0, 3, 6)
    assert tokenizer.decode(codes).pixel_values_videos.shape == none.shape
    assert tokenizer.decode(codes, torch.zeros(0, 3, dtype=torch.long)).pixel_values_videos.shape == none.shape
    videos = np.zeros((0, 12, 16, 16, 3), np.uint8)
    assert tiny_pipeline.video_processor(videos).pixel_values_videos.shape == none.shape
    assert tiny_pipeline.tokenize(videos) == tiny_pipeline.reconstruct(videos) == tiny_pipeline(videos).frames == []


@pytest.mark.parametrize("value", NOT_FINITE)
def test_numbers_must_be_finite(complete_pipeline, value):
    frames = np.zeros((12, 16, 16, 3), np.uint8)
    for name in ("budget", "price", "threshold"):
        for call in (AllocationRequest, lambda **given: complete_pipeline.tokenize(frames, **given)):
            with pytest.raises(ValueError, match=rf"{name}.*{value}"):
                call(**{name: value})
    for budget in (f"{value}", f"{value}%", [4, value, 4]):
        with pytest.raises(ValueError, match=f"budget.*{value}"):
            AllocationRequest(budget=budget)
    for name in ("price", "threshold", "budget", "bits_per_second", "fps", "reservoir"):
        with pytest.raises(ValueError, match=rf"{name}.*{value}"):
            list(complete_pipeline.stream(frames, **({"budget": 4} if name == "reservoir" else {}), **{name: value}))
    for name in ("guidance_scale", "temperature", "top_p", "top_k", "fps", "num_videos_per_class", "min_p"):
        with pytest.raises(ValueError, match=rf"{name}.*{value}"):
            complete_pipeline.generate(0, **{name: value})
    for name in ("temperature", "top_p", "fps", "num_rollouts", "num_condition_frames", "repetition_penalty"):
        with pytest.raises(ValueError, match=rf"{name}.*{value}"):
            complete_pipeline.predict(frames, **{name: value})
    for name in ("guidance_scale", "guidance_interval", "temperature", "lookahead"):
        with pytest.raises(ValueError, match=rf"{name}.*{value}"):
            complete_pipeline.ar_model.generate(class_labels=[0], **{name: value})


def test_outputs_as_tuples(complete_pipeline):
    video = complete_pipeline(np.zeros((12, 16, 16, 3), np.uint8), return_dict=False)
    assert isinstance(video, tuple) and video[0].shape == (1, 12, 16, 16, 3)
