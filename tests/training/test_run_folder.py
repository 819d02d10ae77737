"""What the training scripts share: arguments, run folders, clips, and the recipes that ship."""

import dataclasses
import json
import os
import resource
import socket
import subprocess
import sys
from dataclasses import dataclass
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import LoggerType
from builders.script_runs import SCRIPTS, run_script
from builders.video_files import make_frames, write_audio_only, write_avi, write_empty, write_text
from transformers import AutoModel

from adaptok_hf import AdapTokConfig, AdapTokPriorConfig, AdapTokPriorModel
from adaptok_hf.atomic_files import LOCK
from adaptok_hf.training import clips as training_clips
from adaptok_hf.training import recipes
from adaptok_hf.training.ar import arguments as ar_arguments
from adaptok_hf.training.arguments import RunArguments, epochs_to_steps, require
from adaptok_hf.training.router import arguments as router_arguments
from adaptok_hf.training.router import assignment_labels
from adaptok_hf.training.run_folder import Progress, RunFolder, RunningMeans, claim_run_folder, start_run
from adaptok_hf.training.scorer import arguments as scorer_arguments
from adaptok_hf.training.tokenizer import arguments as tokenizer_arguments
from adaptok_hf.training.tokenizer import training_step as tokenizer_training_step
from adaptok_hf.training.trainer import Trainer

TINY = json.loads((SCRIPTS / "recipes" / "tokenizer_tiny.json").read_text())


@pytest.fixture
def run_folder(tmp_path):
    """A run folder with a counter that is part of its checkpoints, and a small model."""

    @dataclass
    class Arguments:
        seed: int = 0

    class Counter:
        value = 0

        def state_dict(self):
            return {"value": self.value}

        def load_state_dict(self, state):
            self.value = state["value"]

    accelerator = Accelerator(cpu=True)
    folder = RunFolder(str(tmp_path / "run"), Arguments(), accelerator)
    folder.counter = Counter()
    accelerator.register_for_checkpointing(folder.counter)
    config = AdapTokPriorConfig(hidden_size=8, num_attention_heads=2, num_hidden_layers=1, num_latent_tokens=4)
    folder.model = AdapTokPriorModel(config)
    yield folder
    AcceleratorState._reset_state(reset_partial_state=True)


def save_steps(folder, *steps: int) -> None:
    for folder.counter.value in steps:
        folder.save(folder.model, folder.counter.value, checkpoints_total_limit=2)


def test_checkpoints_rotate(run_folder):
    assert not run_folder.resume()
    save_steps(run_folder, 5, 10, 100)
    assert [path.name for path in run_folder.checkpoints()] == ["checkpoint-10", "checkpoint-100"]
    run_folder.counter.value = 0
    assert run_folder.resume() and run_folder.counter.value == 100
    assert run_folder.resume("checkpoint-10") and run_folder.counter.value == 10
    with pytest.raises(ValueError, match=r"'checkpoint-5'.*'checkpoint-10', 'checkpoint-100'"):
        run_folder.resume("checkpoint-5")
    save_steps(run_folder, 20)  # the run was taken back: what followed before is gone
    assert [path.name for path in run_folder.checkpoints()] == ["checkpoint-10", "checkpoint-20"]


def test_a_full_disk_leaves_the_last_checkpoint(run_folder):
    save_steps(run_folder, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
        with pytest.raises(OSError, match=r"model\.new"):
            save_steps(run_folder, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert run_folder.resume() and run_folder.counter.value == 1
    AutoModel.from_pretrained(run_folder.path / "model")
    save_steps(run_folder, 2)
    assert [path.name for path in run_folder.checkpoints()] == ["checkpoint-1", "checkpoint-2"]


def test_an_output_folder_under_a_file(run_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        RunFolder(str(tmp_path / "file" / "run"), None, run_folder.accelerator)


def test_running_means_are_resumed(run_folder):
    means, resumed = RunningMeans(), RunningMeans()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)})
    resumed.load_state_dict(means.state_dict())
    resumed.add({"a": torch.tensor(2.0)})
    assert resumed.pop(run_folder.accelerator) == {"a": 1.5, "b": 5.0}
    assert resumed.pop(run_folder.accelerator) == {}


