"""The pipeline with a tokenizer that needs token counts to encode: EVATok's."""

import itertools
import json

import numpy as np
import pytest
import torch
from builders.evaluations import evaluate
from builders.evatok import make_clips, make_evatok
from builders.pipelines import noisy_video
from builders.routers import make_router
from builders.video_files import write_mp4

from adaptok_hf import AdapTokPipeline, AdapTokVideoProcessor, AllocationRequest, EVATokModel, TokenizedVideo
from adaptok_hf.allocation import STRATEGIES
from adaptok_hf.hub.export import export_repository
from adaptok_hf.hub.onnx_graphs import write_onnx
from adaptok_hf.pipelines.assignment_decoding import assignment_trees, mse

LEVELS = (2, 4, 16)


def make_pipeline(**router) -> AdapTokPipeline:
    processor = AdapTokVideoProcessor(image_size=16, num_frames=16, tubelet_size=4)
    tokenizer = make_evatok(num_encoder_layers=1, num_decoder_layers=1)
    pipeline = AdapTokPipeline(processor, tokenizer, router=make_router(LEVELS, num_frames=16, **router))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline() -> AdapTokPipeline:
    return make_pipeline()


def check_tokens(pipeline: AdapTokPipeline, video: np.ndarray, tokens: TokenizedVideo) -> None:
    """The codes are those of encoding with these counts; the counts are levels."""
    clips = pipeline.video_processor.clips(video)
    assert torch.equal(tokens.token_counts > 0, clips.valid_blocks)
    assert set(tokens.token_counts[clips.valid_blocks].tolist()) <= {*LEVELS}
    with torch.no_grad():
        codes = pipeline.tokenizer.encode(clips.frames / 255, tokens.token_counts).codes
    assert torch.equal(codes, tokens.codes)


def test_all_tokens(pipeline, tmp_path):
    video = noisy_video(26)
    output = pipeline.reconstruct(video, output_type="uint8")
    check_tokens(pipeline, video, output.tokens)
    assert output.frames.shape == (1, 26, 16, 16, 3) and output.token_counts.sum() == 7 * 16
    output.tokens.save(tmp_path / "tokens.safetensors")
    loaded = TokenizedVideo.load(tmp_path / "tokens.safetensors")
    assert np.array_equal(pipeline.detokenize(loaded, output_type="uint8"), output.frames)


@pytest.mark.parametrize(
    ("budget", "expected"),
    [(4, [4] * 4), (15.9, [4] * 4), ("25%", [4] * 4), ([16, 5, 3, 2], [16, 4, 2, 2]), (16, [16] * 4)],
)
def test_schedules_are_rounded_down_to_levels(pipeline, budget, expected):
    video = noisy_video(32)
    tokens = pipeline.tokenize(video, budget=budget, batch_size=1)
    check_tokens(pipeline, video, tokens)
    assert tokens.token_counts.tolist() == [expected] * 2
    assert tokens.allocation["strategy"] == "fixed" and tokens.allocation["reached"] == np.mean(expected)


@pytest.mark.parametrize(("budget", "rounding"), [(5, "exact"), (1, None), (17, None), ([4, 4, 4, 1], None)])
def test_budgets_outside_the_levels_are_named(pipeline, budget, rounding):
    value = str(budget if isinstance(budget, int) else 1)
    for allocation in ("fixed", "search", "router") if isinstance(budget, int) and not rounding else ("fixed",):
        with pytest.raises(ValueError, match=rf"\b{value}\b"):
            pipeline.encode(noisy_video(16), request=AllocationRequest(budget, strategy=allocation, rounding=rounding))


@pytest.mark.parametrize("name", [name for name, row in STRATEGIES.items() if not row.decides_first])
def test_strategies_that_look_at_tokens_are_named(pipeline, name):
    amount = {STRATEGIES[name].needs: 4}
    with pytest.raises(ValueError, match=rf"'{name}'.*EVATokModel.*fixed, search, router"):
        pipeline.tokenize(noisy_video(16), allocation=name, **amount)


@pytest.mark.parametrize("amount", [{"price": 0.1}, {"threshold": 0.1}])
def test_defaults_that_need_a_scorer_are_named(pipeline, amount):
    with pytest.raises(ValueError, match="EVATokModel.*fixed, search, router"):
        pipeline.tokenize(noisy_video(16), **amount)
    with pytest.raises(ValueError, match=next(iter(amount)) + ".*EVATokModel"):
        pipeline.stream(noisy_video(16), **amount)
    with pytest.raises(ValueError, match="EVATokModel"):
        pipeline.score(pipeline.encode(noisy_video(16)), measured=True)


def test_parts_that_do_not_fit_are_named(pipeline, tiny_scorer):
    parts = {"video_processor": pipeline.video_processor, "tokenizer": pipeline.tokenizer}
    with pytest.raises(ValueError, match="scorer.*EVATokModel"):
        AdapTokPipeline(**parts, scorer=tiny_scorer)
    with pytest.raises(ValueError, match=r"\[8\]"):
        AdapTokPipeline(**parts, router=make_router((2, 8), num_frames=16))


