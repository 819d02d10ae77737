"""Losses measured by decoding, and the allocation that minimises their sum."""

import csv
import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.evaluations import evaluate, moving_frames
from builders.video_files import make_frames, write_mp4
from torch.testing import assert_close

from adaptok_hf import AdapTokConfig, AdapTokModel, AdapTokPipeline, write_video
from adaptok_hf.allocation import joint
from adaptok_hf.cli.main import main
from adaptok_hf.evaluation import open_videos, own_protocol
from adaptok_hf.evaluation.clip_chunks import ClipChunks, Clips
from adaptok_hf.evaluation.encoded_clips import autocast
from adaptok_hf.evaluation.reconstruction import encode_clips
from adaptok_hf.pipelines import pipeline_allocation
from adaptok_hf.pipelines.measured_losses import MOST_LEVELS, levels_to_measure, measure_losses


def uneven_video(num_frames: int, seed: int = 0) -> np.ndarray:
    """uint8 (num_frames, 16, 16, 3): noise whose contrast and brightness change from block to block."""
    rng = np.random.default_rng(seed)
    contrast, offset = rng.random((2, -(-num_frames // 4), 1, 1, 1)).repeat(4, axis=1)[:, :num_frames]
    return (255 * (contrast * rng.random((num_frames, 16, 16, 3)) + (1 - contrast) * offset)).astype(np.uint8)


def losses_by_hand(pipeline, videos: torch.Tensor, levels) -> np.ndarray:
    """(clips, blocks, levels): clip by clip, block by block, level by level, without a cache; `videos` in [0, 1]."""
    table = np.zeros((len(videos), 3, len(levels)))
    with torch.no_grad():
        for clip, block, (j, level) in product(range(len(videos)), range(3), enumerate(levels)):
            video = videos[clip : clip + 1]
            codes = pipeline.tokenizer.encode(video).codes[:, : block + 1]
            counts = torch.tensor([[6] * block + [level]])
            decoded = pipeline.tokenizer.decode(codes, counts).pixel_values_videos.clamp(0, 1)
            error = decoded[0, 4 * block :] - video[0, 4 * block : 4 * block + 4]
            table[clip, block, j] = np.sqrt(np.mean(error.double().numpy() ** 2))
    return table


def clips_of(pipeline, video: np.ndarray) -> torch.Tensor:
    return pipeline.video_processor.clips(video).pixel_values_videos


@pytest.fixture
def varied_pipeline(tiny_pipeline) -> AdapTokPipeline:
    """Tokens matter, and differ: random weights alone give almost the same grey frames at every level."""
    with torch.no_grad():
        tiny_pipeline.tokenizer.decoder.head.projection.weight.mul_(4)
        tiny_pipeline.tokenizer.quantizer.project_out.weight.mul_(4)
    return tiny_pipeline


@pytest.fixture
def without_scorer(varied_pipeline) -> AdapTokPipeline:
    pipeline = AdapTokPipeline(varied_pipeline.video_processor, varied_pipeline.tokenizer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


# --- levels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("latents", "score_step", "step"),
    [(640, 8, 16), (640, 1, 16), (128, 8, 8), (128, 1, 4), (512, 64, 64), (512, 1, 16), (6, 2, 2), (6, 1, 1), (40, 1, 1),
     (41, 1, 41), (120, 2, 4), (120, 5, 5), (256, 256, 256)],
)  # fmt: skip
def test_levels(latents, score_step, step):
    levels = levels_to_measure(latents, score_step)
    assert levels.step == step and list(levels) == list(range(step, latents + 1, step))
    assert levels[-1] == latents and step % score_step == 0 and len(levels) <= MOST_LEVELS
    finer = [s for s in range(score_step, step, score_step) if latents % s == 0]
    assert all(latents / s > MOST_LEVELS for s in finer)


@pytest.mark.parametrize(("latents", "score_step"), [(640, 7), (640, 0), (640, -8), (0, 1), (8, 16)])
def test_levels_of_a_step_that_does_not_fit(latents, score_step):
    with pytest.raises(ValueError, match=f"must divide latents_per_block, got {score_step} and {latents}"):
        levels_to_measure(latents, score_step)


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table_is_what_decoding_by_hand_gives(varied_pipeline):
    tokenizer, videos, levels = varied_pipeline.tokenizer, clips_of(varied_pipeline, uneven_video(36)), [1, 4, 2, 6]
    with torch.no_grad():
        codes = tokenizer.encode(videos).codes
        beyond = tokenizer.decode(codes).pixel_values_videos
    assert beyond.min() < -0.1 and beyond.max() > 1.1  # so that clamping is seen
    table = measure_losses(tokenizer, videos, codes, levels)
    assert table.shape == (3, 3, 4) and table.dtype == torch.float32
    expected = losses_by_hand(varied_pipeline, videos, levels)
    assert_close(table, torch.from_numpy(expected).float(), atol=2e-6, rtol=0)
    assert np.abs(np.diff(expected, axis=2)).min() > 2e-5 and expected.std(axis=(0, 1)).min() > 1e-2


@pytest.mark.parametrize("levels", [[5, 1, 5], [6, 3]], ids=str)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize("attention_type", ["decoder", "block_causal", "full"])  # pixels do not see tokens in the fourth
def test_every_kind_of_decoder(varied_pipeline, attention_type, implementation, levels):
    """Also for levels that repeat, and without the one of all tokens, or with it in front."""
    tokenizer, videos = varied_pipeline.tokenizer, clips_of(varied_pipeline, uneven_video(24))
    tokenizer.config.decoder_attention_type = attention_type
    tokenizer.set_attn_implementation(implementation)
    with torch.no_grad():
        codes = tokenizer.encode(videos).codes
    expected = losses_by_hand(varied_pipeline, videos, levels)
    assert_close(measure_losses(tokenizer, videos, codes, levels), torch.tensor(expected).float(), atol=2e-6, rtol=0)
    assert np.abs(np.diff(expected, axis=2)).mean(axis=(0, 2)).min() > 1e-4


def test_clips_of_fewer_blocks(varied_pipeline):
    """A block's losses do not look at later blocks."""
    videos = clips_of(varied_pipeline, uneven_video(24))
    with torch.no_grad():
        codes = varied_pipeline.tokenizer.encode(videos).codes
    whole, begun = (measure_losses(varied_pipeline.tokenizer, videos[:, : 4 * k], codes[:, :k], [2, 5]) for k in (3, 2))
    assert_close(whole[:, :2], begun, atol=1e-5, rtol=0)


def test_bad_inputs(tiny_tokenizer, tiny_config, tiny_video):
    codes = torch.zeros(2, 3, 6, dtype=torch.long)
    for given, message in (
        ((tiny_video, codes[0], [2]), r"codes has shape \(3, 6\), expected \(clips, blocks, 6\)"),
        ((tiny_video[:1], codes, [2]), r"frames has shape \(1, 12, 3, 16, 16\), expected \(2, 12, 3, 16, 16\)"),
        ((tiny_video[:, :8], codes, [2]), r"frames has shape \(2, 8, 3, 16, 16\), expected \(2, 12, 3, 16, 16\)"),
        ((tiny_video[..., :8], codes, [2]), "frames has shape"),
        (((tiny_video * 255).byte(), codes, [2]), r"floats in \[0, 1\], got torch.uint8 from 0 to 25"),
        (((tiny_video * 0).byte(), codes, [2]), "got torch.uint8 from 0 to 0"),
        ((tiny_video * 2 - 1, codes, [2]), r"floats in \[0, 1\], got torch.float32 from -"),
        ((tiny_video * float("nan"), codes, [2]), "to nan"),
        ((tiny_video, codes, []), r"from 1 to 6, got \[\]"),
        ((tiny_video, codes, [0, 2]), r"from 1 to 6, got \[0, 2\]"),
        ((tiny_video, codes, [7]), r"from 1 to 6, got \[7\]"),
        ((tiny_video, codes, [1.5]), r"from 1 to 6, got \[1.5\]"),
        ((tiny_video, codes + 50, [2]), "codes must lie in 0..49, got 50..50"),
        ((tiny_video, codes[..., :4], [2]), "codes has shape"),
    ):
        with pytest.raises(ValueError, match=message):
            measure_losses(tiny_tokenizer, *given)
    rigid = AdapTokModel(AdapTokConfig(**{**tiny_config.to_diff_dict(), "adaptive": False}))
    with pytest.raises(ValueError, match="not adaptive"):
        measure_losses(rigid, tiny_video, codes, [2])


# --- the pipeline ---------------------------------------------------------------------------------------------------


def test_it_is_the_best_of_all_allocations(without_scorer):
    """One clip of 3 blocks with 1 to 6 tokens: all allocations are tried."""
    video = uneven_video(12, seed=3)
    table = losses_by_hand(without_scorer, clips_of(without_scorer, video), range(1, 7))[0]
    for budget in (2, 3, 11 / 3):
        tries = [counts for counts in product(range(1, 7), repeat=3) if sum(counts) == round(3 * budget)]
        sums = {counts: sum(table[block, count - 1] for block, count in enumerate(counts)) for counts in tries}
        best = min(sums, key=sums.get)
        tokens = without_scorer.tokenize(video, budget=budget, allocation="measured")
        assert tokens.token_counts[0].tolist() == list(best) and len(set(best)) > 1
        assert tokens.allocation["strategy"] == "measured"
        assert tokens.allocation["objective"] == pytest.approx(sums[best], abs=1e-5)
        assert tokens.allocation["bound"] <= tokens.allocation["objective"]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("with_scorer", [True, False])
def test_measured_losses_sum_to_less_than_those_of_fixed(varied_pipeline, without_scorer, seed, with_scorer):
    pipeline, video = varied_pipeline if with_scorer else without_scorer, uneven_video(36, seed)
    levels = [2, 4, 6] if with_scorer else [1, 2, 3, 4, 5, 6]
    table = losses_by_hand(pipeline, clips_of(pipeline, video), levels)
    for budget in levels:
        tokens = pipeline.tokenize(video, budget=budget, allocation="measured")
        assert tokens.num_tokens == 9 * budget and set(tokens.token_counts.flatten().tolist()) <= set(levels)
        fixed = table[..., levels.index(budget)].sum()
        chosen = [levels.index(count) for count in tokens.token_counts.flatten().tolist()]
        found = table.reshape(9, -1)[range(9), chosen].sum()
        assert found == pytest.approx(tokens.allocation["objective"], abs=1e-4)
        if budget in (levels[0], levels[-1]):
            assert found == fixed
        else:
            assert found < fixed - 1e-3


@pytest.mark.parametrize("num_frames", [3, 15, 40])
def test_padding_blocks(varied_pipeline, num_frames):
    """They get nothing, do not count in the budget, and have no say."""
    video = uneven_video(num_frames)
    blocks = -(-num_frames // 4)
    valid = (torch.arange(-(-num_frames // 12) * 3) < blocks).view(-1, 3)
    output = varied_pipeline.reconstruct(video, budget=4, allocation="measured")
    assert output.frames[0].shape == video.shape
    table = losses_by_hand(varied_pipeline, clips_of(varied_pipeline, video), [2, 4, 6])
    assert torch.equal(output.token_counts > 0, valid) and output.tokens.num_tokens == 4 * blocks
    expected = joint(table, step=2, budget=4, valid=valid.numpy())
    assert output.token_counts.tolist() == expected.token_counts.tolist()
    assert output.tokens.allocation["objective"] == pytest.approx(expected.objective, abs=1e-4)


def test_batch_size_has_no_influence(varied_pipeline):
    video = uneven_video(100)
    one, three, all_ = (
        varied_pipeline.reconstruct(video, budget=4, allocation="measured", batch_size=size) for size in (1, 3, 9)
    )
    for other in (one, three):
        assert torch.equal(other.token_counts, all_.token_counts)
        assert other.tokens.allocation["objective"] == pytest.approx(all_.tokens.allocation["objective"], abs=1e-5)
        assert np.abs(other.frames - all_.frames).max() <= 1.01 / 255
    assert len(all_.token_counts[all_.token_counts > 0].unique()) == 3


def test_each_block_is_decoded_once_per_level(varied_pipeline):
    decoded = []
    varied_pipeline.tokenizer.decoder.register_forward_pre_hook(
        lambda module, args: decoded.append(tuple(args[0].shape[:2]))
    )
    output = varied_pipeline.reconstruct(uneven_video(36), budget=4, allocation="measured", batch_size=2)
    # 3 blocks at levels 2, 4, 6 of both batches, then the reconstruction
    assert decoded == [(2, 1)] * 9 + [(1, 1)] * 9 + [(2, 3), (1, 3)]
    assert set(output.seconds) == {"read", "encode", "score", "measure", "allocate", "decode"}


def test_half_precision(varied_pipeline, tmp_path):
    varied_pipeline.save_pretrained(tmp_path)
    half = AdapTokPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    given = {"budget": 4, "allocation": "measured"}
    full, coarse = (p.tokenize(uneven_video(12), **given).allocation["objective"] for p in (varied_pipeline, half))
    assert coarse != full and coarse == pytest.approx(full, rel=0.1)


def test_rounding_down(varied_pipeline):
    tokens = varied_pipeline.tokenize(uneven_video(12), budget=3, allocation="measured")
    assert tokens.num_tokens == 8


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"budget": 3, "rounding": "exact"}, "3.0 .*2.666.* and 3.333"),
        ({"budget": 1}, " 2 "),
        ({"budget": 7}, " 6 "),
        ({"budget": 1, "rounding": "floor"}, " 2 "),
        ({"budget": float("nan")}, "finite"),
        ({"budget": [4, 4, 4]}, "budget"),
        ({"budget": 4, "rounding": "up"}, "rounding"),
        ({}, "'measured'.*`budget`"),
        ({"price": 0.1}, "'measured'.*`price`"),
        ({"budget": 4, "threshold": 0.1}, "budget, threshold"),
    ],
    ids=str,
)
def test_bad_requests_are_named_before_the_work(varied_pipeline, parameters, message):
    worked = []
    varied_pipeline.tokenizer.encoder.register_forward_pre_hook(lambda module, args: worked.append(module))
    with pytest.raises(ValueError, match=message):
        varied_pipeline.tokenize(uneven_video(12), allocation="measured", **parameters)
    assert not worked


def test_a_tokenizer_that_is_not_adaptive_refuses(tiny_pipeline, tiny_config):
    rigid = AdapTokModel(AdapTokConfig(**{**tiny_config.to_diff_dict(), "adaptive": False})).eval()
    pipeline = AdapTokPipeline(tiny_pipeline.video_processor, rigid)
    with pytest.raises(ValueError, match="not adaptive"):
        pipeline.tokenize(uneven_video(12), budget=4, allocation="measured")


def test_other_strategies_name_it_where_there_is_no_scorer(without_scorer):
    with pytest.raises(ValueError, match="fixed, measured"):
        without_scorer.tokenize(uneven_video(12), budget=4, allocation="joint")


# --- command line ---------------------------------------------------------------------------------------------------


def test_command_line(without_scorer, tmp_path, monkeypatch, capsys):
    without_scorer.save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    video = str(write_mp4(tmp_path / "a.mp4", frames=make_frames(12, 16, 16)))
    options = ["--model", str(tmp_path / "model"), "--device", "cpu", "--budget", "3", "--allocation", "measured"]
    assert main(["reconstruct", video, *options]) == 0
    report = json.loads(Path("a-adaptok/report.json").read_text())
    assert report["allocation"]["strategy"] == "measured" and report["tokens"] == 9
    assert report["allocation"]["bound"] <= report["allocation"]["objective"] < 3
    assert main(["tokenize", video, *options]) == 0
    assert "12 frames, 9 tokens" in capsys.readouterr().out


# --- evaluation -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def videos(tmp_path_factory) -> Path:
    """3 videos of two clips, of different contrast."""
    folder = tmp_path_factory.mktemp("videos")
    for index in range(3):
        frames = (moving_frames(index).astype(float) - 128) * (0.2, 1, 0.6)[index] + 128
        write_video(folder / f"v{index}.mp4", frames.astype(np.uint8), 12)
    return folder


def test_evaluation(varied_pipeline, without_scorer, videos, tmp_path, monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return measure_losses(*arguments)

    monkeypatch.setattr(pipeline_allocation, "measure_losses", counted)
    for name, pipeline, budgets in (("scorer", varied_pipeline, [2, 4, 6]), ("none", without_scorer, [3, 5])):
        calls.clear()
        given = {"strategies": ["fixed", "measured"], "budgets": budgets, "batches": [1, 3]}
        report = evaluate(pipeline, videos, tmp_path / name, **given)
        assert len(calls) == 2  # 6 clips, 3 at a time, whatever the budgets and batches
        assert len(report["results"]) == 4 * len(budgets)
        for result in report["results"]:
            assert result["tokens_per_block"] == result["budget"]
            assert result["allocation_batch"] in ([1, 3] if result["strategy"] == "measured" else [None])
            assert result["strategy"] != "measured" or result["milliseconds_per_clip"]["score"] > 0
    with open(tmp_path / "scorer" / "per_video.csv") as file:
        rows = list(csv.DictReader(file))
    table = losses_by_hand(varied_pipeline, _clips(varied_pipeline, videos).videos / 255, [2, 4, 6])
    for batch, clips in ((1, 2), (3, 6)):  # a video has two clips
        counts = [row["token_counts"] for row in rows if row["setting"] == f"measured-4-batch{batch}"]
        parts = [joint(part, step=2, budget=4).token_counts for part in np.split(table, 6 // clips)]
        assert counts == [" ".join(map(str, row)) for row in np.concatenate(parts).tolist()]
        assert len(set(counts)) > 1
    # a budget between levels is rounded down: 22 levels of 2 tokens for 18 blocks
    report = evaluate(varied_pipeline, videos, tmp_path / "between", strategies=["measured"], budgets=[2.5], batches=[3])
    assert report["results"][-1]["tokens_per_block"] == pytest.approx(44 / 18)


def _clips(pipeline, videos: Path) -> Clips:
    return ClipChunks(open_videos(videos), own_protocol(pipeline, "test", "all", "reconstruction"), 3).read(0)


def test_evaluation_measures_in_the_precision_of_the_protocol(varied_pipeline, videos):
    clips = _clips(varied_pipeline, videos)
    tables = {}
    for precision in ("float32", "bfloat16"):
        encoded = encode_clips(varied_pipeline, clips, 4, precision)
        with autocast(torch.device("cpu"), precision):
            tables[precision] = varied_pipeline.score(encoded, measured=True)
            expected = measure_losses(varied_pipeline.tokenizer, clips.videos / 255, encoded.codes, [2, 4, 6])
        assert_close(torch.from_numpy(tables[precision]).float(), expected, atol=1e-3, rtol=0)
    assert not np.array_equal(*tables.values())


def test_evaluation_refuses_what_cannot_be(without_scorer, varied_pipeline, videos, tmp_path):
    for pipeline, options, message in (
        (without_scorer, {"strategies": ["measured", "joint"]}, "joint"),
        (varied_pipeline, {"strategies": ["measured"], "budgets": [1]}, " 1.0 .* 2 "),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(pipeline, videos, tmp_path / "refused", **options)
    assert not (tmp_path / "refused").exists()


@pytest.mark.slow
def test_evaluation_from_the_command_line(without_scorer, videos, tmp_path, capsys):
    without_scorer.save_pretrained(tmp_path / "tiny")
    out = tmp_path / "out"
    argv = ["evaluate", "reconstruction", str(videos), "-o", str(out), "--model", str(tmp_path / "tiny"), "--device", "cpu"]
    argv += ["--lpips", "none", "--no-fvd", "--budgets", "3", "4", "--strategies", "fixed", "measured"]
    assert main([*argv, "--allocation-batch", "3"]) == 0
    assert "| tiny | measured (3 videos) | 4 | 4 |" in capsys.readouterr().out
    assert (out / "gain_psnr.png").exists()
