import importlib
import json

import av
import numpy as np
import pytest
import torch
from builders.video_files import make_frames, write_animation, write_mp4, write_text
from PIL import Image

from adaptok_hf.video.frame_stream import iter_frames
from adaptok_hf.video.video_io import Video
from adaptok_hf.video.video_processing_adaptok import AdapTokVideoProcessor


def make_video(num_frames=8, height=32, width=32, fps=24.0):
    return Video(make_frames(num_frames, height, width), fps, np.arange(num_frames) / fps)


# --- load ---


def test_every_kind_of_input_gives_the_same_frames(processor):
    frames = make_frames(5, 20, 24)
    tensor = torch.from_numpy(frames)
    inputs = [
        frames,
        frames.transpose(0, 3, 1, 2),
        tensor,
        tensor.permute(0, 3, 1, 2),
        (frames / 255).astype(np.float32),
        frames / 255,
        (frames / 255).transpose(0, 3, 1, 2),
        tensor.double() / 255,
        tensor.permute(0, 3, 1, 2).float().div(255).requires_grad_(),
        [Image.fromarray(frame) for frame in frames],
        tuple(Image.fromarray(frame) for frame in frames),
        list(frames),
        list(tensor.permute(0, 3, 1, 2)),
    ]
    for given in inputs:
        video = processor.load(given)
        np.testing.assert_array_equal(video.frames, frames)
        assert video.fps == 24 and video.timestamps[1] == pytest.approx(1 / 24)
    half = processor.load((tensor / 255).bfloat16()).frames
    assert np.abs(half.astype(int) - frames).max() <= 1
    assert processor.load(frames, fps=10).timestamps[-1] == pytest.approx(0.4)
    assert len(processor.load(frames, max_frames=2)) == 2
    assert len(processor.load(inputs[9], max_frames=2)) == 2


def test_files(processor, tmp_path):
    path = write_mp4(tmp_path / "a.mp4", frames=make_frames(10), fps=30)
    expected = processor.load(path)
    assert (len(expected), expected.fps) == (10, 30)
    for given in (str(path), path.read_bytes(), processor.load(path)):
        np.testing.assert_array_equal(processor.load(given).frames, expected.frames)
    with open(path, "rb") as file, av.open(path) as container:
        np.testing.assert_array_equal(processor.load(file).frames, expected.frames)
        np.testing.assert_array_equal(processor.load(container, max_frames=3).frames, expected.frames[:3])
    assert len(processor.load(expected, max_frames=4).timestamps) == 4
    assert processor.load(write_animation(tmp_path / "a.gif")).fps == pytest.approx(25)


class FakeDecoder:
    """The part of torchcodec's VideoDecoder that is read."""

    def __init__(self, frames, fps, start):
        self.frames_, self.fps_, self.start_ = torch.from_numpy(frames).permute(0, 3, 1, 2), fps, start

    @property
    def metadata(self):
        return type("Metadata", (), {"average_fps": self.fps_})

    def __len__(self):
        return len(self.frames_)

    def get_frames_in_range(self, start, stop):
        pts = self.start_ + torch.arange(start, stop) / self.fps_
        return type("FrameBatch", (), {"data": self.frames_[start:stop], "pts_seconds": pts})


def test_files_as_datasets_stores_them(processor, tmp_path):
    path = write_mp4(tmp_path / "clip.mp4", frames=make_frames(5, 32, 32))
    expected = processor.load(path).frames
    for row in ({"path": str(path), "bytes": None}, {"path": "elsewhere.mp4", "bytes": path.read_bytes()}):
        for frames in (processor.load(row).frames, processor.clips(row).original()):
            np.testing.assert_array_equal(frames, expected)
        assert np.array_equal([frame for frame, *_ in iter_frames(row, processor)], expected)
        assert len(processor.tiled_clips(row)) == 1 and len(processor([row, row])["pixel_values_videos"]) == 2
    with pytest.raises(FileNotFoundError, match="gone"):
        processor.load({"path": "gone.mp4", "bytes": None})
    for bad, message in (({"path": None, "bytes": None}, "None"), ({}, "dict"), ({"video": str(path)}, "dict")):
        with pytest.raises(ValueError, match=message):
            processor.load(bad)


