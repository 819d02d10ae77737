import json
import os
import socket
import subprocess
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import PartialState
from builders import script_runs
from builders.evaluations import moving_frames
from builders.loaded_scripts import ROOT, load_script
from builders.routers import make_router
from builders.token_data import make_pipeline

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, write_video
from adaptok_hf.allocation import assignments, proxy_reward, reward_percentile
from adaptok_hf.cli.main import build_parser, main
from adaptok_hf.evaluation import make_settings
from adaptok_hf.metrics import PROTOCOLS, network_weights

FOLDER = ROOT / "training_scripts" / "recipes" / "evaluation"
RECIPES = sorted(FOLDER.glob("*.json"))
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
    argv += ["--schedule-videos", str(videos), "--schedule-clips", "2", "--schedule-loss", "mse"]
    assert main(argv) == 0
    table = capsys.readouterr().out
    assert "| tiny | joint (3 videos) | 4 | 4 |" in table and "bootstrap" in table
    learned_on = {result["learned_on"] for result in json.loads((out / "results.json").read_text())["results"]}
    assert learned_on == {None, "2 other clips, mse"}
    pictures = {path.name for path in out.glob("*.png")}
    assert pictures >= {"rate_psnr.png", "rate_ssim.png", "scorer.png", "attention.png"}
    assert pictures >= {"tokens_over_time_1.png", "tokens_over_time_2.png"}
    assert {"results.json", "results.csv", "results.md", "per_video.csv", "scorer.json"} <= {p.name for p in out.iterdir()}
    assert not list(out.rglob("*.tmp*"))


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
    assert (out / "generated.png").exists()
    before = (out / "per_video.csv").read_text()
    (out / "parts" / "generated" / "00001.safetensors").unlink()
    assert main(argv) == 0
    assert (out / "per_video.csv").read_text() == before
    assert main([*argv, "--seed", "1"]) == 2
    assert "another configuration" in capsys.readouterr().err


def test_prediction(videos, model, tmp_path, capsys):
    out = tmp_path / "out"
    argv = ["evaluate", "prediction", str(videos), "-o", str(out), "--model", model, "--condition-frames", "4", *QUIET]
    assert main([*argv, "--json"]) == 0
    printed = capsys.readouterr()
    report = json.loads((out / "results.json").read_text())
    assert json.loads(printed.out) == report and "| tiny |" in printed.err
    results = {result["strategy"]: result for result in report["results"]}
    assert list(results) == ["predicted", "predicted, details kept", "last given frame", "reconstructed"]
    assert [result["tokens_per_block"] for result in report["results"][2:]] == [0, 6]
    assert results["predicted"]["tokens_per_block"] == results["predicted, details kept"]["tokens_per_block"]
    curve = np.array(report["psnr_of_frames"]["last given frame"])
    assert curve.shape == (12,) and (curve[:4] == 100).all() and (np.diff(curve[4:]) < 1).all()
    # the mean over frames of the dB is never lower than the dB of all frames
    assert 0 <= curve[4:].mean() - results["last given frame"]["metrics"]["psnr"]["value"] < 3
    assert (out / "predicted.png").exists()


def test_prediction_where_the_first_video_is_too_short(model, tmp_path):
    (tmp_path / "in").mkdir()
    for name, frames in (("a", 3), ("b", 12)):
        write_video(tmp_path / "in" / f"{name}.mp4", moving_frames(0, frames), 12)
    argv = ["evaluate", "prediction", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "--model", model, *QUIET]
    assert main([*argv, "--batch-size", "1"]) == 0
    assert json.loads((tmp_path / "out" / "results.json").read_text())["num_videos"] == 1


