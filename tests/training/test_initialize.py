"""Closed-form initialization as users run it, and training from what it wrote."""

import json

import numpy as np
import pytest
from builders.scorer_recipe import RECIPE as SCORER_RECIPE
from builders.scorer_recipe import make_tokenizer
from builders.script_runs import metrics, run_script
from builders.video_files import make_frames, write_mp4
from transformers import AutoModel

from adaptok_hf import AdapTokModel, AdapTokScorerModel
from adaptok_hf.training.closed_form.arguments import TokenizerInitialization

DATA = {"train_folders": ["train"], "train_weights": [1.0], "val_folder": "train"}
TOKENIZER = DATA | {
    "model": {
        "image_size": 16,
        "patch_size": 8,
        "hidden_size": 64,
        "num_attention_heads": 2,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "latents_per_block": 4,
        "codebook_size": 32,
        "codebook_dim": 4,
        "learned_encoder_patch_positions": True,
        "learned_decoder_latent_positions": True,
        "learned_decoder_patch_queries": True,
    },
    "num_clips": 8,
}
SCORER = DATA | {
    "model": {"score_step": 4, "hidden_size": 128, "num_attention_heads": 8, "num_hidden_layers": 2},
    "target": "rmse",
    "num_batches": 2,
    "batch_size": 4,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("initialization")
    (folder / "train").mkdir()
    for i in range(3):
        write_mp4(folder / "train" / f"{i}.mp4", frames=np.roll(make_frames(16 + 2 * i, 16, 24), 5 * i, axis=2))
    return folder


def run(script, folder, recipe, *options, **keywords):
    (folder / "recipe.json").write_text(json.dumps(recipe))
    return run_script(script, folder / "recipe.json", "--data_root", folder, *options, **keywords)


@pytest.mark.slow
def test_tokenizer(folder):
    output = run("initialize_tokenizer.py", folder, TOKENIZER, "--output_dir", folder / "tokenizer")
    assert "psnr_1/16" in output and type(AutoModel.from_pretrained(folder / "tokenizer")) is AdapTokModel
    # the training starts from it: nearly the same with a learning rate of nearly zero
    recipe = DATA | {"stages": [{"steps": 1, "num_blocks": 4, "batch_size": 2}], "learning_rate": 1e-9, "reseed_every": 0}
    run("train_tokenizer.py", folder, recipe, "--init_from", folder / "tokenizer", "--output_dir", folder / "run")
    printed = json.loads(output.splitlines()[-1].replace("'", '"'))
    assert metrics(folder / "run")[1]["psnr_full"] == pytest.approx(printed["psnr_full"], abs=0.05)


@pytest.mark.slow
def test_scorer(folder):
    make_tokenizer().save_pretrained(folder / "random")
    options = ["--tokenizer", folder / "random"]
    output = run("initialize_scorer.py", folder, SCORER, *options, "--output_dir", folder / "scorer")
    scorer = AutoModel.from_pretrained(folder / "scorer")
    assert type(scorer) is AdapTokScorerModel and scorer.config.target == "rmse" and 0 < scorer.config.score_std < 1
    recipe = SCORER_RECIPE | {"model": {}, "val_folder": "train", "learning_rate": 1e-9, "steps": 1, "ema_decay": 0.0}
    options += ["--init_from", folder / "scorer", "--output_dir", folder / "scorer_run"]
    run("train_scorer.py", folder, recipe, *options)
    printed = json.loads(output.splitlines()[-1].replace("'", '"'))
    assert metrics(folder / "scorer_run")[1]["val_rmse"] == pytest.approx(printed["val_rmse"], rel=1e-2)


def test_a_folder_in_use_stays(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ValueError, match=str(tmp_path)):
        TokenizerInitialization(data_root=".", output_dir=str(tmp_path), train_folders=["a"], train_weights=[1.0])
