"""Tokens of a data set, made as users make them."""

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from builders.script_runs import kill_script, run_script
from builders.token_data import TokenData, make_token_data
from builders.video_files import make_frames, write_avi, write_mp4
from datasets import ClassLabel, Features, List, Value, load_dataset

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, AdapTokPipeline
from adaptok_hf.data import VideoFiles, VideoItem
from adaptok_hf.training.ar.token_rows import TokenRows, model_inputs
from adaptok_hf.training.ar.token_shards import Arguments
from adaptok_hf.training.ar.token_sources import MixedWindows, open_source
from adaptok_hf.training.recipes import parse_arguments


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> TokenData:
    return make_token_data(tmp_path_factory.mktemp("tokens"))


def read(folder: Path) -> list[dict]:
    rows = load_dataset("parquet", data_files=sorted(map(str, folder.glob("*.parquet"))), split="train").to_list()
    return sorted(rows, key=lambda row: (row["source"], row["start"]))


def test_tokens_are_those_of_the_pipeline(made):
    rows = read(made.tokens)
    starts = {"0.mp4": [0], "1.mp4": [0, 4, 8]}
    expected = [(f"{name}/{file}", start) for name in ("a_jump", "b_run") for file in starts for start in starts[file]]
    assert [(row["source"], row["start"]) for row in rows] == expected
    assert [row["label"] for row in rows] == [0] * 4 + [1] * 4
    # the budget of 8 per block is met in each of the batches: of 3, and of what a shard has left
    assert sum(sum(row["token_counts"]) for row in rows) == 8 * 4 * len(rows)
    assert len({tuple(row["token_counts"]) for row in rows}) > 1, "allocated"

    pipeline = AdapTokPipeline.from_pretrained(made.pipeline)
    clips = pipeline.video_processor.clips(made.videos / rows[2]["source"]).frames.flatten(0, 1)[4:20]
    assert rows[2]["start"] == 4 and rows[2]["codes"] == pipeline.tokenize(clips).codes[0].tolist()
    assert rows[2]["condition_codes"] == pipeline.tokenize_condition(clips[None], 5)[0].tolist()
    description = json.loads((made.tokens / "dataset.json").read_text())
    assert description["class_names"] == ["a_jump", "b_run"] and description["model_hash"] == pipeline.model_hash
    assert {row["config_hash"] for row in rows} == {description["hash"]}


def test_finished_shards_stay_and_missing_ones_come_back(made, tmp_path):
    options = ["--videos", made.videos, *made.options, "--output_dir", tmp_path / "tokens"]
    kill_script("tokenize_dataset.py", *options, once_there=tmp_path / "tokens" / "tokens-00000-of-00003.parquet")
    first = (tmp_path / "tokens" / "tokens-00000-of-00003.parquet").stat().st_mtime_ns
    card = tmp_path / "tokens" / "README.md"
    assert card.read_text() == (made.tokens / "README.md").read_text()
    card.write_text("edited")
    output = run_script("tokenize_dataset.py", *options)
    assert "1 videos left out" in output and "8 windows" in output
    shards = sorted((tmp_path / "tokens").glob("*.parquet"))
    assert len(shards) == 3 and read(tmp_path / "tokens") == read(made.tokens)
    assert shards[0].stat().st_mtime_ns == first and card.read_text() == "edited"
    assert not list((tmp_path / "tokens").glob(".*"))
    skipped = [json.loads(path.with_suffix(".json").read_text())["skipped"] for path in shards]
    assert [list(part) for part in skipped if part] == [["b_run/broken.mp4"]]

    shards[1].unlink()
    times = [shard.stat().st_mtime_ns for shard in (shards[0], shards[2])]
    assert "1 videos left out" in run_script("tokenize_dataset.py", *options)
    assert [shard.stat().st_mtime_ns for shard in (shards[0], shards[2])] == times
    assert read(tmp_path / "tokens") == read(made.tokens)
    error = run_script("tokenize_dataset.py", *options, "--budget", 4, fails=True)
    assert "dataset.json" in error


