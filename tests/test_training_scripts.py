"""The training scripts as users run them: subprocesses, tiny recipes, a few steps."""

import dataclasses
import importlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoModel
from video_files import make_frames, write_avi, write_mp4

from adaptok_hf import (
    AdapTokConfig,
    AdapTokModel,
    AdapTokPipeline,
    AdapTokPriorConfig,
    AdapTokPriorModel,
    AdapTokScorerModel,
    AdapTokVideoProcessor,
)
from adaptok_hf.metrics.lpips_network import LPIPSNetwork

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
    # of the four checkpoints two are kept
    names = {"model", "model_ema", "checkpoint-3", "checkpoint-4", "validation", "tracker", "recipe.json", "metrics.jsonl"}
    assert {path.name for path in folder.iterdir()} == names
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["stages"] == TOKENIZER_RECIPE["stages"] and recipe["learning_rate"] == 1e-3
    records = metrics(folder)
    assert sorted(records) == [1, 2, 3, 4]
    assert records[1]["codes_used"] == 0 < records[2]["codes_used"]  # the quantiser comes after one step
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
    deadline = time.time() + 300
    while not (folder / "checkpoint-2").exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL and max(metrics(folder)) < 4

    output = run(*arguments, "--resume_from_checkpoint", "latest")
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


def test_causaltok_on_a_stream(causaltok_options, tmp_path):
    run("train_tokenizer.py", *causaltok_options, "--output_dir", str(tmp_path / "run"))
    records = metrics(tmp_path / "run")
    assert sorted(records) == [1, 2, 3]  # 1.5 epochs of 4 videos in batches of 2
    assert all(record["perceptual"] > 0 and "tokens_kept" not in record for record in records.values())
    # half an epoch of warm-up is one step, then the cosine begins
    assert records[1]["learning_rate"] == records[2]["learning_rate"] == 1e-3 > records[3]["learning_rate"]
    assert not AutoModel.from_pretrained(tmp_path / "run" / "model").config.adaptive


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", ["0", "2"])
def test_a_stream_is_resumed_exactly(causaltok_options, tmp_path, num_workers):
    options = [*causaltok_options, "--perceptual_weight", "0", "--num_workers", num_workers]
    whole, halves = (
        [*options, "--output_dir", str(tmp_path / "whole")],
        [*options, "--output_dir", str(tmp_path / "halves")],
    )
    run("train_tokenizer.py", *whole)
    run("train_tokenizer.py", *halves, "--max_train_steps", "2")
    assert "resumed at step 2" in run("train_tokenizer.py", *halves, "--resume_from_checkpoint", "checkpoint-2")
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "halves")


