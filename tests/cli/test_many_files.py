"""Several files, folders and patterns in one command, which share a budget; and results as JSON."""

import json
import os
import threading
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders.token_data import make_pipeline
from builders.video_files import make_frames, truncate, write_mp4, write_text, write_webm

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, AdapTokPipeline, TokenizedVideo, read_video, write_video
from adaptok_hf.cli.inputs import find_files, list_tokens, list_videos
from adaptok_hf.cli.main import main
from adaptok_hf.pipelines.assignment_decoding import mse
from adaptok_hf.pipelines.encoded_videos import EncodedVideos

REPORTS = ["reconstruction.mp4", "report.json", "side_by_side.mp4", "tokens.png"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """Clips of 12 frames of 16x16, blocks of 4 frames, levels of 2, 4 and 6 tokens; generators."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    sizes |= {"codebook_size": 50, "num_blocks": 3, "latents_per_block": 6}
    ar = AdapTokARForCausalLM(AdapTokARConfig(num_classes=3, **sizes)).eval()
    fp = AdapTokARForCausalLM(AdapTokARConfig(num_classes=0, num_condition_codes=18, start_block=1, **sizes)).eval()
    folder = tmp_path_factory.mktemp("models") / "tiny"
    make_pipeline(ar_model=ar, fp_model=fp).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A current folder with a folder `in` of three videos, two of one name."""
    (tmp_path / "in" / "sub").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (28, 16, 16, 3), np.uint8)
    write_video(tmp_path / "in" / "noise.mp4", noise, 10)
    write_mp4(tmp_path / "in" / "clip.mp4", frames=make_frames(5))
    write_mp4(tmp_path / "in" / "sub" / "clip.mp4", frames=make_frames(13))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tree(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def counts(path: Path) -> list[int]:
    return TokenizedVideo.load(path).token_counts.flatten().tolist()


VIDEOS = ["in/clip.mp4", "in/noise.mp4", "in/sub/clip.mp4"]


@pytest.mark.parametrize("allocation", ["joint", "bithr", "measured", "fixed"])
def test_many_files_share_a_budget_as_a_list_of_videos_does(model, here, allocation):
    argv = ["tokenize", "in", "--budget", "3.3", "--allocation", allocation, "-o", "out", "--model", model]
    assert main(argv) == 0
    assert tree(here / "out") == ["clip.safetensors", "noise.safetensors", "sub/clip.safetensors"]
    expected = AdapTokPipeline.from_pretrained(model).tokenize(VIDEOS, budget=3.3, allocation=allocation)
    for path, tokens in zip(tree(here / "out"), expected, strict=True):
        saved = TokenizedVideo.load(here / "out" / path)
        assert torch.equal(saved.token_counts, tokens.token_counts)
        assert saved.allocation.pop("strategy") == tokens.allocation.pop("strategy")
        assert saved.allocation == pytest.approx(tokens.allocation)


def test_a_price_looks_at_each_file_alone(model, here):
    assert main(["tokenize", *VIDEOS[:2], "--price", "0.01", "-o", "out", "--model", model]) == 0
    pipeline = AdapTokPipeline.from_pretrained(model)
    for name in ("clip", "noise"):
        alone = pipeline.tokenize(f"in/{name}.mp4", price=0.01).token_counts
        assert counts(here / "out" / f"{name}.safetensors") == alone.flatten().tolist()


@pytest.fixture
def reads(monkeypatch) -> SimpleNamespace:
    """What is read: `begun` of each video, `others` in memory by then, `ended`; the second one waits at a gate."""
    read, alive = AdapTokPipeline.read, weakref.WeakSet()
    begun, gate = {path: threading.Event() for path in VIDEOS}, threading.Event()
    reads = SimpleNamespace(begun=begun, gate=gate, others=[], ended=[])
    gate.set()

    def watch(self, video, **options):
        if video in VIDEOS:
            reads.others.append(len(alive))
            begun[video].set()
        if video == VIDEOS[1]:
            gate.wait(60)
        clips = read(self, video, **options)
        reads.ended += [video] if video in VIDEOS else []
        alive.add(clips)
        return clips

    monkeypatch.setattr(AdapTokPipeline, "read", watch)
    return reads


@pytest.mark.parametrize("argv", ["tokenize --price 0.01", "reconstruct --price 0.01", "tokenize --budget 4"])
def test_the_next_video_is_read_while_one_is_encoded(model, here, monkeypatch, reads, argv):
    encode, following = AdapTokPipeline.encode, iter([*VIDEOS[1:], VIDEOS[-1]])

    def watch(self, *args, **options):
        assert reads.begun[next(following)].wait(60)
        return encode(self, *args, **options)

    monkeypatch.setattr(AdapTokPipeline, "encode", watch)
    command, *options = argv.split()
    assert main([command, *VIDEOS, *options, "-o", "out", "--model", model]) == 0
    assert reads.others == [0, 1, 1] and next(following, None) is None


def test_an_interrupt_does_not_wait_for_the_next_video(model, here, monkeypatch, reads):
    def stop(*_, **__):
        assert reads.begun[VIDEOS[1]].wait(60)
        raise KeyboardInterrupt

    monkeypatch.setattr(AdapTokPipeline, "encode", stop)
    reads.gate.clear()
    returned = main(["tokenize", *VIDEOS, "-o", "out", "--model", model])
    assert (returned, reads.ended, tree(here / "out")) == (130, VIDEOS[:1], [])
    reads.gate.set()


def test_an_exact_budget_is_about_all_files_together(model, here, capsys):
    argv = ["tokenize", "in", "--exact-budget", "-o", "out", "--model", model]  # 2 + 7 + 4 blocks
    assert main([*argv, "--budget", "3"]) == 2
    assert "2.923" in capsys.readouterr().err and tree(here / "out") == []
    assert main([*argv, "--budget", str(40 / 13)]) == 0
    assert sum(sum(counts(here / "out" / path)) for path in tree(here / "out")) == 40


def test_reconstruct_files(model, here, capsys):
    assert main(["reconstruct", *VIDEOS[:2], "--budget", "3.3", "--model", model]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and "2 videos, 33 frames, 9 blocks: 28 tokens (3.1 of 3.3 tokens per block" in printed.out
    assert [path for path in tree(here) if path[:2] != "in"] == [
        f"{name}-adaptok/{file}" for name in ("clip", "noise") for file in REPORTS
    ]
    report = json.loads((here / "noise-adaptok" / "report.json").read_text())
    assert report["frames"] == len(read_video("noise-adaptok/reconstruction.mp4")) == 28
    assert report["allocation"]["budget"] == 3.3 and report["allocation"]["reached"] == 28 / 9
    assert {"read", "encode", "score", "allocate", "decode"} <= report["stage_seconds"].keys()
    alone = AdapTokPipeline.from_pretrained(model).reconstruct("in/noise.mp4")
    assert report["model_size"] == list(alone.original.shape[2:4])


def test_a_loss_stands_in_the_report_by_its_name(model, here, monkeypatch):
    monkeypatch.setattr("adaptok_hf.metrics.lpips_network.lpips_of_blocks", lambda: mse)
    argv = ["reconstruct", "in/clip.mp4", "--budget", "4", "--allocation", "search", "--loss", "lpips", "-o", "out"]
    assert main([*argv, "--model", model]) == 0
    assert json.loads((here / "out" / "report.json").read_text())["request"]["loss"] == "lpips"


def test_reconstruct_a_pattern_into_a_folder(model, here, capsys):
    write_text(here / "in" / "bad.mp4")
    argv = ["reconstruct", "in/**/*.mp4", "--budget", "50%", "-o", "out", "--model", model]
    assert main([*argv, "--json"]) == 2
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert result == json.loads((here / "out" / "summary.json").read_text()) and "13 blocks" in printed.err
    folders = {Path(file["video"]).as_posix(): Path(file["folder"]).as_posix() for file in result["files"]}
    assert folders == {"in/clip.mp4": "out/clip", "in/noise.mp4": "out/noise", "in/sub/clip.mp4": "out/sub/clip"}
    assert all((here / folder / file).exists() for folder in folders.values() for file in REPORTS)
    assert result["tokens"] == sum(file["tokens"] for file in result["files"]) == 38
    assert (result["tokens_per_block"], result["blocks"], len(result["skipped"])) == (38 / 13, 13, 1)
    assert result["psnr_db"] == pytest.approx(np.mean([file["psnr_db"] for file in result["files"]]))
    assert main(argv) == 2 and "exists" in capsys.readouterr().err


def test_bad_files_are_skipped_and_named(model, here, capsys):
    write_text(here / "in" / "bad.mp4")
    truncate(write_mp4(here / "in" / "cut.mp4"), 0.6)
    assert main(["tokenize", "in", "--budget", "3.3", "-o", "out", "--model", model, "--json"]) == 2
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert len(result["files"]) == 3 and result["blocks"] == 13
    assert [entry["file"] for entry in result["skipped"]] == ["in/bad.mp4", "in/cut.mp4"]
    assert "damaged" in result["skipped"][1]["reason"]
    assert printed.err.splitlines()[-1].startswith("adaptok: error: 2 of 5 ") and "bad.mp4" in printed.err
    assert len(tree(here / "out")) == 3
    assert main(["tokenize", "in/bad.mp4", "in/cut.mp4", "-o", "none", "--model", model]) == 2
    assert not (here / "none").exists() and "2 of 2 " in capsys.readouterr().err


def test_a_budget_that_no_file_can_spend_is_no_bad_file(model, here, capsys):
    for options in (["--budget", "1"], ["--budget", "9"], ["--budget", "3.5", "--allocation", "fixed", "--exact-budget"]):
        assert main(["tokenize", "in", *options, "-o", "out", "--model", model]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and options[1] in error and not (here / "out").exists()


def test_detokenize_many(model, here, capsys):
    assert main(["tokenize", "in", "--budget", "4", "-o", "tokens", "--model", model]) == 0
    capsys.readouterr()
    assert main(["detokenize", "tokens", "-o", "videos", "--model", model, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert [file["frames"] for file in result["files"]] == [5, 28, 13]
    assert tree(here / "videos") == ["clip.mp4", "noise.mp4", "sub/clip.mp4"]
    assert len(read_video("videos/sub/clip.mp4")) == 13
    truncate(here / "tokens" / "noise.safetensors", 0.9)
    assert main(["detokenize", "tokens/clip.safetensors", "tokens/noise.safetensors", "--model", model]) == 2
    assert "1 of 2 " in capsys.readouterr().err and (here / "clip.mp4").exists() and not (here / "noise.mp4").exists()


def test_pixels_of_one_video_at_a_time(model, here, monkeypatch):
    kept = []
    drop = EncodedVideos.without_frames
    monkeypatch.setattr(EncodedVideos, "without_frames", lambda self: kept.append(drop(self)) or kept[-1])
    assert main(["tokenize", "in", "--budget", "4", "-o", "out", "--model", model]) == 0
    assert len(kept) == 3 and all(part.clips[0].frames.untyped_storage().nbytes() == 0 for part in kept)
    assert all(part.latents is None for part in kept)


def test_names_of_outputs(here):
    write_webm(here / "in" / "sub" / "clip.webm")
    (here / "in" / "notes.txt").write_text("no video")
    (here / "in" / "[1].mp4").write_bytes((here / "in" / "clip.mp4").read_bytes())

    def names(*arguments, output=None):
        found = find_files(list(arguments), list_videos, output)
        return {Path(path).as_posix(): Path(name).as_posix() for path, name in found.items()}

    both = {"in/sub/clip.mp4": "clip.mp4", "in/sub/clip.webm": "clip.webm"}
    assert names("in/sub") == both and names("in/sub/*") == both and names("in/sub/clip.mp4", "in/sub") == both
    assert names("in/clip.mp4", "in/sub/clip.mp4") == {"in/clip.mp4": "clip", "in/sub/clip.mp4": "sub/clip"}
    assert names("in/clip.mp4", "./in/clip.mp4", "in/noise.mp4") == {"in/clip.mp4": "clip", "in/noise.mp4": "noise"}
    assert names("in/[1].mp4", "in/noise.mp4") == {"in/[1].mp4": "[1]", "in/noise.mp4": "noise"}
    assert list(names("in", output="in/sub")) == ["in/[1].mp4", "in/clip.mp4", "in/noise.mp4"]
    assert list(names("in", output="in")) == list(names("in"))
    for arguments, word in ((["in/*.avi", "in"], "in/*.avi"), (["in", "nowhere.mp4"], "nowhere.mp4")):
        with pytest.raises(FileNotFoundError, match=word.replace("*", r"\*")):
            names(*arguments)
    (here / "in" / "clip.avi").mkdir()
    with pytest.raises(ValueError, match="in/clip.avi"):
        names("in/clip.avi")
    with pytest.raises(ValueError, match="in"):
        find_files(["in"], list_tokens)


def test_a_folder_next_to_its_tokens(model, here, capsys):
    assert main(["tokenize", "in", "--budget", "4", "-o", "in", "--model", model]) == 0
    assert tree(here / "in" / "sub") == ["clip.mp4", "clip.safetensors"]
    assert main(["tokenize", "in", "--budget", "4", "-o", "in", "--model", model]) == 2
    assert "exists" in capsys.readouterr().err
    (here / "mine.mp4").symlink_to(here / "in" / "noise.mp4")
    os.rename(here / "in" / "noise.safetensors", here / "mine.safetensors")
    argv = ["detokenize", "mine.safetensors", "in/clip.safetensors", "--model", model, "--overwrite"]
    assert main(argv) == 0  # replaces the link
    assert not (here / "mine.mp4").is_symlink()


JSON = {
    "reconstruct in/clip.mp4 --budget 3": {"frames": 5, "blocks": 2, "tokens": 6, "folder": "clip-adaptok"},
    "tokenize in/clip.mp4 --budget 3": {"frames": 5, "blocks": 2, "tokens": 6, "file": "clip.safetensors"},
    "stream in/clip.mp4 --budget 3": {"frames": 5, "blocks": 2, "budget": 3, "file": "clip-stream.mp4"},
    "generate --class 1 --videos 1": {"frames": 12, "folder": "generated"},
    "predict in/noise.mp4": {"frames": 12, "condition_frames": 5, "folder": "noise-predicted"},
    "info --classes": {"classes": ["LABEL_0", "LABEL_1", "2"]},
    "info": {"codebook_size": 50},
    "metrics compare in/clip.mp4 in/clip.mp4 --lpips none --no-fvd --frames 4": {"num_pairs": 1},
}


@pytest.mark.parametrize("command", JSON)
def test_json_is_all_of_standard_output(model, here, capsys, command):
    argv = [*command.split(), "--json", *([] if command.startswith("metrics") else ["--model", model])]
    assert main(argv) == 0
    result = json.loads(capsys.readouterr().out)
    assert {name: result[name] for name in JSON[command]} == JSON[command]
    if "--budget 3" in command and "stream" not in command:
        assert (result["allocation"]["budget"], result["allocation"]["reached"], result["tokens_per_block"]) == (3, 3, 3)


def test_json_of_a_failure_is_empty(model, here, capsys):
    assert main(["tokenize", "in/clip.mp4", "--budget", "1", "--json", "--model", model]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1


def test_classes_of_a_model(model, here, capsys):
    assert main(["info", "--classes"]) == 0
    assert "  surfing\n" in capsys.readouterr().out
    assert main(["info", "--classes", "--model", "small"]) == 2
    assert "'figures'" in capsys.readouterr().err
