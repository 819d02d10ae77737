"""Losses that look through a frozen backbone: the alignment, and the feature discriminator."""

import pytest
import torch
from builders.backbones import make_videomae, make_vjepa
from builders.parity_table import FULL
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import VideoMAEModel, VJEPA2Model

from adaptok_hf.losses import AdversarialLoss, AlignmentLoss, FeatureDiscriminator, load_backbone
from adaptok_hf.losses.feature_discriminator import augmented

GOLDEN = None if FULL is None else FULL.parent / "parity_evatok_larp" / "gigatok_tiny"


@pytest.fixture
def video() -> torch.Tensor:
    """(3, 8, 3, 16, 16) in [0, 1]."""
    return torch.rand(3, 8, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def alignment() -> AlignmentLoss:
    return AlignmentLoss(make_vjepa(), 6)


@pytest.fixture
def discriminator() -> FeatureDiscriminator:
    return FeatureDiscriminator(make_videomae(), layers=(0, 1, 2), augment=False)


def assert_absent_and_unchanged(module: torch.nn.Module, before: dict[str, torch.Tensor]) -> None:
    """The backbone is no part of the module, is frozen, and holds the same weights."""
    after = module.backbone.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert not {p.data_ptr() for p in module.parameters()} & {p.data_ptr() for p in module.backbone.parameters()}
    assert not [name for name in module.state_dict() if "backbone" in name or "encoder" in name]
    assert all(p.grad is None and not p.requires_grad for p in module.backbone.parameters())
    assert not module.train().backbone.training


def test_alignment_is_minus_the_mean_cosine(alignment, video):
    grid = (2, 2, 2)
    target = alignment.teacher_features(video, grid)
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[:, :, None, None]
    with torch.no_grad():
        plain = alignment.backbone((video - mean) / std, skip_predictor=True).last_hidden_state
    assert_close(target, plain.unflatten(1, (2, 2, 2, 2)).mean(2))  # two time steps in a block
    features = torch.randn(3, *grid, 6, requires_grad=True)
    projected = alignment.projection(features)
    cosine = (projected * target).sum(-1) / (projected.norm(dim=-1) * target.norm(dim=-1))
    before = {name: weight.clone() for name, weight in alignment.backbone.state_dict().items()}
    loss = alignment(features, video)
    assert_close(loss, -cosine.mean())
    loss.backward()
    assert features.grad.abs().sum() > 0 and all(p.grad.abs().sum() > 0 for p in alignment.parameters())
    assert_absent_and_unchanged(alignment, before)
    alignment.projection = torch.nn.Identity()
    assert_close(alignment(3 * target, video), torch.tensor(-1.0))  # student = teacher


@pytest.mark.parametrize(("size", "grid"), [(16, (2, 4, 4)), (32, (2, 2, 2)), (32, (1, 4, 4)), (24, (4, 2, 2))])
def test_alignment_fits_grids(video, size, grid):
    alignment = AlignmentLoss(make_vjepa(), 6, image_size=size)
    target = alignment.teacher_features(video, grid)
    assert target.shape == (3, *grid, 12)
    if size == 16:  # coarser than the student: repeated
        assert_close(target[:, :, ::2, ::2], target[:, :, 1::2, 1::2])
    assert alignment(torch.randn(3, *grid, 6), video).abs() < 1


@pytest.mark.skipif(GOLDEN is None or not GOLDEN.exists(), reason="there are no golden tensors of GigaTok")
def test_projection_equals_gigatoks():
    tensors = load_file(GOLDEN / "tokenizer.safetensors")
    features, expected = (tensors[f"decoder.{name}"] for name in ("features_at_alignment_layer", "alignment_features"))
    from adaptok_hf.conversion.evatok_files import read_weights

    weights = read_weights(GOLDEN / "tokenizer.pt")
    mlp = {name.split("distill_mlp.")[1]: weight for name, weight in weights.items() if "distill_mlp." in name}
    teacher = make_vjepa()
    teacher.config.hidden_size = len(mlp["4.bias"])
    alignment = AlignmentLoss(teacher, features.shape[-1], hidden_size=len(mlp["0.bias"]))
    alignment.projection.load_state_dict(mlp)
    assert_close(alignment.projection(features.reshape(expected[0].shape[0], -1)), expected[0], atol=2e-5, rtol=0)


def test_feature_discriminator_is_for_adversarial_losses(discriminator, video):
    before = {name: weight.clone() for name, weight in discriminator.backbone.state_dict().items()}
    loss = AdversarialLoss(discriminator)
    assert discriminator(video).shape == (3, 3 * 4 * 2 * 2)
    fake = video.flip(0).mul(0.5).requires_grad_()
    loss.generator_loss(fake).backward()
    assert fake.grad.abs().sum() > 0 and all(p.grad is None for p in loss.parameters())
    fake.grad = None
    loss(video, fake)["total"].backward()
    assert fake.grad is None and all(p.grad.abs().sum() > 0 for p in loss.parameters() if p.ndim > 1)
    assert_absent_and_unchanged(discriminator, before)


def test_real_and_fake_clips_are_normalized_apart(discriminator, video):
    loss = AdversarialLoss(discriminator.eval(), kind="hinge")
    means = loss.eval()(video, 0.1 * video)
    assert_close(means["real_logit"], discriminator(video).mean())
    # groups of at most eight clips
    many = torch.cat([video, video.flip(1), video.flip(3)])
    assert_close(discriminator(many)[:5], discriminator(many[:5]), atol=1e-5, rtol=1e-4)
    assert (discriminator(many)[:3] - discriminator(video)).abs().max() > 1e-3


@pytest.mark.parametrize(("frames", "size"), [(4, 16), (16, 24), (8, 12)])
def test_feature_discriminator_takes_any_size(discriminator, frames, size):
    discriminator.augment = True
    assert discriminator(torch.rand(2, frames, 3, size, size)).isfinite().all()


def test_frames_are_repeated_to_the_backbones_number(discriminator, video):
    discriminator.eval()
    assert_close(discriminator(video[:, ::2]), discriminator(video[:, ::2].repeat_interleave(2, 1)))


def test_augmentation_is_one_for_all_frames_of_a_clip():
    torch.manual_seed(0)
    still = torch.rand(4, 1, 3, 20, 20).expand(-1, 3, -1, -1, -1)
    changed = augmented(still, 0.2)
    assert_close(changed[:, 0], changed[:, 2])
    assert (changed - still).flatten(1).abs().amax(1).min() > 0.05 and not torch.equal(changed[0], changed[1])
    gray = (changed == 0.5).all(2).flatten(2).sum(-1)
    assert gray.min() >= 4 and gray.max() <= 16 + 2 * 3 * 20  # a hole of 4x4 or what of it is inside, and borders
    whole = augmented(torch.rand(2, 1, 3, 8, 8), 0.0)
    assert whole.shape == (2, 1, 3, 8, 8)


def test_what_does_not_fit_is_named(tmp_path, video):
    with pytest.raises(ValueError, match="20.*8"):
        AlignmentLoss(make_vjepa(), 6, image_size=20)
    for options, wrong in (({"layers": (0, 3)}, "3"), ({"layers": (0,), "kernel_size": 4}, "4")):
        with pytest.raises(ValueError, match=wrong):
            FeatureDiscriminator(make_videomae(), **options)
    with pytest.raises(ValueError, match="-0.5"):
        FeatureDiscriminator(make_videomae(), layers=(0,), cutout=-0.5)
    with pytest.raises(ValueError, match=r"r1_weight.*10\.0"):
        AdversarialLoss(FeatureDiscriminator(make_videomae(), layers=(0,)), r1_weight=10.0)
    make_videomae().save_pretrained(tmp_path)
    loaded = load_backbone(VideoMAEModel, str(tmp_path))
    assert_close(loaded(video).last_hidden_state, make_videomae().eval()(video).last_hidden_state)
    with pytest.raises(ValueError, match=f"{tmp_path}.*VJEPA2Model"):
        load_backbone(VJEPA2Model, str(tmp_path))
