"""The standard options of a transformers video processor: honored, or named."""

from functools import partial

import numpy as np
import pytest
import torch
from builders.video_files import make_frames, write_mp4
from transformers.processing_utils import VideosKwargs
from transformers.utils import is_torchvision_available
from transformers.video_utils import VideoMetadata

from adaptok_hf.video.video_processing_adaptok import AdapTokVideoProcessor

# Every option, with a value that does something; `None` as the result: it must be named.
STANDARD = {
    "do_convert_rgb": (False, None),
    "do_resize": (False, (8, 3, 32, 32)),
    "size": ({"height": 24, "width": 40}, (8, 3, 24, 40)),
    "default_to_square": (False, (8, 3, 32, 32)),
    "resample": (0, (8, 3, 32, 32)),
    "do_rescale": (False, (8, 3, 32, 32)),
    "rescale_factor": (1.0, (8, 3, 32, 32)),
    "do_normalize": (True, None),
    "image_mean": (0.5, None),
    "image_std": ([0.5, 0.5, 0.5], None),
    "do_center_crop": (False, (8, 3, 32, 43)),
    "do_pad": (True, None),
    "crop_size": (16, (8, 3, 16, 16)),
    "data_format": ("channels_last", (8, 32, 32, 3)),
    "input_data_format": ("channels_first", None),
    "device": ("cpu", (8, 3, 32, 32)),
    "do_sample_frames": (True, (8, 3, 32, 32)),
    "video_metadata": ({"fps": 10}, (8, 3, 32, 32)),
    "fps": (12, None),
    "num_frames": (4, None),
    "return_metadata": (True, (8, 3, 32, 32)),
    "return_tensors": ("np", (8, 3, 32, 32)),
}
WRONG = {name: "nonsense" for name in STANDARD} | {"num_frames": 0, "fps": -1, "resample": 1, "image_std": 0.0}


@pytest.mark.parametrize("name", VideosKwargs.__annotations__)
def test_each_standard_option_is_honored_or_named(processor, name):
    frames = make_frames(20, 48, 64)
    value, shape = STANDARD[name]
    if shape is None:
        with pytest.raises(ValueError, match=name):
            processor(frames, **{name: value})
    else:
        pixels = processor(frames, **{name: value}).pixel_values_videos
        assert pixels.shape[1:] == shape
        default = torch.as_tensor(processor(frames).pixel_values_videos)
        same = pixels.shape == default.shape and torch.equal(torch.as_tensor(pixels), default)
        assert same == (name in ("default_to_square", "device", "return_metadata", "return_tensors", "video_metadata"))
    with pytest.raises(ValueError, match=name):
        processor(frames, **{name: WRONG[name]})
    assert torch.equal(processor(frames, **{name: None}).pixel_values_videos, processor(frames).pixel_values_videos)


