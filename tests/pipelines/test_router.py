"""Strategy `router`: the router's counts at a price, alone, in a batch and as a stream; and budgets that are met."""

import json

import numpy as np
import pytest
import torch
from builders.pipelines import noisy_video
from builders.routers import make_router, with_router
from diffusers import DiffusionPipeline

from adaptok_hf import AdapTokPipeline, AdapTokRouterModel, AllocationRequest, EncodedVideos
from adaptok_hf.cli.main import main

PRICES = (0.001, 0.0025, 0.005)


@pytest.fixture
def pipeline(tiny_pipeline) -> AdapTokPipeline:
    return with_router(tiny_pipeline, make_router())


def routed_clips(pipeline: AdapTokPipeline, video: np.ndarray, price: float | None) -> torch.Tensor:
    clips = pipeline.video_processor.clips(video)
    counts = pipeline.router.route(clips.frames / 255, price)
    return counts * clips.valid_blocks


def test_at_a_price_the_counts_are_the_router_s(pipeline):
    videos = [noisy_video(30, seed) for seed in range(3)]
    seen = set()
    for price in PRICES:
        tokens = pipeline.tokenize(videos, price=price, allocation="router", batch_size=2)
        for video, each in zip(videos, tokens, strict=True):
            assert torch.equal(each.token_counts, routed_clips(pipeline, video, price))
            assert each.allocation == {"strategy": "router", "price": pytest.approx(price)}
            seen |= set(each.token_counts.flatten().tolist())
        alone = pipeline.tokenize(videos[1], price=price, allocation="router")
        assert torch.equal(alone.token_counts, tokens[1].token_counts)
    assert len(seen) > 3, "the test needs a router that decides"


@pytest.mark.parametrize("head", ["blocks", "assignment"])
@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("budget", [1, 2.5, "50%", 4.9, 6])
def test_budgets_are_met_without_a_scorer(tiny_pipeline, head, conditioned, budget):
    router = make_router(head=head, price_conditioned=conditioned)
    pipeline = with_router(AdapTokPipeline(tiny_pipeline.video_processor, tiny_pipeline.tokenizer), router)
    tokens = pipeline.tokenize([noisy_video(30), noisy_video(12, 1)], budget=budget, allocation="router", batch_size=2)
    per_block = 3 if budget == "50%" else budget
    spent, blocks = sum(each.num_tokens for each in tokens), sum(each.num_blocks for each in tokens)
    assert blocks == 11 and spent == int(per_block * blocks)
    assert ("price" in tokens[0].allocation) == conditioned and "bound" in tokens[0].allocation


def test_a_router_for_one_price_needs_no_amount(tiny_pipeline):
    video = noisy_video(30)
    for head in ("blocks", "assignment"):
        pipeline = with_router(tiny_pipeline, make_router(head=head, price_conditioned=False))
        tokens = pipeline.tokenize(video, allocation="router")
        assert torch.equal(tokens.token_counts, routed_clips(pipeline, video, None))
        # as many tokens on a budget are the same
        again = pipeline.tokenize(video, budget=tokens.num_tokens / tokens.num_blocks, allocation="router")
        assert torch.equal(again.token_counts, tokens.token_counts)


def test_tables_are_computed_once_and_outlast_the_frames(pipeline, monkeypatch):
    request, calls = AllocationRequest(budget=3, strategy="router"), []
    forward = type(pipeline.router).forward
    monkeypatch.setattr(type(pipeline.router), "forward", lambda *args, **kw: calls.append(1) or forward(*args, **kw))
    encoded: EncodedVideos = pipeline.encode(noisy_video(30), request=request).without_frames()
    count = len(calls)
    for budget in (2, 3, 5):
        tokens = pipeline.allocate(encoded, AllocationRequest(budget=budget, strategy="router"))
        assert tokens.num_tokens == 8 * budget
    assert len(calls) == count == 8
    at_price = pipeline.encode(noisy_video(30))
    for price in PRICES:  # an answer at one price is not taken for that of another
        expected = pipeline.tokenize(noisy_video(30), price=price, allocation="router")
        tokens = pipeline.allocate(at_price, AllocationRequest(price=price, strategy="router"))
        assert torch.equal(tokens.token_counts, expected.token_counts)


@pytest.mark.parametrize("conditioned", [True, False])
@pytest.mark.parametrize("num_frames", [3, 12, 30])
def test_a_stream_is_the_whole_clip_pass_wherever_it_is_cut(tiny_pipeline, conditioned, num_frames):
    pipeline = with_router(tiny_pipeline, make_router(price_conditioned=conditioned))
    video, price = noisy_video(num_frames), 0.0025 if conditioned else None
    whole = pipeline.tokenize(video, price=price, allocation="router")
    counts = whole.token_counts[whole.token_counts > 0].tolist()
    blocks = list(pipeline.stream(iter(video), price=price, allocation="router", decode=False))
    assert [block.token_count for block in blocks] == counts and {block.price for block in blocks} == {price}
    for cut in range(4, num_frames, 8):
        part = list(pipeline.stream(iter(video[:cut]), price=price, allocation="router", decode=False))
        assert [block.token_count for block in part] == counts[: len(part)]


