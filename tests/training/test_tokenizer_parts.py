"""Parts of a tokenizer's training: token counts of clips, and the terms of EVATok's loss for both tokenizers."""

from dataclasses import replace

import pytest
import torch
from builders.backbones import make_videomae, make_vjepa
from builders.evatok_files import make_model
from torch.testing import assert_close

from adaptok_hf import AdapTokRouterConfig, AdapTokRouterModel
from adaptok_hf.models.quantization_evatok import entropy_loss
from adaptok_hf.training.tokenizer.arguments import Arguments, StageOptions
from adaptok_hf.training.tokenizer.assignments import Assignments
from adaptok_hf.training.tokenizer.training_step import (
    TrainingStep,
    build_adversarial_losses,
    build_alignment,
    build_optimizers,
)

CPU = torch.device("cpu")
BASE = {"data_root": ".", "output_dir": ".", "stream_folders": ["."], "use_muon": False}


def make_router(folder, **changes) -> str:
    torch.manual_seed(1)
    sizes = {"image_size": 16, "num_frames": 8, "patch_size": 8, "levels": [1, 2, 8], "hidden_size": 16}
    sizes |= {"num_attention_heads": 2, "num_hidden_layers": 1, "initializer_range": 1.0}
    AdapTokRouterModel(AdapTokRouterConfig(**sizes | changes)).save_pretrained(folder)
    return str(folder)


def test_random_assignments_are_uniform_over_levels():
    assignments = Assignments({}, make_model().config, CPU)
    torch.manual_seed(0)
    counts = assignments.sample(3000, 2)
    for block in range(2):
        shares = [float((counts[:, block] == level).float().mean()) for level in (1, 2, 8)]
        assert shares == pytest.approx([1 / 3] * 3, abs=0.04)
    assert abs(float(torch.corrcoef(counts.float().T)[0, 1])) < 0.06  # independent per block


def test_fixed_assignments(tiny_config):
    assert Assignments({"kind": "fixed", "counts": 8}, make_model().config, CPU).sample(3, 2).tolist() == [[8, 8]] * 3
    schedule = Assignments({"kind": "fixed", "counts": [6, 1, 3]}, tiny_config, CPU)
    assert schedule.sample(2, 3).tolist() == [[6, 1, 3]] * 2 and schedule.sample(1, 1).tolist() == [[6]]


def test_adaptok_samples_as_ever_or_from_levels(tiny_config):
    torch.manual_seed(0)
    usual = Assignments({}, tiny_config, CPU).sample(200, 3)
    assert set(usual.flatten().tolist()) == {1, 2, 3, 4, 5, 6}
    levels = Assignments({"kind": "random", "levels": [2, 6]}, tiny_config, CPU).sample(50, 3)
    assert set(levels.flatten().tolist()) == {2, 6}


@pytest.mark.parametrize("price", [None, 0.01])
def test_a_routers_assignments(tmp_path, price):
    folder = make_router(tmp_path, price_conditioned=price is not None)
    options = {"kind": "router", "router": folder} | ({"price": price} if price else {})
    assignments = Assignments(options, make_model().config, CPU)
    assert assignments.sample(2, 2) is None and not any(p.requires_grad for p in assignments.router.parameters())
    videos = torch.randint(256, (3, 8, 3, 16, 16), dtype=torch.uint8)
    expected = AdapTokRouterModel.from_pretrained(folder).eval().route(videos / 255, price)
    assert torch.equal(assignments.of_clips(videos), expected)
    with pytest.raises(ValueError, match="price"):
        Assignments(options | {"price": None if price else 0.01}, make_model().config, CPU)


@pytest.mark.parametrize(
    ("options", "wrong"),
    [
        ({"kind": "greedy"}, "greedy"),
        ({"kind": "fixed"}, "counts"),
        ({"kind": "router"}, "router"),
        ({"kind": "random", "price": 1.0}, "price"),
        ({"kind": "fixed", "counts": 3}, r"\[3\].*\[1, 2, 8\]"),
        ({"kind": "fixed", "counts": [8]}, r"2.*\[8\]"),
        ({"kind": "random", "levels": [8, 16]}, r"\[16\]"),
    ],
)
def test_bad_assignments_are_named(options, wrong):
    with pytest.raises(ValueError, match=wrong):
        Assignments(options, make_model().config, CPU)


def test_a_router_of_other_clips_is_named(tmp_path):
    folder = make_router(tmp_path, image_size=32)
    with pytest.raises(ValueError, match="image_size=32.*16"):
        Assignments({"kind": "router", "router": folder}, make_model().config, CPU)
    with pytest.raises(ValueError, match=r"\[4\]"):
        folder = make_router(tmp_path / "levels", levels=[1, 4])
        Assignments({"kind": "router", "router": folder}, make_model().config, CPU)


