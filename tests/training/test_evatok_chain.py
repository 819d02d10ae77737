"""EVATok's stages as users run them, from the proxy tokenizer to generated videos; frozen backbones on the way."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from builders.backbones import make_videomae, make_vjepa
from builders.script_runs import kill_script, metrics, run_script
from builders.video_files import make_frames, write_mp4
from safetensors.torch import load_file
from transformers import AutoModel

from adaptok_hf import AdapTokPipeline, EVATokModel, read_video
from adaptok_hf.cli.main import main

pytestmark = pytest.mark.slow

MODEL = {
    "image_size": 16,
    "levels": [1, 2, 8],
    "encoder_hidden_size": 16,
    "num_encoder_layers": 1,
    "num_encoder_attention_heads": 2,
    "decoder_hidden_size": 24,
    "num_decoder_layers": 2,
    "num_decoder_attention_heads": 2,
    "latent_size": 12,
    "codebook_size": 32,
    "codebook_dim": 4,
}
TOKENIZER = {
    "train_folders": ["train"],
    "train_weights": [1.0],
    "val_folder": "train",
    "architecture": "evatok",
    "model": MODEL,
    "stages": [{"steps": 4, "num_blocks": 4, "batch_size": 4}],
    "warmup_steps": 1,
    "ema_decay": 0.5,
    "commitment_weight": 0.25,
    "codebook_weight": 1.0,
    "entropy_weight": 0.02,
    "adversarial_weight": 0.1,
    "discriminator_update_every": 2,
    "discriminator": {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
    "reseed_every": 1,
    "validation_steps": 2,
    "checkpointing_steps": 1,
    "logging_steps": 1,
}
LABELS = {
    "folders": ["train"],
    "folder_weights": [1.0],
    "levels": [1, 2, 8],
    "prices": [0.001],
    "beam_width": 27,
    "num_clips": 4,
    "clips_per_shard": 2,
}
ROUTER = {
    "model": {"head": "assignment", "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
    "steps": 2,
    "batch_size": 4,
    "warmup_steps": 1,
    "logging_steps": 1,
}


GENERATOR = {
    "model": {"length_tokens": [1, 2, 8], "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    | {"intermediate_size": 32},
    "steps": 2,
    "batch_size": 4,
    "warmup_steps": 1,
    "logging_steps": 1,
}


class Chain:
    def __init__(self, folder: Path):
        self.folder = folder

    def arguments(self, name: str, recipe: dict, *options) -> list:
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(recipe))
        return [path, "--data_root", self.folder, "--output_dir", self.folder / name, *options]

    def stage(self, name: str, script: str, recipe: dict, *options, launch: bool = False) -> Path:
        run_script(script, *self.arguments(name, recipe, *options), launch=launch)
        return self.folder / name

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        return load_file(self.folder / name / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Chain:
    """Videos, backbones, and a proxy tokenizer."""
    chain = Chain(tmp_path_factory.mktemp("evatok"))
    (chain.folder / "train").mkdir()
    for i in range(3):
        write_mp4(chain.folder / "train" / f"{i}.mp4", frames=np.roll(make_frames(16 + i, 16, 24), 7 * i, axis=2))
    make_vjepa().save_pretrained(chain.folder / "vjepa")
    make_videomae().save_pretrained(chain.folder / "videomae")
    chain.stage("proxy", "train_tokenizer.py", TOKENIZER, launch=True)
    return chain


@pytest.fixture(scope="module")
def router(chain) -> Path:
    """Made from labels of the proxy."""
    proxy = ["--tokenizer", chain.folder / "proxy" / "model"]
    labels = ["--labels", chain.stage("labels", "label_assignments.py", LABELS, *proxy, launch=True)]
    return chain.stage("router", "train_router.py", ROUTER, *labels, launch=True) / "model"


def test_the_proxy(chain):
    model = AutoModel.from_pretrained(chain.folder / "proxy" / "model")
    assert type(model) is EVATokModel and model.config.levels == [1, 2, 8]
    records = metrics(chain.folder / "proxy")
    assert {"l1", "entropy", "commitment", "codebook", "adversarial", "tokens_kept_3"} <= set(records[3])
    assert 1 <= records[2]["tokens_kept"] <= 8 and 0 < records[2]["codes_used"] <= 32
    assert all(0 < records[4][f"{prefix}psnr_{level}"] < 60 for prefix in ("", "ema_") for level in (1, 2, 8))
    moved, start = chain.weights("proxy"), load_file(chain.folder / "proxy" / "checkpoint-3" / "model.safetensors")
    assert all(not torch.equal(moved[name], start[f"model.{name}"]) for name in moved if "codebook" not in name)


def test_the_final_tokenizer_with_backbones(chain, router):
    frozen = [folder / "model.safetensors" for folder in (chain.folder / "vjepa", chain.folder / "videomae", router)]
    before = [path.read_bytes() for path in frozen]
    recipe = TOKENIZER | {
        "assignments": {"kind": "router", "router": str(router)},
        "alignment_weight": 0.7,
        "alignment_teacher": str(chain.folder / "vjepa"),
        "alignment_layer": 1,
        "feature_adversarial_weight": 0.3,
        "feature_discriminator": {"backbone": str(chain.folder / "videomae"), "layers": [0, 2]},
    }
    final = chain.stage("final", "train_tokenizer.py", recipe)
    records = metrics(final)
    assert {"alignment", "feature_adversarial", "adversarial", "feature_discriminator", "discriminator"} <= set(records[3])
    assert -1 <= records[3]["alignment"] <= 1 and "feature_lecam" in records[3] and "psnr_router" in records[4]
    assert before == [path.read_bytes() for path in frozen]
    saved = {path.name: set(load_file(path)) for path in (final / "checkpoint-4").glob("*.safetensors")}
    names = set().union(*saved.values())
    assert any(name.startswith("alignment.projection") for name in names) and any("heads.1" in name for name in names)
    assert not [name for name in names if "backbone" in name or "router" in name or "predictor" in name]
    # a killed run is resumed exactly
    arguments = chain.arguments("killed", recipe)
    kill_script("train_tokenizer.py", *arguments, once_there=chain.folder / "killed" / "checkpoint-2")
    run_script("train_tokenizer.py", *arguments, "--resume_from_checkpoint", "latest")
    assert metrics(chain.folder / "killed") == records
    ours, theirs = chain.weights("killed"), chain.weights("final")
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_adaptok_with_all_of_it(chain):
    sizes = {"image_size": 16, "patch_size": 8, "hidden_size": 16, "num_attention_heads": 2, "num_encoder_layers": 1}
    sizes |= {"num_decoder_layers": 2, "latents_per_block": 8, "codebook_size": 32, "codebook_dim": 4}
    recipe = TOKENIZER | {
        "architecture": "adaptok",
        "model": sizes,
        "assignments": {"kind": "fixed", "counts": [8, 2, 4, 1]},
        "adversarial_weight": 0.0,
        "alignment_weight": 0.7,
        "alignment_teacher": str(chain.folder / "vjepa"),
        "alignment_layer": 2,
        "feature_adversarial_weight": 0.3,
        "feature_discriminator": {"backbone": str(chain.folder / "videomae"), "layers": [1]},
        "stages": [
            {"steps": 1, "num_blocks": 1, "batch_size": 4, "quantize": False},
            {"steps": 2, "num_blocks": 4, "batch_size": 4, "loss_weights": {"alignment": 0.5}},
        ],
    }
    records = metrics(chain.stage("adaptok", "train_tokenizer.py", recipe))
    assert records[1]["tokens_kept"] == 8 and [records[3][f"tokens_kept_{i}"] for i in range(4)] == [8, 2, 4, 1]
    assert "alignment" in records[1] and "entropy" not in records[1] and {"alignment", "entropy"} <= set(records[3])
    weighed = {"l1": 1, "commitment": 0.25, "codebook": 1, "entropy": 0.02, "alignment": 0.5, "feature_adversarial": 0.3}
    assert records[3]["loss"] == pytest.approx(sum(w * records[3][name] for name, w in weighed.items()), abs=1e-3)


def test_a_folder_that_is_no_teacher(chain):
    recipe = TOKENIZER | {"alignment_weight": 0.7, "alignment_teacher": str(chain.folder / "videomae")}
    recipe["alignment_layer"] = 1
    error = run_script("train_tokenizer.py", *chain.arguments("wrong", recipe), fails=True)
    assert "videomae is no VJEPA2Model" in error


def read_rows(folder: Path) -> list[dict]:
    return [row for path in sorted(folder.glob("*.parquet")) for row in pq.read_table(path).to_pylist()]


def test_the_whole_chain(chain, router, monkeypatch):
    """Every stage by `accelerate launch`: the fixtures', the final tokenizer, its tokens, and a generator of videos."""
    folder = chain.folder
    monkeypatch.chdir(folder)
    recipe = TOKENIZER | {"assignments": {"kind": "router", "router": str(router)}}
    final = chain.stage("chain_final", "train_tokenizer.py", recipe, launch=True)
    assert {"psnr_router", "psnr_8"} <= set(metrics(final)[4]) and 1 <= metrics(final)[3]["tokens_kept"] <= 8
    parts = ["--tokenizer", final / "model_ema", "--router", router]
    run_script("package_checkpoint.py", *parts, "--output", folder / "pipeline")
    for name in ("jump", "run"):
        shutil.copytree(folder / "train", folder / "classes" / name)
    videos = ["--videos", folder / "classes", "--model", folder / "pipeline", "--allocation", "router"]
    run_script("tokenize_dataset.py", *videos, "--labels", "folder", "--output_dir", folder / "tokens", launch=True)
    rows, pipeline = read_rows(folder / "tokens"), AdapTokPipeline.from_pretrained(folder / "pipeline")
    assert len(rows) == 6 and {row["label"] for row in rows} == {0, 1}
    for row in rows:
        tokens = pipeline.tokenize(folder / "classes" / row["source"], allocation="router")
        assert row["token_counts"] == tokens.token_counts[0].tolist() and row["codes"] == tokens.codes[0].tolist()
    run_script("train_ar.py", *generator("ar", GENERATOR, folder / "tokens"), launch=True)
    assert metrics(folder / "ar")[2]["loss"] > 0

    # frames: the given ones have fixed counts, in the condition and at the beginning of what is written
    given = ["--num_condition_frames", 5, "--condition_counts", 8, 2]
    run_script("tokenize_dataset.py", *videos, *given, "--output_dir", folder / "fp_tokens")
    assert all(row["token_counts"][:2] == [8, 2] for row in read_rows(folder / "fp_tokens"))
    recipe = GENERATOR | {"model": GENERATOR["model"] | {"condition_counts": [8, 2], "num_classes": 0}}
    run_script("train_ar.py", *generator("fp", recipe, folder / "fp_tokens"))

    parts += ["--ar_model", folder / "ar" / "model", "--fp_model", folder / "fp" / "model"]
    run_script("package_checkpoint.py", *parts, "--output", folder / "complete")
    assert main(["generate", "--class", "jump", "--videos", "2", "--model", "complete", "--allowed-lengths", "1,8"]) == 0
    report = json.loads(Path("generated", "report.json").read_text())
    assert report["frames"] == 16 and [video["class_name"] for video in report["videos"]] == ["jump"] * 2
    assert {count for video in report["videos"] for count in video["token_counts"]} <= {1, 8}
    assert all(
        read_video(folder / "generated" / video["file"]).frames.shape == (16, 16, 16, 3) for video in report["videos"]
    )
    assert main(["predict", "train/0.mp4", "--model", "complete", "--rollouts", "2"]) == 0
    (video,) = json.loads(Path("0-predicted", "report.json").read_text())["videos"]
    assert video["token_counts"][:2] == video["token_counts"][4:6] == [8, 2]


def generator(name: str, recipe: dict, tokens: Path) -> list:
    """Return the arguments of `train_ar.py`, next to the tokens."""
    path = tokens.parent / f"{name}.json"
    path.write_text(json.dumps(recipe))
    return [path, "--tokens", tokens, "--output_dir", tokens.parent / name]