@pytest.mark.parametrize("head", ["blocks", "assignment"])
def test_a_router_decides(head):
    pipeline = make_pipeline(head=head)
    videos, seen = [noisy_video(26, 0), noisy_video(16, 1)], set()
    for price in (0.001, 0.0025, 0.005):
        tokens = pipeline.tokenize(videos, price=price, allocation="router", batch_size=2)
        for video, each in zip(videos, tokens, strict=True):
            clips = pipeline.video_processor.clips(video)
            expected = pipeline.router.route(clips.frames / 255, price) * clips.valid_blocks
            assert torch.equal(each.token_counts, expected)
            check_tokens(pipeline, video, each)
            seen |= set(expected.flatten().tolist())
    assert len(seen) > 2, "the test needs a router that decides"


@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("budget", [2, 5, 9.5, 16])
def test_a_router_on_a_budget(conditioned, budget):
    pipeline = make_pipeline(price_conditioned=conditioned)
    videos = [noisy_video(26, 0), noisy_video(16, 1)]
    tokens = pipeline.tokenize(videos, budget=budget, allocation="router")
    for video, each in zip(videos, tokens, strict=True):
        check_tokens(pipeline, video, each)
    spent, blocks = sum(each.num_tokens for each in tokens), sum(each.num_blocks for each in tokens)
    assert budget * blocks - 12 < spent <= budget * blocks
    assert tokens[0].allocation["reached"] == spent / blocks


@pytest.mark.parametrize("amount", [{"price": 0.0025}, {"budget": 6}, {"bits_per_second": 250.0}, {}])
def test_a_stream_follows_the_router(amount):
    pipeline, video = make_pipeline(price_conditioned=bool(amount)), noisy_video(26)
    blocks = list(pipeline.stream(iter(video), allocation="router", reservoir=2, output_type="uint8", **amount))
    counts = [block.token_count for block in blocks]
    assert len(blocks) == 7 and set(counts) <= {*LEVELS}
    if "budget" in amount:
        assert abs(sum(counts) / 7 - 6) <= 12 / 7
    elif "bits_per_second" not in amount:
        whole = pipeline.tokenize(video, allocation="router", **amount)
        assert counts == whole.token_counts.flatten()[:7].tolist()
        assert torch.equal(torch.stack([block.codes for block in blocks]), whole.codes.flatten(0, 1)[:7])
        shown = np.concatenate([block.frames for block in blocks]).astype(int)
        assert np.abs(shown - pipeline.decode(whole)).max() <= 1
    again = np.stack(list(pipeline.stream_decode(blocks, output_type="uint8")))
    assert np.array_equal(again, np.concatenate([block.frames for block in blocks]))


def test_a_stream_of_all_tokens(pipeline):
    video = noisy_video(18)
    blocks = list(pipeline.stream(iter(video), decode=False))
    assert [block.token_count for block in blocks] == [16] * 5
    assert torch.equal(torch.stack([block.codes for block in blocks]), pipeline.tokenize(video).codes.flatten(0, 1)[:5])


