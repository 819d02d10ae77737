import csv
import json
import math
import os
import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import PartialState
from builders.evaluations import evaluate
from builders.metric_networks import PixelFeatures
from builders.routers import make_router, with_router

from adaptok_hf.allocation import STRATEGIES, best_schedule, joint, schedule_levels
from adaptok_hf.evaluation import (
    Networks,
    Setting,
    evaluate_reconstruction,
    make_settings,
    open_videos,
    own_protocol,
)
from adaptok_hf.evaluation.attention_maps import attention_maps
from adaptok_hf.evaluation.clip_chunks import ClipChunks
from adaptok_hf.evaluation.reconstruction import clip_batches
from adaptok_hf.evaluation.tables import markdown
from adaptok_hf.metrics import PROTOCOLS, Protocol
from adaptok_hf.pipelines import assignment_decoding
from adaptok_hf.pipelines.assignment_decoding import assignment_trees

ALL = list(STRATEGIES)


def test_every_strategy_is_measured_at_every_budget(tiny_pipeline, videos, tmp_path):
    pipeline = with_router(tiny_pipeline, make_router(levels=(2, 4, 6)))
    pipeline.scorer.config.schedules = [[[2, 2, 2], [2, 2, 2]], [[4, 4, 4], [6, 4, 2]], [[6, 6, 6], [6, 6, 6]]]
    report = evaluate(pipeline, videos, tmp_path, strategies=ALL, budgets=[2, 4, "100%"])
    results = report["results"]
    assert len(results) == 3 * (len(ALL) + 1), "and schedules"
    for result in results:
        reached, budget = result["tokens_per_block"], result["budget"]
        if result["strategy"] in ("fixed", "schedule", "ipal", "joint") and budget in (2, 6):
            assert reached == budget
        assert 2 <= reached <= 6
        assert sum(blocks for _, blocks in result["blocks_with_tokens"]) == 10 * 3
        assert result["metrics"]["psnr"]["num_videos"] == 10
        assert result["metrics"]["psnr"]["low"] <= result["metrics"]["psnr"]["value"] <= result["metrics"]["psnr"]["high"]
    # at the least and the most tokens nothing is left to decide, but for quality, which may leave bad tokens, and what may
    # keep less than a level
    for budget, others in ((2, ("search", "compared")), (6, ("quality",))):
        agreeing = [r for r in results if r["budget"] == budget and r["strategy"] not in others]
        assert len({r["metrics"]["psnr"]["value"] for r in agreeing}) == 1, budget
    assert all(r["difference_from_fixed"]["psnr"]["value"] == 0 for r in agreeing if r["strategy"] != "fixed")
    rows = list(csv.DictReader(open(tmp_path / "per_video.csv")))
    assert len(rows) == 10 * len(results) and rows[0]["video"] == "v0.mp4"
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(report))


def test_a_router_chooses_without_a_budget(tiny_pipeline, videos, tmp_path):
    """As EVATok's does, in its Tables 1 and 2."""
    pipeline = with_router(tiny_pipeline, make_router(levels=(2, 4, 6), price_conditioned=False))
    paper = [{"model": "tiny", "strategy": "router", "budget": None, "tokens_per_block": 4.25, "fvd": 50}]
    options = {"strategies": ["router"], "budgets": ["own", 4], "window": "first", "paper": paper}
    report = evaluate(pipeline, videos, tmp_path, **options)
    (own,) = (result for result in report["results"] if result["budget"] is None)
    counts = torch.cat([pipeline.tokenize(path, allocation="router").token_counts[:1] for path in sorted(videos.iterdir())])
    assert own["tokens_per_block"] == pytest.approx(counts.double().mean().item()) and own["allocation_batch"] is None
    assert {result["strategy"] for result in report["results"]} == {"router", "fixed", "schedule"}
    header, _, *lines = ([cell.strip() for cell in line.split("|")] for line in markdown(report).splitlines()[:6])
    printed = [dict(zip(header, line, strict=True)) for line in lines]
    assert [row["FVD, paper"] for row in printed] == ["50", "", "", ""]
    assert printed[0]["tokens per block, paper"] == "4.2"
    for router, strategies in ((make_router(levels=(2, 4, 6)), ["router"]), (pipeline.router, ["joint"])):
        with pytest.raises(ValueError, match="price|own"):
            changes = {"strategies": strategies, "budgets": ["own"]}
            evaluate(with_router(tiny_pipeline, router), videos, tmp_path / "refused", **changes)


