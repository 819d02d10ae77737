"""Memory stays under a ceiling, whatever the number of clips, and the ceiling has no influence on the result."""

import numpy as np
import pytest
import torch
from builders.pipelines import make_pipeline, noisy_video, one_clip, peak_bytes, results
from torch.testing import assert_close

from adaptok_hf.pipelines.pipeline_batches import plan_batches

STRATEGIES = [{}, {"budget": 32}, {"price": 0.001}, {"budget": 32, "allocation": "ipal"}]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"dtype": torch.bfloat16},
        {"codebook_size": 8192},
        {"patch_size": 2},
        {"mlp_ratio": 2},
        {"scorer_layers": 24},
        {"image_size": 128, "patch_size": 16, "hidden_size": 32},
    ],
    ids=str,
)
def test_the_formula_is_an_upper_bound_of_what_is_measured(changes):
    """And not far above it: a clip takes at least a third of it."""
    pipeline, highest = make_pipeline(**changes), 0
    video, allowed = noisy_video(pipeline, 3), 3 * one_clip(pipeline)
    for request in STRATEGIES:
        tokens = pipeline.tokenize(video, batch_size=3, **request)
        peaks = [
            peak_bytes(lambda given=request: pipeline.tokenize(video, batch_size=3, **given)) - results(pipeline, 3),
            peak_bytes(lambda given=tokens: pipeline.detokenize(given, batch_size=3)),
        ]
        assert max(peaks) <= allowed, (request, peaks)
        highest = max(highest, *peaks)
    assert highest > allowed / 3


@pytest.mark.parametrize("request_", STRATEGIES, ids=str)
def test_memory_stays_under_the_ceiling_for_any_number_of_clips(request_):
    pipeline = make_pipeline()
    ceiling = 2 * one_clip(pipeline)
    for clips in (4, 32):
        video = noisy_video(pipeline, clips)
        limited = {"max_memory": ceiling}
        peak = peak_bytes(lambda: pipeline.tokenize(video, **request_, **limited))  # noqa: B023
        assert peak - results(pipeline, clips) <= ceiling
        tokens = pipeline.tokenize(video, **request_, **limited)
        assert peak_bytes(lambda: pipeline.detokenize(tokens, **limited)) <= ceiling  # noqa: B023
    unlimited = peak_bytes(lambda: pipeline.tokenize(video, batch_size=32, **request_)) - results(pipeline, 32)
    assert unlimited > 2 * ceiling


@pytest.mark.parametrize("request_", [*STRATEGIES, {"budget": 32, "allocation": "bidelta"}], ids=str)
def test_the_ceiling_has_no_influence_on_the_result(request_):
    pipeline, together = make_pipeline(), []
    pipeline.tokenizer.encoder.register_forward_pre_hook(lambda module, args: together.append(len(args[0])))
    video = noisy_video(pipeline, 5)
    expected = pipeline.reconstruct(video, **request_)
    assert together == [5]
    for clips, batches in ((1, [1] * 5), (2, [2, 2, 1])):
        together.clear()
        output = pipeline.reconstruct(video, max_memory=clips * one_clip(pipeline), **request_)
        again = 4 if request_.get("allocation") else 0  # their latents are encoded again to score each block
        assert together == batches * (1 + again)
        assert torch.equal(output.tokens.codes, expected.tokens.codes)
        assert torch.equal(output.token_counts, expected.token_counts)
        assert np.abs(output.frames.astype(int) - expected.frames).max() <= 1
    assert request_ != {"price": 0.001} or len(expected.token_counts.unique()) > 1


@torch.inference_mode()
def test_clips_together_are_what_each_is_alone():
    """The same codes, and numbers within round-off, before anything is rounded to 8 bits."""
    pipeline = make_pipeline()
    tokenizer, close = pipeline.tokenizer, {"atol": 1e-5, "rtol": 0}
    video = pipeline.video_processor.clips(noisy_video(pipeline, 3)).pixel_values_videos
    encoded = tokenizer.encode(video)
    counts = torch.arange(12).reshape(3, 4) * 5 + 1
    scores, frames = pipeline.scorer(encoded.latents, encoded.quantized).scores, tokenizer.decode(encoded.codes, counts)
    for clip in range(3):
        one = slice(clip, clip + 1)
        alone = tokenizer.encode(video[one])
        assert torch.equal(alone.codes, encoded.codes[one])
        assert_close(alone.latents, encoded.latents[one], **close)
        assert_close(pipeline.scorer(alone.latents, alone.quantized).scores, scores[one], **close)
        decoded = tokenizer.decode(alone.codes, counts[one]).pixel_values_videos
        assert_close(decoded, frames.pixel_values_videos[one], **close)


def test_latents_are_kept_where_there_is_room():
    pipeline, together = make_pipeline(), []
    pipeline.tokenizer.encoder.register_forward_pre_hook(lambda module, args: together.append(len(args[0])))
    config = pipeline.tokenizer.config
    latents = 5 * config.num_latent_tokens * config.hidden_size * 4
    room = 2 * one_clip(pipeline) + latents
    assert latents < one_clip(pipeline)
    for max_memory, batches in ((room, [2, 2, 1]), (room - 1, [2, 2, 1] * 5)):
        together.clear()
        pipeline.tokenize(noisy_video(pipeline, 5), budget=32, allocation="ipal", max_memory=max_memory)
        assert together == batches


def test_without_a_ceiling_half_of_what_is_free_is_taken(monkeypatch):
    pipeline = make_pipeline()
    models, clip = (pipeline.tokenizer, pipeline.scorer), one_clip(pipeline)
    for half, together in ((None, 8), (100 * clip, 8), (3.5 * clip, 3), (0, 1)):
        monkeypatch.setattr("adaptok_hf.pipelines.pipeline_batches._half_of_free", lambda device, half=half: half)
        assert plan_batches(*models, 20, 8, None)[0] == together
    monkeypatch.undo()
    assert plan_batches(*models, 20, 8, None) == (8, True)  # this machine has room for that


def test_sizes_in_words():
    pipeline = make_pipeline()
    for size in (7 * 2**20, "7MiB", "7340.032kB", "0.0068359375GiB"):
        assert plan_batches(pipeline.tokenizer, pipeline.scorer, 20, 8, size)[0] == 3


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("much", "max_memory must be a number of bytes or a size such as '2GiB', got 'much'"),
        ("5", "got '5'"),
        (-1, "got -1"),
        (1.5, "got 1.5"),
        (True, "got True"),
        ("1MiB", "max_memory='1MiB' is too low: a single clip of this model takes 2.0 MiB"),
    ],
)
def test_bad_ceilings_are_named(size, message):
    pipeline = make_pipeline()
    video = noisy_video(pipeline, 1)
    tokens = pipeline.tokenize(video)
    for call in (lambda: pipeline.tokenize(video, max_memory=size), lambda: pipeline.detokenize(tokens, max_memory=size)):
        with pytest.raises(ValueError, match=message):
            call()
