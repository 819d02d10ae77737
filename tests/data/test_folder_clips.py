import logging
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from builders.video_files import make_frames, truncate, write_animation, write_mp4, write_text

from adaptok_hf import AdapTokVideoProcessor
from adaptok_hf.data import ClipStream, VideoFolderClips, first_window, video_folder


@pytest.fixture
def folders(tmp_path):
    """`many` with 3 videos in sub-folders, `one` with 1; 6 to 9 frames of 16x16, losslessly kept."""
    for folder, lengths in (("many", (6, 8, 9)), ("one", (7,))):
        for i, length in enumerate(lengths):
            (tmp_path / folder / f"sub{i}").mkdir(parents=True)
            frames = make_frames(length, 16, 16)
            frames[..., 0] = 20 * np.arange(length)[:, None, None] + 5 * i  # the frame's number is seen in red
            write_animation(tmp_path / folder / f"sub{i}" / f"video{i}.webp", frames)
    return [tmp_path / "many", tmp_path / "one"]


def test_clips_are_windows_of_the_video(folders):
    torch.manual_seed(0)
    clips = VideoFolderClips(folders, num_frames=6, image_size=16)
    assert len(clips) == 4 and [path.name[5] for path in clips.paths] == ["0", "1", "2", "0"]
    seen = Counter()
    for _ in range(80):
        item = clips[2]
        clip = item["pixel_values_videos"]
        assert clip.shape == (6, 3, 16, 16) and clip.dtype == torch.uint8 and int(item["index"]) == 2
        start = round((int(clip[0, 0, 0, 0]) - 10) / 20)
        window = clips.videos[2][start : start + 6]
        flipped = not torch.equal(clip, window)
        if flipped:
            assert torch.equal(clip.flip(-1), window)
        seen[start, flipped] += 1
    assert set(seen) == {(start, flipped) for start in range(4) for flipped in (False, True)}


def test_validation_takes_the_first_frames(folders):
    clips = VideoFolderClips(folders, num_frames=6, image_size=16, random_clips=False)
    for index in range(4):
        for _ in range(3):
            assert torch.equal(clips[index]["pixel_values_videos"], clips.videos[index][:6])


def test_each_folder_gets_its_share(folders):
    clips = VideoFolderClips(folders, num_frames=6, image_size=16)
    weights = clips.sampling_weights([0.6, 0.4])
    assert weights.tolist() == pytest.approx([0.2, 0.2, 0.2, 0.4])


@pytest.mark.parametrize(("height", "width"), [(48, 64), (64, 48), (32, 33), (20, 50), (32, 32), (99, 35)])
def test_every_reader_gives_the_same_pictures(tmp_path, height, width):
    path = write_animation(tmp_path / "video.webp", make_frames(6, height, width))
    (video,) = VideoFolderClips([tmp_path], num_frames=4, image_size=32).videos
    (streamed,) = ClipStream(video_folder(tmp_path), partial(first_window, clip_length=6), 32, num_epochs=1)
    processor = AdapTokVideoProcessor(image_size=32, num_frames=6, tubelet_size=3)
    (processed,) = processor.preprocess(path).pixel_values_videos
    decoded = processor.clips(processor.load(path)).frames[0]
    assert video.shape == (6, 3, 32, 32)
    assert torch.equal(streamed["pixel_values_videos"], video)
    assert torch.equal(decoded, video) and torch.equal(processed, video / 255)


def test_short_and_unreadable_files_are_left_out(tmp_path, caplog):
    write_mp4(tmp_path / "long.mp4", frames=make_frames(8, 16, 16))
    write_mp4(tmp_path / "short.mp4", frames=make_frames(5, 16, 16))
    write_text(tmp_path / "broken.mp4")
    write_text(tmp_path / "notes.txt")
    with caplog.at_level(logging.WARNING, "adaptok_hf.data.folder_clips"):
        clips = VideoFolderClips([tmp_path], num_frames=6, image_size=16)
    assert [path.name for path in clips.paths] == ["long.mp4"]
    assert "(1 " in caplog.text and "broken.mp4" in caplog.text


def test_folders_without_videos_are_named(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty"):
        VideoFolderClips([*folders, tmp_path / "empty"], num_frames=6, image_size=16)
    with pytest.raises(ValueError, match="one: .*8"):
        VideoFolderClips(folders, num_frames=8, image_size=16)


def test_both_loaders_skip_count_and_name(tmp_path, caplog):
    """Files that a decoder meets with an exception of its own, that are cut, that are no files to read."""
    write_mp4(tmp_path / "good.mp4", frames=make_frames(8, 16, 16))
    (tmp_path / "bomb.gif").write_bytes(b"GIF89a\xff\xff\xff\xff" + bytes(40))
    animation = write_animation(tmp_path / "index.gif", make_frames(8, 16, 16)).read_bytes()
    (tmp_path / "index.gif").write_bytes(animation[: animation.rindex(b",") + 4])
    truncate(write_mp4(tmp_path / "cut.mp4", frames=make_frames(40, 16, 16), faststart=True), 0.9)
    (tmp_path / "empty.mp4").touch()
    bad = ["bomb.gif", "cut.mp4", "empty.mp4", "index.gif"]
    clips = VideoFolderClips([tmp_path], num_frames=6, image_size=16)
    assert [path.name for path in clips.paths] == ["good.mp4"]
    assert all(name in caplog.text for name in bad) and "(4 so far)" in caplog.text
    stream = ClipStream(video_folder(tmp_path), partial(first_window, clip_length=6), 16, num_epochs=1)
    assert [item["key"] for item in stream] == ["good.mp4"] and sorted(stream.skipped) == bad
