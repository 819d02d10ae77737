"""Training of the scorer: its parts, and runs as users start them."""

import dataclasses
import importlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file, save_file
from script_runs import SCRIPTS, kill_script, metrics, run_script
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from transformers import AutoModel
from video_files import make_frames, write_mp4

from adaptok_hf import (
    AdapTokConfig,
    AdapTokModel,
    AdapTokPipeline,
    AdapTokScorerConfig,
    AdapTokScorerModel,
    AdapTokVideoProcessor,
)
from adaptok_hf.metrics import VideoLPIPS
from adaptok_hf.metrics.lpips_network import LPIPSNetwork

RECIPE = {
    "train_folders": ["train"],
    "train_weights": [1.0],
    "val_folder": "val",
    "model": {"score_step": 4, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
    "target": "rmse",
    "augment": True,
    "levels_per_step": 3,
    "difference_weight": 0.3,
    "steps": 4,
    "batch_size": 4,
    "warmup_steps": 1,
    "ema_decay": 0.5,
    "statistics_batches": 2,
    "validation_steps": 2,
    "checkpointing_steps": 1,
    "logging_steps": 1,
}
# Streamed data, the paper's loss and optimiser, epochs, batches in two parts.
STREAM_RECIPE = {
    "stream_folders": ["train"],
    "model": RECIPE["model"] | {"score_mean": 0.2, "score_std": 0.1},
    "epochs": 3,
    "batch_size": 4,
    "gradient_accumulation_steps": 2,
    "warmup_epochs": 1,
    "adam_beta1": 0.5,
    "weight_decay": 0.0,
    "statistics_batches": 1,
    "logging_steps": 1,
}
REQUIRED = {"data_root": ".", "output_dir": "out", "tokenizer": "tokenizer"}
SCORER_CONFIG = {"latent_size": 24, "num_blocks": 4, "latents_per_block": 16, "score_step": 4}


@pytest.fixture
def scripts(monkeypatch):
    """Imports a module of `training_scripts/`."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


@pytest.fixture
def accelerator():
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)


def make_tokenizer() -> AdapTokModel:
    """4 blocks of 4 frames of 16 x 16 pixels, 16 latents each; of random weights."""
    torch.manual_seed(0)
    config = AdapTokConfig(
        image_size=16,
        patch_size=8,
        hidden_size=24,
        num_attention_heads=2,
        num_encoder_layers=1,
        num_decoder_layers=1,
        latents_per_block=16,
        codebook_size=32,
        codebook_dim=4,
    )
    model = AdapTokModel(config).eval()
    with torch.no_grad():  # so that what the tokens say is seen in the pictures
        model.encoder.patch_embedding.projection.weight.mul_(8)
        model.quantizer.project_out.weight.mul_(8)
    return model


@dataclass
class Inputs:
    """Videos in `train/` and `val/`, `tokenizer/`, `scorer.json`; `options` name them."""

    folder: Path

    @property
    def options(self) -> list[str]:
        return ["--data_root", str(self.folder), "--tokenizer", str(self.folder / "tokenizer")]

    def recipe(self, entries: dict, folder: Path) -> Path:
        path = folder / "recipe.json"
        path.write_text(json.dumps(entries))
        return path


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Inputs:
    folder = tmp_path_factory.mktemp("scorer")
    for split, count in (("train", 4), ("val", 3)):
        (folder / split).mkdir()
        for i in range(count):
            frames = make_frames(16 + 2 * i, 16, 24)
            write_mp4(folder / split / f"{i}.mp4", frames=np.roll(frames, 7 * i, axis=2 - i % 2))
    make_tokenizer().save_pretrained(folder / "tokenizer")
    return Inputs(folder)


@pytest.fixture(scope="module")
def scorer_run(inputs) -> Path:
    """The folder of an uninterrupted run."""
    run = inputs.folder / "uninterrupted"
    recipe = inputs.recipe(RECIPE | {"report_to": "tensorboard"}, inputs.folder)
    run_script("train_scorer.py", recipe, *inputs.options, "--output_dir", run, launch=True)
    return run


def test_scorer_run(inputs, scorer_run):
    names = {"model", "model_ema", "checkpoint-3", "checkpoint-4", "validation", "tracker", "recipe.json", "metrics.jsonl"}
    assert {path.name for path in scorer_run.iterdir()} == names
    records = metrics(scorer_run)
    assert sorted(records) == [1, 2, 3, 4]
    for record in records.values():
        assert record["loss"] == pytest.approx(record["score_loss"] + 0.3 * record["difference_loss"], abs=1e-4)
        assert record["grad_norm"] > 0 and 0 < record["target"] < 1 and 1 <= record.get("tokens_kept", 8) <= 16
    assert records[1]["learning_rate"] == records[2]["learning_rate"] == 1e-3 > records[3]["learning_rate"]
    for step in (2, 4):
        for name in ("val_rmse", "rank_correlation_across_levels", "rank_correlation_across_clips"):
            assert -1 <= records[step][name] <= 1 and f"ema_{name}" in records[step]
    assert "val_rmse" not in records[3]
    # four blocks in columns, three clips in rows
    assert Image.open(scorer_run / "validation" / "step-000004.png").size == (4 * 240, 3 * 180)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(scorer_run / "tracker" / "train_scorer")).Reload()
    assert [image.step for image in events.Images("scores")] == [2, 4]

    scorer, average = (AutoModel.from_pretrained(scorer_run / name) for name in ("model", "model_ema"))
    assert type(scorer) is type(average) is AdapTokScorerModel
    assert scorer.config.num_levels == 4 and scorer.config.target == average.config.target == "rmse"
    assert 0 < scorer.config.score_mean < 1 and 0 < scorer.config.score_std < 1  # of the measured losses
    assert not torch.equal(scorer.head_in.weight, average.head_in.weight)
    processor = AdapTokVideoProcessor(image_size=16, num_frames=16, tubelet_size=4)
    pipeline = AdapTokPipeline(processor, AutoModel.from_pretrained(inputs.folder / "tokenizer"), scorer)
    output = pipeline.reconstruct(inputs.folder / "val" / "0.mp4", budget=8)
    assert output.tokens.num_tokens == 32 and output.frames.shape == (16, 16, 16, 3)


def test_every_weight_is_trained(scorer_run):
    before, after = (load_file(scorer_run / f"checkpoint-{step}" / "model.safetensors") for step in (3, 4))
    assert not [name for name in before if torch.equal(before[name], after[name])]


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(inputs, scorer_run, tmp_path):
    folder = tmp_path / "interrupted"
    recipe = inputs.recipe(RECIPE, tmp_path)
    arguments = ["train_scorer.py", recipe, *inputs.options, "--output_dir", folder]
    kill_script(*arguments, once_there=folder / "checkpoint-2")
    assert max(metrics(folder)) < 4
    assert "resumed at step" in run_script(*arguments, "--resume_from_checkpoint", "latest")
    assert metrics(folder) == metrics(scorer_run)
    for name in ("model", "model_ema"):
        ours, theirs = (path / name / "model.safetensors" for path in (folder, scorer_run))
        assert ours.read_bytes() == theirs.read_bytes()


def equal_runs(inputs, recipe, folder, **runs: tuple[list[str], int]) -> None:
    """Each of `runs`, options and number of processes, gives the same metrics, to 2e-4 of the value."""
    results = []
    for name, (options, processes) in runs.items():
        arguments = [inputs.recipe(recipe, folder), *inputs.options, *options, "--output_dir", folder / name]
        assert f"on {processes} processes" in run_script("train_scorer.py", *arguments, processes=processes)
        results.append(metrics(folder / name))
    for result in results[1:]:
        assert result.keys() == results[0].keys()
        for step, record in results[0].items():
            # a tie may be broken by the last bit
            ranks = {name for name in record if "rank" in name}
            assert {name: result[step][name] for name in ranks} == pytest.approx({n: record[n] for n in ranks}, abs=0.05)
            rest = record.keys() - ranks
            assert {n: result[step][n] for n in rest} == pytest.approx({n: record[n] for n in rest}, rel=2e-4, abs=2e-5)


@pytest.mark.slow
def test_two_processes_and_parts_train_like_one(inputs, tmp_path):
    parts = ["--gradient_accumulation_steps", "2"]
    equal_runs(inputs, RECIPE, tmp_path, one=([], 1), two=([], 2), both=(parts, 2))


@pytest.fixture(scope="module")
def stream_options(inputs) -> list[str]:
    """Weights for the perceptual loss, which are random."""
    torch.manual_seed(0)
    save_file(LPIPSNetwork("vgg").state_dict(), inputs.folder / "lpips.safetensors")
    return ["--perceptual_network", str(inputs.folder / "lpips.safetensors")]


@pytest.mark.slow
def test_perceptual_targets_on_a_stream(inputs, stream_options, tmp_path):
    recipe = inputs.recipe(STREAM_RECIPE, tmp_path)
    run_script("train_scorer.py", recipe, *inputs.options, *stream_options, "--output_dir", tmp_path / "run")
    records = metrics(tmp_path / "run")
    assert sorted(records) == [1, 2, 3]  # 3 epochs of 4 videos in one batch each
    assert all(record["target"] > 0 and "difference_loss" not in record for record in records.values())
    assert records[1]["learning_rate"] == 1e-3  # an epoch of warm-up is one step
    config = AutoModel.from_pretrained(tmp_path / "run" / "model").config
    assert (config.score_mean, config.score_std, config.target) == (0.2, 0.1, "perceptual")  # as the recipe says


@pytest.mark.slow
def test_two_processes_stream_like_one(inputs, tmp_path):
    recipe = STREAM_RECIPE | {"target": "ssim", "augment": True, "epochs": 2}
    equal_runs(inputs, recipe, tmp_path, one=([], 1), two=([], 2))


@pytest.mark.slow
def test_a_stream_is_resumed_exactly(inputs, tmp_path):
    recipe = inputs.recipe(STREAM_RECIPE | {"target": "psnr", "augment": True, "levels_per_step": 2}, tmp_path)
    arguments = ["train_scorer.py", recipe, *inputs.options, "--output_dir"]
    run_script(*arguments, tmp_path / "whole")
    run_script(*arguments, tmp_path / "halves", "--max_train_steps", "2")
    output = run_script(*arguments, tmp_path / "halves", "--resume_from_checkpoint", "checkpoint-2")
    assert "resumed at step 2" in output
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "halves")
    ours, theirs = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "halves"))
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.slow
def test_training_on_from_a_scorer(inputs, scorer_run, tmp_path):
    """At a learning rate of zero it stays what it is."""
    entries = RECIPE | {"model": {}, "init_from": str(scorer_run / "model"), "steps": 1, "learning_rate": 0.0}
    entries |= {"final_learning_rate": 0.0, "seed": 5, "ema_decay": 0.0}
    recipe = inputs.recipe(entries, tmp_path)
    run_script("train_scorer.py", recipe, *inputs.options, "--output_dir", tmp_path / "run")
    ours, theirs = (AutoModel.from_pretrained(path / "model") for path in (tmp_path / "run", scorer_run))
    assert ours.config.to_diff_dict() | {"_name_or_path": None} == theirs.config.to_diff_dict() | {"_name_or_path": None}
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight, rtol=1e-4, atol=1e-5)
    assert metrics(tmp_path / "run")[1]["val_rmse"] == pytest.approx(metrics(scorer_run)[4]["val_rmse"], rel=1e-3)


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
def test_targets(scripts, lpips, target):
    decoded, original = clip_pair()
    block_loss = scripts("scorer_targets").BlockLoss(target, lpips)
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


def test_frames_too_small_for_a_target(scripts, lpips):
    video = torch.zeros(1, 4, 3, 8, 8)
    for target, message in (("ssim", "at least 11 x 11 pixels"), ("perceptual", "at least 16 pixels")):
        with pytest.raises(ValueError, match=message):
            scripts("scorer_targets").BlockLoss(target, lpips)(video, video)


def test_measured_levels_are_those_of_the_whole_clip(scripts):
    """Later blocks change nothing: a block is measured in a clip that ends with it."""
    module, tokenizer = scripts("scorer_targets"), make_tokenizer()
    video = torch.rand(2, 16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    quantized = tokenizer.encode(video).quantized
    counts = torch.tensor([[3, 16, 1, 7], [9, 2, 5, 4]])
    losses = module.measure_levels(
        tokenizer, video[:, :8], quantized[:, :2], counts[:, :2], (4, 16), module.BlockLoss("mse")
    )
    assert losses.shape == (2, 2) and counts[0, 1] == 16, "the caller's counts stay"
    for index, count in enumerate((4, 16)):
        counts[:, 1] = count
        with torch.no_grad():
            decoded = tokenizer.decode(quantized=quantized, token_counts=counts).pixel_values_videos.clamp(0, 1)
        expected = (decoded - video)[:, 4:8].square().mean(dim=(1, 2, 3, 4))
        torch.testing.assert_close(losses[:, index], expected, rtol=1e-4, atol=1e-6)


def test_draws(scripts):
    module, config = scripts("scorer_examples"), AdapTokScorerConfig(**SCORER_CONFIG)
    torch.manual_seed(0)
    many = [module.draw(config, 6, 2, True) for _ in range(50)]
    assert {draws.block for draws in many} == {0, 1, 2, 3}
    assert {tuple(draws.levels.tolist()) for draws in many} == {(a, b) for a in range(4) for b in range(a + 1, 4)}
    for draws in many:
        assert draws.counts.shape == (6, draws.block + 1) and 1 <= draws.counts.min() <= draws.counts.max() <= 16
        shares = [draws.of(slice(rank, None, 2)) for rank in range(2)]
        for name in ("counts", "zoom"):
            together = torch.stack([getattr(share, name) for share in shares], dim=1).flatten(0, 1)
            assert torch.equal(together, getattr(draws, name))
    assert module.draw(config, 6, None, False).levels.tolist() == [0, 1, 2, 3]
    assert module.draw(config, 6, None, False).zoom is None


def test_zoom_and_contrast(scripts):
    zoom_and_contrast = scripts("scorer_examples").zoom_and_contrast
    video = torch.rand(3, 4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    most = 1 - 2**-24
    # the whole picture at contrast 1; the top left quarter; the bottom right one
    draws = torch.tensor([[most, 0, 0, 0.5 / 0.7], [0, 0, 0, 0.5 / 0.7], [0, most, most, 0]])
    whole, top, bottom = zoom_and_contrast(video, draws)
    torch.testing.assert_close(whole, video[0], rtol=0, atol=1e-5)
    crop = torch.nn.functional.interpolate(video[1, ..., :8, :8], size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(top, crop, rtol=0, atol=1e-5)
    crop = torch.nn.functional.interpolate(video[2, ..., 8:, 8:], size=(16, 16), mode="bilinear", antialias=True)
    torch.testing.assert_close(bottom, (crop + crop.mean()) / 2, rtol=0, atol=1e-5)


def test_a_folded_scale_gives_the_same_scores(scripts):
    scale = scripts("input_scale").InputScale(torch.randn(48), torch.rand(48) * 10 + 0.1)
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


def test_statistics(scripts, accelerator):
    """Those of inputs and losses, computed in one go, whatever the parts of a batch."""
    module, tokenizer = scripts("scorer_training_step"), make_tokenizer()
    block_loss = scripts("scorer_targets").BlockLoss("l1")
    videos = (torch.rand(8, 16, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 255).byte()

    class Clips:
        def sample(self, count):
            return videos[:count]

    results = []
    for parts in (1, 2):
        entries = {name: RECIPE[name] for name in ("train_folders", "train_weights", "model", "steps")}
        entries |= {"target": "l1", "statistics_batches": 2, "batch_size": 4, "gradient_accumulation_steps": parts}
        args = scripts("scorer_arguments").Arguments(**REQUIRED, **entries)
        config = module.build_config(args, tokenizer.config)
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
    config = module.build_scorer(args, module.build_config(args, tokenizer.config), one).config
    assert (config.score_mean, config.score_std) == (-3.0, 2.0)
    videos.zero_()
    tokenizer.decoder.head.projection.weight.data.zero_()
    with pytest.raises(ValueError, match=r"the l1 losses of 8 clips are all"):
        module.measure_statistics(args, config, tokenizer, Clips(), block_loss, accelerator)


def test_scorer_loss(scripts):
    scorer_loss = scripts("scorer_training_step").scorer_loss
    predicted, target = torch.tensor([[1.0, 2.0, 4.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    typical = torch.tensor([0.5, 4.0])
    terms = scorer_loss(predicted, target, 2.0, typical, 0.0)
    assert terms.keys() == {"loss", "score_loss"} and float(terms["loss"]) == pytest.approx((0 + 0.25 + 2.25) / 3)
    terms = scorer_loss(predicted, target, 2.0, typical, 0.1)
    assert float(terms["difference_loss"]) == pytest.approx((2**2 + 0.5**2) / 2)
    assert float(terms["loss"]) == pytest.approx(2.5 / 3 + 0.1 * float(terms["difference_loss"]))


def test_rank_correlations(scripts):
    rank_correlations = scripts("scorer_validation").rank_correlations
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


def test_validation_scores(scripts, accelerator):
    """Of blocks of any number of clips, as one would compute them for one clip."""
    module, targets, tokenizer = scripts("scorer_validation"), scripts("scorer_targets"), make_tokenizer()
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
    assert module.draw_scores(predicted, measured, 4, "mse").shape == (4 * 180, 4 * 240, 3)
    assert module.draw_scores(predicted[:1, :2], measured[:1, :2], 4, "mse").dtype == np.uint8


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"target": "lpips"}, "target must be one of perceptual, mse, psnr, ssim, rmse, l1; got 'lpips'"),
        ({"steps": None}, "either steps or epochs, got None and None"),
        ({"epochs": 2.0}, "either steps or epochs, got 4 and 2.0"),
        ({"batch_size": 0}, "batch_size must be positive, got 0"),
        ({"levels_per_step": 0, "difference_weight": 0.0}, "levels_per_step must be positive, got 0"),
        ({"levels_per_step": 1}, "levels_per_step must not be 1"),
        ({"difference_weight": -1.0}, "difference_weight must not be negative, got -1"),
        ({"init_from": "scorer"}, "model has no place"),
        ({"train_weights": []}, "1 train_folders but 0 train_weights"),
        ({"resume_from_checkpoint": "best"}, "must be 'latest' or such as 'checkpoint-500', got 'best'"),
    ],
)
def test_bad_arguments(scripts, entries, message):
    arguments = scripts("scorer_arguments").Arguments
    arguments(**REQUIRED | RECIPE)
    with pytest.raises(ValueError, match=message):
        arguments(**REQUIRED | RECIPE | entries)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"levels_per_step": 5}, "levels_per_step must be 1..4, got 5"),
        ({"model": {"score_step": 16}, "levels_per_step": None}, "needs two levels or more, score_step 16 gives 1"),
        ({"model": {"latents_per_block": 32, "score_step": 4}}, "scorer's latents_per_block is 32, the tokenizer's 16"),
        ({"model": {}, "init_from": "saved"}, "scorer's num_blocks is 2, the tokenizer's 4"),
        ({"model": {}, "init_from": "fits", "target": "l1"}, "scorer's target is 'psnr', that of this run 'l1'"),
    ],
)
def test_scorers_that_do_not_fit(scripts, tmp_path, monkeypatch, entries, message):
    monkeypatch.chdir(tmp_path)
    AdapTokScorerConfig(**SCORER_CONFIG | {"num_blocks": 2}).save_pretrained("saved")
    AdapTokScorerConfig(**SCORER_CONFIG, target="psnr").save_pretrained("fits")
    build_config, arguments = scripts("scorer_training_step").build_config, scripts("scorer_arguments").Arguments
    tokenizer = make_tokenizer().config
    with pytest.raises(ValueError, match=message):
        build_config(arguments(**REQUIRED | RECIPE | entries), tokenizer)
    kept = build_config(arguments(**REQUIRED | RECIPE | {"model": {}, "init_from": "fits", "target": "psnr"}), tokenizer)
    assert kept.score_step == 4 and kept.target == "psnr"
    tokenizer.adaptive = False
    with pytest.raises(ValueError, match="tokenizer is not adaptive"):
        build_config(arguments(**REQUIRED | RECIPE), tokenizer)


@pytest.mark.parametrize("name", ["scorer_paper", "scorer_demo", "scorer_tiny"])
def test_shipped_recipes(scripts, name):
    recipe = json.loads((SCRIPTS / "recipes" / f"{name}.json").read_text())
    sources = {} if recipe.get("train_folders") else {"shard_folders": ["shards"]}
    args = scripts("scorer_arguments").Arguments(**REQUIRED | recipe | sources)
    names = {field.name for field in dataclasses.fields(args)}
    assert set(recipe) <= names
    sizes = {"scorer_paper": AdapTokConfig(), "scorer_tiny": AdapTokConfig(hidden_size=96, latents_per_block=64)}
    tokenizer = sizes.get(name, AdapTokConfig(hidden_size=192, num_attention_heads=3, latents_per_block=128))
    config = scripts("scorer_training_step").build_config(args, tokenizer)
    with torch.device("meta"):
        size = sum(p.numel() for p in AdapTokScorerModel(config).parameters()) / 1e6
    if name == "scorer_paper":
        # Table A, and the statistics of the public code
        assert size == pytest.approx(88.96, abs=0.01) and config.num_levels == 8
        assert (config.score_mean, config.score_std, config.target) == (0.19749, 0.07616, "perceptual")
        assert (args.adam_beta1, args.adam_beta2, args.learning_rate, args.weight_decay) == (0.5, 0.9, 1e-4, 0)
        assert (args.batch_size, args.epochs, args.warmup_epochs, args.final_learning_rate) == (128, 20, 8, 1e-6)
        assert (args.levels_per_step, args.difference_weight, args.augment) == (None, 0, False)  # the paper's loss
    else:
        assert size < 1
