import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.token_data import make_pipeline
from builders.video_files import (
    make_frames,
    truncate,
    write_animation,
    write_audio_only,
    write_avi,
    write_empty,
    write_mp4,
    write_text,
    write_webm,
    write_without_frames,
)
from PIL import Image

from adaptok_hf import AdapTokPipeline, TokenizedVideo, __version__, read_video
from adaptok_hf.cli.common import best_dtype
from adaptok_hf.cli.main import main


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Clips of 12 frames of 16x16, blocks of 4 frames, levels of 2, 4 and 6 tokens."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_pipeline().save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder; `../in` holds the inputs."""
    (tmp_path / "in").mkdir()
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


# --- reconstruct --------------------------------------------------------------------------------------------------

VIDEOS = {
    "mp4": lambda folder: write_mp4(folder / "a.mp4", fps=25),
    "avi": lambda folder: write_avi(folder / "a.avi"),
    "webm": lambda folder: write_webm(folder / "a.webm", fps=30),
    "gif": lambda folder: write_animation(folder / "a.gif"),
    "webp": lambda folder: write_animation(folder / "a.webp", durations_ms=100),
    "portrait": lambda folder: write_mp4(folder / "a.mp4", frames=make_frames(16, 64, 36)),
    "landscape": lambda folder: write_mp4(folder / "a.mp4", frames=make_frames(16, 36, 64)),
    "variable rate": lambda folder: write_mp4(
        folder / "a.mp4", fps=100, frames=make_frames(7), pts=[0, 3, 5, 20, 21, 30, 47]
    ),
    "three frames": lambda folder: write_mp4(folder / "a.mp4", frames=make_frames(3)),
    "50 frames": lambda folder: write_mp4(folder / "a.mp4", frames=make_frames(50, 16, 16)),
}


SLOW = ("avi", "webp", "landscape")  # tests/video reads these, too


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) if k in SLOW else k for k in VIDEOS])
def test_reconstruct(model, here, capsys, kind):
    source_path = VIDEOS[kind](here.parent / "in")
    source = read_video(source_path)
    # as many tokens as fit evenly, whatever the number of blocks
    num_blocks = math.ceil(len(source) / 4)
    assert main(["reconstruct", str(source_path), "--model", model, "--budget", "4"]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and f"{len(source)} frames, {num_blocks} blocks: {4 * num_blocks} tokens" in printed.out
    assert tree(here) == sorted(
        ["a-adaptok", *(f"a-adaptok/{n}" for n in ("reconstruction.mp4", "report.json", "side_by_side.mp4", "tokens.png"))]
    )
    report = json.loads((here / "a-adaptok" / "report.json").read_text())
    for name in ("reconstruction.mp4", "side_by_side.mp4"):
        video = read_video(here / "a-adaptok" / name)
        assert len(video) == len(source) == report["frames"]
        assert video.timestamps == pytest.approx(source.timestamps, abs=2e-3)
        assert video.fps == pytest.approx(source.fps, rel=0.01)
    assert read_video(here / "a-adaptok" / "reconstruction.mp4").frames.shape[1:3] == (16, 16)
    with Image.open(here / "a-adaptok" / "tokens.png") as image:
        image.load()

    assert report["source_size"] == list(source.frames.shape[1:3])
    assert report["blocks"] == len(report["token_counts"]) == len(report["psnr_db_per_block"]) == num_blocks
    assert report["tokens"] == sum(report["token_counts"]) == 4 * num_blocks
    assert set(report["token_counts"]) <= {2, 4, 6}
    assert report["tokens_per_block"] == 4
    assert report["seconds_of_video"] == pytest.approx(len(source) / source.fps)
    assert report["tokens_per_second"] == pytest.approx(report["tokens"] / report["seconds_of_video"])
    bits = report["tokens"] * math.log2(50) + num_blocks * math.log2(7)
    assert report["bits_per_second"] == pytest.approx(bits / report["seconds_of_video"])
    assert report["request"] == {
        "video": source_path.name,
        "model": model,
        "budget": "4",
        "price": None,
        "threshold": None,
        "allocation": None,
    }


def test_squash_gives_the_proportions_back(model, here, capsys):
    video = write_mp4(here.parent / "in" / "a.mp4", frames=make_frames(5, 36, 64))
    assert main(["reconstruct", str(video), "--model", model, "--resize", "squash", "-o", "out"]) == 0
    assert read_video(here / "out" / "reconstruction.mp4").frames.shape == (5, 36, 64, 3)
    report = json.loads((here / "out" / "report.json").read_text())
    assert (report["resize_mode"], report["output_size"], report["model_size"]) == ("squash", [36, 64], [16, 16])
    assert report["tokens"] == 12  # without a budget everything is kept
    assert "the input is" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        (["--price", "1e6"], 8),
        (["--threshold=-1e6"], 24),
        (["--budget", "50%"], 12),
        (["--budget", "4", "--allocation", "fixed", "--batch-size", "1"], 16),
        (["--budget", "2", "--allocation", "ipal", "--dtype", "bfloat16"], 8),
    ],
)
def test_ways_to_spend(model, here, options, tokens):
    video = write_mp4(here.parent / "in" / "a.mp4")
    assert main(["reconstruct", str(video), "--model", model, "-o", "out", *options]) == 0
    assert json.loads((here / "out" / "report.json").read_text())["tokens"] == tokens


