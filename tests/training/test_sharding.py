"""Sharded training (FSDP), with processes on a CPU: the same losses, models and checkpoints as of whole models."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders.script_runs import metrics, run_script
from builders.video_files import make_frames, write_mp4
from safetensors.torch import load_file
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from transformers import AutoModel

from adaptok_hf import AdapTokModel
from adaptok_hf.training.sharding import shard
from adaptok_hf.training.tokenizer.arguments import Arguments

LAYERS = {"hidden_size": 16, "num_attention_heads": 2}
# What the recipes of the paper have, but no random numbers inside the model (each process has its own) and no dropped
# tokens (means over tokens would not be means over clips).
RECIPE = {
    "train_folders": ["train"],
    "train_weights": [1.0],
    "val_folder": "train",
    "model": LAYERS
    | {"image_size": 16, "patch_size": 8, "num_encoder_layers": 2, "num_decoder_layers": 2, "latents_per_block": 4}
    | {"codebook_size": 33, "codebook_dim": 5, "stochastic_quantizer": False},  # not a multiple of the processes
    "gradient_checkpointing": True,
    "stages": [{"steps": 4, "num_blocks": 4, "batch_size": 8, "drop_tails": False}],
    "use_muon": False,
    "warmup_steps": 1,
    "reseed_every": 0,
    "ema_decay": 0.5,
    "adversarial_weight": 0.1,
    "adversarial_kind": "hinge",
    "discriminator_update_every": 2,
    "discriminator": LAYERS | {"num_hidden_layers": 1},
    "prior_weight": 0.06,
    "prior_learning_rate_factor": 5,
    "prior_sampling_peak": 0.0,
    "prior": LAYERS
    | {"num_hidden_layers": 2}
    | {f"{name}_dropout": 0.0 for name in ("embedding", "residual", "attention")},
    "gradient_accumulation_steps": 2,
    "validation_steps": 2,
    "checkpointing_steps": 2,
    "logging_steps": 1,
}


@dataclass
class Runs:
    folder: Path

    def __call__(self, name: str, *options, processes: int, fails: bool = False) -> str:
        data = ["--data_root", self.folder, "--output_dir", self.folder / name]
        recipe = self.folder / "recipe.json"
        return run_script("train_tokenizer.py", recipe, *data, *options, processes=processes, fails=fails)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Runs:
    """Runs the recipe; a run on two processes that share the weights is there, `sharded`."""
    folder = tmp_path_factory.mktemp("sharding")
    (folder / "train").mkdir()
    for i in range(4):
        write_mp4(folder / "train" / f"{i}.mp4", frames=np.roll(make_frames(16 + 2 * i, 16, 24), 5 * i, axis=2))
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    runs = Runs(folder)
    assert "on 2 processes" in runs("sharded", "--shard_over", 2, processes=2)
    return runs


def load_shards(checkpoint: Path) -> dict:
    """The shards of all processes, put together."""
    dcp_to_torch_save(checkpoint / "shards", checkpoint / "whole.pt")
    return torch.load(checkpoint / "whole.pt", weights_only=True)


def assert_alike(one: Path, other: Path) -> None:
    """Sums are taken in another order, and Adam amplifies what is small."""
    ours, theirs = metrics(one), metrics(other)
    assert ours.keys() == theirs.keys()
    for step, record in ours.items():
        assert record == pytest.approx(theirs[step], rel=1e-4, abs=2e-4)
    for name in ("model", "model_ema"):
        model, expected = (AutoModel.from_pretrained(path / name).state_dict() for path in (one, other))
        torch.testing.assert_close(model, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_two_processes_that_share_the_weights_train_like_one(runs):
    runs("one", processes=1)
    assert_alike(runs.folder / "sharded", runs.folder / "one")
    assert type(AutoModel.from_pretrained(runs.folder / "sharded" / "model")) is AdapTokModel
    configs = [(runs.folder / name / "model" / "config.json").read_text() for name in ("sharded", "one")]
    assert configs[0] == configs[1]


@pytest.mark.slow
def test_each_process_keeps_its_part(runs):
    checkpoint = runs.folder / "sharded" / "checkpoint-4"
    sizes = [sum(path.stat().st_size for path in (checkpoint / "shards").glob(f"__{rank}_*.distcp")) for rank in range(2)]
    assert max(sizes) < 0.7 * sum(sizes)  # positions of a single row lie on the first process
    state = load_shards(checkpoint)
    whole = load_file(runs.folder / "sharded" / "model" / "model.safetensors")
    average = load_file(runs.folder / "sharded" / "model_ema" / "model.safetensors")
    for name, weight in whole.items():
        assert torch.equal(state["module"][f"model.{name}"], weight)
        assert torch.equal(state["average"][name], average[name])


@pytest.mark.slow
def test_a_sharded_run_is_resumed_exactly(runs):
    runs("halves", "--shard_over", 2, "--max_train_steps", 2, processes=2)
    assert not (runs.folder / "halves" / "checkpoint-4").exists()
    resume = ["--resume_from_checkpoint", "latest"]
    assert "resumed at step 2" in runs("halves", "--shard_over", 2, *resume, processes=2)
    assert metrics(runs.folder / "halves") == metrics(runs.folder / "sharded")
    for name in ("model/model.safetensors", "model_ema/model.safetensors", "checkpoint-4/model.safetensors"):
        assert (runs.folder / "halves" / name).read_bytes() == (runs.folder / "sharded" / name).read_bytes(), name
    ours, expected = (load_shards(runs.folder / name / "checkpoint-4")["optimizers"] for name in ("halves", "sharded"))
    assert ours["param_groups"] == expected["param_groups"]
    torch.testing.assert_close(ours["state"], expected["state"], rtol=0, atol=0)


@pytest.mark.slow
def test_groups_of_processes_hold_copies(runs):
    """Four processes, the weights cut in two: the way of several machines."""
    options = ["--gradient_accumulation_steps", 1]
    runs("groups", "--shard_over", 2, *options, processes=4)
    assert_alike(runs.folder / "groups", runs.folder / "sharded")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"use_muon": True}, r"\{'use_muon': True\}"),
        ({"reseed_every": 25, "pyramid_components": 3}, r"\{'reseed_every': 25, 'pyramid_components': 3\}"),
    ],
)
def test_what_sharding_excludes(entries, message):
    with pytest.raises(ValueError, match=message):
        Arguments(data_root=".", output_dir=".", shard_over=2, **(RECIPE | entries))


@pytest.mark.parametrize(
    ("processes", "shard_over", "precision", "message"),
    [
        (1, 2, "no", "divide the number of processes, 1; got 2"),
        (4, 3, "no", "divide the number of processes, 4; got 3"),
        (4, 1, "no", "shard_over must be at least 2"),
        (4, 2, "fp16", "must be 'bf16' or 'no', got 'fp16'"),
    ],
)
def test_what_cannot_be_sharded(processes, shard_over, precision, message):
    accelerator = SimpleNamespace(num_processes=processes, mixed_precision=precision)
    with pytest.raises(ValueError, match=message):
        shard(torch.nn.Linear(1, 1), accelerator, shard_over)