@pytest.mark.parametrize(
    ("entries", "wrong"),
    [
        ({"architecture": "evatok", "patch_components": 8}, "patch_components.*8"),
        ({"architecture": "evatok", "stages": [{"steps": 1, "num_blocks": 1, "batch_size": 1, "noise": 0.1}]}, "noise"),
        ({"architecture": "evatok", "count_groups": 2}, "count_groups.*2"),
        ({"count_groups": 2, "assignments": {"kind": "fixed", "counts": 3}}, "count_groups=2"),
        ({"assignments": {"kind": "fixd"}}, "fixd"),
        ({"alignment_weight": 0.7}, "alignment_teacher"),
        ({"feature_adversarial_weight": 0.3}, "backbone"),
        (
            {"stages": [{"steps": 1, "num_blocks": 1, "batch_size": 1, "loss_weights": {"alignment": 1.0}}]},
            "alignment_teacher",
        ),
    ],
)
def test_arguments_that_do_not_fit(entries, wrong):
    with pytest.raises(ValueError, match=wrong):
        Arguments(**BASE | entries)


@pytest.fixture
def teacher(tmp_path) -> str:
    make_vjepa().save_pretrained(tmp_path / "vjepa")
    return str(tmp_path / "vjepa")


@pytest.mark.parametrize(("architecture", "quantize"), [("adaptok", True), ("adaptok", False), ("evatok", True)])
def test_terms_of_evatoks_loss(architecture, quantize, teacher, tiny_tokenizer):
    model = (make_model() if architecture == "evatok" else tiny_tokenizer).train()
    args = Arguments(**BASE, architecture=architecture, alignment_weight=0.7, alignment_teacher=teacher,
                     alignment_layer=1, entropy_weight=0.02)  # fmt: skip
    alignment = build_alignment(args, model.config)
    step = TrainingStep(model, None, args, alignment)
    blocks = model.config.num_blocks
    video = torch.rand(2, 4 * blocks, 3, 16, 16, generator=torch.Generator().manual_seed(2))
    counts = torch.tensor([[8, 1], [2, 8]] if architecture == "evatok" else [[6, 1, 2], [1, 4, 6]])
    stage = replace(StageOptions(), quantize=quantize)
    torch.manual_seed(0)
    output, projected, terms = step(video, counts, stage, 0.0)
    model.config.stochastic_quantizer = False
    model.eval()
    layers = model.config.num_encoder_layers
    if quantize and architecture == "evatok":
        lone = [step(video[i : i + 1], counts[i : i + 1], stage, 0.0)[2]["alignment_term"] for i in range(2)]
        assert_close(terms["alignment_term"], sum(lone) / 2, atol=1e-5, rtol=1e-5)
        hidden = model(video, counts, return_loss=False, output_hidden_states=True).hidden_states[layers + 1]
        plain = alignment(hidden.unflatten(1, (blocks, 2, 2)), video)
        assert_close(terms["alignment_term"], plain, atol=1e-5, rtol=1e-5)
        kept = (torch.arange(8) < counts[..., None]).flatten(1)
        assert_close(terms["entropy_term"], model.quantizer.entropy_loss(projected, kept), atol=1e-5, rtol=1e-4)
        assert torch.equal(output.codes[0, 1, 1:], output.codes[0, 0, 0].expand(7))  # padding counts as the first token
    elif quantize:
        kept = (torch.arange(6) < counts[..., None]).flatten(1)
        codebook = model.quantizer.normalized_codebook()
        assert_close(terms["entropy_term"], entropy_loss(projected, codebook, kept=kept))
    else:
        # a clip alone lies without padding
        lone = [step(video[i : i + 1], counts[i : i + 1], stage, 0.0)[2]["alignment_term"] for i in range(2)]
        assert_close(terms["alignment_term"], sum(lone) / 2, atol=1e-5, rtol=1e-5)
    assert not projected.requires_grad
    terms["alignment_term"].backward(retain_graph=True)
    assert all(p.grad.abs().sum() > 0 for p in alignment.parameters() if p.ndim == 2)
    assert model.decoder.layers[0].mlp.fc1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in alignment.backbone.parameters())
    if quantize:
        model.zero_grad()
        terms["entropy_term"].backward()
        assert model.quantizer.codebook.weight.grad.abs().sum() > 0
        assert model.quantizer.project_in.weight.grad.abs().sum() > 0
    trained = {p for group in build_optimizers(step, args)[0].param_groups for p in group["params"]}
    assert trained == set(step.parameters()) and not trained & set(alignment.backbone.parameters())


def test_alignment_layer_is_checked(teacher, tiny_config):
    args = Arguments(**BASE, alignment_weight=0.7, alignment_teacher=teacher, alignment_layer=3)
    with pytest.raises(ValueError, match=r"1\.\.2.*3"):
        build_alignment(args, tiny_config)


def test_two_discriminators(tmp_path, tiny_config):
    make_videomae().save_pretrained(tmp_path)
    options = {"backbone": str(tmp_path), "layers": [0, 2], "cutout": 0.1}
    args = Arguments(**BASE, adversarial_weight=0.3, feature_adversarial_weight=0.2, feature_discriminator=options,
                     discriminator={"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1},
                     adversarial_start_step=7, r1_weight=10.0)  # fmt: skip
    losses = build_adversarial_losses(args, tiny_config)
    assert list(losses) == ["adversarial", "feature_adversarial"]
    assert [loss.start_step for loss in losses.values()] == [7, 7] and losses["adversarial"].r1_weight == 10
    assert losses["feature_adversarial"].discriminator.cutout == 0.1 and args.loss_weights.feature_adversarial == 0.2
