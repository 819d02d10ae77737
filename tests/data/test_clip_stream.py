import json
import logging
import os
import subprocess
import sys
from collections import Counter
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.video_files import (
    corrupt,
    make_frames,
    truncate,
    write_animation,
    write_audio_only,
    write_avi,
    write_empty,
    write_mp4,
    write_text,
    write_webm,
)
from torch.utils.data import DataLoader

from adaptok_hf.data import (
    ClipStream,
    TooManySkippedVideos,
    VideoFiles,
    VideoItem,
    all_windows,
    first_window,
    random_window,
    video_folder,
)
from adaptok_hf.data import clip_stream as clip_stream_module
from adaptok_hf.data.clip_reader import EndedEarly, probe_video, read_clips

LENGTHS = [6, 9, 7, 12, 6, 8, 15, 7, 10, 6, 9, 11, 6]
RANDOM = partial(random_window, clip_length=6)
FIRST_SIX = partial(first_window, clip_length=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """13 videos of 16x20 pixels in 2 classes; green is the video's number, red the frame's. Lossless."""
    root = tmp_path_factory.mktemp("videos")
    for index, length in enumerate(LENGTHS):
        frames = make_frames(length, 16, 20)
        frames[..., 0] = 15 * np.arange(length)[:, None, None]
        frames[..., 1] = 10 * index
        path = root / ("even", "odd")[index % 2] / f"{index:02d}.webp"
        path.parent.mkdir(exist_ok=True)
        write_animation(path, frames)
    return root


def make_stream(folder, choose=RANDOM, **options):
    options = {"flip_at_random": True, "seed": 5} | options
    return ClipStream(video_folder(folder), choose, 16, **options)


def assert_same_items(items, expected):
    assert len(items) == len(expected)
    for a, b in zip(items, expected, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            assert torch.equal(a[name], b[name]) if isinstance(a[name], torch.Tensor) else a[name] == b[name], name


def test_items(folder):
    items = list(make_stream(folder, num_epochs=1))
    assert len(items) == 13
    for item in items:
        index, start = int(item["key"][-7:-5]), int(item["window"])
        clip = item["pixel_values_videos"]
        assert clip.shape == (6, 3, 16, 16) and clip.dtype == torch.uint8 and clip.is_contiguous()
        assert (clip[:, 1] == 10 * index).all()
        assert torch.equal(clip[:, 0], (15 * torch.arange(start, start + 6)).byte()[:, None, None].expand(6, 16, 16))
        assert 0 <= start <= LENGTHS[index] - 6
        assert item["label"].dtype == item["window"].dtype == torch.long and int(item["label"]) == index % 2
        assert item["key"] == f"{('even', 'odd')[index % 2]}/{index:02d}.webp"
        assert item["fps"] == pytest.approx(25) and item["timestamps"].dtype == torch.float64
        torch.testing.assert_close(item["timestamps"], 0.04 * torch.arange(start, start + 6, dtype=torch.float64))


def test_epochs_are_shuffled_by_seed_and_epoch(folder):
    stream = make_stream(folder)
    endless = list(islice(stream, 39))
    orders = [[item["key"] for item in endless[i : i + 13]] for i in (0, 13, 26)]
    assert all(sorted(order) == [item.key for item in stream.source.items] for order in orders)
    assert len({tuple(order) for order in orders}) == 3
    windows = [{item["key"]: int(item["window"]) for item in endless[i : i + 13]} for i in (0, 13)]
    assert windows[0] != windows[1]

    assert_same_items(list(islice(make_stream(folder), 13)), endless[:13])
    other = [item["key"] for item in islice(make_stream(folder, seed=6), 13)]
    assert other != orders[0]
    in_order = [item["key"] for item in make_stream(folder, shuffle=False, num_epochs=1)]
    assert in_order == [item.key for item in stream.source.items]


def test_each_iteration_begins_with_the_same_epoch(folder):
    stream = make_stream(folder, num_epochs=1)
    assert_same_items(list(stream), list(stream))


def test_half_of_the_clips_are_flipped(folder):
    still = {item["key"]: item for item in make_stream(folder, FIRST_SIX, num_epochs=1, flip_at_random=False)}
    blue = {key: item["pixel_values_videos"][0, 2] for key, item in still.items()}
    flips = [
        torch.equal(item["pixel_values_videos"][0, 2], blue[item["key"]].flip(-1))
        for item in make_stream(folder, FIRST_SIX, num_epochs=1)
    ]
    assert 2 <= sum(flips) <= 11


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_workers_read_every_video_once(folder, workers):
    whole = {item["key"]: item for item in make_stream(folder, num_epochs=1)}
    loader = DataLoader(make_stream(folder, num_epochs=1), batch_size=None, num_workers=workers)
    shared = list(loader)
    assert sorted(item["key"] for item in shared) == sorted(whole)
    # windows, crops and flips do not depend on who reads
    assert_same_items(shared, [whole[item["key"]] for item in shared])


def test_more_workers_than_videos(folder, tmp_path):
    (tmp_path / "two").mkdir()
    for index in range(2):
        os.link(folder / "even" / f"{2 * index:02d}.webp", tmp_path / "two" / f"{index}.webp")
    stream = make_stream(tmp_path, num_epochs=1)
    assert sorted(item["key"] for item in DataLoader(stream, batch_size=None, num_workers=3)) == [
        "two/0.webp",
        "two/1.webp",
    ]
    with pytest.raises(TooManySkippedVideos, match="1 of 3"):
        list(islice(make_stream(tmp_path, rank=1, world_size=3), 1))


@pytest.mark.parametrize("workers", [0, 2])
def test_global_batches_do_not_depend_on_the_number_of_processes(folder, workers):
    """The videos of the first steps are the same for 1 process with batch 4 and 2 processes with batch 2."""
    steps = {}
    for world_size in (1, 2):
        ranks = []
        for rank in range(world_size):
            loader = DataLoader(
                make_stream(folder, rank=rank, world_size=world_size), batch_size=4 // world_size, num_workers=workers
            )
            ranks.append([batch["key"] for batch in islice(loader, 3 if workers == 0 else 2)])
        steps[world_size] = [sorted(sum(parts, [])) for parts in zip(*ranks, strict=True)]
    assert steps[1] == steps[2]


def test_the_share_is_that_of_the_process(folder, monkeypatch):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    keys = [item["key"] for item in make_stream(folder, num_epochs=1)]
    assert keys == [item["key"] for item in make_stream(folder, num_epochs=1, rank=1, world_size=3)] and len(keys) == 4


RANK_SCRIPT = """
import json, sys
from functools import partial
import torch
from torch.utils.data import DataLoader
from adaptok_hf.data import ClipStream, random_window, video_folder

torch.distributed.init_process_group("gloo", init_method=sys.argv[2], rank=int(sys.argv[3]), world_size=2)
stream = ClipStream(video_folder(sys.argv[1]), partial(random_window, clip_length=6), 16, num_epochs=2)
assert stream.world_size == 2 and stream.rank == torch.distributed.get_rank()
items = [(item["key"], int(item["window"])) for item in DataLoader(stream, batch_size=None, num_workers=2)]
gathered = [None, None]
torch.distributed.all_gather_object(gathered, items)
if stream.rank == 0:
    print(json.dumps(gathered))
torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_with_two_workers_read_every_video_once(folder, tmp_path):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    store = f"file://{tmp_path / 'store'}"
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_SCRIPT, str(folder), store, str(rank)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=600) for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0], outputs
    shares = json.loads(outputs[0][0])
    assert len(shares) == 2 and all(len(share) in (12, 13, 14) for share in shares)
    counts = Counter(key for share in shares for key, _ in share)
    assert counts == {item.key: 2 for item in video_folder(folder).items}
    alone = ClipStream(video_folder(folder), RANDOM, 16, num_epochs=2)
    windows = [(item["key"], int(item["window"])) for item in alone]
    assert Counter(map(tuple, sum(shares, []))) == Counter(windows)


@pytest.mark.parametrize("choose", [RANDOM, partial(all_windows, clip_length=6, step=2)], ids=["one clip", "several clips"])
def test_resuming_gives_the_next_items(folder, choose):
    expected = list(make_stream(folder, choose, num_epochs=2))
    assert len(expected) == 2 * (13 if choose is RANDOM else sum((n - 6) // 2 + 1 for n in LENGTHS))
    stream, states = make_stream(folder, choose, num_epochs=2), []
    states.append(stream.state_dict())
    for _ in stream:
        states.append(json.loads(json.dumps(stream.state_dict())))
    for cut in [0, 1, 5, 12, 13, 14, 20, len(expected) - 1, len(expected)]:
        resumed = make_stream(folder, choose, num_epochs=2)
        resumed.load_state_dict(states[cut])
        assert resumed.state_dict() == states[cut]
        assert_same_items(list(resumed), expected[cut:])
    # the iteration after a resumed one starts from the beginning
    assert_same_items(list(islice(resumed, 3)), expected[:3])


def test_a_video_that_is_done_is_not_read_again(folder, monkeypatch):
    stream = make_stream(folder, num_epochs=1)
    expected = [item["key"] for item in stream]
    probed = []
    monkeypatch.setattr(clip_stream_module, "probe_video", lambda video: probed.append(video) or probe_video(video))
    iterator = iter(stream)
    for _ in range(4):
        next(iterator)
    resumed = make_stream(folder, num_epochs=1)
    resumed.load_state_dict(stream.state_dict())
    probed.clear()
    assert [item["key"] for item in resumed] == expected[4:]
    assert [os.path.relpath(path, folder) for path in probed] == expected[4:]


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_through_a_stateful_loader(folder, workers):
    stateful = pytest.importorskip("torchdata.stateful_dataloader").StatefulDataLoader

    def make_loader():
        return stateful(make_stream(folder), batch_size=2, num_workers=workers)

    batches = list(islice(make_loader(), 16))
    for cut in (1, 4, 9):  # 9 is in the second epoch
        loader = make_loader()
        for _ in islice(loader, cut):
            pass
        state = loader.state_dict()
        resumed = make_loader()
        resumed.load_state_dict(state)
        assert_same_items(list(islice(resumed, 6)), batches[cut : cut + 6])


def test_states_of_other_streams(folder):
    state = make_stream(folder).state_dict()
    for options, name in (({"seed": 6}, "seed"), ({"rank": 1, "world_size": 2}, "rank"), ({"shuffle": False}, "shuffle")):
        with pytest.raises(ValueError, match=name):
            make_stream(folder, **options).load_state_dict(state)
    with pytest.raises(ValueError, match="num_shards.*13.* 7"):
        make_stream(folder / "even").load_state_dict(state)


@pytest.fixture
def mixed(tmp_path):
    """4 good files and 6 that are of no use."""
    frames = make_frames(8, 32, 40)
    write_mp4(tmp_path / "good1.mp4", frames=frames)
    write_webm(tmp_path / "good2.webm", frames=frames)
    write_avi(tmp_path / "good3.avi", frames=frames)
    write_animation(tmp_path / "good4.gif", frames)
    write_mp4(tmp_path / "one_frame.mp4", frames=frames[:1])
    write_empty(tmp_path / "empty.mp4")
    write_audio_only(tmp_path / "sound.mp4")
    write_text(tmp_path / "text.mp4")
    truncate(write_mp4(tmp_path / "cut.mp4", frames=frames), 0.5)
    corrupt(write_mp4(tmp_path / "corrupt.mp4", frames=make_frames(60, 64, 64), faststart=True), 0.15, 100_000)
    return tmp_path


REASONS = {
    "one_frame.mp4": "1 frames, but a clip of 8 frames",
    "empty.mp4": "the file is empty",
    "sound.mp4": "no video stream",
    "text.mp4": "not a video",
    "cut.mp4": "damaged or truncated",
    "corrupt.mp4": "damaged or truncated",
}
FIRST = partial(first_window, clip_length=8)


@pytest.mark.parametrize("choose", [partial(random_window, clip_length=8), FIRST])
def test_bad_files_are_skipped_counted_and_named(mixed, caplog, choose):
    stream = ClipStream(video_folder(mixed), choose, 16, num_epochs=2)
    with caplog.at_level(logging.WARNING, "adaptok_hf.data.clip_stream"):
        items = list(stream)
    assert Counter(item["key"] for item in items) == dict.fromkeys(("good1.mp4", "good2.webm", "good3.avi", "good4.gif"), 2)
    assert stream.skipped.keys() == REASONS.keys()
    for key, reason in REASONS.items():
        assert reason in stream.skipped[key]
        assert f"skipped {key} (" in caplog.text
    state = stream.state_dict()
    assert (state["seen"], state["skipped"]) == (0, 0) and state["epoch"] == 2  # counted per epoch


def test_resuming_among_bad_files(mixed):
    def make():
        return ClipStream(video_folder(mixed), FIRST, 16, seed=2)

    expected = list(islice(make(), 12))
    for cut in (0, 1, 3, 6):
        stream = make()
        list(islice(stream, cut))
        resumed = make()
        resumed.load_state_dict(stream.state_dict())
        assert_same_items(list(islice(resumed, 4)), expected[cut : cut + 4])


def test_too_many_bad_files_stop(mixed):
    def read(**options):
        return len(list(ClipStream(video_folder(mixed), FIRST, 16, num_epochs=1, **options)))

    assert read(max_skipped=6, max_skipped_share=0) == 4
    assert read(max_skipped=0, max_skipped_share=1) == 4
    with pytest.raises(TooManySkippedVideos, match=r"6 of \d+ .*20.0%.*\.mp4 \("):
        read(max_skipped=5, max_skipped_share=0.2)
    bad_only = VideoFiles(item for item in video_folder(mixed).items if item.key in REASONS)
    with pytest.raises(TooManySkippedVideos, match="of 6 .* 6 were skipped"):
        list(ClipStream(bad_only, FIRST, 16))
    assert list(ClipStream(bad_only, FIRST, 16, num_epochs=1)) == []
    gone = VideoFiles([VideoItem("gone", str(mixed / "gone.mp4"))])
    with pytest.raises(TooManySkippedVideos, match="no such file"):
        list(ClipStream(gone, FIRST, 16, max_skipped=0, max_skipped_share=0))


@pytest.mark.slow  # the workers take 5 s each to end
def test_too_many_bad_files_stop_a_loader(mixed):
    stream = ClipStream(video_folder(mixed), FIRST, 16, max_skipped=0, max_skipped_share=0.1)
    with pytest.raises(TooManySkippedVideos, match="max_skipped"):
        list(DataLoader(stream, batch_size=2, num_workers=2))


def test_nothing_after_the_window_is_read(tmp_path):
    """A file with damage after the window gives its first frames; the whole of it is an error."""
    path = corrupt(write_mp4(tmp_path / "cut.mp4", frames=make_frames(120, 64, 64), faststart=True), 0.7)
    stream = ClipStream(video_folder(tmp_path), FIRST, 64, num_epochs=1)
    assert [item["key"] for item in stream] == [path.name] and not stream.skipped
    stream = ClipStream(video_folder(tmp_path), partial(first_window, clip_length=120), 64, num_epochs=1)
    assert list(stream) == [] and "damaged or truncated" in stream.skipped["cut.mp4"]


def test_a_file_that_was_cut_is_skipped_whole(tmp_path):
    truncate(write_mp4(tmp_path / "cut.mp4", frames=make_frames(120, 64, 64), faststart=True), 0.9)
    stream = ClipStream(video_folder(tmp_path), FIRST, 64, num_epochs=1)
    assert list(stream) == [] and "of 120" in stream.skipped["cut.mp4"]


@pytest.mark.parametrize("writer", [write_mp4, write_webm, write_avi, write_animation])
def test_frames_are_counted_without_decoding(tmp_path, writer):
    suffix = {write_mp4: ".mp4", write_webm: ".webm", write_avi: ".avi", write_animation: ".gif"}[writer]
    path = writer(tmp_path / f"video{suffix}", frames=make_frames(37, 16, 16))
    assert probe_video(str(path)) == probe_video(path.read_bytes())
    count, fps = probe_video(str(path))
    assert count == 37 and (fps is None if suffix == ".gif" else fps == pytest.approx(24))


@pytest.mark.parametrize("choose", [partial(random_window, clip_length=4), partial(all_windows, clip_length=4, step=1)])
def test_videos_with_fewer_frames_than_promised(folder, monkeypatch, choose):
    def promise_more(video):
        count, fps = probe_video(video)
        return count + 20, fps

    honest = list(make_stream(folder, choose, num_epochs=1))
    monkeypatch.setattr(clip_stream_module, "probe_video", promise_more)
    promised = list(make_stream(folder, choose, num_epochs=1))
    assert len(promised) == len(honest)
    for item, index in ((item, int(item["key"][-7:-5])) for item in promised):
        assert int(item["window"]) <= LENGTHS[index] - 4
    if choose.func is all_windows:
        assert_same_items(promised, honest)


def test_windows_that_do_not_fit_are_refused(folder):
    stream = make_stream(folder, lambda num_frames, rng: [range(5, 5 + num_frames)], num_epochs=1, max_skipped=20)
    assert list(stream) == [] and len(stream.skipped) == 13
    assert all("windows" in reason for reason in stream.skipped.values())


def test_clips_of_overlapping_and_strided_windows(folder):
    path = folder / "even" / "06.webp"  # 15 frames
    windows = [range(0, 7, 2), range(1, 8, 2), range(4, 11, 2), range(8, 15, 2)]
    clips = list(read_clips(path, windows))
    for window, clip in zip(windows, clips, strict=True):
        assert (clip.frames[:, 0, 0, 0] == 15 * np.array(window)).all() and clip.start == window.start
        assert clip.fps == pytest.approx(12.5)
        np.testing.assert_allclose(clip.timestamps, 0.04 * np.array(window))
    with pytest.raises(EndedEarly) as ended:
        list(read_clips(path, [range(0, 4), range(12, 16)]))
    assert ended.value.num_frames == 15


def test_frame_rates_and_timestamps(tmp_path):
    frames = make_frames(8, 16, 16)
    write_webm(tmp_path / "rounded.webm", frames=frames)  # timestamps in whole milliseconds
    write_mp4(tmp_path / "variable.mp4", frames=frames, pts=[0, 1, 2, 3, 10, 11, 12, 20])
    items = {item["key"]: item for item in ClipStream(video_folder(tmp_path), FIRST, 16, num_epochs=1)}
    assert float(items["rounded.webm"]["fps"]) == 24
    assert float(items["variable.mp4"]["fps"]) == pytest.approx(7 * 24 / 20)
    expected = torch.tensor([0, 1, 2, 3, 10, 11, 12, 20], dtype=torch.float64) / 24
    torch.testing.assert_close(items["variable.mp4"]["timestamps"], expected)


def test_impossible_arguments(folder):
    for options, message in (
        ({"seed": -1}, "seed.*-1"),
        ({"rank": 2, "world_size": 2}, "rank.*1, got 2"),
    ):
        with pytest.raises(ValueError, match=message):
            make_stream(folder, **options)
    with pytest.raises(ValueError, match="no videos"):
        ClipStream(VideoFiles([]), FIRST, 16)