def test_earlier_folders_train_alike(made, tmp_path):
    """They have flat codes, plain labels and no card; and the classes of folders that are read together may differ."""
    columns = pq.read_table(made.tokens / "tokens-00000-of-00003.parquet").to_pydict()
    for name in ("codes", "condition_codes"):
        columns[name] = [np.ravel(codes) for codes in columns[name]]
    flat = List(Value("uint16"), length=64)
    features = {"codes": flat, "token_counts": List(Value("int32"), length=4), "label": Value("int32")}
    features |= {
        "source": Value("string"),
        "start": Value("int32"),
        "config_hash": Value("string"),
        "condition_codes": flat,
    }
    pq.write_table(pa.Table.from_pydict(columns, Features(features).arrow_schema), tmp_path / "0.parquet")
    (tmp_path / "new").mkdir()
    shutil.copy(made.tokens / "tokens-00000-of-00003.parquet", tmp_path / "new" / "0.parquet")
    sizes = {"codebook_size": 40, "num_blocks": 4, "latents_per_block": 16, "hidden_size": 8, "num_attention_heads": 1}
    for condition in ({"num_classes": 2}, {"num_classes": 0, "num_condition_codes": 20}):
        model = AdapTokARForCausalLM(AdapTokARConfig(num_hidden_layers=1, intermediate_size=8, **sizes, **condition))
        old, new = (
            model_inputs(model, next(iter(TokenRows([str(folder)]).validation_batches(4, 4, rank=0, world_size=1))))
            for folder in (tmp_path, tmp_path / "new")
        )
        assert all(torch.equal(old[name], new[name]) for name in ("input_ids", "labels"))

    (tmp_path / "other").mkdir()
    rows = load_dataset("parquet", data_files=str(tmp_path / "new" / "0.parquet"), split="train")
    rows.cast_column("label", ClassLabel(names=["x", "y", "z"])).to_parquet(tmp_path / "other" / "0.parquet")
    assert len(TokenRows([str(tmp_path / "new"), str(tmp_path / "other")])) == 2 * len(rows)


@pytest.mark.slow
def test_two_processes_make_the_same_tokens(made, tmp_path):
    options = ["--videos", made.videos, *made.options, "--output_dir", tmp_path / "two"]
    output = run_script("tokenize_dataset.py", *options, processes=2)
    assert "process 0: 2 shards" in output and "process 1: 1 shards" in output and "8 windows" in output
    assert read(tmp_path / "two") == read(made.tokens)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["--allocation", "ipal", "--budget", "50%"],
        ["--allocation", "bidelta", "--budget", "8"],
        ["--price", "0.01"],
        ["--allocation", "threshold", "--threshold", "0"],
        ["--allocation", "fixed", "--budget", "4"],
        [],
    ],
    ids=lambda options: options[1] if options else "all tokens",
)
def test_strategies(made, tmp_path, options):
    common = ["--videos", made.videos, "--model", made.pipeline, "--window_step", 8, "--output_dir", tmp_path]
    run_script("tokenize_dataset.py", *common, *options)
    counts = np.array([row["token_counts"] for row in read(tmp_path)])
    assert counts.min() >= (1 if "bidelta" in options else 4) and {row["label"] for row in read(tmp_path)} == {-1}
    mean = {"ipal": 8, "fixed": 4}.get(options[1] if options else "", None if options else 16)
    assert mean is None or counts.mean() == mean


