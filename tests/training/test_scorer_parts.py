"""Training of the scorer: targets, sampling, statistics, loss and validation, each against a direct computation."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from builders.scorer_recipe import RECIPE, REQUIRED, SCORER_CONFIG, make_tokenizer
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from adaptok_hf import AdapTokScorerConfig, AdapTokScorerModel
from adaptok_hf.metrics import VideoLPIPS
from adaptok_hf.metrics.lpips_network import LPIPSNetwork
from adaptok_hf.training.scorer import arguments as scorer_arguments
from adaptok_hf.training.scorer import examples as scorer_examples
from adaptok_hf.training.scorer import targets as scorer_targets
from adaptok_hf.training.scorer import training_step as scorer_training_step
from adaptok_hf.training.scorer import validation as scorer_validation


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def clip_pair() -> tuple[torch.Tensor, torch.Tensor]:
    """Two clips of 4 frames of 16 x 16, and worse ones; the second decoded clip is darker than black in places."""
    original = torch.rand(2, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(original.shape, generator=torch.Generator().manual_seed(1))
    return original + noise * torch.tensor([0.05, 0.2]).view(2, 1, 1, 1, 1), original


@pytest.fixture(scope="module")
def lpips() -> LPIPSNetwork:
    torch.manual_seed(0)
    return LPIPSNetwork("vgg").requires_grad_(False).eval()


def direct(target: str, decoded: torch.Tensor, original: torch.Tensor, lpips: LPIPSNetwork) -> float:
    """The loss of one block (frames, 3, height, width), frame by frame."""
    decoded = decoded.clamp(0, 1)
    frames = list(zip(decoded[:, None], original[:, None], strict=True))
    match target:
        case "perceptual":
            return float(VideoLPIPS(network=lpips).measure(decoded[None], original[None]))
        case "mse":
            return float(np.mean((decoded.numpy() - original.numpy()) ** 2))
        case "rmse":
            return float(np.mean((decoded.numpy() - original.numpy()) ** 2)) ** 0.5
        case "l1":
            return float(np.mean(abs(decoded.numpy() - original.numpy())))
        case "psnr":
            return -sum(float(peak_signal_noise_ratio(a, b, data_range=1.0)) for a, b in frames) / len(frames)
        case "ssim":
            similar = [float(structural_similarity_index_measure(a, b, data_range=1.0)) for a, b in frames]
            return 1 - sum(similar) / len(similar)


@pytest.mark.parametrize("target", ["perceptual", "mse", "psnr", "ssim", "rmse", "l1"])
def test_targets(lpips, target):
    decoded, original = clip_pair()
    block_loss = scorer_targets.BlockLoss(target, lpips)
    losses = block_loss(decoded, original)
    assert losses.dtype == torch.float32 and losses.shape == (2,)
    assert losses[0] < losses[1], "less is better"
    for index in range(2):
        assert float(losses[index]) == pytest.approx(direct(target, decoded[index], original[index], lpips), rel=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(block_loss(decoded, original), losses), "half precision would drown small gains"
    if target != "psnr":
        assert block_loss(original, original) == pytest.approx(torch.zeros(2), abs=1e-6)
    else:
        assert block_loss(original, original).tolist() == pytest.approx([-100, -100])


def test_frames_too_small_for_a_target(lpips):
    video = torch.zeros(1, 4, 3, 8, 8)
    for target, message in (("ssim", "at least 11 x 11 pixels"), ("perceptual", "at least 16 pixels")):
        with pytest.raises(ValueError, match=message):
            scorer_targets.BlockLoss(target, lpips)(video, video)


def test_measured_levels_are_those_of_the_whole_clip():
    """Later blocks change nothing: a block is measured in a clip that ends with it."""
    module, tokenizer = scorer_targets, make_tokenizer()
    video = torch.rand(2, 16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    quantized = tokenizer.encode(video).quantized
    counts = torch.tensor([[3, 16, 1, 7], [9, 2, 5, 4]])
    losses = module.measure_levels(
        tokenizer, video[:, :8], quantized[:, :2], counts[:, :2], 1, (4, 16), module.BlockLoss("mse")
    )
    assert losses.shape == (2, 2) and counts[0, 1] == 16, "the caller's counts stay"
    for index, count in enumerate((4, 16)):
        counts[:, 1] = count
        with torch.no_grad():
            decoded = tokenizer.decode(quantized=quantized, token_counts=counts).pixel_values_videos.clamp(0, 1)
        expected = (decoded - video)[:, 4:8].square().mean(dim=(1, 2, 3, 4))
        torch.testing.assert_close(losses[:, index], expected, rtol=1e-4, atol=1e-6)


def test_the_span_of_a_clip_adds_what_later_blocks_lose():
    tokenizer, block_loss = make_tokenizer(), scorer_targets.BlockLoss("mse")
    video = torch.rand(2, 16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    quantized = tokenizer.encode(video).quantized
    counts = torch.tensor([[3, 16, 1, 7], [9, 2, 5, 4]])
    losses = scorer_targets.measure_levels(tokenizer, video, quantized, counts, 1, (4, 8), block_loss)

    def blocks(count: int) -> torch.Tensor:
        here = counts.clone()
        here[:, 1] = count
        with torch.no_grad():
            decoded = tokenizer.decode(quantized=quantized, token_counts=here).pixel_values_videos.clamp(0, 1)
        return (decoded - video).square().unflatten(1, (4, 4)).flatten(2).mean(2)

    for index, count in enumerate((4, 8)):
        few, full = blocks(count), blocks(16)
        expected = few[:, 1] + (few[:, 2:] - full[:, 2:]).sum(1)
        torch.testing.assert_close(losses[:, index], expected, rtol=1e-4, atol=1e-6)
        assert not torch.allclose(losses[:, index], few[:, 1]), "later blocks count"


def test_sampled_settings():
    module, config = scorer_examples, AdapTokScorerConfig(**SCORER_CONFIG)
    torch.manual_seed(0)
    many = [module.sample_settings(config, 6, 2, True, "block") for _ in range(50)]
    assert {settings.block for settings in many} == {0, 1, 2, 3}
    assert {tuple(settings.levels.tolist()) for settings in many} == {(a, b) for a in range(4) for b in range(a + 1, 4)}
    for settings in many:
        assert settings.counts.shape == (6, settings.block + 1)
        assert 1 <= settings.counts.min() <= settings.counts.max() <= 16
        shares = [settings.of(slice(rank, None, 2)) for rank in range(2)]
        for name in ("counts", "zoom"):
            together = torch.stack([getattr(share, name) for share in shares], dim=1).flatten(0, 1)
            assert torch.equal(together, getattr(settings, name))
    assert module.sample_settings(config, 6, None, False, "block").levels.tolist() == [0, 1, 2, 3]
    assert module.sample_settings(config, 6, None, False, "block").zoom is None
    assert module.sample_settings(config, 6, None, False, "clip").counts.shape == (6, 4)


def test_zoom_and_contrast():
    zoom_and_contrast = scorer_examples.zoom_and_contrast
    video = torch.rand(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    most = 1 - 2**-24
    # the whole picture at contrast 1; the top left quarter; the bottom right one
    amounts = torch.tensor([[most, 0, 0, 0.5 / 0.7], [0, 0, 0, 0.5 / 0.7], [0, most, most, 0]])
    whole, top, bottom = zoom_and_contrast(video, amounts)
    torch.testing.assert_close(whole, video[0], rtol=0, atol=1e-5)
    crop = torch.nn.functional.interpolate(video[1, ..., :8, :8], size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(top, crop, rtol=0, atol=1e-5)
    crop = torch.nn.functional.interpolate(video[2, ..., 8:, 8:], size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(bottom, (crop + crop.mean()) / 2, rtol=0, atol=1e-5)


def test_a_folded_scale_gives_the_same_scores():
    scale = scorer_training_step.InputScale(torch.randn(48), torch.rand(48) * 10 + 0.1)
    scorer = AdapTokScorerModel(AdapTokScorerConfig(**SCORER_CONFIG, hidden_size=16, num_attention_heads=2)).eval()
    latents, quantized = torch.randn(2, 3, 2, 16, 24).unbind(1)[:2]
    counts = torch.tensor([[5, 16]] * 2)
    with torch.no_grad():
        expected = scorer(*scale(latents, quantized), counts).scores[:, -1]
        folded = scale.fold(scorer)
        torch.testing.assert_close(folded(latents, quantized, counts).scores[:, -1], expected, rtol=1e-4, atol=1e-4)
        scale.unfold(folded)
    for ours, theirs in zip(folded.parameters(), scorer.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_statistics(accelerator):
    """Those of inputs and losses, computed in one go, whatever the parts of a batch."""
    module, tokenizer = scorer_training_step, make_tokenizer()
    block_loss = scorer_targets.BlockLoss("l1")
    videos = (torch.rand(8, 16, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).byte()

    class Clips:
        def sample(self, count):
            return videos[:count]

    results = []
    for parts in (1, 2):
        entries = {name: RECIPE[name] for name in ("train_folders", "train_weights", "model", "steps")}
        entries |= {"target": "l1", "statistics_batches": 2, "batch_size": 4, "gradient_accumulation_steps": parts}
        args = scorer_arguments.Arguments(**REQUIRED, **entries)
        config = module.build_config(args, tokenizer.config, args.model)
        torch.manual_seed(3)
        results.append(module.measure_statistics(args, config, tokenizer, Clips(), block_loss, accelerator))
    one, two = results
    encoded = tokenizer.encode(videos.float() / 255)
    tokens = torch.cat([encoded.latents, encoded.quantized], -1)[:, 0].flatten(0, 1)
    torch.testing.assert_close(one.scale.mean, tokens.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(one.scale.std, tokens.std(0, correction=0).clamp(min=1e-4), rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(two.scale.std, one.scale.std, rtol=1e-4, atol=1e-6)
    assert (two.mean, two.std) == (pytest.approx(one.mean), pytest.approx(one.std))
    assert one.typical_difference.shape == (4, 4) and float(one.typical_difference.min()) == pytest.approx(0.1 * one.std)
    torch.testing.assert_close(two.typical_difference, one.typical_difference)
    scorer = module.build_scorer(args, config, one)
    assert (scorer.config.score_mean, scorer.config.score_std, scorer.config.target) == (one.mean, one.std, "l1")

    args.model = args.model | {"score_mean": -3.0, "score_std": 2.0}
    config = module.build_scorer(args, module.build_config(args, tokenizer.config, args.model), one).config
    assert (config.score_mean, config.score_std) == (-3.0, 2.0)
    videos.zero_()
    tokenizer.decoder.head.projection.weight.data.zero_()
    with pytest.raises(ValueError, match=r"the l1 losses of 8 clips are all"):
        module.measure_statistics(args, config, tokenizer, Clips(), block_loss, accelerator)


def test_scorer_loss():
    scorer_loss = scorer_training_step.scorer_loss
    predicted, target = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    typical = torch.tensor([0.5, 4.0])
    terms = scorer_loss(predicted, target, 2.0, typical, 0.0)
    assert terms.keys() == {"loss", "score_loss"} and float(terms["loss"]) == pytest.approx((0 + 0.25 + 2.25) / 3)
    terms = scorer_loss(predicted, target, 2.0, typical, 0.1)
    assert float(terms["difference_loss"]) == pytest.approx((2**2 + 0.5**2) / 2)
    assert float(terms["loss"]) == pytest.approx(2.5 / 3 + 0.1 * float(terms["difference_loss"]))


def test_rank_correlations():
    rank_correlations = scorer_validation.rank_correlations
    measured = torch.rand(5, 4, 3, generator=torch.Generator().manual_seed(0))
    names = ("rank_correlation_across_levels", "rank_correlation_across_clips")
    for predicted, expected in ((measured.exp(), 1), (-measured, -1)):
        record = rank_correlations(predicted, measured)
        assert [record[name] for name in names] == pytest.approx([expected] * 2, abs=1e-4)
        assert record["val_rmse"] == pytest.approx(float((predicted - measured).square().mean() ** 0.5))
    # levels are in order within each clip and block, clips in no order
    levels = measured.sort(dim=2).values
    shuffled = levels[torch.tensor([3, 0, 4, 1, 2])]
    record = rank_correlations(shuffled, levels)
    assert record[names[0]] == pytest.approx(1, abs=1e-4) and abs(record[names[1]]) < 0.9
    assert rank_correlations(measured[:1], measured[:1]).keys() == {"val_rmse", names[0]}
    assert rank_correlations(measured[..., :1], measured[..., :1]).keys() == {"val_rmse", names[1]}


def test_validation_scores(accelerator):
    """Of blocks of any number of clips, as one would compute them for one clip."""
    module, targets, tokenizer = (
        scorer_validation,
        scorer_targets,
        make_tokenizer(),
    )
    scorer = AdapTokScorerModel(AdapTokScorerConfig(**SCORER_CONFIG, hidden_size=16, num_attention_heads=2)).eval()
    videos = (torch.rand(9, 16, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).byte()
    clips = [{"pixel_values_videos": video} for video in videos]
    measured = module.measure_scores(tokenizer, clips, 4, targets.BlockLoss("mse"), accelerator)
    predicted = module.predict_scores(scorer, tokenizer, clips, accelerator)
    assert measured.shape == predicted.shape == (9, 4, 4)
    video = videos[8:].float() / 255
    encoded = tokenizer.encode(video)
    with torch.no_grad():
        scores = scorer(encoded.latents, encoded.quantized, torch.tensor([[8, 8, 16, 0]])).scores[0, 2]
        decoded = tokenizer.decode(encoded.codes, torch.tensor([[8, 8, 12, 0]])).pixel_values_videos.clamp(0, 1)
    torch.testing.assert_close(predicted[8, 2], scores, rtol=1e-4, atol=1e-5)
    loss = float((decoded - video)[:, 8:12].square().mean())
    assert float(measured[8, 2, 2]) == pytest.approx(loss, rel=1e-4)
    assert module.plot_scores(predicted, measured, 4, "mse").shape == (4 * 180, 4 * 240, 3)
    assert module.plot_scores(predicted[:1, :2], measured[:1, :2], 4, "mse").dtype == np.uint8
