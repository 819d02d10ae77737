"""Where outputs may go: never in the place of an input, and of something else only when asked."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from builders.token_data import make_pipeline
from builders.video_files import make_frames, write_mp4, write_webm
from PIL import Image

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, read_video, write_video
from adaptok_hf.cli import outputs
from adaptok_hf.cli.main import main


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    sizes |= {"codebook_size": 50, "num_blocks": 3, "latents_per_block": 6}
    ar = AdapTokARForCausalLM(AdapTokARConfig(num_classes=3, **sizes)).eval()
    fp = AdapTokARForCausalLM(AdapTokARConfig(num_classes=0, num_condition_codes=18, start_block=1, **sizes)).eval()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_pipeline(ar_model=ar, fp_model=fp).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(argv: list[str], word: str, capfd) -> None:
    """With one line that has a word, and no file changed, made or removed here."""
    before = contents(Path.cwd())
    capfd.readouterr()
    assert main(argv) == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and word in error, error
    assert contents(Path.cwd()) == before


LINKS = {"itself": lambda a, b: b, "a symbolic link": os.symlink, "a hard link": os.link}


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_an_input_is_never_replaced(model, here, capfd, link, overwrite):
    (here / "x").mkdir()
    clip = write_mp4(here / "x" / "clip.mp4", frames=make_frames(16))
    assert main(["tokenize", str(clip), "--model", model, "-o", "clip.safetensors"]) == 0
    names = {"reconstruct": "reconstruction.mp4", "predict": "000_prediction.mp4"}
    for verb, name in ({"stream": "out.mp4"} | names).items():
        if link == "itself":
            video = shutil.copy(clip, here / "x" / name)
        else:
            video = clip
            LINKS[link](clip, here / "x" / name)
        output = "x" if verb in names else str(Path("x", name))
        refused([verb, str(video), "-o", output, "--model", model, *overwrite], name, capfd)
        refused([verb, f"x/../{os.path.relpath(video)}", "-o", output, "--model", model, *overwrite], name, capfd)
        (here / "x" / name).unlink()
    if link != "itself":
        LINKS[link](here / "clip.safetensors", here / "clip.mp4")
        refused(["detokenize", "clip.safetensors", "--model", model, *overwrite], "clip.mp4", capfd)
    copied = shutil.copytree(model, here / "model")
    weights = str(copied / "tokenizer" / "model.safetensors")
    refused(["tokenize", str(clip), "--model", "model", "-o", weights, *overwrite], "model.safetensors", capfd)
    refused(["metrics", "compare", "x", "x", "-o", "x/clip.mp4", "--lpips", "none", *overwrite], "clip.mp4", capfd)
    refused(["card", "small", "--results", "x/clip.mp4", "-o", "x/clip.mp4", *overwrite], "clip.mp4", capfd)
    refused(["evaluate", "reconstruction", "x", "-o", "x", "--model", model, *overwrite], "x is the folder", capfd)
    (here / "x" / "results.csv").write_text("path\nclip.mp4\n")
    refused(["evaluate", "reconstruction", "x/results.csv", "-o", "x", "--model", model, *overwrite], "results.csv", capfd)


def test_an_input_by_another_way_is_never_replaced(model, here, capfd):
    video = write_mp4(here / "a.mp4")
    for address in (video.as_uri(), f"cache:{video.as_uri()}"):
        refused(["stream", address, "-o", "a.mp4", "--model", model, "--overwrite"], "file:", capfd)
    with open(video) as opened:
        kept = os.dup(0)
        os.dup2(opened.fileno(), 0)
        try:
            refused(["stream", "-", "-o", "a.mp4", "--model", model, "--overwrite"], "a.mp4", capfd)
        finally:
            os.dup2(kept, 0)
            os.close(kept)
    (here / "x" / "report.json").mkdir(parents=True)
    refused(["reconstruct", "a.mp4", "-o", "x", "--model", model, "--overwrite"], "report.json", capfd)


def test_two_inputs_of_one_name(model, here, capfd):
    for folder, write in (("a", write_mp4), ("b", write_mp4), ("c", write_webm)):
        (here / folder).mkdir()
        write(here / folder / ("clip.webm" if folder == "c" else "clip.mp4"))
    outputs = {"tokenize": "clip.safetensors", "stream": "clip-stream.mp4", "reconstruct": "clip-adaptok"}
    for verb, name in (outputs | {"predict": "clip-predicted"}).items():
        assert main([verb, "a/clip.mp4", "--model", model]) == 0
        for other in ("b/clip.mp4", "c/clip.webm", "a/clip.mp4"):
            refused([verb, other, "--model", model], name, capfd)
        assert main([verb, "b/clip.mp4", "--model", model, "--overwrite"]) == 0
    assert main(["detokenize", "clip.safetensors", "--model", model]) == 0
    refused(["detokenize", "clip.safetensors", "--model", model], "clip.mp4", capfd)
    assert main(["generate", "--class", "0", "--videos", "1", "--model", model]) == 0
    refused(["generate", "--class", "1", "--model", model], "generated", capfd)
    assert main(["generate", "--class", "1", "--videos", "1", "--model", model, "--overwrite"]) == 0


def test_outputs_that_cannot_be_written(model, here, capfd, monkeypatch):
    write_mp4(here / "a.mp4")
    os.mkfifo(here / "pipe.mp4")
    os.symlink(here / "nowhere.mp4", here / "dangling.mp4")
    refused(["stream", "a.mp4", "-o", "pipe.mp4", "--model", model], "pipe.mp4", capfd)
    refused(["stream", "a.mp4", "-o", "dangling.mp4", "--model", model], "dangling.mp4", capfd)
    refused(["card", "small", "-o", "/dev/null", "--overwrite"], "/dev/null", capfd)
    refused(["stream", "a.mp4", "-o", "x" * 252 + ".mp4", "--model", model], "name", capfd)
    monkeypatch.setattr(outputs, "LEAST_FREE_BYTES", 2**80)
    for verb in ("reconstruct", "predict", "tokenize"):
        refused([verb, "a.mp4", "--model", "nothing"], "the disk is full", capfd)
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as for anyone but root
    for verb in ("reconstruct", "predict", "tokenize", "stream"):
        refused([verb, "a.mp4", "--model", "nothing"], "cannot be written", capfd)


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        (["tokenize", "a.mp4", "--budget", "nan"], "nan"),
        (["tokenize", "a.mp4", "--budget", "inf%"], "inf%"),
        (["tokenize", "a.mp4", "--price", "inf"], "--price"),
        (["tokenize", "a.mp4", "--threshold=-inf"], "--threshold"),
        (["tokenize", "a.mp4", "--budget", "4", "--price", "1"], "budget, price"),
        (["tokenize", "a.mp4", "--allocation", "best", "--budget", "1"], "best"),
        (["tokenize", "a.mp4", "--batch-size", "-1"], "--batch-size"),
        (["tokenize", "a.mp4", "--device", "abacus"], "abacus"),
        (["tokenize", "b.mp4"], "b.mp4"),
        (["tokenize", "/dev/null"], "/dev/null"),
        (["detokenize", "b.safetensors"], "b.safetensors"),
        (["stream", "a.mp4", "--bitrate", "nan"], "--bitrate"),
        (["stream", "a.mp4", "--frames", "0"], "--frames"),
        (["stream", "a.mp4", "--bitrate", "1", "--budget", "4"], "budget, bitrate"),
        (["stream", "a.fifo"], "a.fifo"),
        (["generate", "--class", "0", "--guidance", "nan"], "--guidance"),
        (["generate", "--class", "0", "--temperature", "inf"], "--temperature"),
        (["generate", "--class", "0", "--temperature", "-1"], "--temperature"),
        (["generate", "--class", "0", "--top-p", "nan"], "--top-p"),
        (["generate", "--class", "0", "--fps", "0"], "--fps"),
        (["generate", "--class", "0", "--videos", "0"], "--videos"),
        (["generate", "--class", "0", "--seed", str(2**64)], "--seed"),
        (["predict", "a.mp4", "--rollouts", "0"], "--rollouts"),
        (["predict", "b.mp4"], "b.mp4"),
        (["evaluate", "reconstruction", ".", "-o", "out", "--budgets", "4", "nan"], "nan"),
        (["evaluate", "reconstruction", ".", "-o", "out", "--strategies", "best"], "best"),
        (["evaluate", "generation", ".", "-o", "out", "--guidance", "inf"], "--guidance"),
        (["evaluate", "reconstruction", ".", "-o", "out", "--protocol", "mine"], "mine"),
        (["evaluate", "reconstruction", "nowhere", "-o", "out"], "nowhere"),
        (["convert", "nowhere", "out", "--ema", "nan"], "--ema"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_arguments_are_checked_before_a_model_is_loaded(here, capfd, monkeypatch, argv, word):
    """Which does not exist here."""
    write_mp4(here / "a.mp4")
    os.mkfifo(here / "a.fifo")
    if argv[0] != "convert":
        argv = [*argv, "--model", "nothing"]
    refused(argv, word, capfd)
    assert not (here / "out").exists()


NAMES = [
    "10:30.mp4",
    pytest.param("http:x.mp4", marks=pytest.mark.slow),
    os.fsdecode(b"caf\xe9.mp4"),
    "-dash.mp4",
    pytest.param("50%d.mp4", marks=pytest.mark.slow),
    "a b'\"\n.mp4",
    pytest.param("é" * 100 + ".mp4", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", NAMES, ids=ascii)
def test_any_name(model, here, capfd, name):
    source = write_mp4(here.parent / "clip.mp4", frames=make_frames(4))
    shutil.copy(source, here / name)
    stem, options = name[:-4], ["--model", model]
    assert main(["stream", *options, "--", name]) == 0
    assert main(["tokenize", *options, "--", name]) == 0
    assert main(["reconstruct", *options, f"--output={stem}", "--", name]) == 0
    shutil.copy(here / f"{stem}.safetensors", here.parent / "tokens.safetensors")
    assert main(["detokenize", *options, f"--output={stem}.out.mp4", "--", "../tokens.safetensors"]) == 0
    printed = os.fsencode(capfd.readouterr().out)
    assert os.fsencode(f"wrote {stem}-stream.mp4: 4 frames") in printed
    with open(f"{stem}.out.mp4", "rb") as one, open(f"{stem}/reconstruction.mp4", "rb") as other:
        assert np.array_equal(read_video(one).frames, read_video(other).frames)
    found = {path.name for path in here.iterdir()}
    assert found == {name, stem, f"{stem}-stream.mp4", f"{stem}.safetensors", f"{stem}.out.mp4"}
    assert len(list((here / stem).iterdir())) == 4


def test_this_folder(model, here, capfd):
    video = write_mp4(here.parent / "clip.mp4")
    assert main(["reconstruct", str(video), "--model", model, "-o", "."]) == 0
    assert {path.name for path in here.iterdir()} == set(outputs.REPORT_FILES) - {"reconstruction.png"}
    assert {path.name for path in here.parent.iterdir()} == {"clip.mp4", "here"}
    refused(["tokenize", str(video), "--model", model, "-o", "."], "folder", capfd)


def test_pictures_and_tiles(model, here, capfd):
    (here / "frames").mkdir()
    for number, frame in enumerate(make_frames(11, 20, 30)):
        Image.fromarray(frame).save(here / "frames" / f"{number}.webp")
    tiles = ["--resize-mode", "tile", "--model", model]
    assert main(["reconstruct", "frames/0.webp", *tiles]) == 0
    assert "reconstruction.png" in capfd.readouterr().out
    assert Image.open(here / "0-adaptok" / "reconstruction.png").size == (30, 20)
    assert main(["reconstruct", "frames", "--model", model]) == 0
    printed = capfd.readouterr()
    assert "reconstruction.png" not in printed.out and "left out" not in printed.err
    assert main(["tokenize", "frames", *tiles]) == 0
    assert main(["detokenize", "frames.safetensors", "--model", model]) == 0
    assert read_video(here / "frames.mp4").frames.shape == (11, 20, 30, 3)
    assert main(["detokenize", "frames.safetensors", "--model", model, "-o", "frames.png"]) == 2
    Image.new("RGB", (1, 20)).save(here / "strip.png")
    assert main(["reconstruct", "strip.png", *tiles]) == 0
    assert Image.open(here / "strip-adaptok" / "reconstruction.png").size == (1, 20)


@pytest.mark.slow
def test_standard_input(model, here):
    write_video(here / "first.mp4", make_frames(16, 64, 64), 25)  # its index comes first
    noise = np.random.default_rng(0).integers(0, 256, (16, 128, 128, 3), np.uint8)
    write_mp4(here / "last.mp4", frames=noise)  # larger than a buffer
    write_webm(here / "a.webm")
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}

    def stream(data: bytes):
        command = [sys.executable, "-m", "adaptok_hf", "stream", "-", "--model", model, "--overwrite"]
        return subprocess.run(command, input=data, capture_output=True, env=environment, timeout=120)

    for name in ("first.mp4", "a.webm"):
        done = stream((here / name).read_bytes())
        assert (done.returncode, done.stderr) == (0, b"") and b"stdin-stream.mp4: 16 frames" in done.stdout
    for data, word in (
        (b"", b"standard input"),
        (b"not a video", b"standard input"),
        ((here / "last.mp4").read_bytes(), b"faststart"),
        ((here / "first.mp4").read_bytes()[:-1500], b"standard input"),
    ):
        done = stream(data)
        assert done.returncode == 2 and done.stderr.count(b"\n") == 1 and word in done.stderr