def test_rows_agree_with_the_pipeline(tiny_pipeline, videos, tmp_path):
    """What the evaluation decodes is what a user gets from the model with these counts."""
    report = evaluate(tiny_pipeline, videos, tmp_path, window="first", strategies=["joint"], batches=[5])
    rows = [row for row in csv.DictReader(open(tmp_path / "per_video.csv")) if row["setting"] == "joint-4-batch5"]
    clips = ClipChunks(open_videos(videos), own_protocol(tiny_pipeline, "test", "first", "reconstruction"), 5).read(0)
    video = clips.videos / 255
    with torch.no_grad():
        encoded = tiny_pipeline.tokenizer.encode(video)
        scores = tiny_pipeline.scorer(encoded.latents, encoded.quantized).scores.double().numpy()
        counts = torch.from_numpy(joint(scores, step=2, budget=4).token_counts)
        decoded = tiny_pipeline.tokenizer.decode(encoded.codes, counts).pixel_values_videos.clamp(0, 1)
    psnr = -10 * (decoded - video).double().square().mean(dim=(1, 2, 3, 4)).log10()
    assert [row["token_counts"] for row in rows] == [" ".join(map(str, row)) for row in counts.tolist()]
    assert [float(row["psnr"]) for row in rows] == pytest.approx(psnr.tolist(), abs=1e-4)
    bits = [sum(row) * math.log2(50) + 3 * math.log2(7) for row in counts.tolist()]
    assert [float(row["bits_per_second"]) for row in rows] == pytest.approx([b * 12 / 12 for b in bits], rel=1e-3)
    assert report["results"][-1]["allocation_batch"] == 5


def test_the_batch_of_a_strategy_stands_in_its_protocol(tiny_pipeline, videos, tmp_path):
    report = evaluate(tiny_pipeline, videos, tmp_path, strategies=["fixed", "ipal"], batches=[2, 4])
    found = {(r["strategy"], r["allocation_batch"]): r["metrics"]["psnr"]["protocol_hash"] for r in report["results"]}
    assert found.keys() == {("fixed", None), ("schedule", None), ("ipal", 2), ("ipal", 4)}
    assert len(set(found.values())) == 3
    assert {p["allocation_batch"] for p in report["protocols"].values()} == {None, 2, 4}
    with pytest.raises(ValueError, match="divide the largest, 4; 3 does not"):
        evaluate(tiny_pipeline, videos, tmp_path / "other", strategies=["ipal"], batches=[3, 4])


def test_clips_of_a_batch(tiny_pipeline, videos):
    clips = ClipChunks(open_videos(videos), own_protocol(tiny_pipeline, "test", "all", "reconstruction"), 5).read(0)
    assert clip_batches(clips, 2) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert clip_batches(clips, 5) == [slice(0, 10)]