def source_options(kind: str, folder: Path, videos: Path) -> list:
    """The same four videos as another kind of source."""
    if kind == "ucf101":
        for source in videos.glob("*/[01].mp4"):
            path = folder / "ucf" / source.parent.name / f"v_{source.stem}.avi"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_avi(path, frames=make_frames(16 + 8 * int(source.stem), 32, 32))
        (folder / "classInd.txt").write_text("1 b_run\n2 a_jump\n")
        lines = [f"{name}/v_{i}.avi {label}" for name, label in (("b_run", 1), ("a_jump", 2)) for i in range(2)]
        (folder / "trainlist01.txt").write_text("\n".join(lines))
        return ["--ucf101_folder", folder / "ucf", "--ucf101_splits", folder]
    if kind == "kinetics":
        (folder / "k600").mkdir()
        rows = ["label,youtube_id,time_start,time_end"]
        for source in sorted(videos.glob("*/[01].mp4")):
            name = f"{source.parent.name}_{source.stem}".rjust(11, "x")
            (folder / "k600" / f"{name}.mp4").write_bytes(source.read_bytes())
            rows.append(f"{source.parent.name},{name},0,10")
        (folder / "k600.csv").write_text("\n".join(rows))
        return ["--kinetics_folder", folder / "k600", "--kinetics_csv", folder / "k600.csv"]
    if kind == "hub":
        shutil.copytree(videos, folder / "hub", ignore=shutil.ignore_patterns("broken*"))
        return ["--hub_dataset", folder / "hub", "--hub_label_column", "label"]
    options = ["--folder", videos, "--output_folder", folder / "shards", "--short_side", 32, "--videos_per_shard", 3]
    run_script("write_shards.py", *options)
    return ["--shard_folder", folder / "shards"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ucf101", "kinetics", "shards", "hub"])
def test_sources(made, tmp_path, kind):
    options = source_options(kind, tmp_path, made.videos)
    common = ["--model", made.pipeline, "--window_step", 4, "--budget", 8, "--batch_size", 3]
    output = run_script("tokenize_dataset.py", *options, *common, "--output_dir", tmp_path / "tokens")
    assert "8 windows" in output and "0 videos left out" in output
    names = json.loads((tmp_path / "tokens" / "dataset.json").read_text())["class_names"]
    assert names == (["b_run", "a_jump"] if kind == "ucf101" else ["a_jump", "b_run"])
    rows = read(tmp_path / "tokens")
    assert len({(row["source"], row["start"]) for row in rows}) == 8
    if kind == "hub":  # which names no videos
        assert Counter(row["label"] for row in rows) == {0: 4, 1: 4}
    else:
        assert all(names[row["label"]] in row["source"] for row in rows)


def test_windows_of_several_videos_are_mixed(tmp_path):
    items = []
    for i, num_frames in enumerate((40, 40, 40, 20, 5)):
        write_mp4(tmp_path / f"{i}.mp4", frames=make_frames(num_frames, 16, 16))
        items.append(VideoItem(f"{i}", str(tmp_path / f"{i}.mp4"), i))

    def windows(videos_at_once: int, seed: int = 0):
        settings = {"clip_length": 8, "step": 4, "image_size": 16, "videos_at_once": videos_at_once}
        return MixedWindows(VideoFiles(items), seed=(seed, 0), **settings)

    def places(mixed) -> list[tuple[str, int]]:
        return [(window["key"], int(window["window"])) for window in mixed]

    mixed = windows(3)
    order = places(mixed)
    expected = [(str(i), start) for i, count in enumerate((9, 9, 9, 4)) for start in range(0, 4 * count, 4)]
    assert sorted(order) == sorted(expected) and mixed.num_videos == 5
    assert list(mixed.skipped) == ["4"] and "5 frames" in mixed.skipped["4"]
    assert len({key for key, _ in order[:8]}) == 3 and "3" not in {key for key, _ in order[:9]}  # three are open
    for key in "0123":  # within a video in order
        assert [start for k, start in order if k == key] == sorted(start for k, start in order if k == key)
    assert places(windows(1)) == expected
    assert places(windows(3)) == order != places(windows(3, seed=1))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--videos", "{empty}"], "{empty}"),
        (["--videos", "a", "--hub_dataset", "b"], "'videos', 'hub_dataset'"),
        ([], "none"),
        (["--ucf101_folder", "a"], "ucf101_splits"),
        (["--videos", "a", "--window_step", "0"], "window_step .* 0"),
        (["--videos", "a", "--split", "val-1"], "val-1"),
    ],
)
def test_bad_arguments(monkeypatch, tmp_path, options, message):
    options = [option.format(empty=tmp_path) for option in options]
    monkeypatch.setattr("sys.argv", ["tokenize_dataset.py", *options, "--output_dir", "out"])
    with pytest.raises(ValueError, match=message.format(empty=tmp_path)):
        open_source(parse_arguments(Arguments))


@pytest.fixture
def bad_videos(made, tmp_path) -> list:
    """Options for four files that are no videos."""
    for i in range(4):
        (tmp_path / f"bad{i}.mp4").write_bytes(b"not a video")
    return ["--videos", tmp_path, "--model", made.pipeline, "--output_dir", tmp_path / "out"]


def test_too_many_bad_videos_stop_it(bad_videos):
    error = run_script("tokenize_dataset.py", *bad_videos, "--max_skipped", 2, fails=True)
    assert "4 of 4 videos could not be used" in error and "bad3.mp4 (" in error


@pytest.mark.slow
def test_no_usable_video_at_all(bad_videos):
    assert "none of the videos could be used" in run_script("tokenize_dataset.py", *bad_videos, fails=True)
