"""The whole chain: tokenizer, scorer, package, tokens, generator, videos, the generator's training as users start it (by
`accelerate launch`; it takes ten times as long). What is trained moves, what is frozen does not."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.script_runs import run_script
from builders.video_files import make_frames, write_mp4
from safetensors.torch import load_file
from transformers import AutoModel, AutoModelForCausalLM

from adaptok_hf import AdapTokARForCausalLM, AdapTokModel, AdapTokPipeline, AdapTokScorerModel
from adaptok_hf.cli.main import main

LAYERS = {"hidden_size": 16, "num_attention_heads": 2}
# without weight decay, what moves has a gradient
RUN = {"warmup_steps": 1, "learning_rate": 0.01, "weight_decay": 0.0, "checkpointing_steps": 1, "logging_steps": 1}
VIDEOS = {"train_folders": ["videos"], "train_weights": [1.0]}
TOKENIZER = {
    "model": LAYERS
    | {"image_size": 16, "patch_size": 8, "num_encoder_layers": 1, "num_decoder_layers": 1, "latents_per_block": 8}
    | {"codebook_size": 32, "codebook_dim": 4},
    "stages": [{"steps": 2, "num_blocks": 4, "batch_size": 4}],
    "reseed_every": 0,
}
SCORER = {
    "model": LAYERS | {"num_hidden_layers": 1, "score_step": 2},
    "target": "rmse",
    "steps": 2,
    "batch_size": 4,
    "statistics_batches": 1,
}
GENERATOR = {"model": LAYERS | {"num_hidden_layers": 1, "intermediate_size": 32}, "steps": 2, "batch_size": 4}


@dataclass
class Chain:
    folder: Path

    def stage(self, name: str, script: str, *options, recipe: dict | None = None, launch: bool = False) -> None:
        """Runs a script; what it writes goes to a folder of that name."""
        if recipe is not None:
            path = self.folder / f"{name}.json"
            path.write_text(json.dumps(RUN | recipe))
            options = (path, *options)
        run_script(script, *options, "--output_dir", self.folder / name, launch=launch)

    def step(self, name: str, step: int) -> dict[str, torch.Tensor]:
        """The weights after an update (1 or 2), by their names in the model."""
        weights = load_file(self.folder / name / f"checkpoint-{step}" / "model.safetensors")
        return {key.removeprefix("model.") if name == "tokenizer" else key: value for key, value in weights.items()}

    def moved(self, name: str) -> set[str]:
        """The weights that differ after the two updates."""
        first, second = self.step(name, 1), self.step(name, 2)
        assert first.keys() == second.keys()
        return {key for key in first if not torch.equal(first[key], second[key])}


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Chain:
    """All stages but the last, one after the other."""
    made = Chain(tmp_path_factory.mktemp("chain"))
    for i, name in enumerate(("jump", "jump", "run", "run")):
        (made.folder / "videos" / name).mkdir(parents=True, exist_ok=True)
        write_mp4(made.folder / "videos" / name / f"{i}.mp4", frames=np.roll(make_frames(16, 24, 24), 5 * i, axis=2))
    data = ["--data_root", made.folder]
    made.stage("tokenizer", "train_tokenizer.py", *data, recipe=VIDEOS | TOKENIZER)
    tokenizer = made.folder / "tokenizer" / "model"
    made.before = (tokenizer / "model.safetensors").read_bytes()
    made.stage("scorer", "train_scorer.py", *data, "--tokenizer", tokenizer, recipe=VIDEOS | SCORER)
    parts = ["--tokenizer", tokenizer, "--scorer", made.folder / "scorer" / "model"]
    run_script("package_checkpoint.py", *parts, "--output", made.folder / "pipeline")
    videos = ["--videos", made.folder / "videos", "--labels", "folder", "--model", made.folder / "pipeline"]
    made.stage("tokens", "tokenize_dataset.py", *videos, "--budget", 4)
    made.stage("generator", "train_ar.py", "--tokens", made.folder / "tokens", recipe=GENERATOR, launch=True)
    parts += ["--ar_model", made.folder / "generator" / "model"]
    run_script("package_checkpoint.py", *parts, "--output", made.folder / "complete")
    return made


def trained_weights(model: torch.nn.Module) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.requires_grad}


def test_tokenizer(chain):
    model = AutoModel.from_pretrained(chain.folder / "tokenizer" / "model")
    assert type(model) is AdapTokModel and chain.moved("tokenizer") == trained_weights(model)
    assert all(torch.equal(model.state_dict()[name], weight) for name, weight in chain.step("tokenizer", 2).items())


def test_scorer(chain):
    model = AutoModel.from_pretrained(chain.folder / "scorer" / "model")
    assert type(model) is AdapTokScorerModel and chain.moved("scorer") == trained_weights(model)
    # the tokenizer was frozen, and no part of what was trained
    assert (chain.folder / "tokenizer" / "model" / "model.safetensors").read_bytes() == chain.before
    assert not [name for name in chain.step("scorer", 2) if "decoder" in name or "quantizer" in name]


def test_generator(chain):
    model = AutoModelForCausalLM.from_pretrained(chain.folder / "generator" / "model")
    assert type(model) is AdapTokARForCausalLM and chain.moved("generator") == trained_weights(model)
    assert model.config.id2label == {0: "jump", 1: "run"}


def test_the_pipeline_holds_what_was_trained(chain):
    pipeline = AdapTokPipeline.from_pretrained(chain.folder / "complete")
    for part, name in (("tokenizer", "tokenizer"), ("scorer", "scorer"), ("ar_model", "generator")):
        ours = getattr(pipeline, part).state_dict()
        theirs = load_file(chain.folder / name / "model" / "model.safetensors")
        assert theirs and all(torch.equal(ours[key], theirs[key].half().float()) for key in theirs), part


def test_videos(chain, capsys):
    options = ["generate", "--class", "jump", "--videos", "1", "--model", chain.folder / "complete"]
    assert main([*map(str, options), "-o", str(chain.folder / "videos_made")]) == 0
    assert list((chain.folder / "videos_made").rglob("*.mp4"))