def test_a_stream_holds_a_budget_and_needs_no_scorer(tiny_pipeline):
    pipeline = with_router(AdapTokPipeline(tiny_pipeline.video_processor, tiny_pipeline.tokenizer), make_router())
    for options in ({"budget": 3}, {"bits_per_second": 130}):
        blocks = list(pipeline.stream(noisy_video(80), allocation="router", decode=False, reservoir=2, **options))
        assert abs(sum(block.token_count for block in blocks) / len(blocks) - 3) < 0.5
        assert len({block.token_count for block in blocks}) > 1


def test_saved_loaded_and_shared(pipeline, tmp_path):
    video = noisy_video(20)
    expected = pipeline.tokenize(video, budget=3, allocation="router").token_counts
    pipeline.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "model_index.json").read_text())["router"][1] == "AdapTokRouterModel"
    loaded = AdapTokPipeline.from_pretrained(tmp_path)
    assert isinstance(loaded.router, AdapTokRouterModel) and "router" in loaded.components
    assert torch.equal(loaded.tokenize(video, budget=3, allocation="router").token_counts, expected)
    assert AdapTokPipeline.from_pipe(loaded).router is loaded.router
    assert AdapTokPipeline.from_pretrained(tmp_path, router=None).router is None
    assert isinstance(DiffusionPipeline.from_pretrained(tmp_path).router, AdapTokRouterModel)
    assert loaded.to(torch.float64).router.dtype == torch.float64


@pytest.mark.parametrize(
    ("changes", "value"),
    [({"num_frames": 16}, "num_frames=16"), ({"image_size": 32}, "image_size=32"), ({"levels": (2, 7)}, "7")],
)
def test_a_router_of_another_tokenizer_is_named(tiny_pipeline, changes, value):
    with pytest.raises(ValueError, match=value):
        with_router(tiny_pipeline, make_router(**changes))


@pytest.mark.parametrize(
    ("router", "request_", "value"),
    [
        ({}, {}, "price_conditioned"),
        ({}, {"price": 0}, "price=0"),
        ({}, {"budget": 7}, "7"),
        ({}, {"threshold": 0.1}, "`threshold`"),
        ({}, {"price": 0.1, "rounding": "exact"}, "rounding='exact'"),
        ({}, {"budget": 2.5, "rounding": "exact"}, "2.5"),
        ({"price_conditioned": False}, {"price": 0.1}, "price=0.1"),
        (None, {"budget": 3}, "'router' needs a router"),
    ],
)
def test_requests_that_do_not_fit_are_named(tiny_pipeline, router, request_, value):
    pipeline = with_router(tiny_pipeline, None if router is None else make_router(**router))
    with pytest.raises(ValueError, match=value):
        pipeline.tokenize(noisy_video(20), allocation="router", **request_)


@pytest.mark.parametrize(
    ("router", "options", "value"),
    [
        ({"head": "assignment"}, {"price": 0.1}, "'assignment'"),
        ({}, {}, "price_conditioned"),
        ({"price_conditioned": False}, {"price": 0.1}, "price=0.1"),
        ({}, {"threshold": 0.1}, "`threshold`"),
        ({}, {"budget": 3, "allocation": "joint"}, "'joint' does not stream"),
        ({}, {"budget": 3, "allocation": "quality"}, "`budget`"),
        ({}, {"budget": 3, "allocation": "greedy"}, "greedy"),
        ({}, {"budget": 9}, "9"),
        (None, {"budget": 3}, "'router' needs a router"),
    ],
)
def test_streams_that_do_not_fit_are_named(tiny_pipeline, router, options, value):
    pipeline = with_router(tiny_pipeline, None if router is None else make_router(**router))
    with pytest.raises(ValueError, match=value):
        list(pipeline.stream(noisy_video(8), **{"allocation": "router"} | options))


def test_from_the_command_line(pipeline, clip_file, tmp_path, capsys):
    pipeline.save_pretrained(tmp_path / "model")
    options = ["--model", str(tmp_path / "model"), "--device", "cpu", "--allocation", "router", "--json"]
    assert main(["tokenize", clip_file, "--budget", "3", "-o", str(tmp_path / "a.safetensors"), *options]) == 0
    assert json.loads(capsys.readouterr().out)["tokens"] == 15
    assert main(["stream", clip_file, "--price", "0.0025", "-o", str(tmp_path / "b.mp4"), *options]) == 0
    assert json.loads(capsys.readouterr().out)["blocks"] == 5
    assert main(["info", *options[:4], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["router_parameters"] == pipeline.router.num_parameters()
