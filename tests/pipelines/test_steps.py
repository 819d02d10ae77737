"""The four public steps, and videos that share a budget."""

import numpy as np
import pytest
import torch
from builders.pipelines import make_pipeline, noisy_video, peak_bytes

from adaptok_hf import allocate
from adaptok_hf.allocation import STRATEGIES, AllocationRequest, Strategy


def test_the_steps_are_the_whole(tiny_pipeline):
    video, request = noisy_video(30), AllocationRequest(budget=4)
    encoded = tiny_pipeline.encode(video)
    scores = tiny_pipeline.score(encoded)
    assert scores.shape == (3, 3, 3) and tiny_pipeline.score(encoded) is scores
    tokens = tiny_pipeline.allocate(encoded, request)
    whole = tiny_pipeline.reconstruct(video, budget=4, output_type="uint8")
    assert torch.equal(tokens.codes, whole.tokens.codes) and torch.equal(tokens.token_counts, whole.token_counts)
    assert tokens.allocation == whole.tokens.allocation and np.array_equal(tiny_pipeline.decode(tokens), whole.frames[0])
    expected = allocate(scores, strategy="joint", step=2, budget=4, valid=encoded.valid_blocks.numpy())
    assert tokens.token_counts.tolist() == expected.tolist()
    everything = tiny_pipeline.allocate(encoded)
    assert torch.equal(everything.token_counts, tiny_pipeline.tokenize(video).token_counts)


def test_encoded_videos_are_sliced_by_neighbors(tiny_pipeline):
    encoded = tiny_pipeline.encode(torch.rand(3, 12, 3, 16, 16))
    assert torch.equal(encoded[1:].codes, encoded.codes[1:]) and len(encoded[1:]) == 2
    for videos in (slice(None, None, 2), 1):
        with pytest.raises(TypeError, match=str(videos).replace("(", r"\(").replace(")", r"\)")):
            encoded[videos]


@pytest.mark.parametrize("allocation", [None, "fixed", "joint", "ipal", "quality", "measured", "search"])
def test_no_videos_make_no_tokens(tiny_pipeline, allocation):
    amount = {} if allocation is None else {"price": 0.1} if allocation == "quality" else {"budget": 4}
    assert tiny_pipeline.tokenize(torch.zeros(0, 12, 3, 16, 16), allocation=allocation, **amount) == []
    assert tiny_pipeline.reconstruct(torch.zeros(0, 12, 3, 16, 16), allocation=allocation, **amount) == []


def test_encode_takes_what_read_returned(tiny_pipeline):
    video, options = noisy_video(30), {"resize_mode": "squash", "overlap_blocks": 1}
    clips = tiny_pipeline.read(video, **options)
    expected, encoded = tiny_pipeline.encode([video, video], **options), tiny_pipeline.encode([clips, clips], **options)
    assert torch.equal(expected.codes, encoded.codes) and encoded.clips == [clips, clips]
    for other, value in (
        ({"overlap_blocks": 0}, "overlap_blocks=0"),
        ({"fps": 7.0}, "7.0"),
        ({"resize_mode": "tile"}, "tile"),
    ):
        with pytest.raises(ValueError, match=value):
            tiny_pipeline.encode(clips, **options | other)


def test_models_that_return_tuples_by_their_configuration(tiny_pipeline):
    video, options = (
        noisy_video(12),
        ({"budget": 4}, {"budget": 4, "allocation": "ipal"}, {"budget": 4, "allocation": "measured"}),
    )
    expected = [tiny_pipeline.reconstruct(video, **each).frames for each in options]
    tiny_pipeline.tokenizer.config.return_dict = tiny_pipeline.scorer.config.return_dict = False
    for each, frames in zip(options, expected, strict=True):
        assert np.array_equal(tiny_pipeline.reconstruct(video, **each).frames, frames)
    assert len(list(tiny_pipeline.stream(video, price=0.001))) > 0