def test_a_rerun_skips_finished_work_and_refuses_another_configuration(tiny_pipeline, videos, tmp_path, monkeypatch):
    report = evaluate(tiny_pipeline, videos, tmp_path, strategies=["fixed", "joint"])
    part = tmp_path / "parts" / "tiny" / "joint-4-batch2" / "00001.safetensors"
    part.unlink()  # as if the run had been killed there
    from adaptok_hf.evaluation import reconstruction

    read = []
    monkeypatch.setattr(reconstruction.ClipChunks, "read", _recording(ClipChunks.read, read))
    again = evaluate(tiny_pipeline, videos, tmp_path, strategies=["fixed", "joint"])
    assert read == [1] and part.exists()
    for result, before in zip(again["results"], report["results"], strict=True):
        assert result["metrics"] == before["metrics"]
    # another budget is added; FVD, too, without measuring the rest again
    read.clear()
    more = evaluate(tiny_pipeline, videos, tmp_path, strategies=["fixed", "joint"], budgets=[4, 6])
    assert read == [0, 0, 1, 2] and len(more["results"]) == 6, "the first is one clip each, for the schedules"
    networks = Networks(features=PixelFeatures())
    with_fvd = evaluate(tiny_pipeline, videos, tmp_path, networks=networks)["results"][0]["metrics"]
    assert with_fvd["psnr"] == report["results"][0]["metrics"]["psnr"]
    assert with_fvd["fvd"]["floor"] is not None and with_fvd["fvd"]["weights_sha256"]
    with pytest.raises(ValueError, match="another configuration .* differ in protocol"):
        evaluate(tiny_pipeline, videos, tmp_path, window="first")
    with torch.no_grad():
        tiny_pipeline.tokenizer.quantizer.codebook.weight[0] += 1
    with pytest.raises(ValueError, match="differ in models"):
        evaluate(tiny_pipeline, videos, tmp_path)


def schedules(report: dict, folder: Path) -> dict:
    """Result and rows of the schedule at a budget of 4."""
    (result,) = (each for each in report["results"] if (each["strategy"], each["budget"]) == ("schedule", 4))
    rows = [row for row in csv.DictReader(open(folder / "per_video.csv")) if row["setting"] == "schedule-4"]
    return result | {"of_video": {row["video"]: [int(n) for n in row["token_counts"].split()] for row in rows}}


def test_each_video_gets_the_best_schedule_of_the_others(tiny_pipeline, videos, tmp_path):
    """Learned, too, on trees that are measured here."""
    report = evaluate(tiny_pipeline, videos, tmp_path, strategies=["joint"], schedule_loss="mse", num_schedule_clips=32)
    found = schedules(report, tmp_path)
    assert found["tokens_per_block"] == 4 and found["learned_on"] == "5 evaluated clips, mse, each left out for itself"
    clips = ClipChunks(open_videos(videos), own_protocol(tiny_pipeline, "test", "first", "reconstruction"), 5).read(0)
    with torch.inference_mode():
        codes = tiny_pipeline.tokenizer.encode(clips.videos / 255).codes
        trees = assignment_trees(
            tiny_pipeline.tokenizer, clips.videos, codes, torch.ones(5, 3, dtype=torch.bool), schedule_levels(6, 2), "mse"
        )
        assert tuple(found["schedule"]) == best_schedule(trees, 4)
        for index, video in enumerate(clips.keys):
            others = trees[:index] + trees[index + 1 :]
            assert tuple(found["of_video"][video]) == best_schedule(others, 4)
    by_strategy = {result["strategy"]: result for result in report["results"]}
    assert list(by_strategy) == ["fixed", "schedule", "joint"]
    means = {name: result["metrics"]["psnr"]["value"] for name, result in by_strategy.items()}
    for name, other in (("schedule", "fixed"), ("joint", "fixed"), ("joint", "schedule")):
        difference = by_strategy[name][f"difference_from_{other}"]["psnr"]["value"]
        assert difference == pytest.approx(means[name] - means[other])
    assert "difference_from_schedule" not in by_strategy["fixed"].keys() | by_strategy["schedule"].keys()
    text = (tmp_path / "results.md").read_text()
    assert "PSNR minus schedule's" in text and f"schedule ({' '.join(map(str, found['schedule']))})" in text


def test_schedules_of_other_videos_are_the_same_for_all_and_what_was_measured_is_kept(
    tiny_pipeline, videos, tmp_path, monkeypatch
):
    options = {"schedule_videos": open_videos(videos), "num_schedule_clips": 2}
    found = schedules(evaluate(tiny_pipeline, videos, tmp_path, **options), tmp_path)
    assert found["learned_on"] == "2 other clips, rmse"
    assert all(counts == found["schedule"] for counts in found["of_video"].values())
    for path in (tmp_path / "parts").glob("*/tiny/schedule-4.safetensors"):
        path.unlink()  # as if the run had been killed there
    monkeypatch.setattr(assignment_decoding.BlockDecoder, "__call__", None)  # nothing is decoded for it again
    assert schedules(evaluate(tiny_pipeline, videos, tmp_path, **options), tmp_path)["schedule"] == found["schedule"]
    with pytest.raises(ValueError, match="differ in schedules"):
        evaluate(tiny_pipeline, videos, tmp_path, **options | {"schedule_loss": "mse"})


