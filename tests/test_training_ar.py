"""Tokens of a data set and the generators trained on them, run as users run the scripts."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM
from video_files import make_frames, write_mp4

from adaptok_hf import AdapTokARForCausalLM, AdapTokConfig, AdapTokModel, AdapTokPipeline, AdapTokVideoProcessor

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "training_scripts"
RECIPE = {
    "model": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32},
    "max_train_steps": 5,
    "batch_size": 3,
    "warmup_steps": 1,
    "learning_rate": 0.01,
    "validation_steps": 5,
    "checkpointing_steps": 1,
    "logging_steps": 1,
}
FRAME_PREDICTION = {"num_classes": 0, "num_condition_codes": 32, "start_block": 1}


def environment() -> dict[str, str]:
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    return os.environ | variables


def run(script: str, *options, launcher: tuple[str, ...] = (), fails: bool = False) -> str:
    command = [sys.executable, *launcher, str(SCRIPTS / script), *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), timeout=300)
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr if fails else done.stdout


def metrics(folder: Path) -> dict[int, dict]:
    """The records of each step put together; of what was logged twice the later."""
    steps: dict[int, dict] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        record.pop("tokens_per_s", None)
        steps.setdefault(record["step"], {}).update(record)
    return steps


@dataclass
class Made:
    videos: Path
    pipeline: Path
    tokens: Path

    @property
    def tokenize_options(self) -> list:
        options = ["--videos", self.videos, "--model", self.pipeline, "--labels", "folder", "--window_step", 4]
        return [*options, "--budget", 8, "--num_condition_frames", 5, "--videos_per_shard", 2, "--batch_size", 3]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    """Two classes of two videos, one file that is no video, a tokenizer of random weights, and the tokens."""
    folder = tmp_path_factory.mktemp("tokens")
    for index, name in enumerate(("a_jump", "b_run")):
        (folder / "videos" / name).mkdir(parents=True)
        for i in range(2):
            frames = np.roll(make_frames(16 + 8 * i, 32, 32), 7 * i + 3 * index, axis=2)
            write_mp4(folder / "videos" / name / f"{i}.mp4", frames=frames)
    (folder / "videos" / "b_run" / "broken.mp4").write_bytes(b"not a video")
    torch.manual_seed(0)
    config = AdapTokConfig(
        image_size=32,
        hidden_size=32,
        num_attention_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        latents_per_block=16,
        codebook_size=40,
        codebook_dim=4,
    )
    processor = AdapTokVideoProcessor(image_size=32, num_frames=16, tubelet_size=4)
    AdapTokPipeline(processor, AdapTokModel(config)).save_pretrained(folder / "pipeline")
    made = Made(folder / "videos", folder / "pipeline", folder / "tokens")
    run("tokenize_dataset.py", *made.tokenize_options, "--output_dir", made.tokens)
    return made


@pytest.fixture(scope="module")
def recipes(made) -> dict[str, Path]:
    paths = {"class": made.tokens.parent / "ar.json", "frames": made.tokens.parent / "fp.json"}
    paths["class"].write_text(json.dumps(RECIPE))
    paths["frames"].write_text(json.dumps(RECIPE | {"model": RECIPE["model"] | FRAME_PREDICTION}))
    return paths


@pytest.fixture(scope="module")
def class_run(made, recipes) -> Path:
    """A class-conditional generator that was trained without interruption."""
    folder = made.tokens.parent / "class_run"
    options = ["--tokens", made.tokens, "--validation_tokens", made.tokens, "--output_dir", folder]
    launcher = ("-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1")
    run(
        "train_ar.py", recipes["class"], *options, launcher=(*launcher, "--mixed_precision", "no", "--dynamo_backend", "no")
    )
    return folder


def read(folder: Path) -> list[dict]:
    rows = load_dataset("parquet", data_files=sorted(map(str, folder.glob("*.parquet"))), split="train").to_list()
    return sorted(rows, key=lambda row: (row["source"], row["start"]))


def test_tokens_are_those_of_the_pipeline(made):
    rows = read(made.tokens)
    starts = {"0.mp4": [0], "1.mp4": [0, 4, 8]}
    expected = [(f"{name}/{file}", start) for name in ("a_jump", "b_run") for file in starts for start in starts[file]]
    assert [(row["source"], row["start"]) for row in rows] == expected
    assert [row["label"] for row in rows] == [0] * 4 + [1] * 4
    pipeline = AdapTokPipeline.from_pretrained(made.pipeline)
    clips = pipeline.video_processor.clips(made.videos / rows[2]["source"]).frames.flatten(0, 1)[4:20]
    tokens = pipeline.tokenize(clips, budget=8)
    assert rows[2]["start"] == 4 and rows[2]["codes"] == tokens.codes.flatten().tolist()
    assert rows[2]["token_counts"] == [8, 8, 8, 8]
    assert rows[2]["condition_codes"] == pipeline.tokenize_condition(clips[None], 5).flatten().tolist()
    description = json.loads((made.tokens / "dataset.json").read_text())
    assert description["class_names"] == ["a_jump", "b_run"] and description["model_hash"] == pipeline.model_hash


def test_finished_shards_stay_and_missing_ones_come_back(made, tmp_path):
    options = [*made.tokenize_options, "--output_dir", tmp_path / "tokens"]
    output = run("tokenize_dataset.py", *options)
    assert "1 videos left out" in output
    shards = sorted((tmp_path / "tokens").glob("*.parquet"))
    assert len(shards) == 3 and read(tmp_path / "tokens") == read(made.tokens)
    shards[1].unlink()
    times = [shard.stat().st_mtime_ns for shard in (shards[0], shards[2])]
    run("tokenize_dataset.py", *options)
    assert [shard.stat().st_mtime_ns for shard in (shards[0], shards[2])] == times
    assert read(tmp_path / "tokens") == read(made.tokens)
    error = run("tokenize_dataset.py", *options, "--budget", 4, fails=True)
    assert "holds tokens that were made otherwise" in error


def test_two_processes_make_the_same_tokens(made, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29541")
    output = run("tokenize_dataset.py", *made.tokenize_options, "--output_dir", tmp_path / "two", launcher=launcher)
    assert "process 0: 2 shards" in output and "process 1: 1 shards" in output
    assert read(tmp_path / "two") == read(made.tokens)


def test_class_run(class_run, made):
    records = metrics(class_run)
    assert sorted(records) == [1, 2, 3, 4, 5] and all(record["grad_norm"] > 0 for record in records.values())
    assert records[5]["val_loss"] < records[1]["loss"]  # of 40 codes: log(41) = 3.7 at the start
    model = AutoModelForCausalLM.from_pretrained(class_run / "model")
    assert type(model) is AdapTokARForCausalLM and model.config.id2label == {0: "a_jump", 1: "b_run"}
    base = AdapTokPipeline.from_pretrained(made.pipeline)
    pipeline = AdapTokPipeline(base.video_processor, base.tokenizer, None, model)
    output = pipeline.generate(["a_jump", "b_run"], budget=4)
    assert output.frames.shape == (2, 16, 32, 32, 3) and output.token_counts.sum((1, 2)).max() <= 16


def test_frame_prediction_run(made, recipes, tmp_path):
    run("train_ar.py", recipes["frames"], "--tokens", made.tokens, "--output_dir", tmp_path / "fp")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "fp" / "model")
    base = AdapTokPipeline.from_pretrained(made.pipeline)
    pipeline = AdapTokPipeline(base.video_processor, base.tokenizer, None, None, model)
    assert pipeline.predict(made.videos / "a_jump" / "1.mp4", budget=4).frames.shape == (1, 16, 32, 32, 3)


def test_a_killed_run_goes_on_exactly(class_run, made, recipes, tmp_path):
    folder = tmp_path / "interrupted"
    options = [recipes["class"], "--tokens", made.tokens, "--validation_tokens", made.tokens, "--output_dir", folder]
    process = subprocess.Popen(
        [sys.executable, SCRIPTS / "train_ar.py", *map(str, options)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
    )
    deadline = time.time() + 120
    while not (folder / "checkpoint").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and max(metrics(folder)) < 5
    assert "resumed at step" in run("train_ar.py", *options, "--resume_from_checkpoint", "latest")
    assert metrics(folder) == metrics(class_run)
    weights = [path / "model" / "model.safetensors" for path in (folder, class_run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_bad_input(made, recipes, tmp_path):
    error = run("train_ar.py", recipes["class"], "--tokens", tmp_path, "--output_dir", tmp_path / "out", fails=True)
    assert "holds no tokens" in error
    error = run(
        "train_ar.py", recipes["class"], "--tokens", made.tokens, "--output_dir", tmp_path, "--batch_size", 99, fails=True
    )
    assert "8 sequences do not fill a batch of 99" in error
    error = run("tokenize_dataset.py", "--videos", tmp_path, "--output_dir", tmp_path / "out", fails=True)
    assert "no videos below this folder" in error