def count_rows(model: EVATokModel, monkeypatch) -> list[int]:
    """Return a list of the blocks that each call encodes from now on."""
    rows, encode = [], model.encode
    monkeypatch.setattr(
        model,
        "encode",
        lambda video, *given, **more: rows.append(video.shape[0] * video.shape[1] // 4) or encode(video, *given, **more),
    )
    return rows


@pytest.mark.parametrize("levels", [[1, 16], pytest.param([1, 2, 4, 8, 16], marks=pytest.mark.slow)])
def test_the_whole_tree_takes_each_block_once(monkeypatch, levels):
    """625 assignments of the paper's 5 levels take 780 block passes; the losses are those of coding whole clips."""
    model = make_evatok(levels=levels, num_encoder_layers=1, num_decoder_layers=1)
    frames = (make_clips(1) * 255).byte()
    rows = count_rows(model, monkeypatch)
    (tree,) = assignment_trees(model, frames, None, torch.ones(1, 4, dtype=torch.bool), levels, "mse")
    tree.run_beam(0.0, width=len(levels) ** 3)
    assert sum(rows) == len(tree.losses) == sum(len(levels) ** blocks for blocks in (1, 2, 3, 4))
    rows.clear()
    (beam,) = assignment_trees(model, frames, None, torch.ones(1, 4, dtype=torch.bool), levels, "mse")
    beam.run_beam(0.0, width=10)
    assert sum(rows) == (130 if len(levels) == 5 else 30) and beam.losses.items() <= tree.losses.items()
    for counts in list(itertools.product(levels, repeat=4))[:: 5 if len(levels) == 2 else 97]:
        codes = torch.tensor([counts])
        with torch.no_grad():
            decoded = model.decode(model.encode(frames / 255, codes).codes, codes).pixel_values_videos.clamp(0, 1)
        whole = sum(mse(*pair).item() for pair in zip(decoded.split(4, 1), (frames / 255).split(4, 1), strict=True))
        assert tree.loss(counts) == pytest.approx(whole, rel=1e-4)


def test_a_search_at_a_price_finds_the_best(pipeline):
    video, best = noisy_video(8), {}
    frames = torch.from_numpy(video).permute(0, 3, 1, 2)[None]
    (tree,) = assignment_trees(pipeline.tokenizer, frames, None, torch.ones(1, 2, dtype=torch.bool), LEVELS)
    tree.run_beam(0.0, width=3)
    for price in (0.0, 1e-3, 1.0):
        tokens = pipeline.tokenize(video, price=price, allocation="search")
        check_tokens(pipeline, video, tokens)
        best[price] = tokens.num_tokens
        assert tokens.allocation["decoded_blocks"] == 3 + 9
        cost = tree.loss(tuple(tokens.token_counts[0, :2].tolist())) + price * tokens.num_tokens
        assert cost <= 1.001 * min(loss + price * tokens for tokens, (loss, _) in tree.best_by_tokens().items())
    assert best[1.0] == 4 and len(set(best.values())) > 1


def test_a_search_on_a_budget(pipeline):
    budget, videos = 5, [noisy_video(8, 0), noisy_video(6, 1)]
    tokens = pipeline.tokenize(videos, budget=budget, allocation="search", loss="mse")
    for video, each in zip(videos, tokens, strict=True):
        check_tokens(pipeline, video, each)
    assert sum(each.num_tokens for each in tokens) <= 4 * budget
    fixed = pipeline.reconstruct(videos, budget=budget, output_type="np")
    found = pipeline.reconstruct(videos, budget=budget, allocation="search", loss="mse", output_type="np")

    def loss(outputs):
        return sum(np.square(each.frames - each.original).sum() for each in outputs)

    # videos end with their blocks here, but for 2 frames; uint8 rounds
    assert loss(found) <= 1.02 * loss(fixed)


def test_saved_and_loaded(pipeline, tmp_path):
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["tokenizer"][1] == "EVATokModel"
    loaded = AdapTokPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.tokenizer, EVATokModel) and loaded.model_hash == pipeline.model_hash
    tokens = [each.tokenize(noisy_video(16), allocation="router", price=0.0025) for each in (loaded, pipeline)]
    assert torch.equal(tokens[0].codes, tokens[1].codes)


def test_frames_are_needed_until_counts_are_there(pipeline):
    encoded = pipeline.encode([noisy_video(16, seed) for seed in range(3)], request=AllocationRequest(budget=4))
    assert encoded.codes.is_meta and [len(each.codes) for each in pipeline.allocate(encoded[1:])] == [1, 1]
    with pytest.raises(ValueError, match="frames"):
        pipeline.allocate(encoded.without_frames())


@pytest.mark.parametrize("options", [{"overlap_blocks": 1}, {"resize_mode": "tile"}])
def test_long_and_large_videos(pipeline, options):
    video = noisy_video(30, size=24)
    output = pipeline.reconstruct(video, budget=4, output_type="uint8", **options)
    assert output.frames.shape[1] == 30 and set(output.token_counts.flatten().tolist()) <= {0, 4}


@pytest.mark.slow
def test_exported_with_a_card_whose_lines_run(pipeline, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # the card names the folder
    pipeline.save_pretrained(tmp_path / "pipeline")
    export_repository(tmp_path / "pipeline", tmp_path / "copy")
    assert AdapTokPipeline.from_pretrained(tmp_path / "copy").model_hash == pipeline.model_hash
    export_repository(tmp_path / "pipeline", tmp_path / "tokenizer", part="tokenizer")
    card = (tmp_path / "tokenizer" / "README.md").read_text()
    assert "EVATok tokenizer" in card and "2 or 4 or 16" in card
    lines = next(part for part in card.split("```")[1::2] if "token_counts" in part).removeprefix("python")
    results = {}
    exec(lines, results)
    assert results["codes"].shape == (1, 4, 16) and results["video"].shape == (1, 16, 3, 16, 16)
    with pytest.raises(ValueError, match="EVATokModel"):
        write_onnx(pipeline.tokenizer, tmp_path)


def test_measured_by_evaluation(pipeline, tmp_path):
    """Frames are those of the codes that belong to the counts: PSNR is that of `reconstruct`."""
    videos = [noisy_video(16, seed) for seed in range(2)]
    (tmp_path / "videos").mkdir()
    for index, video in enumerate(videos):
        write_mp4(tmp_path / "videos" / f"{index}.mp4", frames=video)
    options = {"strategies": ["fixed", "router"], "budgets": [4]}
    report = evaluate(pipeline, tmp_path / "videos", tmp_path / "report", **options)
    by_strategy = {result["strategy"]: result["metrics"]["psnr"]["value"] for result in report["results"]}
    assert {"fixed", "router"} <= by_strategy.keys()
    outputs = [pipeline.reconstruct(tmp_path / "videos" / f"{index}.mp4", budget=4, output_type="pt") for index in range(2)]
    psnr = [-10 * (each.frames - each.original).square().flatten(2).mean(2).log10().mean().item() for each in outputs]
    assert by_strategy["fixed"] == pytest.approx(np.mean(psnr), abs=0.02)