def as_a_program(*arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", "adaptok_hf", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_as_a_program():
    assert as_a_program("--version") == f"adaptok_hf {__version__}\n"


@pytest.mark.slow
def test_reconstruct_as_a_program(model, here):
    video = write_mp4(here.parent / "in" / "a.mp4")
    printed = as_a_program("reconstruct", str(video), "--model", model, "--budget", "3")
    assert "16 frames, 4 blocks: 12 tokens" in printed
    assert (here / "a-adaptok" / "report.json").exists()


# --- tokenize, detokenize, info -----------------------------------------------------------------------------------


def test_tokenize_then_detokenize_is_reconstruct(model, here, capsys):
    video = str(write_mp4(here.parent / "in" / "a.mp4", fps=100, frames=make_frames(7), pts=[0, 3, 5, 20, 21, 30, 47]))
    assert main(["reconstruct", video, "--model", model, "--budget", "3"]) == 0
    assert main(["tokenize", video, "--model", model, "--budget", "3"]) == 0
    assert "wrote a.safetensors: 7 frames, 6 tokens" in capsys.readouterr().out
    assert main(["detokenize", "a.safetensors", "--model", model]) == 0
    assert "wrote a.mp4: 7 frames" in capsys.readouterr().out
    expected, found = read_video("a-adaptok/reconstruction.mp4"), read_video("a.mp4")
    assert np.array_equal(expected.timestamps, found.timestamps) and expected.frames.shape == found.frames.shape
    # round-off can tip a pixel by one level (with several threads), which the video coder spreads
    difference = np.abs(expected.frames.astype(int) - found.frames).mean()
    assert difference < 0.1 * expected.frames.std() and expected.frames.std() > 1


def test_info(model, here, capsys):
    assert main(["info", "--json", "--model", model]) == 0
    info = json.loads(capsys.readouterr().out)
    expected = {
        "adaptok_hf": __version__,
        "torch": torch.__version__.split("+")[0],
        "model": model,
        "image_size": 16,
        "num_frames": 12,
        "tubelet_size": 4,
        "blocks": 3,
        "latents_per_block": 6,
        "codebook_size": 50,
        "score_step": 2,
        "model_hash": AdapTokPipeline.from_pretrained(model).model_hash,
    }
    assert {name: info[name].split("+")[0] if name == "torch" else info[name] for name in expected} == expected
    assert info["tokenizer_parameters"] > info["scorer_parameters"] > 10000
    assert {"python", "transformers", "diffusers", "accelerate", "scipy", "numpy", "av", "device"} <= set(info)
    assert main(["info", "--model", model]) == 0
    assert f"codebook_size:          {50}\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("device", "supports", "expected"),
    [
        ("cpu", "torch.cpu._is_amx_tile_supported", "bfloat16"),
        ("cpu", "torch.cpu._is_avx512_bf16_supported", "bfloat16"),
        ("cpu", "torch.cuda.is_bf16_supported", "float32"),
        ("cuda:0", "torch.cuda.is_bf16_supported", "bfloat16"),
        ("cuda:0", "torch.cpu._is_amx_tile_supported", "float32"),
        ("mps", "torch.cuda.is_bf16_supported", "float32"),
    ],
)
def test_the_best_type_of_a_device(monkeypatch, device, supports, expected):
    for name in ("torch.cpu._is_amx_tile_supported", "torch.cpu._is_avx512_bf16_supported", "torch.cuda.is_bf16_supported"):
        monkeypatch.setattr(name, lambda *_, answer=name == supports, **__: answer)
    assert best_dtype(device) == expected


