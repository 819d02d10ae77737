"""The training scripts as users run them: subprocesses, tiny recipes, a few steps."""

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
from transformers import AutoModel
from video_files import make_frames, write_mp4

from adaptok_hf import AdapTokModel, AdapTokPipeline, AdapTokScorerModel, AdapTokVideoProcessor

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "training_scripts"

TOKENIZER_RECIPE = {
    "train_folders": ["train"],
    "train_weights": [1.0],
    "val_folder": "val",
    "model": {
        "image_size": 32,
        "patch_size": 8,
        "hidden_size": 48,
        "num_attention_heads": 2,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "latents_per_block": 16,
        "codebook_size": 32,
        "codebook_dim": 4,
        "learned_encoder_patch_positions": True,
        "learned_decoder_latent_positions": True,
        "learned_decoder_patch_queries": True,
    },
    "transform_codec_initialization": True,
    "stages": [{"steps": 2, "num_blocks": 1, "batch_size": 4}, {"steps": 2, "num_blocks": 4, "batch_size": 2}],
    "warmup_steps": 1,
    "quantize_after": 1,
    "reseed_every": 1,
    "validation_steps": 2,
    "checkpointing_steps": 1,
    "logging_steps": 1,
}
SCORER_RECIPE = {
    "train_folders": ["train"],
    "train_weights": [1.0],
    "val_folder": "val",
    "model": {"score_step": 4, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
    "max_train_steps": 2,
    "batch_size": 2,
    "warmup_steps": 1,
    "statistics_batches": 2,
    "logging_steps": 1,
}


def command(script: str, recipe: Path, *options: str, launch: bool = False) -> list[str]:
    python = [sys.executable]
    if launch:
        python += ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
        python += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*python, str(SCRIPTS / script), str(recipe), *options]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}