def test_one_video_alone_has_no_schedule(tiny_pipeline, videos, tmp_path):
    report = evaluate(tiny_pipeline, videos / "v0.mp4", tmp_path)
    assert [result["strategy"] for result in report["results"]] == ["fixed"]
    assert any("no schedule" in note for note in report["notes"])


def _recording(function, calls):
    def recorded(self, index):
        calls.append(index)
        return function(self, index)

    return recorded


class Rounding:
    """A codec of another make: pixels in steps of an eighth."""

    def encode(self, videos):
        return SimpleNamespace(pixels=(videos * 8).round(), num_bits=[5] * len(videos))

    def decode(self, tokens):
        return tokens.pixels / 8


class Perfect:
    def encode(self, videos):
        return videos

    def decode(self, tokens):
        return tokens


def test_any_codec_and_infinite_psnr(videos, tmp_path):
    protocol = Protocol("own", "test", "first", 12, 16, "reconstruction")
    models = {"rounding": Rounding(), "perfect": Perfect()}
    networks = Networks(features=PixelFeatures())
    report = evaluate_reconstruction(models, open_videos(videos), protocol, tmp_path, networks=networks, batches=[2])
    rounding, perfect = report["results"]
    assert 25 < rounding["metrics"]["psnr"]["value"] < 40 and rounding["strategy"] == "as is"
    assert rounding["bits_per_second"] == pytest.approx(5) and perfect["bits_per_second"] is None  # a clip lasts a second
    assert perfect["metrics"]["psnr"]["value"] is None and "value" in perfect["metrics"]["psnr"]["infinite"]
    assert perfect["metrics"]["ssim"]["value"] == pytest.approx(1)
    assert abs(perfect["metrics"]["fvd"]["value"]) < 1e-6 < rounding["metrics"]["fvd"]["value"]
    text = (tmp_path / "results.json").read_text()
    assert "Infinity" not in text and "NaN" not in text
    assert "∞" in (tmp_path / "results.md").read_text()
    with pytest.raises(ValueError, match="with encode and decode, it has no encode"):
        evaluate_reconstruction({"x": object()}, open_videos(videos), protocol, tmp_path / "x")


