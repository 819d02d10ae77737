import dataclasses
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.evaluations import moving_frames
from builders.token_data import make_pipeline

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, write_video
from adaptok_hf.cli.main import main
from adaptok_hf.metrics import PROTOCOLS, network_weights

SCRIPTS = Path(__file__).parents[2] / "training_scripts"
RECIPES = sorted((SCRIPTS / "recipes" / "evaluation").glob("*.json"))
QUIET = ["--lpips", "none", "--no-fvd", "--device", "cpu"]


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    for index in range(3):
        write_video(folder / f"v{index}.mp4", moving_frames(index, 26), 12)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """With generators of 3 classes, and of frame prediction."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    sizes |= {"codebook_size": 50, "num_blocks": 3, "latents_per_block": 6}
    ar = AdapTokARForCausalLM(AdapTokARConfig(num_classes=3, **sizes)).eval()
    fp = AdapTokARForCausalLM(AdapTokARConfig(num_classes=0, num_condition_codes=18, start_block=1, **sizes)).eval()
    make_pipeline(ar_model=ar, fp_model=fp).save_pretrained(folder)
    return str(folder)


def test_reconstruction(videos, model, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["evaluate", "reconstruction", str(videos), "-o", str(out), "--model", model, *QUIET]
    argv += ["--budgets", "2", "4", "--strategies", "fixed", "joint", "--allocation-batch", "3"]
    assert main(argv) == 0
    table = capsys.readouterr().out
    assert "| tiny | joint (3 videos) | 4 | 4 |" in table and "bootstrap" in table
    drawn = {path.name for path in out.glob("*.png")}
    assert drawn >= {"rate_psnr.png", "rate_ssim.png", "allocation_4.png", "scorer.png", "attention.png"}
    assert drawn >= {"tokens_over_time_1.png", "tokens_over_time_2.png"}
    assert {"results.json", "results.csv", "results.md", "per_video.csv", "scorer.json"} <= {p.name for p in out.iterdir()}
    assert not list(out.rglob("*.tmp"))


def test_generation(videos, model, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["evaluate", "generation", str(videos), "-o", str(out), "--model", model, "--videos", "6", *QUIET[2:]]
    argv += ["--batch-size", "4"]
    assert main(argv) == 0
    report = json.loads((out / "results.json").read_text())
    result = report["results"][0]
    classes = result["tokens_of_classes"]
    assert [entry["videos"] for entry in classes.values()] == [2, 2, 2]
    assert 1 / 3 <= result["tokens_per_block"] <= 6 and 0 < result["codebook"]["usage"] <= 1
    assert (out / "tokens_per_class.png").exists() and (out / "generated.png").exists()
    before = (out / "per_video.csv").read_text()
    (out / "parts" / "generated" / "000004.safetensors").unlink()
    assert main(argv) == 0
    assert (out / "per_video.csv").read_text() == before
    assert main([*argv, "--seed", "1"]) == 2
    assert "another configuration" in capsys.readouterr().err


def test_prediction(videos, model, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["evaluate", "prediction", str(videos), "-o", str(out), "--model", model, "--condition-frames", "4", *QUIET]
    assert main(argv) == 0
    report = json.loads((out / "results.json").read_text())
    assert [result["strategy"] for result in report["results"]] == ["predicted", "last given frame"]
    curve = np.array(report["psnr_of_frames"]["last given frame"])
    assert curve.shape == (12, 3) and (curve[:4, 0] == 100).all() and (np.diff(curve[4:, 0]) < 1).all()
    # the mean over frames of the dB is never lower than the dB of all frames
    assert 0 <= curve[4:, 0].mean() - report["results"][1]["metrics"]["psnr"]["value"] < 3
    assert (out / "psnr_over_frames.png").exists() and (out / "predicted.png").exists()


def test_errors_are_one_line(videos, model, tmp_path, capsys):
    out = str(tmp_path / "out")
    for argv, message in (
        (["evaluate", "reconstruction", "nowhere", "-o", out, "--model", model], "nowhere: no such file or folder"),
        (["evaluate", "reconstruction", str(videos), "-o", out, "--model", "nothing"], "cannot load the model nothing"),
        (["evaluate", "reconstruction", str(videos), "-o", out, "--model", model, "--protocol", "x"], "unknown protocol"),
        (["evaluate", "reconstruction", str(videos), "-o", out, "--model", model, "--budgets", "7"], "1 and the 6 tokens"),
        (["evaluate", "prediction", str(videos), "-o", out, "--model", model, "--condition-frames", "12"], "1..11, got 12"),
        (["evaluate", "generation", str(videos), "-o", out, "--model", model, "--videos", "1"], "at least 2 videos"),
        (["metrics", "compare", "nowhere", str(videos)], "nowhere: no such file or folder"),
    ):
        assert main([*argv, *(QUIET if argv[1] != "generation" else QUIET[2:])]) == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert error[-1].startswith("adaptok: error: ") and message in error[-1], argv
    assert not Path(out).exists()


def test_compare(videos, tmp_path, capsys):
    argv = ["metrics", "compare", str(videos), str(videos), "--frames", "12", "-o", str(tmp_path / "x.json"), *QUIET]
    assert main(argv) == 0
    printed, written = json.loads(capsys.readouterr().out), json.loads((tmp_path / "x.json").read_text())
    assert printed["metrics"]["psnr"]["value"] is None and printed["metrics"]["psnr"]["infinite"]
    assert "pairs" not in printed and [pair["psnr"] for pair in written["pairs"]] == [None] * 3


def test_fetch(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ADAPTOK_CACHE", str(tmp_path))
    weights = {"weight": torch.ones(2)}
    network_weights._write_safetensors(tmp_path / "lpips_alex.safetensors", weights, "a test")
    assert main(["metrics", "fetch", "--what", "lpips_alex"]) == 2
    captured = capsys.readouterr()
    assert f"cache: {tmp_path}" in captured.out and "was there; from a test" in captured.out
    assert "lpips_alex could not be verified" in captured.err
    assert main(["metrics", "fetch", "--what", "vgg"]) == 2
    assert "unknown network 'vgg'" in capsys.readouterr().err


@pytest.fixture
def evaluate_script(monkeypatch):
    # behind all others: the library `evaluate` has the script's name
    monkeypatch.setattr(sys, "path", [*sys.path, str(SCRIPTS)])
    spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPTS / "evaluate.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "evaluate_script", module)
    spec.loader.exec_module(module)
    return module


def test_there_is_a_recipe_for_every_table():
    names = {path.stem for path in RECIPES}
    assert names >= {"table1", "table2_ucf101", "table2_kinetics600", *(f"table{i}" for i in range(3, 8))}
    assert names >= {"table_c", "table_d", "table_e"}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipes_fit_the_arguments(recipe, evaluate_script, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["evaluate.py", str(recipe), "--output_dir", "out"])
    args = evaluate_script.parse_arguments(evaluate_script.Arguments)
    values, defaults = json.loads(recipe.read_text()), {f.name for f in dataclasses.fields(args)}
    assert set(values) <= defaults
    for line in args.paper:
        assert line.get("model", args.model_names[0] if args.model_names else "") is not None
        known = {"model", "strategy", "budget", "allocation_batch", "psnr", "lpips", "fvd", "milliseconds"}
        assert set(line) <= known | {"allocation_milliseconds", "milliseconds_per_clip", "blocks", "clip_budget"}
    if args.task == "reconstruction" and args.protocol:
        from adaptok_hf.evaluation import make_settings

        settings = make_settings(args.strategies, args.budgets, args.allocation_batches, 512, args.ipal_budgets)
        ours = {(name, s.strategy, s.budget) for name in args.model_names for s in settings}
        printed = {(p["model"], p["strategy"], float(p["budget"])) for p in args.paper if "strategy" in p}
        assert printed <= ours, "a number of the paper would stand beside nothing"
        assert PROTOCOLS[args.protocol].task == args.task


def test_script_runs_the_tiny_recipe(evaluate_script, videos, model, tmp_path, monkeypatch, capsys):
    options = ["--videos", str(videos), "--models", model, "--output_dir", str(tmp_path / "out")]
    options += ["--budgets", "2", "4", "--batch_size", "2"]
    recipe = str(SCRIPTS / "recipes" / "evaluation" / "tiny.json")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", recipe, *options])
    evaluate_script.main()
    assert "| tiny | joint (4 videos) | 4 |" in capsys.readouterr().out
    recipe = str(SCRIPTS / "recipes" / "evaluation" / "table_e.json")
    monkeypatch.setattr(sys, "argv", ["evaluate.py", recipe, "--output_dir", str(tmp_path / "e"), "--num_blocks", "1"])
    monkeypatch.setattr(evaluate_script, "time_allocation", _quick(evaluate_script.time_allocation))
    evaluate_script.main()
    assert "| 1 |" in capsys.readouterr().out


def _quick(function):
    return lambda *given, **options: function(*given, **options, repeats=1)