def test_decoder(processor):
    frames = make_frames(6, 20, 24)
    video = processor.load(FakeDecoder(frames, fps=10.0, start=3.0), max_frames=4)
    np.testing.assert_array_equal(video.frames, frames[:4])
    assert video.fps == 10
    np.testing.assert_allclose(video.timestamps, [0, 0.1, 0.2, 0.3], atol=1e-6)
    with pytest.raises(ValueError, match="no frames"):
        processor.load(FakeDecoder(frames[:0], 10.0, 0.0))


def test_torchcodec(processor, tmp_path):
    decoders = pytest.importorskip("torchcodec.decoders", exc_type=(ImportError, RuntimeError))
    path = write_mp4(tmp_path / "a.mp4", frames=make_frames(10), fps=30)
    video, expected = processor.load(decoders.VideoDecoder(str(path))), processor.load(path)
    assert video.fps == expected.fps
    np.testing.assert_allclose(video.timestamps, expected.timestamps, atol=1e-4)
    assert np.abs(video.frames.astype(int) - expected.frames).mean() < 3


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((4, 8, 8), np.uint8), r"\(4, 8, 8\) is ambiguous"),
        (np.zeros((8, 8, 4), np.uint8), "alpha"),
        (np.zeros((3, 8, 3), np.uint8), "ambiguous"),
        (np.zeros(8, np.uint8), r"\(8,\)"),
        (np.zeros((4, 8, 8, 4), np.uint8), "shape"),
        (np.zeros((1, 4, 8, 8, 3), np.uint8), "shape"),
        (np.zeros((0, 8, 8, 3), np.uint8), "shape"),
        (np.zeros((4, 0, 8, 3), np.uint8), "shape"),
        (np.zeros((4, 3, 8, 3), np.uint8), "ambiguous"),
        (torch.zeros(4, 3, 8, 3), "ambiguous"),
        (np.full((4, 8, 8, 3), 256, np.int64), "int64 from 256 to 256"),
        (torch.full((4, 3, 8, 8), -1), "int64 from -1 to -1"),
        (np.zeros((4, 8, 8, 3), bool), "bool"),
        (np.full((4, 8, 8, 3), 255.0), "255.*divide by 255"),
        (torch.full((4, 3, 8, 8), -1.0), r"-1.*\[0, 1\]"),
        (np.full((4, 8, 8, 3), np.nan), "nan.*without NaN"),
        (np.full((4, 8, 8, 3), np.inf), "inf"),
        ([], "empty"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))], "frame 1"),
        ([Image.new("RGB", (8, 8)), 3], "frame 1 of the list is int"),
        ([Image.new("I", (8, 8))], "'I'"),
        (None, "NoneType; expected a path"),
        (3, "int; expected a path"),
    ],
)
def test_bad_inputs(processor, given, message):
    with pytest.raises(ValueError, match=message) as error:
        processor.load(given)
    assert "\n" not in str(error.value)


def test_bad_arguments(processor, tmp_path):
    frames = make_frames(4)
    for fps in (0, -1.0, float("nan"), "24"):
        with pytest.raises(ValueError, match="fps"):
            processor.load(frames, fps=fps)
    with pytest.raises(ValueError, match="fps=24"):
        processor.load(tmp_path / "a.mp4", fps=24)
    for max_frames in (0, -1, 2.0):
        with pytest.raises(ValueError, match="max_frames"):
            processor.load(frames, max_frames=max_frames)
    with pytest.raises(FileNotFoundError):
        processor.load(tmp_path / "nothing.mp4")
    with pytest.raises(IsADirectoryError):
        processor.load(tmp_path)
    with pytest.raises(ValueError, match="not a video"):
        processor.load(write_text(tmp_path / "a.mp4"))
    with pytest.raises(ValueError, match="int"):
        processor.clips(3)
    with pytest.raises(ValueError, match="2x400.*squash"):
        processor.clips(make_video(1, 2, 400))
    with pytest.raises(ValueError, match="'crop', 'squash'.*'pad'"):
        processor.clips(make_video(), resize_mode="pad")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size"),
        ({"image_size": "128"}, "image_size"),
        ({"num_frames": 10}, "multiple of tubelet_size=4"),
        ({"resize_mode": "pad"}, "resize_mode"),
    ],
)
def test_bad_configuration(options, message):
    with pytest.raises(ValueError, match=message):
        AdapTokVideoProcessor(**options)


