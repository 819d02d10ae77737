"""Strategy `search`: what it reports is what decoding gives, it meets budgets, and nothing is better."""

import itertools

import numpy as np
import pytest
import torch

from adaptok_hf import AdapTokPipeline, AllocationRequest
from adaptok_hf.allocation.beam_search import AssignmentTree
from adaptok_hf.pipelines.assignment_decoding import assignment_trees

LOSSES = {
    "mse": lambda error: error.square().mean(),
    "rmse": lambda error: error.square().mean().sqrt(),
    "psnr": lambda error: 10 * error.square().flatten(1).mean(1).log10().mean(),
}


@pytest.fixture
def video() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


def decoded_loss(pipeline: AdapTokPipeline, encoded, counts, loss: str = "rmse", clip: int = 0) -> float:
    """The summed loss of a clip's blocks by plain decoding."""
    frames = encoded.frames(slice(clip, clip + 1))[0, : 4 * len(counts)] / 255
    with torch.no_grad():
        decoded = pipeline.tokenizer.decode(
            encoded.codes[clip, None, : len(counts)], torch.tensor([counts])
        ).pixel_values_videos[0]
    blocks = (decoded.clamp(0, 1) - frames).unflatten(0, (len(counts), -1))
    return sum(float(LOSSES[loss](block)) for block in blocks)


def trees_of(pipeline: AdapTokPipeline, encoded, **options) -> list[AssignmentTree]:
    frames = encoded.frames(slice(0, len(encoded.codes)))
    return assignment_trees(pipeline.tokenizer, frames, encoded.codes, encoded.valid_blocks, [1, 2, 3, 4, 6], **options)


@pytest.mark.parametrize("loss", LOSSES)
def test_losses_of_a_tree_are_those_of_decoded_clips(tiny_pipeline, video, loss):
    encoded = tiny_pipeline.encode(video)
    (tree,) = trees_of(tiny_pipeline, encoded, loss=loss)
    tree.run_beam(0.001, width=3)
    complete = [counts for counts in tree.losses if len(counts) == 3]
    assert len(tree.losses) == 5 + 15 + 15 and len(complete) == 15
    for counts in [*complete[::4], (5, 1, 6)]:
        assert tree.loss(counts) == pytest.approx(decoded_loss(tiny_pipeline, encoded, counts, loss), rel=1e-4)


def test_an_assignment_is_measured_with_one_pass_for_each_block(tiny_pipeline, video, monkeypatch):
    (tree,) = trees_of(tiny_pipeline, tiny_pipeline.encode(video))
    decode, passes = tiny_pipeline.tokenizer.decode, []
    monkeypatch.setattr(
        tiny_pipeline.tokenizer, "decode", lambda *args, **kwargs: passes.append(1) or decode(*args, **kwargs)
    )
    for counts, more in (((2, 6, 1), 3), ((2, 6, 3), 1), ((2, 1, 1), 2)):  # what begins alike is decoded once
        passes.clear()
        tree.loss(counts)
        assert len(passes) == more


def test_a_price_finds_the_best_of_all_assignments(tiny_pipeline, video):
    encoded = tiny_pipeline.encode(video)
    (tree,) = trees_of(tiny_pipeline, encoded)
    every = list(itertools.product(tree.levels, repeat=3))
    for price in (0.0, 0.0005, 0.005):
        tree.run_beam(price, width=25)
        costs = [decoded_loss(tiny_pipeline, encoded, counts) + price * sum(counts) for counts in every]
        chosen = tree.best(price)
        assert decoded_loss(tiny_pipeline, encoded, chosen) + price * sum(chosen) == pytest.approx(min(costs), abs=1e-5)
    assert len(tree.losses) == 5 + 25 + 125


@pytest.mark.parametrize("budget", [2, 2.5, 4, 5.25, 6])
def test_a_budget_is_spent_to_the_last_token_and_no_other_strategy_is_better(tiny_pipeline, video, budget):
    long = np.concatenate([video, video[::-1], video[:5]])
    encoded = tiny_pipeline.encode(long)
    tokens = tiny_pipeline.allocate(encoded, AllocationRequest(budget, strategy="search"))
    assert tokens.num_tokens == int(budget * tokens.num_blocks) and tokens.num_blocks == 8
    assert tokens.allocation["strategy"] == "search" and tokens.allocation["decoded_blocks"] > 0
    for name in ("joint", "measured", "fixed"):
        other = tiny_pipeline.allocate(encoded, AllocationRequest(budget, strategy=name))
        losses = []
        for each in (tokens, other):
            counts = each.token_counts.tolist()
            kept = [[count for count in clip if count] for clip in counts]
            losses.append(sum(decoded_loss(tiny_pipeline, encoded, clip, clip=i) for i, clip in enumerate(kept)))
        assert losses[0] <= losses[1] + 1e-5 or other.num_tokens > tokens.num_tokens, name