def run(*arguments: str, **options) -> str:
    done = subprocess.run(command(*arguments, **options), capture_output=True, text=True, env=environment(), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def metrics(run_folder: Path) -> dict[int, dict]:
    """The records of each step put together; of what was logged twice the later."""
    steps: dict[int, dict] = {}
    for line in (run_folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        record.pop("clips_per_s", None)
        steps.setdefault(record["step"], {}).update(record)
    return steps


@dataclass
class Trained:
    data: Path
    recipe: Path
    run: Path

    @property
    def options(self) -> list[str]:
        return ["--data_root", str(self.data)]


@pytest.fixture(scope="module")
def tokenizer_run(tmp_path_factory) -> Trained:
    """A tokenizer that was trained without interruption."""
    folder = tmp_path_factory.mktemp("training")
    for split, count in (("train", 4), ("val", 2)):
        (folder / split).mkdir()
        for i in range(count):
            frames = make_frames(16 + 2 * i, 32, 40)
            write_mp4(folder / split / f"{i}.mp4", frames=np.roll(frames, 7 * i, axis=2 - i % 2))
    recipe = folder / "tokenizer.json"
    recipe.write_text(json.dumps(TOKENIZER_RECIPE))
    trained = Trained(folder, recipe, folder / "uninterrupted")
    run("train_tokenizer.py", recipe, *trained.options, "--output_dir", str(trained.run), launch=True)
    return trained


def test_tokenizer_run(tokenizer_run):
    folder = tokenizer_run.run
    assert {"model", "checkpoint", "recipe.json", "metrics.jsonl"} == {path.name for path in folder.iterdir()}
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["stages"] == TOKENIZER_RECIPE["stages"] and recipe["learning_rate"] == 1e-3
    records = metrics(folder)
    assert sorted(records) == [1, 2, 3, 4]
    assert records[1]["codes_used"] == 0 < records[2]["codes_used"]  # the quantiser comes after one step
    assert all(0 < record["l1"] < 1 and record["grad_norm"] > 0 for record in records.values())
    assert all(0 < records[step][f"psnr_{part}"] < 60 for step in (2, 4) for part in ("1/16", "1/4", "full"))
    model = AutoModel.from_pretrained(folder / "model")
    assert type(model) is AdapTokModel and model.config.num_blocks == 4


def test_scorer_run_and_pipeline(tokenizer_run, tmp_path):
    recipe = tmp_path / "scorer.json"
    recipe.write_text(json.dumps(SCORER_RECIPE))
    tokenizer = tokenizer_run.run / "model"
    options = ["--tokenizer", str(tokenizer), "--output_dir", str(tmp_path / "scorer")]
    run("train_scorer.py", recipe, *tokenizer_run.options, *options)
    records = metrics(tmp_path / "scorer")
    assert sorted(records) == [1, 2] and all(record["loss"] > 0 for record in records.values())
    assert 0 < records[2]["val_rmse"] < 1
    assert -1 <= records[2]["rank_correlation_across_levels"] <= 1

    scorer = AutoModel.from_pretrained(tmp_path / "scorer" / "model")
    assert type(scorer) is AdapTokScorerModel and scorer.config.num_levels == 4
    assert 0 < scorer.config.score_mean < 1 and 0 < scorer.config.score_std < 1  # of the measured losses
    processor = AdapTokVideoProcessor(image_size=32, num_frames=16, tubelet_size=4)
    pipeline = AdapTokPipeline(processor, AutoModel.from_pretrained(tokenizer), scorer)
    output = pipeline.reconstruct(tokenizer_run.data / "val" / "0.mp4", budget=8)
    assert output.tokens.num_tokens == 32 and output.frames.shape == (16, 32, 32, 3)


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(tokenizer_run, tmp_path):
    folder = tmp_path / "interrupted"
    arguments = ["train_tokenizer.py", tokenizer_run.recipe, *tokenizer_run.options, "--output_dir", str(folder)]
    process = subprocess.Popen(
        command(*arguments), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment(), start_new_session=True
    )
    deadline = time.time() + 120
    while not (folder / "checkpoint").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and max(metrics(folder)) < 4
    if (folder / "checkpoint").exists():  # as if the kill had come between the renames
        os.replace(folder / "checkpoint", folder / "checkpoint.old")

    output = run(*arguments, "--resume_from_checkpoint", "latest")
    assert "resumed at step" in output
    assert metrics(folder) == metrics(tokenizer_run.run)
    weights = [path / "model" / "model.safetensors" for path in (folder, tokenizer_run.run)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.fixture
def parse_arguments(monkeypatch):
    """`parse_arguments` with a command line."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    from recipe_arguments import parse_arguments
    from train_scorer import Arguments

    def parse(*argv: str):
        monkeypatch.setattr(sys, "argv", ["train_scorer.py", *map(str, argv)])
        return parse_arguments(Arguments)

    return parse


def test_options_override_the_recipe(parse_arguments, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(SCORER_RECIPE))
    required = ["--data_root", "data", "--tokenizer", "model", "--output_dir", "out"]
    arguments = parse_arguments(tmp_path / "recipe.json", *required, "--batch_size", "7")
    assert (arguments.batch_size, arguments.max_train_steps, arguments.learning_rate) == (7, 2, 1e-3)
    assert arguments.model == SCORER_RECIPE["model"] and arguments.data_root == "data"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"batch_sise": 3}, r"unknown entries \['batch_sise'\]"),
        ({"target": "psnr"}, "target must be 'rmse' or 'l1', got 'psnr'"),
        ({"train_weights": [0.5, 0.5]}, "1 train_folders but 2 train_weights"),
        ({"resume_from_checkpoint": "step-3"}, "must be 'latest', got 'step-3'"),
    ],
)
def test_bad_recipes_are_named(parse_arguments, tmp_path, entries, message):
    (tmp_path / "recipe.json").write_text(json.dumps(SCORER_RECIPE | entries))
    with pytest.raises(ValueError, match=message):
        parse_arguments(tmp_path / "recipe.json", "--data_root", "d", "--tokenizer", "m", "--output_dir", "o")


def test_shipped_recipes_fit_their_scripts(monkeypatch):
    import dataclasses
    import importlib

    monkeypatch.syspath_prepend(str(SCRIPTS))
    recipes = sorted((SCRIPTS / "recipes").glob("*.json"))
    assert recipes
    for recipe in recipes:
        part = recipe.name.split("_")[0]
        script = importlib.import_module("train_" + {"fp": "ar"}.get(part, part))
        known = {field.name for field in dataclasses.fields(script.Arguments)}
        assert set(json.loads(recipe.read_text())) <= known, recipe.name
