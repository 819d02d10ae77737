from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.pipelines import noisy_video
from builders.video_files import make_frames, write_mp4
from diffusers import DiffusionPipeline
from PIL import Image
from transformers import AutoModel

from adaptok_hf import (
    AdapTokConfig,
    AdapTokModel,
    AdapTokPipeline,
    AdapTokScorerConfig,
    AdapTokScorerModel,
    AdapTokVideoProcessor,
    Video,
    allocate,
    read_video,
)

EXAMPLE = Path(__file__).parents[2] / "examples" / "surfing.mp4"


def valid_blocks(num_frames: int) -> torch.Tensor:
    """(clips, 3) bool for the tiny pipeline's clips of 12 frames and blocks of 4."""
    return (torch.arange(-(-num_frames // 12) * 3) < -(-num_frames // 4)).view(-1, 3)


def scores_of(pipeline, video: np.ndarray) -> torch.Tensor:
    """(clips, 3, 3) with all blocks full."""
    with torch.no_grad():
        encoded = pipeline.tokenizer.encode(pipeline.video_processor.clips(video).pixel_values_videos)
        return pipeline.scorer(encoded.latents, encoded.quantized).scores


# --- budgets and strategies ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_frames", [3, 12, 40])
def test_frames_and_padding(tiny_pipeline, num_frames):
    """As many frames out as in; padded blocks get no tokens."""
    video, valid = noisy_video(num_frames), valid_blocks(num_frames)
    for parameters in ({}, {"budget": 4}, {"price": 0.0}, {"budget": 2, "allocation": "ipal"}):
        output = tiny_pipeline(video, **parameters)
        assert output.frames.shape == (1, *video.shape) and output.frames.dtype == np.float32
        assert np.array_equal(output.original[0], np.float32(video) / 255)
        assert output.token_counts.shape == valid.shape
        assert torch.equal(output.token_counts > 0, valid)
    assert torch.equal(tiny_pipeline(video).token_counts, valid * 6)


@pytest.mark.parametrize("allocation", ["joint", "ipal", "fixed"])
@pytest.mark.parametrize(("num_frames", "budget"), [(12, 4), (40, 2), (40, 6), (24, 4)])
def test_budget_is_met_exactly(tiny_pipeline, allocation, num_frames, budget):
    counts = tiny_pipeline.tokenize(noisy_video(num_frames), budget=budget, allocation=allocation).token_counts
    valid = valid_blocks(num_frames)
    assert counts[valid].double().mean() == budget
    assert counts[~valid].sum() == 0
    assert set(counts[valid].tolist()) <= {2, 4, 6}
    if allocation == "fixed":
        assert (counts[valid] == budget).all()


def test_budgets_between_levels(tiny_pipeline):
    """10 blocks of levels 2, 4 and 6 can spend every mean that is a multiple of 0.2."""
    for budget in (2.2, 3.4, 5.8):
        counts = tiny_pipeline.tokenize(noisy_video(40), budget=budget).token_counts
        assert int(counts.sum()) == round(10 * budget)


def test_percentages(tiny_pipeline):
    for text, tokens in (("50%", 30), (" 100% ", 60), ("60%", 36), ("4", 40)):
        assert tiny_pipeline.tokenize(noisy_video(40), budget=text).num_tokens == tokens


def test_ipal_takes_a_budget_per_position(tiny_pipeline):
    budgets = [6, 4, 2]
    counts = tiny_pipeline.tokenize(noisy_video(36), budget=budgets, allocation="ipal").token_counts
    assert counts.double().mean(0).tolist() == budgets
    with pytest.raises(ValueError, match="2 entries"):
        tiny_pipeline.tokenize(noisy_video(12), budget=[4, 4], allocation="ipal")


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_ipal_scores_blocks_by_the_counts_chosen_before(tiny_pipeline, batch_size):
    """Block by block, with the scorer called by hand."""
    with torch.no_grad():  # makes the counts of earlier blocks matter
        for layer in tiny_pipeline.scorer.layers:
            layer.attention.proj.weight.mul_(20)
    video = noisy_video(96)
    with torch.no_grad():
        encoded = tiny_pipeline.tokenizer.encode(tiny_pipeline.video_processor.clips(video).pixel_values_videos)
        counts = torch.zeros(8, 3, dtype=torch.long)
        for block in range(3):
            counts[:, block] = 6
            scores = tiny_pipeline.scorer(encoded.latents, encoded.quantized, counts).scores[:, block]
            counts[:, block] = torch.from_numpy(allocate(scores.double().numpy(), strategy="ipal", step=2, budget=4))
    tokens = tiny_pipeline.tokenize(video, budget=4, allocation="ipal", batch_size=batch_size)
    assert torch.equal(tokens.token_counts, counts)


def test_joint_is_the_best_of_all_allocations(tiny_pipeline):
    """One clip: all 27 allocations are tried. It does not give every block the same."""
    video = noisy_video(12)
    scores = scores_of(tiny_pipeline, video)[0].double()
    best = min(
        (levels for levels in product(range(3), repeat=3) if sum(levels) == 3),
        key=lambda levels: sum(float(scores[block, level]) for block, level in enumerate(levels)),
    )
    tokens = tiny_pipeline.tokenize(video, budget=4)
    assert tokens.token_counts[0].tolist() == [2 * level + 2 for level in best]
    assert len(set(best)) > 1
    assert tokens.allocation["strategy"] == "joint"
    objective = sum(float(scores[block, level]) for block, level in enumerate(best))
    assert tokens.allocation["objective"] == pytest.approx(objective)
    assert tokens.allocation["bound"] <= objective + 1e-9


@pytest.mark.parametrize("budget", [3, "50%", np.float32(3)])
def test_rounding_down(tiny_pipeline, budget):
    tokens = tiny_pipeline.tokenize(noisy_video(12), budget=budget)
    assert tokens.num_tokens == 8
    assert (tokens.allocation["budget"], tokens.allocation["reached"]) == (3, pytest.approx(8 / 3))
    with pytest.raises(ValueError, match="2.666.* and 3.333"):
        tiny_pipeline.tokenize(noisy_video(12), budget=budget, rounding="exact")


def test_what_was_reached_is_about_all_that_shares_the_budget(tiny_pipeline):
    videos = tiny_pipeline.tokenize([noisy_video(12), noisy_video(5, seed=1)], budget=3.5)
    assert {video.allocation["reached"] for video in videos} == {16 / 5}
    assert sum(video.num_tokens for video in videos) == 16
    tokens = tiny_pipeline.tokenize(noisy_video(16), budget=[2, 6, 5], allocation="ipal")
    assert (tokens.allocation["budget"], tokens.allocation["reached"]) == ((2 * 2 + 6 + 5) / 4, (2 * 2 + 6 + 4) / 4)


@pytest.mark.parametrize("allocation", ["bithr", "bidelta"])
def test_threshold_searches_stay_near_the_budget(tiny_pipeline, allocation):
    tokens = tiny_pipeline.tokenize(noisy_video(60), budget=4, allocation=allocation)
    assert set(tokens.token_counts.unique().tolist()) <= {2, 4, 6}
    reached = tokens.num_tokens / tokens.num_blocks
    assert tokens.allocation == {"strategy": allocation, "budget": 4, "reached": reached} and reached <= 4
    few, many = (
        tiny_pipeline.tokenize(noisy_video(60), budget=budget, allocation=allocation).num_tokens for budget in (2, 6)
    )
    assert few < many and few <= tokens.num_tokens <= many


def parameters_that_split(pipeline, video: np.ndarray) -> list[dict]:
    """A price and a threshold at which blocks differ."""
    scores = scores_of(pipeline, video)
    gains = (scores[..., :1] - scores[..., 1:]) / torch.tensor([2.0, 4.0])

    def middle(values: torch.Tensor) -> float:
        """Between two values, so that round-off decides nothing."""
        ordered = values.flatten().sort().values
        return float(ordered[len(ordered) // 2 :][:2].mean())

    return [{"price": max(0.0, middle(gains.amax(-1)))}, {"threshold": middle(scores.amin(-1))}]


def test_price_and_threshold_look_at_each_clip_alone(tiny_pipeline):
    video = noisy_video(36)
    for parameters in parameters_that_split(tiny_pipeline, video):
        together = tiny_pipeline.tokenize(video, **parameters).token_counts
        assert len(together.unique()) > 1
        for clip in range(3):
            alone = tiny_pipeline.tokenize(video[12 * clip : 12 * clip + 12], **parameters).token_counts
            assert torch.equal(alone[0], together[clip])


def test_price_and_threshold_do_not_look_ahead(tiny_pipeline):
    video, changed = noisy_video(12), noisy_video(12)
    changed[8:] = noisy_video(4, seed=1)
    for parameters in parameters_that_split(tiny_pipeline, video):
        a, b = (tiny_pipeline.tokenize(v, **parameters).token_counts[0, :2] for v in (video, changed))
        assert torch.equal(a, b)


def test_price_and_threshold_are_monotone(tiny_pipeline):
    video = noisy_video(36)
    dear, free = (tiny_pipeline.tokenize(video, price=price).num_tokens for price in (1e6, 0.0))
    assert dear == 2 * 9 < free
    strict, lenient = (tiny_pipeline.tokenize(video, threshold=threshold).num_tokens for threshold in (-1e6, 1e6))
    assert strict == 6 * 9 and lenient == 2 * 9


# --- independence of batching, and the two halves -----------------------------------------------------------------


@pytest.mark.parametrize(
    "parameters", [{"budget": 3.4}, {"budget": 4, "allocation": "ipal"}, {"threshold": 0.0}, {"price": 0.0}, {}]
)
def test_batch_size_has_no_influence(tiny_pipeline, parameters):
    video = noisy_video(40)
    one, two, all_ = (tiny_pipeline(video, batch_size=size, **parameters) for size in (1, 3, 8))
    for other in (one, two):
        assert torch.equal(other.token_counts, all_.token_counts)
        assert torch.equal(other.tokens.codes, all_.tokens.codes)
        assert np.abs(other.frames - all_.frames).max() <= 1.01 / 255


def test_reconstruct_is_tokenize_then_detokenize(tiny_pipeline):
    video = noisy_video(15)
    output = tiny_pipeline.reconstruct(video, budget=4)
    tokens = tiny_pipeline.tokenize(video, budget=4)
    assert torch.equal(tokens.codes, output.tokens.codes) and torch.equal(tokens.token_counts, output.token_counts)
    assert np.array_equal(tiny_pipeline.detokenize(tokens), output.frames)
    assert np.array_equal(tiny_pipeline(video, budget=4).frames, output.frames)


def test_reconstruct_is_the_tokenizer(tiny_pipeline):
    video = noisy_video(24)
    output = tiny_pipeline.reconstruct(video, budget=4, output_type="uint8")
    pixels = torch.from_numpy(video).permute(0, 3, 1, 2).unflatten(0, (2, 12)).float() / 255
    with torch.no_grad():
        expected = tiny_pipeline.tokenizer(pixels, output.token_counts).pixel_values_videos
    expected = (expected.clamp(0, 1) * 255).round().byte().flatten(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(output.frames[0].astype(int) - expected).max() <= 1
    assert output.frames.std() > 1


def test_dropped_codes_have_no_influence(tiny_pipeline):
    tokens = tiny_pipeline.tokenize(noisy_video(15), budget=2)
    frames = tiny_pipeline.detokenize(tokens)
    tokens.codes[torch.arange(6) >= tokens.token_counts[..., None]] = 0
    assert np.array_equal(tiny_pipeline.detokenize(tokens), frames)


def test_times_and_rates(tiny_pipeline):
    times = np.array([0.0, 0.1, 0.15, 0.4])
    output = tiny_pipeline(Video(noisy_video(4), 7.5, times), budget=4)
    assert output.fps == 7.5 and np.array_equal(output.timestamps, times)
    assert output.bits_per_second == output.tokens.bits_per_second > 0
    assert set(output.seconds) == {"read", "encode", "score", "allocate", "decode"}
    assert tiny_pipeline(noisy_video(4), fps=10).timestamps == pytest.approx([0, 0.1, 0.2, 0.3])


# --- inputs and outputs -------------------------------------------------------------------------------------------


def test_every_kind_of_input(tiny_pipeline, tmp_path):
    path = write_mp4(tmp_path / "video.mp4", frames=make_frames(5, 16, 16))
    frames = read_video(path).frames
    expected = tiny_pipeline.tokenize(frames, budget=4)
    assert expected.source_size == (16, 16) and expected.num_frames == 5
    for video in (
        path,
        str(path),
        path.read_bytes(),
        [Image.fromarray(frame) for frame in frames],
        torch.from_numpy(frames),
        torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255,
        read_video(path),
    ):
        tokens = tiny_pipeline.tokenize(video, budget=4)
        assert torch.equal(tokens.codes, expected.codes) and torch.equal(tokens.token_counts, expected.token_counts)


def test_every_kind_of_output(tiny_pipeline):
    video = noisy_video(5)
    array, tensor, images, integers = (tiny_pipeline(video, output_type=kind) for kind in ("np", "pt", "pil", "uint8"))
    for name in ("frames", "original"):
        expected = getattr(integers, name)
        assert expected.shape == (1, 5, 16, 16, 3) and expected.dtype == np.uint8
        assert np.array_equal(getattr(array, name), np.float32(expected) / 255) and getattr(array, name).dtype == np.float32
        assert torch.equal(getattr(tensor, name), torch.from_numpy(getattr(array, name)).permute(0, 1, 4, 2, 3))
        assert np.array_equal(np.stack([np.asarray(image) for image in getattr(images, name)[0]]), expected[0])
    assert tiny_pipeline(video).frames.dtype == np.float32 and isinstance(images.frames[0][0], Image.Image)
    with pytest.raises(ValueError, match="'jpg'"):
        tiny_pipeline(video, output_type="jpg")


def test_squash_restores_proportions(tiny_pipeline):
    video = make_frames(5, 24, 40)
    cropped, squashed = (tiny_pipeline(video, resize_mode=mode) for mode in ("crop", "squash"))
    assert cropped.frames.shape == (1, 5, 16, 16, 3) and squashed.frames.shape == (1, 5, 24, 40, 3)
    assert squashed.original.shape == (1, 5, 16, 16, 3)
    assert not np.array_equal(squashed.original, cropped.original)
    assert squashed.tokens.resize_mode == "squash" and tiny_pipeline.tokenize(video).resize_mode == "crop"


# --- saving and loading -------------------------------------------------------------------------------------------


def test_save_and_load(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    video = noisy_video(15)
    expected = tiny_pipeline(video, budget=4)
    for kind in (AdapTokPipeline, DiffusionPipeline):
        loaded = kind.from_pretrained(tmp_path)
        assert type(loaded) is AdapTokPipeline
        assert (type(loaded.tokenizer), type(loaded.scorer)) == (AdapTokModel, AdapTokScorerModel)
        output = loaded(video, budget=4)
        assert torch.equal(output.tokens.codes, expected.tokens.codes)
        assert torch.equal(output.token_counts, expected.token_counts)
        assert np.array_equal(output.frames, expected.frames)
    assert type(AutoModel.from_pretrained(tmp_path / "tokenizer")) is AdapTokModel
    assert AdapTokVideoProcessor.from_pretrained(tmp_path / "video_processor").num_frames == 12


def test_without_scorer(tiny_pipeline, tmp_path):
    pipeline = AdapTokPipeline(tiny_pipeline.video_processor, tiny_pipeline.tokenizer)
    pipeline.save_pretrained(tmp_path)
    loaded = AdapTokPipeline.from_pretrained(tmp_path)
    assert loaded.scorer is None
    video = noisy_video(15)
    assert loaded.tokenize(video, budget=5).token_counts.tolist() == [[5, 5, 5], [5, 0, 0]]  # no scorer, no levels
    assert loaded.tokenize(video, budget=5, allocation="fixed").num_tokens == 20
    assert loaded(video).tokens.num_tokens == 24
    for parameters in ({"price": 0.1}, {"threshold": 0.1}, *({"budget": 4, "allocation": a} for a in ("joint", "ipal"))):
        with pytest.raises(ValueError, match="fixed, measured"):
            loaded.tokenize(video, **parameters)


def test_model_hash(tiny_pipeline, tiny_config, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    full, half = (AdapTokPipeline.from_pretrained(tmp_path, dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    assert (full.tokenizer.dtype, half.tokenizer.dtype) == (torch.float32, torch.bfloat16)
    assert full.model_hash == half.model_hash == tiny_pipeline.model_hash
    assert len(full.model_hash) == 64

    full.scorer.norm.weight.data.add_(1)  # does not matter for decoding
    assert full.model_hash == half.model_hash
    full.tokenizer.decoder.head.projection.bias.data[0].add_(0.1)
    assert full.model_hash != half.model_hash

    other = AdapTokModel(AdapTokConfig(**{**tiny_config.to_diff_dict(), "layer_norm_eps": 1e-3}))
    other.load_state_dict(tiny_pipeline.tokenizer.state_dict())
    assert AdapTokPipeline(tiny_pipeline.video_processor, other).model_hash != tiny_pipeline.model_hash


def test_half_precision(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    loaded = AdapTokPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16)
    video = noisy_video(15)
    tokens = tiny_pipeline.tokenize(video, budget=4)
    frames = loaded.detokenize(tokens)
    assert np.abs(frames - tiny_pipeline.detokenize(tokens)).mean() < 3 / 255
    output = loaded(video, budget=4)
    assert output.tokens.num_tokens == 16 and output.frames.dtype == np.float32


# --- errors -------------------------------------------------------------------------------------------------------


def test_tokens_of_another_model_are_refused(tiny_pipeline, tiny_config):
    torch.manual_seed(7)
    other = AdapTokPipeline(tiny_pipeline.video_processor, AdapTokModel(tiny_config).eval())
    with pytest.raises(ValueError, match="made by another model"):
        other.detokenize(tiny_pipeline.tokenize(noisy_video(5)))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"budget": 0}, " 2 "),
        ({"budget": 7}, " 6 "),
        ({"budget": -1}, " 2 "),
        ({"budget": 3, "rounding": "exact"}, "2.666.* and 3.333"),
        ({"budget": "30%"}, " 2 "),
        ({"budget": float("nan")}, "finite"),
        ({"budget": float("inf")}, "finite"),
        ({"budget": 0, "allocation": "ipal"}, " 2 "),
        ({"budget": 3, "allocation": "ipal", "rounding": "exact"}, "2 and 4"),
        ({"budget": 3.5, "allocation": "fixed", "rounding": "exact"}, "3 and 4"),
        ({"budget": 1, "allocation": "fixed"}, " 2 "),
        ({"budget": 4, "allocation": "bithr", "rounding": "exact"}, "'bithr'.*`rounding`"),
        ({"budget": "many"}, "'many'"),
        ({"budget": "200%"}, " 6 "),
        ({"budget": [4, 4, 4]}, "budget"),
        ({"budget": 4, "allocation": "best"}, "fixed, .*'best'"),
        ({"allocation": "joint"}, "'joint'.*`budget`"),
        ({"allocation": "quality"}, "'quality'.*`price`"),
        ({"allocation": "threshold", "budget": 4}, "`budget`.*`threshold`"),
        ({"budget": 4, "price": 0.1}, "budget, price"),
        ({"price": -1.0}, "price"),
        ({"price": float("nan")}, "price"),
        ({"budget": 4, "rounding": "up"}, "rounding"),
        ({"batch_size": 0}, "batch_size.* 0"),
        ({"resize_mode": "stretch"}, "stretch"),
    ],
    ids=str,
)
def test_bad_requests_are_named(tiny_pipeline, parameters, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.reconstruct(noisy_video(12), **parameters)


@pytest.mark.parametrize("batch_size", [0, -1])
def test_bad_batch_size_of_detokenize(tiny_pipeline, batch_size):
    with pytest.raises(ValueError, match=f"batch_size.* {batch_size}"):
        tiny_pipeline.detokenize(tiny_pipeline.tokenize(noisy_video(5)), batch_size=batch_size)


@pytest.mark.parametrize(
    ("name", "value"), [("image_size", 32), ("num_frames", 16), ("tubelet_size", 2)], ids=["size", "frames", "tubelet"]
)
def test_a_processor_for_another_tokenizer_is_refused(tiny_tokenizer, name, value):
    processor = AdapTokVideoProcessor(**{"image_size": 16, "num_frames": 12, "tubelet_size": 4, name: value})
    with pytest.raises(ValueError, match=f"{name}={value}"):
        AdapTokPipeline(processor, tiny_tokenizer)


def test_a_scorer_for_another_tokenizer_is_refused(tiny_pipeline):
    config = AdapTokScorerConfig(
        latent_size=32,
        num_blocks=3,
        latents_per_block=8,
        score_step=2,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=1,
    )
    with pytest.raises(ValueError, match=r"\(32, 3, 8\).* \(32, 3, 6\)"):
        AdapTokPipeline(tiny_pipeline.video_processor, tiny_pipeline.tokenizer, AdapTokScorerModel(config))