@pytest.mark.parametrize("best", ["float32", "bfloat16"])
def test_auto_is_recorded(model, here, monkeypatch, capsys, best):
    """By its name in Python "auto" is the type in which weights are stored, here float32."""
    monkeypatch.setattr("adaptok_hf.cli.common.best_dtype", lambda device: best)
    video = str(write_mp4(here.parent / "in" / "a.mp4", frames=make_frames(5)))
    options = ["--model", model, "--dtype", "auto", "--device", "cpu", "--json"]
    assert main(["tokenize", video, "-o", "a.safetensors", *options]) == 0
    assert json.loads(capsys.readouterr().out)["dtype"] == TokenizedVideo.load("a.safetensors").dtype == best
    assert main(["reconstruct", video, "-o", "out", *options]) == 0
    assert json.loads((here / "out" / "report.json").read_text())["dtype"] == best
    assert main(["info", *options]) == 0 and f'"dtype": "{best}"' in capsys.readouterr().out
    assert main(["detokenize", "a.safetensors", "-o", "a.mp4", "--model", model]) == 0  # in float32


# --- what the user can fix ---------------------------------------------------------------------------------------


def fails(capfd, argv: list[str], message: str) -> None:
    """Exit code 2 and one line on standard error."""
    capfd.readouterr()
    assert main(argv) == 2
    printed = capfd.readouterr()
    assert printed.out == "" and "Traceback" not in printed.err
    assert printed.err.count("\n") == 1 and printed.err.startswith("adaptok: error: ")
    assert message in printed.err


BAD_VIDEOS = {
    "text": (lambda folder: write_text(folder / "a.mp4"), "a.mp4"),
    "truncated": (lambda folder: truncate(write_mp4(folder / "a.mp4"), 0.6), "damaged or truncated"),
    "truncated, index first": (
        lambda folder: truncate(write_mp4(folder / "a.mp4", frames=make_frames(100), faststart=True), 0.6),
        "damaged or truncated",
    ),
    "empty": (lambda folder: write_empty(folder / "a.mp4"), "the file is empty"),
    "no frames": (lambda folder: write_without_frames(folder / "a.mp4"), "no frames"),
    "sound only": (lambda folder: write_audio_only(folder / "a.mp4"), "no video stream"),
    "folder": (lambda folder: folder, "no video below this folder"),
    "missing": (lambda folder: folder / "missing.mp4", "no such file"),
}


@pytest.mark.parametrize("kind", BAD_VIDEOS)
def test_bad_videos(model, here, capfd, kind):
    write, message = BAD_VIDEOS[kind]
    video = str(write(here.parent / "in"))
    for verb in ("reconstruct", "tokenize"):
        fails(capfd, [verb, video, "--model", model, "--budget", "4"], message)
    assert tree(here) == []


def test_a_budget_of_generation_names_the_cap(model, here, capfd):
    fails(capfd, ["generate", "--class", "0", "--model", model, "--budget", "12"], "--max-tokens")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--budget", "0"], "got 0"),
        (["--budget", "7"], " 6 tokens"),
        (["--budget", "3.1", "--exact-budget"], " 3 and 3.5 tokens"),
        (["--budget", "20%"], " 2 tokens"),
        (["--budget", "4", "--allocation", "bithr", "--exact-budget"], "rounding"),
        (["--exact-budget"], "--exact-budget needs"),
        (["--budget", "many"], "'many'"),
        (["--budget", "nan"], "nan"),
        (["--budget", "4", "--price", "0.1"], "budget, price"),
        (["--budget", "4", "--threshold", "0.1"], "budget, threshold"),
        (["--price", "0.1", "--threshold", "0.1"], "price, threshold"),
        (["--price", "-1"], "price"),
        (["--budget", "4", "--allocation", "best"], "'best'"),
        (["--allocation", "joint"], "budget"),
        (["--batch-size", "0"], "--batch-size"),
        (["--device", "abacus"], "abacus"),
    ],
    ids=" ".join,
)
def test_bad_options(model, here, capfd, options, message):
    video = str(write_mp4(here.parent / "in" / "a.mp4"))
    fails(capfd, ["reconstruct", video, "--model", model, *options], message)
    assert tree(here) == []


