import json
import tarfile
from functools import partial
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pytest
from builders.video_files import write_mp4, write_text
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value, Video
from torch.utils.data import DataLoader

from adaptok_hf.data import ClipStream, HubVideos, hub_videos, random_window

CHOOSE = partial(random_window, clip_length=4)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """8 videos of 5 to 12 frames; brightness is the video's number."""
    root = tmp_path_factory.mktemp("videos")
    return [
        write_mp4(root / f"{i}.mp4", frames=np.full((5 + i, 16, 16, 3), 20 + 25 * i, np.uint8)) for i in range(8)
    ]  # fmt: skip


def make_dataset(videos, num_shards=3, in_memory=False):
    rows = {
        "clip": [{"path": None, "bytes": v.read_bytes()} if in_memory else {"path": str(v), "bytes": None} for v in videos],
        "label": [i % 2 for i in range(len(videos))],
        "name": [v.stem for v in videos],
    }
    features = Features({"clip": Video(), "label": ClassLabel(names=["run", "jump"]), "name": Value("string")})
    return Dataset.from_dict(rows, features=features).to_iterable_dataset(num_shards=num_shards)


def make_stream(videos, **options):
    source = HubVideos(make_dataset(videos), label_column="label", key_column="name")
    return ClipStream(source, CHOOSE, 16, num_epochs=options.pop("num_epochs", 1), **options)


@pytest.mark.parametrize("in_memory", [False, True])
def test_items(videos, in_memory):
    source = HubVideos(make_dataset(videos, in_memory=in_memory), label_column="label", key_column="name")
    assert source.class_names == ["run", "jump"] and source.num_shards == 3
    items = list(ClipStream(source, CHOOSE, 16, num_epochs=1))
    assert sorted(item["key"] for item in items) == [v.stem for v in videos]
    for item in items:
        assert int(item["label"]) == int(item["key"]) % 2
        assert abs(float(item["pixel_values_videos"].float().mean()) - (20 + 25 * int(item["key"]))) < 3


@pytest.mark.parametrize("workers", [2, 4])
def test_workers_read_every_video_once(videos, workers):
    """4 workers share 3 shards. `datasets` would split among workers once more, if it were asked to iterate."""
    whole = {item["key"]: int(item["window"]) for item in make_stream(videos)}
    shared = list(DataLoader(make_stream(videos), batch_size=None, num_workers=workers))
    assert len(shared) == 8 and {item["key"]: int(item["window"]) for item in shared} == whole


def test_resuming(videos):
    expected = [(item["key"], int(item["window"])) for item in make_stream(videos, num_epochs=2)]
    assert expected[:8] != expected[8:]
    for cut in (0, 1, 3, 7, 8, 12):
        stream = make_stream(videos, num_epochs=2)
        list(islice(stream, cut))
        resumed = make_stream(videos, num_epochs=2)
        resumed.load_state_dict(stream.state_dict())
        assert [(item["key"], int(item["window"])) for item in resumed] == expected[cut:]


def test_bad_rows_are_skipped(videos, tmp_path):
    bad = write_text(tmp_path / "bad.mp4")
    stream = make_stream([*videos, bad])
    assert len(list(stream)) == 8 and "not a video" in stream.skipped["bad"]
    rows = {"clip": [{"path": str(videos[0]), "bytes": None}, None]}
    none = Dataset.from_dict(rows, features=Features({"clip": Video()})).to_iterable_dataset()
    stream = ClipStream(HubVideos(none), CHOOSE, 16, num_epochs=1, shuffle=False)
    assert [item["key"] for item in stream] == ["shard 0, video 0"]
    assert "the file is empty" in stream.skipped["shard 0, video 1"]


def test_columns(videos):
    named = make_dataset(videos).cast_column("label", Value("string"))
    assert [item.label for item in HubVideos(named, label_column="name").read_shard(0)] == [0, 1, 2]
    assert {item.label for item in HubVideos(named).read_shard(0)} == {-1}, "no classes"
    with pytest.raises(ValueError, match=r"'labels'.*'clip', 'label', 'name'"):
        HubVideos(named, label_column="labels")
    with pytest.raises(ValueError, match=r"\[\] of"):
        HubVideos(named.remove_columns("clip"))


def read_all(source: HubVideos) -> list[tuple[bytes, int]]:
    """The content and the label of each video."""
    items = [item for shard in range(source.num_shards) for item in source.read_shard(shard)]
    return [(item.video if isinstance(item.video, bytes) else Path(item.video).read_bytes(), item.label) for item in items]


KINDS = ["paths", "bytes", "large bytes", "records", "decoded", "not decoded"]


@pytest.mark.parametrize(("kind", "column"), zip(KINDS, ["video", "mp4", "file", "clip", "other", "video"], strict=True))
def test_columns_of_videos(videos, kind, column):
    """What data sets on the Hub call videos, and store as videos; no decoder is needed, and labels need not be named."""
    record = {"bytes": Value("binary"), "path": Value("string")}
    features = {"paths": Value("string"), "bytes": Value("binary"), "large bytes": Value("large_binary")}
    features |= {"records": record, "decoded": Video(), "not decoded": Video(decode=False)}
    contents = [video.read_bytes() for video in videos]
    values = {"paths": list(map(str, videos)), "bytes": contents, "large bytes": contents}
    values = values.get(kind, [{"bytes": content, "path": "x.mp4"} for content in contents])
    rows = Dataset.from_dict(
        {column: values, "action": [0, 1] * 4},
        features=Features({column: features[kind], "action": ClassLabel(names=["run", "jump"])}),
    )
    for dataset in (rows, rows.to_iterable_dataset(num_shards=2)):
        source = HubVideos(dataset)
        assert source.class_names == ["run", "jump"]
        assert read_all(source) == [(content, index % 2) for index, content in enumerate(contents)]
    assert len(list(ClipStream(HubVideos(rows), CHOOSE, 16, num_epochs=1))) == 8
    named = HubVideos(rows.rename_column(column, "recording"), video_column="recording")
    assert read_all(named) == read_all(source)


def test_columns_that_are_no_videos_or_classes(videos):
    rows = Dataset.from_dict({"video": ["a.mp4"], "mp4": ["a.mp4"], "action": ["run"]})
    with pytest.raises(ValueError, match=r"\['video', 'mp4'\] of"):
        HubVideos(rows)
    with pytest.raises(ValueError, match="action='run'.*class_encode_column"):
        read_all(HubVideos(rows, label_column="action", video_column="mp4"))
    with pytest.raises(ValueError, match=r"'train'"):
        HubVideos(DatasetDict({"train": rows}))


def test_tar_shards_stream_through_datasets(videos, tmp_path, monkeypatch):
    """What `write_shards.py` writes, read as from the Hub."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    for shard in range(2):
        with tarfile.open(tmp_path / f"shard-{shard}.tar", "w") as tar:
            for index in range(4 * shard, 4 * shard + 4):
                (tmp_path / "facts.json").write_text(json.dumps({"key": f"video {index}", "label": index}))
                tar.add(tmp_path / "facts.json", f"{index:06d}.json")
                tar.add(videos[index], f"{index:06d}.mp4")
    source = hub_videos(
        "webdataset", "train", data_files=str(tmp_path / "*.tar"), label_column="json.label", key_column="json.key"
    )
    assert source.num_shards == 2
    items = list(ClipStream(source, CHOOSE, 16, num_epochs=1))
    assert sorted((item["key"], int(item["label"])) for item in items) == [(f"video {i}", i) for i in range(8)]