@pytest.mark.slow
def test_two_processes_train_like_one(tokenizer_run, tmp_path):
    """Without random numbers inside the model, for each process draws its own."""
    recipe = TOKENIZER_RECIPE | {
        "model": TOKENIZER_RECIPE["model"] | {"stochastic_quantizer": False},
        "stages": [{"steps": 3, "num_blocks": 4, "batch_size": 4}],
        "quantize_after": 0,
        "drop_after": 100,
        "reseed_every": 0,
        "adversarial_kind": "hinge",
        "prior": TOKENIZER_RECIPE["prior"] | {f"{name}_dropout": 0.0 for name in ("embedding", "residual", "attention")},
        "prior_sampling_peak": 0.0,
        "report_to": "none",
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    options = [str(tmp_path / "recipe.json"), *tokenizer_run.options, "--output_dir"]
    assert "on 1 processes" in run("train_tokenizer.py", *options, str(tmp_path / "one"))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    two = [sys.executable, *launcher, str(SCRIPTS / "train_tokenizer.py"), *options, str(tmp_path / "two")]
    done = subprocess.run(two, capture_output=True, text=True, env=environment(), timeout=600)
    assert done.returncode == 0 and "on 2 processes" in done.stdout, done.stderr[-3000:]
    ours, theirs = metrics(tmp_path / "one"), metrics(tmp_path / "two")
    assert ours.keys() == theirs.keys()
    for step, record in ours.items():
        assert record == pytest.approx(theirs[step], rel=1e-4, abs=2e-4)


@pytest.mark.slow
def test_fine_tuning_the_decoder(tokenizer_run, tmp_path):
    recipe = {name: value for name, value in TOKENIZER_RECIPE.items() if "prior" not in name and name != "model"}
    recipe |= {"transform_codec_initialization": False, "quantize_after": 0, "reseed_every": 0}
    recipe |= {"decoder_only": True, "init_from": str(tokenizer_run.run / "model"), "max_train_steps": 2}
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    options = [*tokenizer_run.options, "--output_dir", str(tmp_path / "run")]
    run("train_tokenizer.py", tmp_path / "recipe.json", *options)
    before, after = (load_file(path / "model" / "model.safetensors") for path in (tokenizer_run.run, tmp_path / "run"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {name for name in before if name.startswith("decoder.")}


# Without a subprocess


@pytest.fixture
def scripts(monkeypatch):
    """Imports a module of `training_scripts/`."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture
def run_folder(scripts, tmp_path):
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
    folder = scripts("run_folder").RunFolder(str(tmp_path / "run"), Arguments(), accelerator)
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
    with pytest.raises(ValueError, match=r"no 'checkpoint-5'; there are \['checkpoint-10', 'checkpoint-100'\]"):
        run_folder.resume("checkpoint-5")
    save_steps(run_folder, 20)  # the run was taken back: what followed before is gone
    assert [path.name for path in run_folder.checkpoints()] == ["checkpoint-10", "checkpoint-20"]


def test_one_checkpoint_without_steps(run_folder):
    run_folder.counter.value = 3
    run_folder.save(run_folder.model)
    os.replace(run_folder.path / "checkpoint", run_folder.path / "checkpoint.old")  # killed between two renames
    run_folder.counter.value = 0
    assert run_folder.resume() and run_folder.counter.value == 3
    assert not run_folder.checkpoints()


def test_a_full_disk_leaves_the_last_checkpoint(run_folder):
    save_steps(run_folder, 1)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limit[1]))
        with pytest.raises(OSError, match=r"model\.new could not be written: .*was saved before is still there"):
            save_steps(run_folder, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert run_folder.resume() and run_folder.counter.value == 1
    AutoModel.from_pretrained(run_folder.path / "model")
    save_steps(run_folder, 2)
    assert [path.name for path in run_folder.checkpoints()] == ["checkpoint-1", "checkpoint-2"]


def test_an_output_folder_under_a_file(scripts, run_folder, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="file"):
        scripts("run_folder").RunFolder(str(tmp_path / "file" / "run"), None, run_folder.accelerator)


def test_running_means_go_on(scripts, run_folder):
    means, resumed = scripts("running_means").RunningMeans(), scripts("running_means").RunningMeans()
    means.add({"a": torch.tensor(1.0), "b": torch.tensor(5.0)})
    resumed.load_state_dict(means.state_dict())
    resumed.add({"a": torch.tensor(2.0)})
    assert resumed.pop(run_folder.accelerator) == {"a": 1.5, "b": 5.0}
    assert resumed.pop(run_folder.accelerator) == {}


def test_learning_rates(scripts):
    rates = [scripts("learning_rate").learning_rate_at(i, 12, peak=1.0, final=0.2, warmup_steps=2) for i in range(13)]
    assert rates[:3] == [0.5, 1.0, 1.0] and rates[7] == pytest.approx(0.6) and rates[12] == pytest.approx(0.2)
    assert rates[2:] == sorted(rates[2:], reverse=True)


def test_sources_are_joined(scripts, tmp_path):
    for name in ("folder/a/0.avi", "folder/1.avi", "ucf/Archery/v_Archery_g01_c01.avi", "k600/abcdefghijk.avi"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write_avi(tmp_path / name, frames=make_frames(8, 16, 16))
    (tmp_path / "splits").mkdir()
    (tmp_path / "splits" / "classInd.txt").write_text("1 Archery\n")
    (tmp_path / "splits" / "trainlist01.txt").write_text("Archery/v_Archery_g01_c01.avi 1\n")
    (tmp_path / "k600.csv").write_text("label,youtube_id,time_start,time_end\nabseiling,abcdefghijk,0,10\n")
    args = scripts("tokenizer_arguments").Arguments(
        data_root=str(tmp_path),
        output_dir="out",
        stream_folders=["folder"],
        ucf101_folder="ucf",
        ucf101_splits="splits",
        kinetics_folder="k600",
        kinetics_csv="k600.csv",
    )
    config = AdapTokConfig(image_size=16, num_frames=8, hidden_size=16, num_attention_heads=2)
    clips = scripts("training_clips").make_training_clips(args, config)
    source = clips.make_stream().source
    assert clips.num_videos == source.num_shards == 4
    keys = [source.read_shard(i)[0].key for i in range(4)]
    assert keys == ["1.avi", "a/0.avi", "Archery/v_Archery_g01_c01.avi", "abcdefghijk.avi"]
    sample = clips.sample(2)
    assert sample.shape == (2, 8, 3, 16, 16) and torch.equal(clips.next_batch(2), sample)


def test_random_numbers_are_shared_and_leave_the_others_alone(scripts):
    shared_draws = scripts("training_clips").shared_draws
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    drawn = []
    for seed, step in ((1, 5), (1, 6), (2, 5), (1, 5)):
        with shared_draws(seed, step):
            drawn.append(float(torch.rand(())))
    assert drawn[0] == drawn[3] and len(set(drawn)) == 3
    assert torch.equal(torch.rand(2), expected)


def test_stages_in_epochs(scripts):
    module = scripts("tokenizer_arguments")
    recipe = json.loads((SCRIPTS / "recipes" / "tokenizer_paper.json").read_text())
    args = module.Arguments(data_root=".", output_dir="out", shard_folders=["shards"], **recipe)
    (stage,) = module.plan_stages(args, 9537, num_processes=32, num_blocks=4)
    assert (stage.start, stage.end, stage.batch_size) == (0, 18627, 128)  # 250 epochs of UCF-101
    assert module.epochs_to_steps(args, args.warmup_epochs, 128, 9537) == 597
    for changes, message in (
        ({"num_videos": None}, "give videos_per_epoch"),
        ({"num_processes": 3}, "128 clips cannot be shared evenly by 3 processes"),
        ({"num_blocks": 2}, "a stage has 4 blocks, the model 2"),
    ):
        with pytest.raises(ValueError, match=message):
            module.plan_stages(args, **({"num_videos": 9537, "num_processes": 32, "num_blocks": 4} | changes))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"train_weights": []}, "1 train_folders but 0 train_weights"),
        ({"shard_folders": ["shards"]}, r"either train_folders .* got \['train'\] and \['shards'\]"),
        ({"train_folders": [], "train_weights": []}, r"either train_folders .* got \[\] and \[\]"),
        ({"ucf101_folder": "UCF-101"}, "ucf101_folder and ucf101_splits need each other; got UCF-101 and None"),
        ({"resume_from_checkpoint": "step-3"}, "'latest' or such as 'checkpoint-500', got 'step-3'"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\), got 1.0"),
        ({"gradient_accumulation_steps": 0}, "gradient_accumulation_steps must be at least 1, got 0"),
        ({"prior_weight": -1.0}, "weight prior must be finite and not negative, got -1.0"),
        ({"stages": [{"num_blocks": 1, "batch_size": 1}]}, "either steps or epochs"),
        ({"init_from": "model"}, "with init_from, model, .* have no place"),
        ({"decoder_only": True}, "decoder_only needs init_from"),
    ],
)
def test_bad_tokenizer_recipes_are_named(scripts, entries, message):
    recipe = {"data_root": "d", "output_dir": "o"} | TOKENIZER_RECIPE
    with pytest.raises(ValueError, match=message):
        scripts("tokenizer_arguments").Arguments(**(recipe | entries))


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
def test_sizes_of_published_recipes(scripts, name, total):
    module, recipe = scripts("tokenizer_training_step"), json.loads((SCRIPTS / "recipes" / f"{name}.json").read_text())
    args = scripts("tokenizer_arguments").Arguments(data_root=".", output_dir=".", shard_folders=["shards"], **recipe)
    with torch.device("meta"):
        model = module.build_model(args)
        prior = module.build_prior(args, model.config)
        adversarial = module.build_adversarial_loss(args, model.config)
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


def test_shipped_recipes_fit_their_scripts(scripts):
    recipes = sorted((SCRIPTS / "recipes").glob("*.json"))
    assert recipes
    for recipe in recipes:
        part = recipe.name.split("_")[0]
        script = scripts("train_" + {"fp": "ar", "causaltok": "tokenizer"}.get(part, part))
        known = {field.name for field in dataclasses.fields(script.Arguments)}
        assert set(json.loads(recipe.read_text())) <= known, recipe.name