def test_bad_outputs(model, here, capfd):
    video = str(write_mp4(here.parent / "in" / "a.mp4", frames=make_frames(4)))
    (here / "file").write_text("mine")
    (here / "folder.safetensors").mkdir()
    assert main(["tokenize", video, "--model", model, "-o", "a.safetensors"]) == 0
    before = tree(here)
    for verb, source, output, message in (
        ("reconstruct", video, "file", "file is a file"),
        ("reconstruct", video, "file/out", "does not exist"),
        ("reconstruct", video, "missing/out", "does not exist"),
        ("tokenize", video, "file/a.safetensors", "does not exist"),
        ("tokenize", video, "missing/a.safetensors", "does not exist"),
        ("tokenize", video, "a.pt", "must end in .safetensors"),
        ("tokenize", video, "folder.safetensors", "is a folder"),
        ("tokenize", "missing.mp4", "a.pt", "must end in .safetensors"),  # before anything is read
        ("detokenize", "missing.safetensors", "a.avi", "must end in .mp4"),
        ("detokenize", "a.safetensors", "file/a.mp4", "does not exist"),
        ("detokenize", "a.safetensors", "missing/a.mp4", "does not exist"),
        ("detokenize", "a.safetensors", "a.avi", "must end in .mp4"),
        ("detokenize", "a.safetensors", ".", "is a folder"),
    ):
        fails(capfd, [verb, source, "--model", model, "-o", output], message)
        assert tree(here) == before, (verb, output)
    assert (here / "file").read_text() == "mine"


def test_bad_models(model, here, capfd):
    video = str(write_mp4(here.parent / "in" / "a.mp4", frames=make_frames(4)))
    corrupted = here.parent / "corrupted"
    shutil.copytree(model, corrupted)
    truncate(corrupted / "tokenizer" / "model.safetensors", 0.5)
    (here.parent / "empty").mkdir()
    for folder in (here.parent / "missing", corrupted, here.parent / "empty"):
        fails(capfd, ["reconstruct", video, "--model", str(folder)], str(folder))
    assert tree(here) == []


def test_bad_tokens(model, here, capfd):
    video = str(write_mp4(here.parent / "in" / "a.mp4", frames=make_frames(4)))
    tokens = str(here.parent / "in" / "a.safetensors")
    other = str(here.parent / "other")
    make_pipeline(seed=1).save_pretrained(other)
    assert main(["tokenize", video, "--model", other, "-o", tokens]) == 0
    fails(capfd, ["detokenize", tokens, "--model", model], "made by another model")
    truncate(Path(tokens), 0.9)
    fails(capfd, ["detokenize", tokens, "--model", other], "damaged")
    fails(capfd, ["detokenize", video, "--model", model], "not a tokens file")
    fails(capfd, ["detokenize", "missing.safetensors", "--model", model], "no such file")
    fails(capfd, ["detokenize", str(here), "--model", model], "no tokens file")
    assert tree(here) == []


def test_interruption(model, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("adaptok_hf.cli.main.load_pipeline", interrupt)
    assert main(["info", "--model", model]) == 130
    assert capsys.readouterr().err == "adaptok: interrupted\n"


@pytest.mark.parametrize("argv", [["transcode"], ["reconstruct"], ["info", "--dtype", "int8"]], ids=" ".join)
def test_usage(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2 and capsys.readouterr().err.startswith("usage: adaptok")


def test_version(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0 and capsys.readouterr().out == f"adaptok_hf {__version__}\n"
