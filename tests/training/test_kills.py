"""Kills at random moments: what is run again ends with the results of a run that nobody killed, and with nothing else.

`ADAPTOK_KILLS_SEED` gives other moments than the default, 0.
"""

import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from builders.scorer_recipe import RECIPE, make_tokenizer
from builders.script_runs import kill_script_after, metrics, run_script
from builders.token_data import make_token_data
from builders.video_files import make_frames, write_mp4
from datasets import load_dataset

from adaptok_hf import TokenizedVideo, read_video

SEED = int(os.environ.get("ADAPTOK_KILLS_SEED", "0"))
TRAINING = {"steps": 8, "checkpointing_steps": 1, "validation_steps": 2, "logging_steps": 1, "warmup_steps": 1}
TRAINING |= {"ema_decay": 0.5}
SIZES = {"hidden_size": 16, "num_attention_heads": 2}
TOKENIZER = {
    "train_folders": ["train"],
    "train_weights": [1.0],
    "val_folder": "val",
    "model": SIZES
    | {"image_size": 16, "patch_size": 8, "num_encoder_layers": 1, "num_decoder_layers": 1, "latents_per_block": 4}
    | {"codebook_size": 32, "codebook_dim": 4},
    "stages": [{"steps": 8, "num_blocks": 2, "batch_size": 2}],
    "reseed_every": 1,
    "adversarial_weight": 0.1,
    "adversarial_start_step": 1,
    "discriminator": SIZES | {"num_hidden_layers": 1},
    "prior_weight": 0.06,
    "prior": SIZES | {"num_hidden_layers": 1},
}
AR = {"model": SIZES | {"num_hidden_layers": 1, "intermediate_size": 32}, "batch_size": 3, "learning_rate": 0.01}


@dataclass
class Job:
    """A command without its output, the option that names that, and what shall be equal."""

    script: str
    options: list
    kills: int
    results: Callable[[Path], object]
    output: str = "--output_dir"


def trained(folder: Path) -> object:
    models = {path.parent.name: path.read_bytes() for path in sorted(folder.glob("model*/model.safetensors"))}
    assert len(models) == 2
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    # no step is logged twice, and no line is a half one
    return metrics(folder), [json.loads(line)["step"] for line in lines], models


def token_rows(folder: Path) -> object:
    return load_dataset("parquet", data_files=sorted(map(str, folder.glob("*.parquet"))), split="train").to_list()


def evaluated(folder: Path) -> object:
    report = json.loads((folder / "results.json").read_text())
    return {name: [line["metrics"] for line in report["results"]] if name == "results" else None for name in report}


def reconstructed(folder: Path) -> object:
    report = json.loads((folder / "report.json").read_text())
    videos = [read_video(folder / name).frames for name in ("reconstruction.mp4", "side_by_side.mp4")]
    return report["token_counts"], report["psnr_db"], [video.tobytes() for video in videos]


def tokens_file(path: Path) -> object:
    tokens = TokenizedVideo.load(path)
    return tokens.codes.tolist(), tokens.token_counts.tolist()


@pytest.fixture(scope="module")
def jobs(tmp_path_factory) -> dict[str, Job]:
    folder = tmp_path_factory.mktemp("kills")
    for split, count in (("train", 3), ("val", 2)):
        (folder / split).mkdir()
        for i in range(count):
            frames = np.roll(make_frames(16 + 2 * i, 16, 24), 7 * i, axis=2)
            write_mp4(folder / split / f"{i}.mp4", frames=frames)
    make_tokenizer().save_pretrained(folder / "tokenizer")
    data = make_token_data(folder / "data")
    cli = folder / "adaptok.py"
    cli.write_text("import sys\nfrom adaptok_hf.cli.main import main\nsys.exit(main())\n")
    model = ["--model", data.pipeline]
    recipes = {"tokenizer": {**TRAINING, **TOKENIZER}, "scorer": RECIPE | TRAINING, "ar": TRAINING | AR}
    recipes["tokenizer"].pop("steps")
    for name, recipe in recipes.items():
        (folder / f"{name}.json").write_text(json.dumps(recipe))
    train = ["--resume_from_checkpoint", "latest"]
    videos = ["--data_root", folder]
    evaluate = ["evaluate", "reconstruction", folder / "train", *model, "--lpips", "none", "--no-fvd", "--no-plots"]
    evaluate += ["--budgets", "8", "--strategies", "fixed", "joint", "--device", "cpu"]
    one = [folder / "train" / "2.mp4", *model, "--budget", "8", "--overwrite"]
    return {
        "train_tokenizer": Job("train_tokenizer.py", [folder / "tokenizer.json", *videos, *train], 10, trained),
        "train_scorer": Job(
            "train_scorer.py",
            [folder / "scorer.json", *videos, "--tokenizer", folder / "tokenizer", *train],
            8,
            trained,
        ),
        "train_ar": Job("train_ar.py", [folder / "ar.json", "--tokens", data.tokens, *train], 8, trained),
        "tokenize_dataset": Job("tokenize_dataset.py", ["--videos", data.videos, *data.options], 8, token_rows),
        "evaluate": Job(str(cli), evaluate, 6, evaluated, "-o"),
        "reconstruct": Job(str(cli), ["reconstruct", *one], 6, reconstructed, "-o"),
        "tokenize": Job(str(cli), ["tokenize", *one], 4, tokens_file, "-o"),
    }


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


NAMES = ["train_tokenizer", "train_scorer", "train_ar", "tokenize_dataset", "evaluate", "reconstruct", "tokenize"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_kills(jobs, tmp_path, name):
    job, moments = jobs[name], random.Random(f"{name} {SEED}")
    output = "a.safetensors" if name == "tokenize" else "out"
    for part in ("whole", "timed", "killed"):
        (tmp_path / part).mkdir()
    whole = tmp_path / "whole" / output
    run_script(job.script, *job.options, job.output, whole)  # the first one imports
    begin = time.monotonic()
    run_script(job.script, *job.options, job.output, tmp_path / "timed" / output)
    seconds = time.monotonic() - begin

    done = 0
    for attempt in range(10 * job.kills):  # a run that ends before it is killed does not count
        if done == job.kills:
            break
        killed = tmp_path / "killed" / output
        done += kill_script_after(job.script, *job.options, job.output, killed, seconds=moments.uniform(0, seconds))
        if moments.random() < 0.3:  # now and then all is done, and checked
            run_script(job.script, *job.options, job.output, killed)
            check(job, tmp_path / "killed", tmp_path / "whole", output)
            (tmp_path / "killed").rename(tmp_path / f"checked-{attempt}")
            (tmp_path / "killed").mkdir()
    assert done == job.kills
    run_script(job.script, *job.options, job.output, tmp_path / "killed" / output)
    check(job, tmp_path / "killed", tmp_path / "whole", output)


def check(job: Job, killed: Path, whole: Path, output: str) -> None:
    assert files(killed) == files(whole)
    assert job.results(killed / output) == job.results(whole / output)


def test_there_are_fifty_kills(jobs):
    assert sum(job.kills for job in jobs.values()) == 50 and list(jobs) == NAMES
