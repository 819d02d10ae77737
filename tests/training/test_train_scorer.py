"""Training of the scorer: runs as users start them, and their arguments."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.scorer_recipe import RECIPE, REQUIRED, SCORER_CONFIG, make_tokenizer
from builders.script_runs import SCRIPTS, kill_script, metrics, run_script
from builders.video_files import make_frames, write_mp4
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from adaptok_hf import (
    AdapTokConfig,
    AdapTokPipeline,
    AdapTokScorerConfig,
    AdapTokScorerModel,
    AdapTokVideoProcessor,
)
from adaptok_hf.metrics.lpips_network import LPIPSNetwork
from adaptok_hf.training.scorer import arguments as scorer_arguments
from adaptok_hf.training.scorer import training_step as scorer_training_step

# Streamed data, the paper's loss and optimizer, epochs, batches in two parts.
STREAM_RECIPE = {
    "stream_folders": ["train"],
    "model": RECIPE["model"] | {"score_mean": 0.2, "score_std": 0.1},
    "epochs": 3,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "warmup_epochs": 1,
    "adam_beta1": 0.5,
    "weight_decay": 0.0,
    "statistics_batches": 1,
    "logging_steps": 1,
}


@dataclass
class Inputs:
    """Videos in `train/` and `val/`, `tokenizer/`, `scorer.json`; `options` name them."""

    folder: Path

    @property
    def options(self) -> list[str]:
        return ["--data_root", str(self.folder), "--tokenizer", str(self.folder / "tokenizer")]

    def recipe(self, entries: dict, folder: Path) -> Path:
        path = folder / "recipe.json"
        path.write_text(json.dumps(entries))
        return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    folder = tmp_path_factory.mktemp("scorer")
    for split, count in (("train", 4), ("val", 3)):
        (folder / split).mkdir()
        for i in range(count):
            frames = make_frames(16 + 2 * i, 16, 24)
            write_mp4(folder / split / f"{i}.mp4", frames=np.roll(frames, 7 * i, axis=2 - i % 2))
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return Inputs(folder)


@pytest.fixture(scope="module")
def scorer_run(inputs) -> Path:
    """The folder of an uninterrupted run."""
    run = inputs.folder / "uninterrupted"
    recipe = inputs.recipe(RECIPE | {"report_to": "tensorboard", "schedule_clips": 2}, inputs.folder)
    run_script("train_scorer.py", recipe, *inputs.options, "--output_dir", run)
    return run


def test_scorer_run(inputs, scorer_run):
    names = {"model", "model_ema", "checkpoint-3", "checkpoint-4", "validation", "tracker", "recipe.json", "metrics.jsonl"}
    assert {path.name for path in scorer_run.iterdir()} == names
    records = metrics(scorer_run)
    assert sorted(records) == [1, 2, 3, 4]
    for record in records.values():
        assert record["loss"] == pytest.approx(record["score_loss"] + 0.3 * record["difference_loss"], abs=1e-4)
        assert record["grad_norm"] > 0 and 0 < record["target"] < 1 and 1 <= record.get("tokens_kept", 8) <= 16
    assert records[1]["learning_rate"] == records[2]["learning_rate"] == 1e-3 > records[3]["learning_rate"]
    for step in (2, 4):
        for name in ("val_rmse", "rank_correlation_across_levels", "rank_correlation_across_clips"):
            assert -1 <= records[step][name] <= 1 and f"ema_{name}" in records[step]
    assert "val_rmse" not in records[3]
    # four blocks in columns, three clips in rows
    assert Image.open(scorer_run / "validation" / "step-000004.png").size == (4 * 240, 3 * 180)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(scorer_run / "tracker" / "train_scorer")).Reload()
    assert [image.step for image in events.Images("scores")] == [2, 4]

    scorer, average = (AutoModel.from_pretrained(scorer_run / name) for name in ("model", "model_ema"))
    assert type(scorer) is type(average) is AdapTokScorerModel
    assert scorer.config.num_levels == 4 and scorer.config.target == average.config.target == "rmse"
    assert 0 < scorer.config.score_mean < 1 and 0 < scorer.config.score_std < 1  # of the measured losses
    assert not torch.equal(scorer.head_in.weight, average.head_in.weight)
    assert scorer.config.schedules == average.config.schedules
    spent = [[sum(counts) for counts in of_budget] for of_budget in scorer.config.schedules]
    assert spent == [[4 * budget] * 5 for budget in (1, 2, 3, 4, 6, 8, 12, 16)]
    processor = AdapTokVideoProcessor(image_size=16, num_frames=16, tubelet_size=4)
    pipeline = AdapTokPipeline(processor, AutoModel.from_pretrained(inputs.folder / "tokenizer"), scorer)
    output = pipeline.reconstruct(inputs.folder / "val" / "0.mp4", budget=8)
    assert output.tokens.num_tokens == 32 and output.frames.shape == (1, 16, 16, 16, 3)


def test_every_weight_is_trained(scorer_run):
    before, after = (load_file(scorer_run / f"checkpoint-{step}" / "model.safetensors") for step in (3, 4))
    assert not [name for name in before if torch.equal(before[name], after[name])]


@pytest.mark.slow
def test_a_killed_run_is_resumed_exactly(inputs, scorer_run, tmp_path):
    folder = tmp_path / "interrupted"
    recipe = inputs.recipe(RECIPE, tmp_path)
    arguments = ["train_scorer.py", recipe, *inputs.options, "--output_dir", folder]
    kill_script(*arguments, once_there=folder / "checkpoint-2")
    assert max(metrics(folder)) < 4
    assert "resumed at step" in run_script(*arguments, "--resume_from_checkpoint", "latest")
    assert metrics(folder) == metrics(scorer_run)
    for name in ("model", "model_ema"):
        ours, theirs = (path / name / "model.safetensors" for path in (folder, scorer_run))
        assert ours.read_bytes() == theirs.read_bytes()


def equal_runs(inputs, recipe, folder, **runs: tuple[list[str], int]) -> None:
    """Each of `runs`, options and number of processes, gives the same metrics, to 2e-4 of the value."""
    results = []
    for name, (options, processes) in runs.items():
        arguments = [inputs.recipe(recipe, folder), *inputs.options, *options, "--output_dir", folder / name]
        assert f"on {processes} processes" in run_script("train_scorer.py", *arguments, processes=processes)
        results.append(metrics(folder / name))
    for result in results[1:]:
        assert result.keys() == results[0].keys()
        for step, record in results[0].items():
            # a tie may be broken by the last bit
            ranks = {name for name in record if "rank" in name}
            assert {name: result[step][name] for name in ranks} == pytest.approx({n: record[n] for n in ranks}, abs=0.05)
            rest = record.keys() - ranks
            assert {n: result[step][n] for n in rest} == pytest.approx({n: record[n] for n in rest}, rel=2e-4, abs=2e-5)


@pytest.mark.slow
def test_two_processes_and_parts_train_like_one(inputs, tmp_path):
    parts = ["--gradient_accumulation_steps", "2"]
    equal_runs(inputs, RECIPE, tmp_path, one=([], 1), two=([], 2), both=(parts, 2))


@pytest.fixture(scope="module")
def stream_options(inputs) -> list[str]:
    """Weights for the perceptual loss, which are random."""
    torch.manual_seed(0)
    save_file(LPIPSNetwork("vgg").state_dict(), inputs.folder / "lpips.safetensors")
    return ["--perceptual_network", str(inputs.folder / "lpips.safetensors")]


@pytest.mark.slow
def test_perceptual_targets_on_a_stream(inputs, stream_options, tmp_path):
    recipe = inputs.recipe(STREAM_RECIPE, tmp_path)
    run_script("train_scorer.py", recipe, *inputs.options, *stream_options, "--output_dir", tmp_path / "run")
    records = metrics(tmp_path / "run")
    assert sorted(records) == [1, 2, 3]  # 3 epochs of 4 videos in one batch each
    assert all(record["target"] > 0 and "difference_loss" not in record for record in records.values())
    assert records[1]["learning_rate"] == 1e-3  # an epoch of warm-up is one step
    config = AutoModel.from_pretrained(tmp_path / "run" / "model").config
    assert (config.score_mean, config.score_std, config.target) == (0.2, 0.1, "perceptual")  # as the recipe says


@pytest.mark.slow
def test_two_processes_stream_like_one(inputs, tmp_path):
    recipe = STREAM_RECIPE | {"target": "ssim", "augment": True, "epochs": 2}
    equal_runs(inputs, recipe, tmp_path, one=([], 1), two=([], 2))


@pytest.mark.slow
def test_a_stream_is_resumed_exactly(inputs, tmp_path):
    recipe = inputs.recipe(STREAM_RECIPE | {"target": "psnr", "augment": True, "levels_per_step": 2}, tmp_path)
    arguments = ["train_scorer.py", recipe, *inputs.options, "--output_dir"]
    run_script(*arguments, tmp_path / "whole")
    run_script(*arguments, tmp_path / "halves", "--max_train_steps", "2")
    output = run_script(*arguments, tmp_path / "halves", "--resume_from_checkpoint", "checkpoint-2")
    assert "resumed at step 2" in output
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "halves")
    ours, theirs = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "halves"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_training_on_from_a_scorer(inputs, scorer_run, tmp_path):
    """At a learning rate of zero it stays what it is."""
    entries = RECIPE | {"model": {}, "init_from": str(scorer_run / "model"), "steps": 1, "learning_rate": 0.0}
    entries |= {"final_learning_rate": 0.0, "seed": 5, "ema_decay": 0.0}
    recipe = inputs.recipe(entries, tmp_path)
    run_script("train_scorer.py", recipe, *inputs.options, "--output_dir", tmp_path / "run")
    ours, theirs = (AutoModel.from_pretrained(path / "model") for path in (tmp_path / "run", scorer_run))
    assert ours.config.to_diff_dict() | {"_name_or_path": None} == theirs.config.to_diff_dict() | {"_name_or_path": None}
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    assert metrics(tmp_path / "run")[1]["val_rmse"] == pytest.approx(metrics(scorer_run)[4]["val_rmse"], rel=1e-3)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"target": "lpips"}, "target .* 'lpips'"),
        ({"steps": None}, "either steps or epochs, got None and None"),
        ({"epochs": 2.0}, "either steps or epochs, got 4 and 2.0"),
        ({"batch_size": 0}, "batch_size .* 0"),
        ({"levels_per_step": 0, "difference_weight": 0.0}, "levels_per_step .* 0"),
        ({"levels_per_step": 1}, "levels_per_step .* 1"),
        ({"difference_weight": -1.0}, "difference_weight .* -1"),
        ({"init_from": "saved"}, "init_from .* saved"),
        ({"train_weights": []}, "1 train_folders but 0 train_weights"),
        ({"resume_from_checkpoint": "best"}, "best"),
    ],
)
def test_bad_arguments(entries, message):
    arguments = scorer_arguments.Arguments
    arguments(**REQUIRED | RECIPE)
    with pytest.raises(ValueError, match=message):
        arguments(**REQUIRED | RECIPE | entries)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"levels_per_step": 5}, "levels_per_step .* 5"),
        ({"model": {"latents_per_block": 32, "score_step": 4}}, "scorer's latents_per_block is 32, the tokenizer's 16"),
        ({"model": {}, "init_from": "saved"}, "scorer's num_blocks is 2, the tokenizer's 4"),
        ({"model": {}, "init_from": "fits", "target": "l1"}, "scorer's target is 'psnr', that of this run 'l1'"),
    ],
)
def test_scorers_that_do_not_fit(tmp_path, monkeypatch, entries, message):
    monkeypatch.chdir(tmp_path)
    AdapTokScorerConfig(**SCORER_CONFIG | {"num_blocks": 2}).save_pretrained("saved")
    AdapTokScorerConfig(**SCORER_CONFIG, target="psnr").save_pretrained("fits")
    arguments, tokenizer = scorer_arguments.Arguments, make_tokenizer().config

    def build_config(entries):
        args = arguments(**REQUIRED | RECIPE | entries)
        return scorer_training_step.build_config(args, tokenizer, args.model, args.init_from)

    with pytest.raises(ValueError, match=message):
        build_config(entries)
    kept = build_config({"model": {}, "init_from": "fits", "target": "psnr"})
    assert kept.score_step == 4 and kept.target == "psnr"
    causaltok = make_tokenizer()
    causaltok.config.adaptive = False
    causaltok.save_pretrained("causaltok")
    with pytest.raises(ValueError, match="causaltok"):
        scorer_training_step.load_tokenizer(arguments(**REQUIRED | RECIPE | {"tokenizer": "causaltok"}), "cpu")


@pytest.mark.parametrize(
    ("name", "tokenizer"),
    [
        ("scorer_paper", "tokenizer_paper"),
        ("scorer_tiny", "tokenizer_tiny"),
        ("demo/scorer_small", "demo/tokenizer_small_gpu"),
        ("demo/scorer_figures", "demo/tokenizer_figures_gpu"),
    ],
)
def test_shipped_recipes(name, tokenizer):
    recipe, model = (json.loads((SCRIPTS / "recipes" / f"{each}.json").read_text()) for each in (name, tokenizer))
    sources = {} if recipe.get("train_folders") else {"shard_folders": ["shards"]}
    args = scorer_arguments.Arguments(**REQUIRED | recipe | sources)
    config = scorer_training_step.build_config(args, AdapTokConfig(**model["model"]), args.model)
    with torch.device("meta"):
        size = sum(p.numel() for p in AdapTokScorerModel(config).parameters()) / 1e6
    if name == "scorer_paper":
        # Table A, and the statistics of the public code
        assert size == pytest.approx(88.96, abs=0.01) and config.num_levels == 8
        assert (config.score_mean, config.score_std, config.target) == (0.19749, 0.07616, "perceptual")
        assert (args.adam_beta1, args.adam_beta2, args.learning_rate, args.weight_decay) == (0.5, 0.9, 1e-4, 0)
        assert (args.batch_size, args.epochs, args.warmup_epochs, args.final_learning_rate) == (128, 20, 8, 1e-6)
        assert (args.levels_per_step, args.difference_weight, args.augment) == (None, 0, False)  # the paper's loss
    else:
        assert size < 1