# --- clips and back ---


@pytest.mark.parametrize("num_frames", [1, 3, 4, 8, 9, 16, 400])
def test_length_survives_the_round_trip(processor, num_frames):
    video = make_video(num_frames, 16, 20)
    clips = processor.clips(video)
    assert clips.pixel_values_videos.shape == (-(-num_frames // 8), 8, 3, 32, 32)
    assert clips.pixel_values_videos.dtype == torch.float32
    assert (clips.num_frames, clips.source_size, clips.fps) == (num_frames, (16, 20), 24)
    assert len(clips.timestamps) == num_frames and len(clips) == len(clips.pixel_values_videos)
    assert clips.valid_blocks.sum() == -(-num_frames // 4)
    frames = processor.unclip(clips.pixel_values_videos, num_frames=clips.num_frames)
    assert frames.shape == (num_frames, 32, 32, 3) and frames.dtype == np.uint8


def test_padding_and_valid_blocks(processor):
    clips = processor.clips(make_video(9))
    assert clips.valid_blocks.tolist() == [[True, True], [True, False]]
    assert clips.valid_blocks.sum(1).tolist() == [2, 1]
    last = clips.pixel_values_videos[1]
    assert torch.equal(last[1:], last[:1].expand(7, -1, -1, -1))
    assert not torch.equal(last[0], clips.pixel_values_videos[0, -1])


@pytest.mark.parametrize("resize_mode", ["crop", "squash"])
def test_native_size_is_untouched(processor, resize_mode):
    video = make_video(11)
    clips = processor.clips(video, resize_mode=resize_mode)
    assert clips.pixel_values_videos.min() >= 0 and clips.pixel_values_videos.max() <= 1
    np.testing.assert_array_equal(processor.unclip(clips.pixel_values_videos, num_frames=11), video.frames)


@pytest.mark.parametrize("size", [(90, 161), (161, 90), (20, 24), (33, 32)])
def test_resize_equals_pillow(processor, size):
    frames = np.random.default_rng(0).integers(0, 256, (2, *size, 3), dtype=np.uint8)
    video = Video(frames, 24.0, np.arange(2) / 24)
    short = min(size)
    height, width = (round(side * 32 / short) for side in size)
    image = Image.fromarray(frames[0])
    whole = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    top, left = (height - 32) // 2, (width - 32) // 2
    expected = {
        "crop": whole[top : top + 32, left : left + 32],
        "squash": np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR)),
    }
    for resize_mode, pixels in expected.items():
        actual = processor.unclip(processor.clips(video, resize_mode=resize_mode).pixel_values_videos)[0]
        assert np.abs(actual.astype(int) - pixels).max() <= 2


def test_squash_restores_the_proportions(processor):
    video = make_video(5, 40, 64)
    clips = processor.clips(video, resize_mode="squash")
    frames = processor.unclip(clips.pixel_values_videos, num_frames=5, output_size=clips.source_size)
    assert frames.shape == video.frames.shape
    inside = (slice(None), slice(2, -2), slice(2, -2))
    assert np.abs(frames.astype(int) - video.frames)[inside].max() <= 4


def test_resizing_goes_chunk_by_chunk(processor, monkeypatch):
    sizes = []
    square = processor._square
    monkeypatch.setattr(processor, "_square", lambda frames, mode: sizes.append(len(frames)) or square(frames, mode))
    processor.clips(make_video(100))
    assert sum(sizes) == 100 and max(sizes) <= 16


def test_read_only_frames_do_not_warn(processor, recwarn):
    video = make_video()
    video.frames.flags.writeable = False
    processor.clips(video)
    assert not recwarn.list


def test_unclip_clamps_rounds_and_checks(processor):
    clips = torch.tensor([-0.5, 0.4999 / 255, 0.5001 / 255, 2.0]).view(1, 4, 1, 1, 1).expand(1, 4, 3, 2, 2)
    assert processor.unclip(clips)[:, 0, 0, 0].tolist() == [0, 0, 1, 255]
    assert processor.unclip(clips.bfloat16(), num_frames=2).shape == (2, 2, 2, 3)
    for given in (clips[0], clips.byte(), clips.numpy(), clips.transpose(2, 3), None):
        with pytest.raises(ValueError, match="unclip"):
            processor.unclip(given)
    for num_frames in (0, 5):
        with pytest.raises(ValueError, match=f"num_frames={num_frames}"):
            processor.unclip(clips, num_frames=num_frames)
    with pytest.raises(ValueError, match="NaN"):
        processor.unclip(clips * float("nan"))


# --- as a Hugging Face video processor ---


def test_call_takes_one_video_or_a_batch(processor, tmp_path):
    frames = make_frames(12)
    images = [Image.fromarray(frame) for frame in frames]
    path = write_mp4(tmp_path / "a.mp4", frames=frames)
    for videos, batch in [
        (frames, 1),
        (images, 1),
        (path, 1),
        (list(frames), 1),
        ([str(path), path, path], 3),
        ([images, frames], 2),
        (np.stack([frames, frames]), 2),
        (torch.from_numpy(np.stack([frames, frames])).permute(0, 1, 4, 2, 3), 2),
    ]:
        pixels = processor(videos)["pixel_values_videos"]
        assert pixels.shape == (batch, 8, 3, 32, 32) and pixels.dtype == torch.float32
    expected = processor.clips(processor.load(frames)).pixel_values_videos[:1]
    assert torch.equal(processor(frames, return_tensors="pt").pixel_values_videos, expected)
    assert isinstance(processor(frames, return_tensors="np").pixel_values_videos, np.ndarray)
    assert not torch.equal(processor(frames, resize_mode="squash").pixel_values_videos, expected)
    short = processor(frames[:3]).pixel_values_videos[0]
    assert torch.equal(short[3:], short[2:3].expand(5, -1, -1, -1))
    with pytest.raises(ValueError, match="empty"):
        processor([])


def test_save_and_load(tmp_path):
    processor = AdapTokVideoProcessor(image_size=64, num_frames=8, tubelet_size=2, resize_mode="squash")
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert saved == {
        "image_size": 64,
        "num_frames": 8,
        "tubelet_size": 2,
        "resize_mode": "squash",
        "video_processor_type": "AdapTokVideoProcessor",
    }
    assert AdapTokVideoProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    assert AdapTokVideoProcessor.from_pretrained(tmp_path, image_size=32).image_size == 32
    with pytest.raises(ValueError, match="multiple"):
        AdapTokVideoProcessor.from_pretrained(tmp_path, num_frames=7)


def test_saved_folder_is_importable_alone(tmp_path, monkeypatch):
    """Hub code: the class and the sibling that it imports are copied next to the json, as one flat package."""
    monkeypatch.setattr(AdapTokVideoProcessor, "_auto_class", None)
    AdapTokVideoProcessor.register_for_auto_class()
    AdapTokVideoProcessor(image_size=16).save_pretrained(tmp_path / "flat_copy")
    saved = json.loads((tmp_path / "flat_copy" / "video_preprocessor_config.json").read_text())
    assert saved["auto_map"] == {"AutoVideoProcessor": "video_processing_adaptok.AdapTokVideoProcessor"}
    monkeypatch.syspath_prepend(tmp_path)
    copied_class = importlib.import_module("flat_copy.video_processing_adaptok").AdapTokVideoProcessor
    assert copied_class is not AdapTokVideoProcessor
    processor = copied_class.from_pretrained(tmp_path / "flat_copy")
    # a Video of the installed package is as good as one of the copy
    assert processor.clips(processor.load(make_video(3))).pixel_values_videos.shape == (1, 16, 3, 16, 16)


# --- pictures ---


def test_pictures_are_videos(processor, tmp_path):
    frames = make_frames(12, 20, 24)
    images = [Image.fromarray(frame) for frame in frames]
    folder = tmp_path / "frames"
    folder.mkdir()
    (folder / "notes.txt").touch()
    paths = [folder / f"frame{number}.png" for number in range(12)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    for suffix in ("jpg", "webp", "bmp", "tiff"):
        images[0].save(tmp_path / f"a.{suffix}", quality=95)
        assert np.abs(processor.load(tmp_path / f"a.{suffix}").frames[0].astype(int) - frames[0]).mean() < 6
    tensor = torch.from_numpy(frames[0])
    for picture in (
        images[0],
        str(paths[0]),
        [paths[0]],
        paths[0].read_bytes(),
        frames[0],
        tensor.permute(2, 0, 1),
        tensor / 255,
    ):
        np.testing.assert_array_equal(processor.load(picture).frames, frames[:1])
        assert processor(picture).pixel_values_videos.shape == (1, 8, 3, 32, 32)
    for several in (folder, str(folder), paths, tuple(map(str, paths)), [images[0], *paths[1:]], list(frames)):
        video = processor.load(several, fps=10)
        np.testing.assert_array_equal(video.frames, frames)
        assert (video.fps, video.timestamps[-1]) == (10, pytest.approx(1.1))
        assert processor(several).pixel_values_videos.shape == (1, 8, 3, 32, 32)
        assert len(processor.clips(several, fps=10)) == 2
        np.testing.assert_array_equal(np.stack([frame for frame, _, _ in iter_frames(several, processor, 10)]), frames)
    assert (
        processor([folder, folder]).pixel_values_videos.shape[0]
        == processor([paths, images]).pixel_values_videos.shape[0]
        == 2
    )
    gray = frames[..., 0]
    for given in (gray[0], gray[:1], gray[0][..., None], [gray[0]], Image.fromarray(gray[0])):
        np.testing.assert_array_equal(processor.load(given).frames, np.repeat(gray[:1, ..., None], 3, axis=-1))
    for given in (gray, gray[..., None], gray[:, None], list(gray), torch.from_numpy(gray) / 255):
        np.testing.assert_array_equal(processor.load(given).frames, np.repeat(gray[..., None], 3, axis=-1))
    assert processor.load(frames[:3].transpose(0, 3, 1, 2)[:, :, :3], input_data_format="channels_first").frames.shape == (
        3,
        3,
        24,
        3,
    )


def test_a_photo_is_turned_as_its_camera_says(processor, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (24, 16)).save(tmp_path / "a.jpg", exif=exif)
    assert processor.load(tmp_path / "a.jpg").frames.shape == (1, 24, 16, 3)
    deep = Image.fromarray(np.full((8, 8), 0x8000, np.uint16))
    deep.save(tmp_path / "deep.png")
    assert processor.load(tmp_path / "deep.png").frames.max() == 128


def test_bad_pictures_are_named(processor, tmp_path):
    write_text(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    Image.new("RGB", (9, 8)).save(tmp_path / "c.png")
    write_animation(tmp_path / "d.webp")
    for given, message in [
        (tmp_path / "a.png", "a.png"),
        ([tmp_path / "b.png", tmp_path / "c.png"], "c.png: 8x9"),
        ([tmp_path / "b.png", tmp_path / "d.webp"], "d.webp: a video"),
    ]:
        with pytest.raises(ValueError, match=message):
            processor.load(given)
    assert len(processor.load(tmp_path / "d.webp")) > 1
    Image.new("RGB", (8, 8)).save(tmp_path / "e.tiff", save_all=True, append_images=[Image.new("RGB", (8, 8), "white")])
    assert processor.load(tmp_path / "e.tiff").frames[:, 0, 0, 0].tolist() == [0, 255]
    assert processor([tmp_path / "d.webp"] * 2).pixel_values_videos.shape[0] == 2