@pytest.mark.parametrize("request_", [{"budget": 4}, {"budget": 4, "strategy": "ipal"}, {"price": 0.001}, {}], ids=str)
def test_a_list_of_videos_shares_one_budget(tiny_pipeline, request_):
    """As one program over the clips of all; codes and frames are those of each video alone."""
    videos = [noisy_video(12), noisy_video(30), np.full((5, 16, 16, 3), 128, dtype=np.uint8)]
    request = AllocationRequest(**request_)
    encoded = tiny_pipeline.encode(videos)
    tokens = tiny_pipeline.allocate(encoded, request, batch_size=2)
    assert [len(each.codes) for each in tokens] == [1, 3, 1] and [each.num_frames for each in tokens] == [12, 30, 5]
    counts = torch.cat([each.token_counts for each in tokens])
    if "budget" in request_:
        assert counts[encoded.valid_blocks].double().mean() == 4
        alone = [tiny_pipeline.tokenize(video, budget=4, allocation=request.strategy) for video in videos]
        assert not torch.equal(counts, torch.cat([each.token_counts for each in alone]))
    for video, each in zip(videos, tokens, strict=True):
        assert torch.equal(each.codes, tiny_pipeline.tokenize(video).codes)
        assert np.array_equal(
            tiny_pipeline.decode(each)[None], tiny_pipeline.detokenize(each, batch_size=1, output_type="uint8")
        )
    some = encoded[1:]
    assert len(some) == 2 and torch.equal(some.codes, encoded.codes[1:]) and len(some.latents) == 4
    assert [len(each.codes) for each in tiny_pipeline.allocate(some, AllocationRequest())] == [3, 1]


def test_reconstructions_of_a_list(tiny_pipeline):
    videos = [noisy_video(12), noisy_video(30)]
    outputs = tiny_pipeline(videos, budget=4)
    assert [output.frames.shape[:2] for output in outputs] == [(1, 12), (1, 30)] and isinstance(outputs, list)
    assert [len(video) for video in outputs.frames] == [12, 30]  # as diffusers has it: a batch of videos
    assert sum(output.tokens.num_tokens for output in outputs) == 4 * sum(output.tokens.num_blocks for output in outputs)
    batch, alone = np.stack([noisy_video(12)] * 2), tiny_pipeline(noisy_video(12)).frames
    assert np.array_equal(tiny_pipeline(batch)[1].frames, alone)
    assert np.array_equal(tiny_pipeline(batch).frames, np.concatenate([alone, alone]))
    assert tiny_pipeline(batch, output_type="pt").frames.shape == (2, 12, 3, 16, 16)
    assert [len(video) for video in tiny_pipeline(batch, output_type="pil").frames] == [12, 12]


def test_nothing_is_encoded_for_a_request_that_cannot_be_met(tiny_pipeline, monkeypatch):
    monkeypatch.setattr(tiny_pipeline.tokenizer, "encode", None)
    for request in ({"budget": 100}, {"budget": 1, "allocation": "measured"}, {"price": -1.0}):
        with pytest.raises(ValueError, match=str(next(iter(request.values())))):
            tiny_pipeline.tokenize(noisy_video(12), **request)


def test_working_memory_does_not_grow_with_the_video():
    """What a video takes beyond its frames, codes and latents is what a batch of clips takes."""
    pipeline, extra = make_pipeline(), []
    for clips in (4, 12):
        video = np.zeros((16 * clips, 32, 32, 3), dtype=np.uint8)
        kept = clips * (16 * 3 * 32**2 + 4 * 64 * 8 + 4 * 64 * 64 * 4)
        extra.append(peak_bytes(lambda: pipeline.tokenize(video, budget=32, batch_size=2)) - kept)  # noqa: B023
    assert extra[1] < 1.3 * extra[0], extra


def test_latents_are_kept_for_scorers_only(tiny_pipeline):
    encoded = tiny_pipeline.encode(noisy_video(12), request=AllocationRequest(budget=4, strategy="fixed"))
    assert encoded.latents is None
    for step in (tiny_pipeline.score, lambda e: tiny_pipeline.allocate(e, AllocationRequest(price=0.1))):
        with pytest.raises(ValueError, match="latents"):
            step(encoded)


def test_a_new_strategy_is_a_function_and_a_row(tiny_pipeline, monkeypatch):
    def thrifty(scores, *, step, budget, valid=None):
        return np.where(valid, step, 0)

    row = Strategy("thrifty", thrifty, "budget", (), "none", "clip", False, "test", "one step for every block")
    monkeypatch.setitem(STRATEGIES, "thrifty", row)
    tokens = tiny_pipeline.tokenize(noisy_video(15), budget=4, allocation="thrifty")
    assert tokens.token_counts.tolist() == [[2, 2, 2], [2, 0, 0]] and tokens.allocation["strategy"] == "thrifty"