def test_options_do_what_transformers_does(processor, tmp_path):
    frames = make_frames(20, 48, 64)
    plain = processor(frames).pixel_values_videos
    assert torch.equal(processor(frames, do_rescale=False).pixel_values_videos, (plain * 255).round().byte())
    floats = processor(frames / 255, do_rescale=False).pixel_values_videos
    assert torch.equal(floats, plain)
    normalized = processor(frames, do_normalize=True, image_mean=[0.5, 0.4, 0.3], image_std=2.0).pixel_values_videos
    mean = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(normalized, (plain - mean) / 2)
    assert torch.equal(
        processor(frames, size=24).pixel_values_videos, processor(frames, size={"shortest_edge": 24}).pixel_values_videos
    )
    squashed = processor(frames, resize_mode="squash")
    assert torch.equal(
        processor(frames, size={"height": 32, "width": 32}).pixel_values_videos, squashed.pixel_values_videos
    )
    assert torch.equal(processor(frames, size=32, default_to_square=True).pixel_values_videos, squashed.pixel_values_videos)

    sampled = processor(frames, do_sample_frames=True, num_frames=4, return_metadata=True)
    assert sampled.pixel_values_videos.shape[1] == 4
    (metadata,) = sampled["video_metadata"]
    assert (metadata.frames_indices, metadata.total_num_frames, metadata.fps) == ([0, 5, 10, 15], 20, None)
    at_half_rate = {
        "do_sample_frames": True,
        "fps": 12,
        "video_metadata": VideoMetadata(20, fps=24),
        "return_metadata": True,
    }
    sampled = processor(frames, **at_half_rate)
    assert sampled["video_metadata"][0].frames_indices == list(range(0, 16, 2))
    assert torch.equal(sampled.pixel_values_videos, processor(frames[::2]).pixel_values_videos)
    path = write_mp4(tmp_path / "a.mp4", frames=frames, fps=30)
    metadata = processor(path, return_metadata=True)["video_metadata"][0]
    assert (metadata.total_num_frames, metadata.fps, metadata.width, metadata.height) == (20, 30, 64, 48)
    assert metadata.frames_indices == list(range(8))
    sampled = processor(path, do_sample_frames=True, fps=15, return_metadata=True)
    assert sampled["video_metadata"][0].frames_indices == list(range(0, 16, 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"do_sample_frames": True, "fps": 12}, "fps=12.*video_metadata"),
        ({"do_sample_frames": True, "fps": 25, "video_metadata": {"fps": 24}}, "fps=25.*24"),
        ({"do_sample_frames": True, "fps": 12, "num_frames": 4}, "fps=12.*num_frames=4"),
        ({"do_sample_frames": True, "num_frames": 21}, "num_frames=21.* 20"),
        ({"do_sample_frames": True, "video_metadata": {"total_num_frames": 7}}, "total_num_frames=7.* 20"),
        ({"video_metadata": [{"fps": 24}, {"fps": 24}]}, "2 video_metadata for 1"),
        ({"size": 64, "do_resize": False}, "size=64.*do_resize"),
        ({"size": {"longest_edge": 64}}, "longest_edge.*shortest_edge"),
        ({"size": 16, "crop_size": 32}, "16x21.*32x32"),
        ({"device": "cuda:77"}, "device='cuda:77'"),
        ({"return_tensors": "tf"}, "'tf'.*'np'"),
        ({"image_mean": [1.0, 2.0], "image_std": 1.0, "do_normalize": True}, "image_mean"),
    ],
)
def test_options_that_do_not_go_together(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(make_frames(20, 48, 64), **options)


def test_options_of_the_configuration(processor, tmp_path):
    assert (processor.size, processor.crop_size, processor.do_center_crop) == (
        {"shortest_edge": 32},
        {"height": 32, "width": 32},
        True,
    )
    square = {"height": 16, "width": 16}
    processor.save_pretrained(tmp_path)
    for options, size, mode in (({"size": 16}, {"shortest_edge": 16}, "crop"), ({"size": square}, square, "squash")):
        changed = AdapTokVideoProcessor.from_pretrained(tmp_path, **options)
        assert (changed.size, changed.image_size, changed.resize_mode) == (size, 16, mode)
        assert AdapTokVideoProcessor.from_dict(changed.to_dict()).to_dict() == changed.to_dict()
    options = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "return_tensors": "np"}
    normalizing = AdapTokVideoProcessor.from_pretrained(tmp_path, **options)
    normalizing.save_pretrained(tmp_path / "again")
    normalizing = AdapTokVideoProcessor.from_pretrained(tmp_path / "again")
    pixels = normalizing(make_frames(8)).pixel_values_videos
    assert isinstance(pixels, np.ndarray) and pixels.min() < 0
    with pytest.raises(ValueError, match="do_normalize=True"):
        normalizing.clips(make_frames(8))
    with pytest.raises(ValueError, match="do_normalize=True"):
        normalizing.tiled_clips(make_frames(8))
    for options, message in [
        ({"do_center_crop": False}, "do_center_crop=False"),
        ({"crop_size": 64}, "crop_size.*64"),
        ({"size": {"height": 16, "width": 24}}, "24"),
        ({"do_pad": True}, "do_pad"),
        ({"smoothing": 3}, "smoothing.*do_resize"),
    ]:
        for make in (
            lambda **options: AdapTokVideoProcessor(32, **options),
            partial(AdapTokVideoProcessor.from_pretrained, tmp_path),
        ):
            with pytest.raises((TypeError, ValueError), match=message):
                make(**options)
    with pytest.raises(TypeError, match="smoothing.*do_resize"):
        processor(make_frames(8), smoothing=3)
    unused = AdapTokVideoProcessor.from_pretrained(tmp_path, smoothing=3, return_unused_kwargs=True)[1]
    assert unused == {"smoothing": 3}


@pytest.mark.skipif(is_torchvision_available(), reason="torchvision is installed")
def test_auto_class_names_what_it_needs(tmp_path):
    from transformers import AutoVideoProcessor

    with pytest.raises(ImportError, match="Torchvision"):
        AutoVideoProcessor.from_pretrained(tmp_path)