def test_impossible_settings_are_refused(tiny_pipeline, videos, tmp_path):
    for options, message in (
        ({"strategies": ["best"]}, "strategy is one of"),
        ({"budgets": ["many"]}, "got 'many'"),
        ({"budgets": [7]}, "not between 1 and the 6 tokens"),
        ({"budgets": [1]}, " 2 tokens"),
        ({"budgets": []}, "nothing to evaluate"),
        ({"strategies": ["ipal"], "ipal_budgets": "published"}, "Budget tables were published for"),
        ({"strategies": ["ipal"], "batches": [0]}, "'ipal'.* 0"),
        ({"strategies": ["compared"]}, "tiny has no scorer with schedules"),
        ({"ipal_budgets": "other"}, "'equal' or 'published'"),
        ({"schedule_loss": "taste"}, "'taste'"),
        ({"num_schedule_clips": 0}, " 0"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(tiny_pipeline, videos, tmp_path / "refused", **options)
    with pytest.raises(ValueError, match="reads 12 frames of 16 x 16, the protocol adaptok_ucf_rfvd has 16 of 128"):
        evaluate_reconstruction(
            {"tiny": tiny_pipeline}, open_videos(videos), PROTOCOLS["adaptok_ucf_rfvd"], tmp_path / "refused"
        )
    assert not (tmp_path / "refused").exists()


def test_videos_that_cannot_be_read_are_left_out(tiny_pipeline, videos, tmp_path):
    folder = tmp_path / "some"
    folder.mkdir()
    for index in range(2):
        (folder / f"v{index}.mp4").write_bytes((videos / f"v{index}.mp4").read_bytes())
    (folder / "bad.mp4").write_text("not a video")
    report = evaluate(tiny_pipeline, folder, tmp_path / "out", window="first")
    assert (report["num_clips"], report["num_videos"]) == (2, 2)
    (folder / "v0.mp4").unlink()
    (folder / "v1.mp4").unlink()
    with pytest.raises(ValueError, match="no video could be measured"):
        evaluate(tiny_pipeline, folder, tmp_path / "out2", window="first")


def test_settings_have_names_of_their_own():
    settings = make_settings(["fixed", "ipal"], [128, "50%"], [8, 64], 512, "published")
    assert len({setting.name for setting in settings}) == len(settings) == 8
    assert settings[1:3] == [Setting("schedule", 128), Setting("ipal", 128, 8, (284, 80, 72, 72))]
    with pytest.raises(ValueError, match="64.5"):
        make_settings(["ipal"], [64.5], [8], 512, "published")
    for wrong in ({"strategy": "fixed"}, {"strategy": "fixed", "budget": 4, "batch": 2}, {"strategy": "ipal", "budget": 4}):
        with pytest.raises(ValueError):
            Setting(**wrong)


def test_attention_maps_are_the_softmax_of_queries_and_keys(tiny_tokenizer, tiny_video):
    tokens = [0, 3, 5]
    maps = attention_maps(tiny_tokenizer, tiny_video[0], tokens)
    assert maps.shape == (3, 3, 2, 2)
    inputs, layer = [], tiny_tokenizer.encoder.layers[-1].attention
    handle = layer.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
    with torch.no_grad():
        tiny_tokenizer.encode(tiny_video[:1])
        query, key, _ = layer.qkv(inputs[0][0]).unflatten(-1, (3, 2, 16)).permute(1, 2, 0, 3)
    handle.remove()
    block = torch.arange(30) // 10  # 3 blocks of 6 latents and 4 patches
    wanted = (query @ key.mT / 4).masked_fill(block[:, None] < block, -torch.inf).softmax(-1).mean(0)
    for row, token in enumerate(tokens):
        for block in range(3):
            found = wanted[10 * block + token, 10 * block + 6 : 10 * block + 10].view(2, 2)
            np.testing.assert_allclose(maps[row, block], found, atol=1e-6)
    np.testing.assert_allclose(attention_maps(tiny_tokenizer, tiny_video[0], tokens), maps, atol=1e-6)
    with pytest.raises(ValueError, match="0 to 5, got 6"):
        attention_maps(tiny_tokenizer, tiny_video[0], [6])


def run_one_of_two(rank: int, port: str, pipeline, videos: Path, output: Path) -> None:
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    PartialState._reset_state()  # what the parent has made
    evaluate_in_processes(pipeline, videos, output)
    torch.distributed.destroy_process_group()


def evaluate_in_processes(pipeline, videos: Path, output: Path) -> None:
    networks = Networks(features=PixelFeatures())
    strategies = ["fixed", "ipal", "quality"]
    evaluate(pipeline, videos, output, window="random", strategies=strategies, networks=networks)


def test_two_processes_give_what_one_gives(tiny_pipeline, videos, tmp_path):
    evaluate_in_processes(tiny_pipeline, videos, tmp_path / "one")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # forks need not import anything; they use one thread each, because a thread pool does not survive a fork
    arguments = (port, tiny_pipeline, videos, tmp_path / "two")
    torch.multiprocessing.start_processes(run_one_of_two, arguments, nprocs=2, start_method="fork")
    reports = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two")]
    assert [report.pop("num_processes") for report in reports] == [1, 2]
    for report in reports:
        for result in report["results"]:
            result.pop("milliseconds_per_clip")
    assert reports[0] == reports[1]
    assert (tmp_path / "one" / "per_video.csv").read_text() == (tmp_path / "two" / "per_video.csv").read_text()