def test_errors_are_one_line(videos, model, tmp_path, capsys):
    out = str(tmp_path / "out")
    for argv, message in (
        (["evaluate", "reconstruction", "nowhere", "-o", out, "--model", model], "nowhere: no such file or folder"),
        (["evaluate", "reconstruction", str(videos), "-o", out, "--model", "nothing"], "in this package: small, figures"),
        (["evaluate", "reconstruction", str(videos), "-o", out, "--model", model, "--protocol", "x"], "unknown protocol"),
        (["evaluate", "reconstruction", str(videos), "-o", out, "--model", model, "--budgets", "7"], "1 and the 6 tokens"),
        (["evaluate", "prediction", str(videos), "-o", out, "--model", model, "--condition-frames", "12"], "1..11, got 12"),
        (["evaluate", "generation", str(videos), "-o", out, "--model", model, "--videos", "1"], "at least 2 videos"),
        (["metrics", "compare", "nowhere", str(videos)], "nowhere: no such file or folder"),
        (["metrics", "compare", str(videos), str(videos), "--protocol", "x"], "unknown protocol 'x'"),
        (["metrics", "compare", str(videos), str(videos), "--protocol", "adaptok_wild_val", "--size", "8"], "image_size"),
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
    assert main(["metrics", "compare", str(videos), str(videos), "--protocol", "adaptok_wild_val", "--json", *QUIET]) == 0
    assert list(json.loads(capsys.readouterr().out)["protocols"]) == [PROTOCOLS["adaptok_wild_val"].hash]


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


def test_there_is_a_recipe_for_every_table():
    names = {path.stem for path in RECIPES}
    assert names >= {"table1", "table2_ucf101", "table2_kinetics600", *(f"table{i}" for i in range(3, 8))}
    assert names >= {"table_c", "table_d", "table_e", "evatok_table1", "evatok_table8"}
    assert names >= {f"evatok_table{number}_{task}" for number in (2, 5) for task in ("reconstruction", "generation")}


OF_BENCHMARKS = ("table_e", "evatok_table8")


@pytest.mark.parametrize("recipe", [path for path in RECIPES if path.stem not in OF_BENCHMARKS], ids=lambda path: path.stem)
def test_recipes_fit_the_options(recipe):
    arguments = build_parser().parse_args(["evaluate", "--recipe", str(recipe), "DATA", "-o", "out", "--seed", "3"])
    values, task = json.loads(recipe.read_text()), arguments.run.args[0]
    assert task.__name__ == f"_{values.pop('task')}" and arguments.seed == 3
    values.pop("title")
    assert {name: getattr(arguments, name) for name in values} == values
    for line in arguments.paper:
        known = {"model", "strategy", "budget", "tokens_per_block", "psnr", "lpips", "fvd", "milliseconds"}
        assert set(line) <= known | {"allocation_batch", "allocation_milliseconds"} and line["model"]
    if arguments.protocol:
        assert task.__name__ == f"_{PROTOCOLS[arguments.protocol].task}"
    if "strategies" in values and arguments.protocol:
        batches = arguments.allocation_batch
        settings = make_settings(arguments.strategies, arguments.budgets, batches, 512, arguments.ipal_budgets)
        ours = {(name, s.strategy, s.budget) for name in arguments.model_names for s in settings}
        printed = {(p["model"], p["strategy"], p["budget"]) for p in arguments.paper if "strategy" in p}
        assert printed <= ours, "a number of the paper would stand next to nothing"


def recipe_command(videos: Path, model: str, out: Path, *options: str) -> list[str]:
    argv = ["evaluate", "--recipe", str(FOLDER / "tiny.json"), str(videos), "-o", str(out), "--model", model]
    return [*argv, "--budgets", "2", "4", "--batch-size", "2", "--device", "cpu", *options]


def test_options_override_a_recipe(videos, model, tmp_path, capsys):
    assert main(recipe_command(videos, model, tmp_path / "out", "--model-names", "mine", "--max-videos", "2")) == 0
    assert "| mine | joint (4 videos) | 4 |" in capsys.readouterr().out
    report = json.loads((tmp_path / "out" / "results.json").read_text())
    assert report["num_videos"] == 2 and {result["budget"] for result in report["results"]} == {2, 4}
    assert not list((tmp_path / "out").glob("*.png"))  # the recipe's, as the missing LPIPS and FVD are


def test_recipes_that_do_not_fit(tmp_path, capsys):
    recipe = tmp_path / "recipe.json"
    for text, value in (
        (None, str(recipe)),
        ("no json", str(recipe)),
        ("[]", "list"),
        (json.dumps({"task": "allocation_time"}), "allocation_time"),
        (json.dumps({"task": "generation", "strategies": ["fixed"]}), "strategies"),
    ):
        if text is not None:
            recipe.write_text(text)
        with pytest.raises(SystemExit) as error:
            main(["evaluate", "--recipe", str(recipe), "DATA", "-o", "out"])
        assert error.value.code == 2 and value in capsys.readouterr().err.splitlines()[-1]
    for argv in (["evaluate"], ["evaluate", "--recipe"]):
        with pytest.raises(SystemExit) as error:
            main(argv)
        assert error.value.code == 2 and "--recipe" in capsys.readouterr().err.splitlines()[-1]


def test_names_for_every_model(videos, model, tmp_path, capsys):
    argv = ["evaluate", "reconstruction", str(videos), "-o", str(tmp_path / "out"), "--model", model, *QUIET]
    assert main([*argv, "--model-names", "a", "b"]) == 2 and "a, b" in capsys.readouterr().err
    argv = ["evaluate", "generation", str(videos), "-o", str(tmp_path / "out"), "--model", model, "--model", "other"]
    assert main(argv) == 2 and "other" in capsys.readouterr().err


def run_one_of_two(rank: int, port: int, argv: list[str]) -> None:
    torch.set_num_threads(1)  # a thread pool does not survive a fork
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState._reset_state()  # of the parent
    assert main(argv) == 0
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(videos, model, tmp_path):
    argv = ["evaluate", "generation", str(videos), "--model", model, "--videos", "6", "--batch-size", "2", *QUIET[2:]]
    assert main([*argv, "-o", str(tmp_path / "one")]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = (port, [*argv, "-o", str(tmp_path / "two")])
    torch.multiprocessing.start_processes(run_one_of_two, arguments, nprocs=2, start_method="fork")
    for name in ("results.json", "per_video.csv"):
        assert (tmp_path / "one" / name).read_text() == (tmp_path / "two" / name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_launchers(videos, model, tmp_path, processes):
    """As users start it. `accelerate launch` starts one process on a CPU; for two there is torchrun."""
    assert main(recipe_command(videos, model, tmp_path / "one")) == 0
    *launcher, _ = script_runs.command("", processes=processes)
    command = [*launcher, "-m", "adaptok_hf", *recipe_command(videos, model, tmp_path / "two")]
    done = subprocess.run(command, capture_output=True, text=True, env=script_runs.environment(), timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("| tiny | joint (4 videos) | 4 |") == 1
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert two["num_processes"] == processes
    assert [result["metrics"] for result in one["results"]] == [result["metrics"] for result in two["results"]]


def test_rewards_of_a_router_next_to_the_papers(capsys):
    benchmark, recipe = load_script("benchmarks/router_reward.py"), json.loads((FOLDER / "evatok_table8.json").read_text())
    levels, rng = [1, 2, 4, 6], np.random.default_rng(0)
    every = assignments(levels, 3)
    losses, frames = rng.random((5, 64)), list(torch.rand(5, 1, 12, 3, 16, 16) * 255)
    known = [{tuple(counts): loss for counts, loss in zip(every.tolist(), row, strict=True)} for row in losses]
    labels = SimpleNamespace(
        plan={"levels": levels, "num_blocks": 3}, costs=[SimpleNamespace(known=each) for each in known],
        frames=lambda: iter(frames), price_of=lambda weight: 0.001,
    )  # fmt: skip
    rewards = proxy_reward(losses, every.sum(1), recipe["quality_weight"])
    for head in ("blocks", "assignment"):
        router = make_router(head=head, price_conditioned=False)
        found = benchmark.measure_choices(router, labels, recipe["quality_weight"])
        chosen = [every.tolist().index(router.route(video / 255)[0].tolist()) for video in frames]
        assert found["router"]["percentile"] == pytest.approx(reward_percentile(rewards, chosen))
        assert found["router"]["top1"] == 100 * np.mean(rewards.argmax(1) == chosen) <= found["router"]["top5"]
        best = [max((i for i in range(64) if len(set(every[i])) == 1), key=row.__getitem__) for row in rewards]
        assert found["best uniform of each clip"]["percentile"] == pytest.approx(reward_percentile(rewards, best))
    benchmark.print_table(found, recipe)
    assert "| paper, UCF-101 | router | 96.19 | 5.77 | 23.68 |" in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"\[2, 4, 6\]"):
        benchmark.measure_choices(make_router(levels=(2, 4, 6)), labels, 1.2)


def test_the_benchmark_reads_the_recipe_of_table_e(capsys):
    benchmark = load_script("benchmarks/allocation.py")
    recipe = json.loads((FOLDER / "table_e.json").read_text())
    benchmark.time_ipal(recipe | {"allocation_batch": [2]}, latents_per_block=512, step=8, repeats=1)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 8 + 2 and lines[2].startswith("| 1 | 256 | ") and lines[2].endswith(" | 7.9 |")
    assert lines[9].startswith("| 4 | 1024 | ") and lines[9].endswith(" | 8.0 |")
