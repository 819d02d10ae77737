"""Training of the tokenizer as users run it: subprocesses, tiny recipes, a few steps."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.script_runs import kill_script, metrics, run_script
from builders.video_files import make_frames, write_mp4
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from adaptok_hf import AdapTokModel
from adaptok_hf.metrics.lpips_network import LPIPSNetwork

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
    "stages": [
        {"steps": 1, "num_blocks": 1, "batch_size": 4, "quantize": False, "noise": 0.1},
        {"steps": 1, "num_blocks": 1, "batch_size": 4, "fit_codebook": True},
        {"steps": 2, "num_blocks": 4, "batch_size": 2},
    ],
    "warmup_steps": 1,
    "reseed_every": 1,
    "ema_decay": 0.5,
    "adversarial_weight": 0.1,
    "adversarial_start_step": 1,
    "discriminator_update_every": 2,
    "discriminator": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
    "prior_weight": 0.06,
    "prior_learning_rate_factor": 5,
    "prior": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
    "validation_steps": 2,
    "checkpointing_steps": 1,
    "logging_steps": 1,
    "report_to": "tensorboard",
}
# Streamed data, Adam, no dropping (CausalTok), the perceptual loss, and batches in two parts.
CAUSALTOK_RECIPE = {
    "stream_folders": ["train"],
    "model": {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "latents_per_block": 4,
        "codebook_size": 32,
        "codebook_dim": 4,
        "adaptive": False,
    },
    "stages": [{"epochs": 1.5, "num_blocks": 4, "batch_size": 2}],
    "use_muon": False,
    "adam_beta1": 0.5,
    "adam_beta2": 0.9,
    "warmup_epochs": 0.5,
    "gradient_accumulation_steps": 2,
    "perceptual_weight": 1.0,
    "reseed_every": 0,
    "logging_steps": 1,
}


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
    run_script("train_tokenizer.py", recipe, *trained.options, "--output_dir", str(trained.run))
    return trained


def test_tokenizer_run(tokenizer_run):
    folder = tokenizer_run.run
    # of the four checkpoints two are kept
    names = {"model", "model_ema", "checkpoint-3", "checkpoint-4", "validation", "tracker", "recipe.json", "metrics.jsonl"}
    assert {path.name for path in folder.iterdir()} == names
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["stages"] == TOKENIZER_RECIPE["stages"] and recipe["learning_rate"] == 1e-3
    records = metrics(folder)
    assert sorted(records) == [1, 2, 3, 4]
    assert records[1]["codes_used"] == 0 < records[2]["codes_used"]  # the quantizer comes after one step
    always = {"loss", "l1", "grad_norm", "learning_rate", "tokens_kept", "tokens_kept_0"}
    quantized = {"commitment", "codebook", "prior", "adversarial"}
    discriminator = {"discriminator", "lecam", "real_logit", "fake_logit", "discriminator_grad_norm"}
    for step, record in records.items():
        assert always <= set(record)
        assert bool(quantized & set(record)) == (step > 1) and (step == 1 or quantized <= set(record))
        assert bool(discriminator & set(record)) == (step in (2, 4)), "updated every 2 steps, from the second step on"
        assert 0 < record["l1"] < 1 and record["grad_norm"] > 0 and 1 <= record["tokens_kept"] <= 16
    assert 3 < records[2]["prior"] < 4  # a prior that knows nothing: ln 32 = 3.5
    assert "tokens_kept_3" in records[3] and "tokens_kept_3" not in records[2]
    parts = [prefix + part for prefix in ("psnr_", "ema_psnr_") for part in ("1/16", "1/4", "full")]
    assert all(0 < records[step][part] < 60 for step in (2, 4) for part in parts)

    model, average = (AutoModel.from_pretrained(folder / name) for name in ("model", "model_ema"))
    assert type(model) is type(average) is AdapTokModel and model.config.num_blocks == 4
    assert not torch.equal(model.decoder.head.projection.weight, average.decoder.head.projection.weight)
    # two clips of four rows (original and three budgets), eight frames each
    assert Image.open(folder / "validation" / "step-000004.png").size == (8 * 32, 2 * 4 * 32)
    assert Image.open(folder / "validation" / "step-000002.png").size == (4 * 32, 2 * 4 * 32)  # one block


def test_tracker_gets_the_log(tokenizer_run):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tokenizer_run.run / "tracker" / "train_tokenizer")).Reload()
    records = metrics(tokenizer_run.run)
    logged = {event.step: event.value for event in events.Scalars("prior")}
    assert sorted(logged) == [2, 3, 4] and logged[3] == pytest.approx(records[3]["prior"], abs=1e-4)
    assert [image.step for image in events.Images("reconstructions")] == [2, 4]


def test_a_killed_run_is_resumed_exactly(tokenizer_run, tmp_path):
    folder = tmp_path / "interrupted"
    arguments = ["train_tokenizer.py", tokenizer_run.recipe, *tokenizer_run.options, "--output_dir", str(folder)]
    kill_script(*arguments, once_there=folder / "checkpoint-2")
    assert max(metrics(folder)) < 4

    output = run_script(*arguments, "--resume_from_checkpoint", "latest")
    assert "resumed at step" in output
    assert metrics(folder) == metrics(tokenizer_run.run)
    for name in ("model", "model_ema"):
        weights = [path / name / "model.safetensors" for path in (folder, tokenizer_run.run)]
        assert weights[0].read_bytes() == weights[1].read_bytes()
    # the discriminator, its optimizer, and the state of the random numbers too
    ours, theirs = (load_file(path / "checkpoint-4" / "model_1.safetensors") for path in (folder, tokenizer_run.run))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.fixture(scope="module")
def causaltok_options(tokenizer_run, tmp_path_factory) -> list[str]:
    """A recipe and weights for the perceptual loss, which are random."""
    folder = tmp_path_factory.mktemp("causaltok")
    torch.manual_seed(0)
    save_file(LPIPSNetwork("vgg").state_dict(), folder / "lpips.safetensors")
    (folder / "recipe.json").write_text(json.dumps(CAUSALTOK_RECIPE))
    return [str(folder / "recipe.json"), *tokenizer_run.options, "--perceptual_network", str(folder / "lpips.safetensors")]


@pytest.mark.slow
def test_causaltok_on_a_stream(causaltok_options, tmp_path):
    run_script("train_tokenizer.py", *causaltok_options, "--output_dir", str(tmp_path / "run"))
    records = metrics(tmp_path / "run")
    assert sorted(records) == [1, 2, 3]  # 1.5 epochs of 4 videos in batches of 2
    assert all(record["perceptual"] > 0 and "tokens_kept" not in record for record in records.values())
    # half an epoch of warm-up is one step, then the cosine begins
    assert records[1]["learning_rate"] == records[2]["learning_rate"] == 1e-3 > records[3]["learning_rate"]
    assert not AutoModel.from_pretrained(tmp_path / "run" / "model").config.adaptive


@pytest.mark.slow  # tests/data resumes streams by default
@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_a_stream_is_resumed_exactly(causaltok_options, tmp_path, num_workers):
    options = [*causaltok_options, "--perceptual_weight", "0", "--num_workers", num_workers]
    whole, halves = (
        [*options, "--output_dir", str(tmp_path / "whole")],
        [*options, "--output_dir", str(tmp_path / "halves")],
    )
    run_script("train_tokenizer.py", *whole)
    run_script("train_tokenizer.py", *halves, "--max_train_steps", "2")
    assert "resumed at step 2" in run_script("train_tokenizer.py", *halves, "--resume_from_checkpoint", "checkpoint-2")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "halves")


@pytest.mark.slow
def test_two_processes_train_like_one(tokenizer_run, tmp_path):
    """Without random numbers inside the model, for each process has its own."""
    recipe = TOKENIZER_RECIPE | {
        "model": TOKENIZER_RECIPE["model"] | {"stochastic_quantizer": False},
        "stages": [{"steps": 3, "num_blocks": 4, "batch_size": 4, "drop_tails": False}],
        "reseed_every": 0,
        "adversarial_kind": "hinge",
        "prior": TOKENIZER_RECIPE["prior"] | {f"{name}_dropout": 0.0 for name in ("embedding", "residual", "attention")},
        "prior_sampling_peak": 0.0,
        "report_to": "none",
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    options = [str(tmp_path / "recipe.json"), *tokenizer_run.options, "--output_dir"]
    assert "on 1 processes" in run_script("train_tokenizer.py", *options, tmp_path / "one")
    assert "on 2 processes" in run_script("train_tokenizer.py", *options, tmp_path / "two", processes=2)
    ours, theirs = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert ours.keys() == theirs.keys()
    for step, record in ours.items():
        assert record == pytest.approx(theirs[step], rel=1e-4, abs=2e-4)


@pytest.mark.slow
def test_two_processes_are_resumed_exactly_with_parts_of_batches(tokenizer_run, tmp_path):
    """Streamed, each process with its own place in the data and its own random numbers (stochastic quantizer)."""
    recipe = TOKENIZER_RECIPE | {"train_folders": [], "train_weights": [], "stream_folders": ["train"], "report_to": "none"}
    first, then = {"steps": 1, "quantize": False}, {"steps": 3, "fit_codebook": True}
    recipe |= {"stages": [stage | {"num_blocks": 4, "batch_size": 4} for stage in (first, then)]}
    recipe |= {"gradient_accumulation_steps": 2, "num_workers": 1}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    arguments = ["train_tokenizer.py", str(tmp_path / "recipe.json"), *tokenizer_run.options, "--output_dir"]
    run_script(*arguments, tmp_path / "whole", processes=2)
    run_script(*arguments, tmp_path / "halves", "--max_train_steps", "2", processes=2)
    resumed = run_script(*arguments, tmp_path / "halves", "--resume_from_checkpoint", "latest", processes=2)
    assert "resumed at step 2" in resumed and "on 2 processes" in resumed
    assert metrics(tmp_path / "halves") == metrics(tmp_path / "whole")
    for name in ("model", "model_ema"):
        weights = [tmp_path / run / name / "model.safetensors" for run in ("halves", "whole")]
        assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.slow
def test_fine_tuning_the_decoder(tokenizer_run, tmp_path):
    recipe = {name: value for name, value in TOKENIZER_RECIPE.items() if "prior" not in name and name != "model"}
    recipe |= {"reseed_every": 0, "stages": TOKENIZER_RECIPE["stages"][2:]}
    recipe |= {"decoder_only": True, "init_from": str(tokenizer_run.run / "model"), "max_train_steps": 2}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    options = [*tokenizer_run.options, "--output_dir", str(tmp_path / "run")]
    run_script("train_tokenizer.py", tmp_path / "recipe.json", *options)
    before, after = (load_file(path / "model" / "model.safetensors") for path in (tokenizer_run.run, tmp_path / "run"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("decoder.")}


@pytest.mark.slow
def test_a_run_in_seconds_from_the_pyramid(tokenizer_run, tmp_path):
    """Augmented clips and photos, a start without quantizer, then codes that follow the latents; folded when saved."""
    (tmp_path / "photos").mkdir()
    Image.fromarray(make_frames(1, 60, 80)[0]).save(tmp_path / "photos" / "a.jpg")
    fixed = {"learned_encoder_latent_queries": True, "stochastic_quantizer": False, "hidden_size": 64}
    recipe = {
        "train_folders": ["train"],
        "train_weights": [1.0],
        "augment": True,
        "photo_folders": [str(tmp_path / "photos")],
        "photo_weight": 0.3,
        "val_folder": "val",
        "model": TOKENIZER_RECIPE["model"] | fixed,
        "patch_components": 24,
        "stages": [
            {"seconds": 0.5, "num_blocks": 4, "batch_size": 4, "quantize": False, "noise": 0.2, "single_blocks": 0.5},
            {"seconds": 0.5, "num_blocks": 4, "batch_size": 4, "fit_codebook": True, "loss_weights": {"l1": 1.0}},
        ],
        "decay": "linear",
        "warmup_steps": 1,
        "l1_weight": 0.0,
        "log_mse_weight": 1.0,
        "codebook_weight": 0.0,
        "codebook_decay": 0.9,
        "reseed_every": 0,
        "count_groups": 2,
        "logging_steps": 1,
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    arguments = [
        "train_tokenizer.py",
        tmp_path / "recipe.json",
        *tokenizer_run.options,
        "--output_dir",
        str(tmp_path / "run"),
    ]
    printed = run_script(*arguments, "--max_train_steps", "1")
    assert "stage 1 begins" in printed and "stage 2" not in printed
    printed = run_script(*arguments, "--resume_from_checkpoint", "latest")
    assert "resumed at step 1" in printed and "stage 2 begins" in printed and "stage 1" not in printed
    log = [record for record in metrics(tmp_path / "run").values() if "loss" in record]
    assert log[0]["loss"] == log[0]["log_mse"] and log[0]["codes_used"] == 0 and "l1" not in log[0]
    assert log[-1]["codes_used"] > 0 and log[-1]["l1"] > 0 and "codebook" not in log[-1]
    rates = [record["learning_rate"] for record in log]
    assert rates[-1] < 0.9 * rates[1] and rates[1:] == sorted(rates[1:], reverse=True)
    # what is saved is an ordinary model
    assert isinstance(AutoModel.from_pretrained(tmp_path / "run" / "model"), AdapTokModel)