def test_learning_rates(run_folder):
    args = RunArguments(output_dir="out", learning_rate=1.0, final_learning_rate=0.2, warmup_epochs=0.5)
    trainer = Trainer(args, run_folder, length=12, batch_size=4, num_videos=16, progress=Progress())
    rates = [trainer.learning_rate(step) for step in range(13)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[7] == pytest.approx(0.6) and rates[12] == pytest.approx(0.2)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_sources_are_joined(tmp_path):
    for name in ("folder/a/0.avi", "folder/1.avi", "ucf/Archery/v_Archery_g01_c01.avi", "k600/abcdefghijk.avi"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_avi(tmp_path / name, frames=make_frames(8, 16, 16))
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "classInd.txt").write_text("1 Archery\n")
    (tmp_path / "splits" / "trainlist01.txt").write_text("Archery/v_Archery_g01_c01.avi 1\n")
    (tmp_path / "k600.csv").write_text("label,youtube_id,time_start,time_end\nabseiling,abcdefghijk,0,10\n")
    args = tokenizer_arguments.Arguments(
        data_root=str(tmp_path),
        output_dir="out",
        stream_folders=["folder"],
        ucf101_folder="ucf",
        ucf101_splits="splits",
        kinetics_folder="k600",
        kinetics_csv="k600.csv",
    )
    config = AdapTokConfig(image_size=16, num_frames=8, hidden_size=16, num_attention_heads=2)
    clips, val_clips = training_clips.open_clips(args, config)
    source = clips.make_stream().source
    assert clips.num_videos == source.num_shards == 4
    keys = [source.read_shard(i)[0].key for i in range(4)]
    assert keys == ["1.avi", "a/0.avi", "Archery/v_Archery_g01_c01.avi", "abcdefghijk.avi"]
    sample = clips.sample(2)
    before = torch.get_rng_state()
    assert sample.shape == (2, 8, 3, 16, 16) and torch.equal(clips.next_batch(2), sample)
    assert torch.equal(torch.get_rng_state(), before)  # else a resumed run would sample other token counts


def test_a_hub_data_set(tmp_path, monkeypatch, caplog):
    """A folder of classes, as `load_dataset` streams it from the Hub, with files among the good ones that are none."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    videos = tmp_path / "videos" / "train" / "running"
    videos.mkdir(parents=True)
    for i in range(3):
        write_avi(videos / f"good_{i}.avi", frames=np.full((8 + i, 16, 16, 3), 40 + 60 * i, np.uint8))
    write_empty(videos / "empty.avi")
    write_text(videos / "text.avi")
    write_avi(videos / "one_frame.avi", frames=make_frames(1, 16, 16))
    write_audio_only(videos / "sound.mp4")
    data = {"data_root": ".", "output_dir": "out", "hub_dataset": str(tmp_path / "videos"), "hub_split": "train"}
    args = tokenizer_arguments.Arguments(**data)
    config = AdapTokConfig(image_size=16, num_frames=8, hidden_size=16, num_attention_heads=2)
    clips, val_clips = training_clips.open_clips(args, config)
    assert clips.num_videos is None  # it takes reading to count them
    source = clips.make_stream().source
    assert sum(len(list(source.read_shard(i))) for i in range(source.num_shards)) == 7
    batch = clips.next_batch(6)  # two epochs
    assert batch.shape == (6, 8, 3, 16, 16)
    brightness = batch.float().mean((1, 2, 3, 4))
    for epoch in (brightness[:3], brightness[3:]):
        assert epoch.sort().values == pytest.approx([40, 100, 160], abs=4)
    for reason in ("the file is empty", "not a video", "1 frames, but a clip of 8", "no video stream"):
        assert reason in caplog.text
    # the next clips after a restart
    state = clips.state_dict()
    expected = clips.next_batch(3)
    resumed, _ = training_clips.open_clips(args, config)
    resumed.load_state_dict(state)
    assert torch.equal(resumed.next_batch(3), expected)
    with pytest.raises(ValueError, match="either train_folders"):
        tokenizer_arguments.Arguments(**(data | TINY))


def test_random_numbers_are_shared_and_leave_the_others_alone():
    shared_sampling = training_clips.shared_sampling
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    numbers = []
    for seed, step in ((1, 5), (1, 6), (2, 5), (1, 5)):
        with shared_sampling(seed, step):
            numbers.append(float(torch.rand(())))
    assert numbers[0] == numbers[3] and len(set(numbers)) == 3
    assert torch.equal(torch.rand(2), expected)


def test_stages_in_epochs():
    module = tokenizer_arguments
    recipe = json.loads((SCRIPTS / "recipes" / "tokenizer_paper.json").read_text())
    args = module.Arguments(data_root=".", output_dir="out", shard_folders=["shards"], **recipe)
    (stage,) = module.plan_stages(args, 9537, num_processes=32, num_blocks=4)
    assert (stage.start, stage.end, stage.batch_size) == (0, 18627, 128)  # 250 epochs of UCF-101
    assert epochs_to_steps(args.warmup_epochs, 128, 9537) == 597
    for changes, message in (
        ({"num_videos": None}, "give videos_per_epoch"),
        ({"num_processes": 3}, "128 .* 3 processes"),
        ({"num_blocks": 2}, "a stage has 4 blocks, the model 2"),
    ):
        with pytest.raises(ValueError, match=message):
            module.plan_stages(args, **({"num_videos": 9537, "num_processes": 32, "num_blocks": 4} | changes))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"train_weights": []}, "2 train_folders but 0 train_weights"),
        ({"shard_folders": ["shards"]}, r"either train_folders .* got .*'action32/train'\] and \['shards'\]"),
        ({"train_folders": [], "train_weights": []}, r"either train_folders .* got \[\] and \[\]"),
        ({"ucf101_folder": "UCF-101"}, "UCF-101 and None"),
        ({"resume_from_checkpoint": "step-3"}, "step-3"),
        ({"ema_decay": 1.0}, "ema_decay .* 1.0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps .* 0"),
        ({"prior_weight": -1.0}, "prior .* -1.0"),
        ({"stages": [{"num_blocks": 1, "batch_size": 1}]}, "{.num_blocks.: 1, .batch_size.: 1}"),
        ({"init_from": "saved", "model": {"image_size": 64}}, "saved.*'image_size'"),
        ({"decoder_only": True, "init_from": None}, "decoder_only needs init_from"),
        ({"max_train_steps": 0}, "max_train_steps .* 0"),
    ],
)
def test_bad_tokenizer_recipes_are_named(entries, message):
    recipe = {"data_root": "d", "output_dir": "o"} | TINY
    with pytest.raises(ValueError, match=message):
        tokenizer_arguments.Arguments(**(recipe | entries))


# Table A and the released model: 172.97M + 22.09M of the prior. Table B prints S, L and XL with their priors, but not what
# those are: priors of the tokenizer's own width, depth and heads give its totals.
@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("tokenizer_paper", pytest.approx(195.06, abs=0.01)),
        ("causaltok_paper", pytest.approx(194, abs=1)),
        ("tokenizer_small", pytest.approx(59, abs=1)),
        ("tokenizer_large", pytest.approx(259, abs=1)),
        ("tokenizer_extra_large", pytest.approx(913, abs=1)),
    ],
)
def test_sizes_of_published_recipes(name, total):
    module, recipe = (
        tokenizer_training_step,
        json.loads((SCRIPTS / "recipes" / f"{name}.json").read_text()),
    )
    args = tokenizer_arguments.Arguments(data_root=".", output_dir=".", shard_folders=["shards"], **recipe)
    with torch.device("meta"):
        model = module.build_model(args)
        prior = module.build_prior(args, model.config)
        adversarial = module.build_adversarial_losses(args, model.config)["adversarial"]
    assert sum(p.numel() for part in (model, prior) for p in part.parameters()) / 1e6 == total
    assert adversarial.kind == "smoothed_non_saturating" and adversarial.update_every == 5
    # Table A: Adam with betas 0.5 and 0.9; the prior learns 50 times as fast
    (optimizer,) = module.build_optimizers(module.TrainingStep(model, prior, args), args)
    assert [(g["betas"], g["weight_decay"], g["factor"]) for g in optimizer.param_groups] == [
        ((0.5, 0.9), 0.0, 1.0),
        ((0.5, 0.9), 0.0, 50),
    ]


@pytest.fixture
def parse_arguments(monkeypatch):
    """`parse_arguments` with a command line."""

    def parse(*argv: str):
        monkeypatch.setattr(sys, "argv", ["train_tokenizer.py", *map(str, argv)])
        return recipes.parse_arguments(tokenizer_arguments.Arguments)

    return parse


def test_options_override_the_recipe(parse_arguments, tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps(TINY))
    required = ["--data_root", "data", "--output_dir", "out"]
    arguments = parse_arguments(tmp_path / "recipe.json", *required, "--logging_steps", "7")
    assert arguments.logging_steps == 7 and arguments.validation_steps == TINY["validation_steps"]
    assert arguments.stages == TINY["stages"] and arguments.data_root == "data"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"batch_sise": 3}, r"unknown entries \['batch_sise'\]"),
        ({"train_weights": [0.5]}, "2 train_folders but 1 train_weights"),
        ({"resume_from_checkpoint": "step-3"}, "step-3"),
    ],
)
def test_bad_recipes_are_named(parse_arguments, tmp_path, entries, message):
    (tmp_path / "recipe.json").write_text(json.dumps(TINY | entries))
    with pytest.raises(ValueError, match=message):
        parse_arguments(tmp_path / "recipe.json", "--data_root", "d", "--output_dir", "o")


def test_shipped_recipes_fit_their_scripts():
    folders = (SCRIPTS / "recipes", SCRIPTS / "recipes" / "demo", SCRIPTS / "recipes" / "claims")
    recipes = [path for folder in folders for path in sorted(folder.glob("*.json"))]
    assert {recipe.parent for recipe in recipes} == set(folders)
    kinds = {
        "tokenizer": tokenizer_arguments.Arguments,
        "causaltok": tokenizer_arguments.Arguments,
        "evatok": tokenizer_arguments.Arguments,
        "scorer": scorer_arguments.Arguments,
        "labels": assignment_labels.Arguments,
        "router": router_arguments.Arguments,
        "ar": ar_arguments.Arguments,
        "fp": ar_arguments.Arguments,
    }
    for recipe in recipes:
        known = {field.name for field in dataclasses.fields(kinds[recipe.stem.split("_")[0]])}
        assert set(json.loads(recipe.read_text())) <= known, recipe.name
    texts = [json.dumps(json.loads(recipe.read_text()), sort_keys=True) for recipe in recipes]
    assert len(set(texts)) == len(texts)  # causaltok was once the same as what it is compared with


@pytest.mark.parametrize("name", ["datasets", "peft", "torchdata"])
def test_missing_libraries_are_named(monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=rf"{name} .*adaptok_hf\[train\]"):
        require(name)


# --- after a kill, and two runs at once ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trackio", "wandb", "tensorboard", "comet_ml"])
def test_a_missing_tracker_is_named_before_training(parse_arguments, tmp_path, monkeypatch, name):
    monkeypatch.setattr("accelerate.tracking._available_trackers", [])
    (tmp_path / "recipe.json").write_text(json.dumps(TINY | {"report_to": name}))
    command = [tmp_path / "recipe.json", "--data_root", tmp_path, "--output_dir", tmp_path / "run"]
    with pytest.raises(ImportError, match=f"{name}.*pip install {name.replace('_', '-')}$"):
        parse_arguments(*command)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="trackio.*'my_board'"):
        parse_arguments(*command, "--report_to", "my_board")
    assert parse_arguments(*command, "--report_to", "all").report_to == "all"


def test_trackio_gets_the_log(tmp_path, monkeypatch):
    """A stand-in for the package, of the functions that accelerate calls."""
    logged = []
    run = SimpleNamespace(log=lambda values, step: logged.append((step, values)), finish=lambda: logged.append("finished"))
    config = SimpleNamespace(update=lambda values, allow_val_change: logged.append(values["learning_rate"]))
    trackio = SimpleNamespace(init=lambda project: logged.append(project) or run, config=config)
    monkeypatch.setitem(sys.modules, "trackio", trackio)
    monkeypatch.setattr("accelerate.tracking._available_trackers", [LoggerType.TRACKIO])
    args = RunArguments(output_dir=str(tmp_path / "run"), report_to="trackio", learning_rate=0.5)
    folder = start_run(args, "train_tokenizer", cpu=True)
    folder.log({"step": 3, "loss": 0.25})
    folder.save_picture("clips", np.zeros((4, 4, 3), np.uint8), 3)
    folder.accelerator.end_training()
    assert logged == ["train_tokenizer", 0.5, (3, {"loss": 0.25}), "finished"]
    assert (tmp_path / "run" / "validation" / "step-000003.png").is_file()


def test_what_a_killed_run_left_is_put_in_order(run_folder):
    save_steps(run_folder, 1, 2)
    path = run_folder.path
    whole = sorted(path.rglob("*"))
    (path / "checkpoint-2").rename(path / "checkpoint-2.old")  # killed between two renames
    for left in ("checkpoint-2.new", "checkpoint-1.old", "model.new", ".model-0a1b2c3d.7-0a1b2c3d.tmp"):
        (path / left).mkdir()
        (path / left / "half").write_text("")
    (path / "notes.new").mkdir()  # not ours
    claim = claim_run_folder(path)
    assert sorted(set(path.rglob("*")) - {path / LOCK}) == sorted([*whole, path / "notes.new"])
    claim.close()
    assert not (path / LOCK).exists() and run_folder.resume() and run_folder.counter.value == 2


def test_the_log_is_taken_back(run_folder):
    save_steps(run_folder, 2)
    run_folder.path.joinpath("metrics.jsonl").write_text(
        '{"step": 1}\n{"step": 2}\n{"step": 2, "val": 1}\n{"step": 3}\n{"st'
    )
    run_folder.resume()
    text = run_folder.path.joinpath("metrics.jsonl").read_text()
    assert text == '{"step": 1}\n{"step": 2}\n{"step": 2, "val": 1}\n'
    run_folder.log({"step": 3})
    assert run_folder.path.joinpath("metrics.jsonl").read_text() == text + '{"step": 3}\n'


@pytest.mark.slow
def test_a_second_run_is_refused(tmp_path):
    """With one line that names the first, before it writes anything."""
    program = f"""
import sys
from pathlib import Path
from adaptok_hf.training.run_folder import claim_run_folder
claim_run_folder(Path({str(tmp_path / "run")!r}))
print("claimed", flush=True)
sys.stdin.readline()"""
    first = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                             env=os.environ | {"PYTHONPATH": str(SCRIPTS.parent)})  # fmt: skip
    assert first.stdout.readline() == "claimed\n"
    tokens = tmp_path / "tokens"
    error = run_script("train_ar.py", "--tokens", tokens, "--steps", "1", "--output_dir", tmp_path / "run", fails=True)
    assert f"process {first.pid} on {socket.gethostname()}" in error and error.count("\n") == 1
    assert [path.name for path in (tmp_path / "run").iterdir()] == [LOCK]
    first.communicate("\n")
    assert not list((tmp_path / "run").iterdir())