def test_at_a_price_a_clip_does_not_depend_on_its_neighbors(tiny_pipeline, video):
    request = {"price": 0.002, "allocation": "search"}
    together = tiny_pipeline.tokenize([video, 255 - video], **request)
    for alone, tokens in zip((video, 255 - video), together, strict=True):
        assert torch.equal(tiny_pipeline.tokenize(alone, **request).token_counts, tokens.token_counts)
    cheap = tiny_pipeline.tokenize(video, price=0.0001, allocation="search")
    assert cheap.num_tokens >= together[0].num_tokens


def test_any_loss(tiny_pipeline, video):
    """Only the last frame counts, so the last block gets the tokens."""
    calls = []

    def red(decoded, original):
        assert decoded.shape == original.shape and 0 <= decoded.min() <= decoded.max() <= 1
        calls.append(len(decoded))
        return (decoded - original)[:, :, 0].abs().mean((1, 2, 3))

    tokens = tiny_pipeline.tokenize(video, budget=3, allocation="search", loss=red)
    assert tokens.num_tokens == 9 and sum(calls) == tokens.allocation["decoded_blocks"]
    for loss in ("ssim", 3):
        with pytest.raises(ValueError, match=str(loss)):
            tiny_pipeline.tokenize(video, budget=3, allocation="search", loss=loss)
    with pytest.raises(ValueError, match="`loss`"):
        tiny_pipeline.tokenize(video, budget=3, loss="mse")


def test_without_a_scorer_and_with_a_decoder_that_is_not_causal(tiny_pipeline, video):
    config = tiny_pipeline.tokenizer.config
    alone = AdapTokPipeline(tiny_pipeline.video_processor, tiny_pipeline.tokenizer)
    alone.set_progress_bar_config(disable=True)
    assert alone.tokenize(video, budget=3, allocation="search").num_tokens == 9
    before, config.decoder_attention_type = config.decoder_attention_type, "full"
    try:
        encoded = alone.encode(video)
        (tree,) = trees_of(alone, encoded)
        assert tree.loss((2, 6, 1)) > 0
    finally:
        config.decoder_attention_type = before


def test_joint_stays_at_the_schedule_that_the_scorer_carries(tiny_pipeline, video):
    encoded, config = tiny_pipeline.encode(video), tiny_pipeline.scorer.config
    assert not tiny_pipeline.has_schedules
    free = tiny_pipeline.allocate(encoded, AllocationRequest(4)).token_counts.tolist()
    config.schedules = [[[6, 4, 2]], [[4, 2, 3]]]
    assert tiny_pipeline.find_schedule(4) == (6, 4, 2)
    request = AllocationRequest(4, strategy="joint")
    assert tiny_pipeline.allocate(encoded, request).token_counts.tolist() == free
    config.schedule_pull = 1e6
    assert tiny_pipeline.allocate(encoded, request).token_counts.tolist() == [[6, 4, 2]] != free


def test_the_best_of_the_schedules_is_taken_for_each_clip(tiny_pipeline, video):
    schedules = [(6, 4, 2), (2, 4, 6), (4, 4, 4), (2, 6, 4)]
    tiny_pipeline.scorer.config.schedules = [[list(counts) for counts in schedules]]
    encoded = tiny_pipeline.encode([video, video[::-1].copy(), 255 - video])
    for clip in range(3):
        alone = tiny_pipeline.allocate(encoded[clip : clip + 1], AllocationRequest(4))[0]
        assert alone.allocation["strategy"] == "compared" and alone.allocation["decoded_blocks"] <= 12
        losses = [decoded_loss(tiny_pipeline, encoded, counts, clip=clip) for counts in schedules]
        counts = alone.token_counts[0].tolist()
        assert tuple(counts) in schedules
        assert decoded_loss(tiny_pipeline, encoded, counts, clip=clip) == pytest.approx(min(losses), rel=1e-5)
        # search knows the schedules too
        found = tiny_pipeline.allocate(encoded[clip : clip + 1], AllocationRequest(4, strategy="search"))[0]
        assert found.allocation["objective"] <= alone.allocation["objective"]


def test_clips_that_share_a_budget_also_take_schedules_of_more_and_less(tiny_pipeline, video):
    tiny_pipeline.scorer.config.schedules = [[[1, 1, 1]], [[4, 2, 3]], [[6, 6, 6]]]
    still = np.broadcast_to(video[:1], video.shape).copy()
    encoded, differ = tiny_pipeline.encode([video, still, video[:5]]), False
    for budget in (2, 3, 4.4, 5):
        tokens = tiny_pipeline.allocate(encoded, AllocationRequest(budget))
        counts = np.concatenate([each.token_counts.numpy() for each in tokens])
        assert counts.sum() == int(budget * 8) and counts[2, 2] == 0 and counts.max() <= 6
        schedules = [tiny_pipeline.find_schedule(budget, valid[None]) for valid in encoded.valid_blocks]
        rows = [schedule[:blocks] for schedule, blocks in zip(schedules, (3, 3, 2), strict=True)]
        differ |= [row.sum() for row in counts] != [sum(row) for row in rows]
        if sum(map(sum, rows)) == counts.sum():
            losses = [decoded_loss(tiny_pipeline, encoded, list(row), clip=clip) for clip, row in enumerate(rows)]
            assert tokens[0].allocation["objective"] <= sum(losses) + 1e-5
    assert differ
