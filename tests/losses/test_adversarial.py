"""The discriminator's side of training: adversarial losses, LeCam, R1."""

import json
import math

import pytest
import torch
from builders.parity_table import COMMITTED, FULL
from safetensors.torch import load_file
from torch import multiprocessing, nn
from torch.testing import assert_close

from adaptok_hf.losses import (
    AdversarialLoss,
    DiscriminatorConfig,
    LeCam,
    TokenizerLoss,
    TokenizerLossWeights,
    VideoDiscriminator,
    convert_discriminator_weights,
    hinge_discriminator_loss,
    hinge_generator_loss,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
    r1_penalty,
    smoothed_non_saturating_discriminator_loss,
)
from adaptok_hf.models.modeling_adaptok import AdapTokOutput

GOLDEN = json.loads((COMMITTED / "discriminator_tiny" / "losses.json").read_text())
# The kinds of the golden file and ours.
KINDS = {
    "hinge": "hinge",
    "ns": "non_saturating",
    "ns_smooth": "smoothed_non_saturating",
    "hinge_lecam_weight_0.5": "hinge",
}
needs_full = pytest.mark.skipif(FULL is None, reason="ADAPTOK_PARITY_DIR does not name the folder with all golden tensors")


def close(ours: torch.Tensor, stored: float | torch.Tensor, bound: float = 1e-5) -> None:
    assert_close(ours.detach(), torch.as_tensor(stored, dtype=ours.dtype), atol=bound, rtol=0)


class MeanDiscriminator(nn.Module):
    """The logit of a clip is `weight` times its mean."""

    def __init__(self, weight: float = 2.0):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return self.weight * video.flatten(1).mean(1)


def clips_with_mean(means: list[float]) -> torch.Tensor:
    """(batch, 1, 3, 2, 2)"""
    return torch.tensor(means)[:, None, None, None, None].expand(-1, 1, 3, 2, 2).clone()


def test_losses_on_logits_equal_the_originals():
    real, fake = (torch.tensor(GOLDEN[f"logits_{name}"]) for name in ("real", "fake"))
    noise = [torch.tensor(GOLDEN[f"ns_smooth_noise_{name}"]) for name in ("real", "fake")]
    close(hinge_discriminator_loss(real, fake), GOLDEN["hinge_d"])
    close(hinge_generator_loss(fake), GOLDEN["hinge_g"])
    close(non_saturating_discriminator_loss(real, fake), GOLDEN["ns_d"])
    close(non_saturating_generator_loss(fake), GOLDEN["ns_g"])
    close(smoothed_non_saturating_discriminator_loss(real, fake, *noise), GOLDEN["ns_smooth_d"])


def test_smoothed_loss_draws_its_noise():
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([0.5, 3.0])
    torch.manual_seed(0)
    noise = torch.randn(2), torch.randn(2)
    torch.manual_seed(0)
    drawn = smoothed_non_saturating_discriminator_loss(real, fake)
    assert_close(drawn, smoothed_non_saturating_discriminator_loss(real, fake, *noise))
    zeros = torch.zeros(2)
    without = smoothed_non_saturating_discriminator_loss(real, fake, zeros, zeros)
    assert_close(without, non_saturating_discriminator_loss(real, fake))


@pytest.mark.parametrize("case", GOLDEN["lecam"])
def test_lecam_equals_the_original(case):
    lecam = LeCam()
    lecam.real_average.fill_(case["ema_real"])
    lecam.fake_average.fill_(case["ema_fake"])
    close(lecam(torch.tensor([case["real_pred"]]), torch.tensor([case["fake_pred"]])), case["value"])


def test_lecam_averages_and_state():
    lecam = LeCam(decay=0.9)
    real, fake = [torch.tensor([1.0, 3.0]), torch.tensor([-1.0, 0.0])], [torch.tensor([0.5, -0.5]), torch.tensor([-4.0])]
    penalties = [float(lecam(r, f)) for r, f in zip(real, fake, strict=True)]
    # means 2, -0.5 and 0, -4; averages before the second call 0.2 and 0
    assert penalties == pytest.approx([2.0**2 + 0, 0 + (0.2 + 4.0) ** 2])
    restored = LeCam(decay=0.9)
    restored.load_state_dict(lecam.state_dict())
    assert float(restored.real_average) == pytest.approx(0.9 * 0.2 - 0.1 * 0.5)
    assert float(restored.fake_average) == pytest.approx(-0.4)
    state = {name: tensor.clone() for name, tensor in restored.eval().state_dict().items()}
    restored(*real)
    assert state == restored.state_dict()


def test_lecam_can_be_differentiated_after_its_update():
    lecam = LeCam()
    lecam.fake_average.fill_(-1.0)
    real, fake = torch.tensor([0.5, 1.5], requires_grad=True), torch.tensor([3.0, 3.0], requires_grad=True)
    lecam(real, fake).backward()
    assert_close(real.grad, torch.tensor([2.0, 2.0]))  # 2 (mean + 1) / batch
    assert fake.grad.abs().max() == 0


@pytest.mark.parametrize("setting", GOLDEN["full_loss_module"])
def test_discriminator_step_equals_the_original(setting, monkeypatch):
    """The whole step, on the stored logits. The original's total has the LeCam weight twice, ours once."""
    golden = GOLDEN["full_loss_module"][setting]
    logits = load_file(COMMITTED / "discriminator_tiny" / "io.safetensors")
    if "noise_real" in golden:
        noise = iter([golden["noise_real"], golden["noise_fake"]])
        monkeypatch.setattr(torch, "randn_like", lambda _: torch.tensor(next(noise)))
    loss = AdversarialLoss(MeanDiscriminator(1.0), kind=KINDS[setting], lecam_weight=golden["lecam_weight"])
    loss.lecam.real_average.fill_(golden["lecam_ema_real_before"])
    loss.lecam.fake_average.fill_(golden["lecam_ema_fake_before"])
    real, fake = (clips_with_mean(logits[f"logits_{name}"][:, 0].tolist()) for name in ("real", "fake"))
    terms = loss(real, fake)
    weight = golden["lecam_weight"]
    close(terms["discriminator"], golden["discriminator.d_loss"])
    close(weight * terms["lecam"], golden["discriminator.d_lecam_loss"])
    close(terms["total"], golden["discriminator.d_loss"] + golden["discriminator.d_lecam_loss"])
    close(terms["discriminator"] + weight**2 * terms["lecam"], golden["discriminator_total"])
    close(terms["real_logit"], golden["discriminator.logits_real"])
    close(terms["fake_logit"], golden["discriminator.logits_fake"])
    close(loss.lecam.real_average, golden["lecam_ema_real_after"], 1e-7)
    close(loss.lecam.fake_average, golden["lecam_ema_fake_after"], 1e-7)
    close(loss.generator_loss(fake), golden["generator.g_loss"])


@needs_full
@pytest.mark.parametrize("setting", GOLDEN["full_loss_module"])
def test_both_sides_on_videos_equal_the_original(setting, monkeypatch):
    golden, folder = GOLDEN["full_loss_module"][setting], FULL / "discriminator_tiny"
    tensors = load_file(folder / "io.safetensors")
    real, fake = tensors["real"].transpose(1, 2), tensors["fake"].transpose(1, 2)
    discriminator = VideoDiscriminator(
        DiscriminatorConfig(image_size=32, hidden_size=64, num_attention_heads=4, num_hidden_layers=2)
    )
    discriminator.load_state_dict(convert_discriminator_weights(load_file(folder / "discriminator.safetensors")))
    if "noise_real" in golden:
        noise = iter([golden["noise_real"], golden["noise_fake"]])
        monkeypatch.setattr(torch, "randn_like", lambda _: torch.tensor(next(noise)))
    # squared: what the original's weight acts as
    adversarial = AdversarialLoss(discriminator, kind=KINDS[setting], lecam_weight=golden["lecam_weight"] ** 2)
    adversarial.lecam.real_average.fill_(golden["lecam_ema_real_before"])
    adversarial.lecam.fake_average.fill_(golden["lecam_ema_fake_before"])
    close(adversarial(real, fake)["total"], golden["discriminator_total"])
    weights = TokenizerLossWeights(perceptual=0, adversarial=0.3, prior=0)
    terms = TokenizerLoss(weights, None, adversarial)(real, AdapTokOutput(pixel_values_videos=fake), step=0)
    close(terms["l1"], golden["generator.rec_loss"])
    close(terms["adversarial"], golden["generator.g_loss"])
    close(terms["total"], golden["generator_total"])


TINY_DISCRIMINATOR = DiscriminatorConfig(
    image_size=16, num_frames=12, hidden_size=16, num_attention_heads=2, num_hidden_layers=2
)


@pytest.fixture
def adversarial() -> AdversarialLoss:
    torch.manual_seed(0)
    return AdversarialLoss(VideoDiscriminator(TINY_DISCRIMINATOR))


@pytest.mark.parametrize("kind", ["hinge", "non_saturating", "smoothed_non_saturating"])
def test_each_side_pulls_its_way(kind):
    """The tokenizer's gradient makes reconstructions look more real; the discriminator learns to tell them apart."""
    torch.manual_seed(0)
    loss = AdversarialLoss(MeanDiscriminator(2.0), kind=kind, lecam_weight=0)
    fake = clips_with_mean([0.2, -0.1]).requires_grad_()
    loss.generator_loss(fake).backward()
    assert (fake.grad < 0).all()
    assert loss.discriminator.weight.grad is None
    fake.grad = None
    loss(clips_with_mean([0.3, 0.4]), fake)["total"].backward()
    assert loss.discriminator.weight.grad < 0 and fake.grad is None


def test_generator_loss_is_that_of_the_discriminator(adversarial, tiny_video):
    fake = tiny_video.clone().requires_grad_()
    loss = adversarial.generator_loss(fake)
    expected = non_saturating_generator_loss(adversarial.discriminator(fake))
    assert torch.equal(loss, expected)
    (gradient,), (plain,) = torch.autograd.grad(loss, fake), torch.autograd.grad(expected, fake)
    assert torch.equal(gradient, plain) and gradient.abs().max() > 0
    assert all(parameter.requires_grad for parameter in adversarial.parameters())


def test_r1_is_the_squared_gradient(tiny_video):
    """Against differences of logits, pixel by pixel, and its gradient against differences of the penalty."""
    torch.manual_seed(0)
    config = DiscriminatorConfig(
        image_size=4, num_frames=1, tubelet_size=1, patch_size=2, hidden_size=8, num_attention_heads=2, num_hidden_layers=1
    )
    discriminator, video = VideoDiscriminator(config).double(), tiny_video[:, :1, :, :4, :4].double()

    def logits(x):  # without the cast to float32 at the end, differences need all digits
        tokens = discriminator.patch_embedding(x) + discriminator.positions()
        hidden_states = torch.cat([discriminator.class_token.expand(len(x), -1, -1), tokens], dim=1)
        hidden_states = discriminator.layers[0](hidden_states)
        return discriminator.head(discriminator.norm(hidden_states[:, 0])).squeeze(-1)

    squares = torch.zeros(len(video), dtype=torch.float64)
    with torch.no_grad():
        for pixel in range(video[0].numel()):
            step = torch.zeros(video[0].numel(), dtype=torch.float64)
            step[pixel] = 1e-5
            step = step.view_as(video[0])
            squares += ((logits(video + step) - logits(video - step)) / 2e-5).square()
    penalty = r1_penalty(discriminator, video)
    close(penalty.double(), squares.mean(), 1e-5)
    assert penalty > 1e-3

    penalty.backward()
    weight = discriminator.layers[0].attention.qkv.weight
    index = divmod(int(weight.grad.abs().argmax()), weight.shape[1])
    with torch.no_grad():
        values = []
        for sign in (1, -1):
            weight[index] += sign * 1e-2
            values.append(float(r1_penalty(discriminator, video)))
            weight[index] -= sign * 1e-2
    assert float(weight.grad[index]) == pytest.approx((values[0] - values[1]) / 2e-2, rel=0.02)


def test_r1_and_lecam_enter_the_total(tiny_video):
    discriminator = MeanDiscriminator(2.0)
    loss = AdversarialLoss(discriminator, kind="hinge", lecam_weight=0.5, r1_weight=10)
    terms = loss(tiny_video, 1 - tiny_video)
    # the gradient is weight / pixels at each pixel
    close(terms["r1"], 2.0**2 / tiny_video[0].numel())
    close(terms["total"], terms["discriminator"] + 0.5 * terms["lecam"] + 10 * terms["r1"])
    assert set(AdversarialLoss(discriminator, lecam_weight=0)(tiny_video, tiny_video)) == {
        "total",
        "discriminator",
        "real_logit",
        "fake_logit",
    }


def test_turns():
    loss = AdversarialLoss(MeanDiscriminator(), start_step=3, update_every=5)
    assert [step for step in range(15) if loss.is_discriminator_turn(step)] == [3, 8, 13]
    assert [step for step in range(6) if loss.is_active(step)] == [3, 4, 5]


def test_state_holds_discriminator_and_averages(adversarial, tiny_video):
    adversarial(tiny_video, 1 - tiny_video)
    restored = AdversarialLoss(VideoDiscriminator(TINY_DISCRIMINATOR))
    restored.load_state_dict(adversarial.state_dict())
    assert restored.lecam.real_average == adversarial.lecam.real_average != 0
    assert torch.equal(restored.generator_loss(tiny_video), adversarial.generator_loss(tiny_video))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"kind": "wgan"}, "kind must be one of 'hinge', .*got 'wgan'"),
        ({"lecam_weight": -1}, "lecam_weight must not be negative, got -1"),
        ({"r1_weight": math.nan}, "r1_weight must not be negative, got nan"),
        ({"start_step": -5}, "start_step must not be negative, got -5"),
        ({"update_every": 0}, "update_every must be at least 1, got 0"),
    ],
)
def test_adversarial_loss_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        AdversarialLoss(MeanDiscriminator(), **settings)


def one_of_two_processes(rank: int, rendezvous: str, folder: str) -> None:
    """Half of the batch, as DDP runs it; writes gradient and averages."""
    torch.distributed.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=2)
    loss = nn.parallel.DistributedDataParallel(AdversarialLoss(MeanDiscriminator(2.0), kind="hinge", lecam_weight=1.0))
    half = slice(2 * rank, 2 * rank + 2)
    for real, fake in two_batches():
        loss.zero_grad()
        total = loss(real[half], fake[half])["total"]
        total.backward()
    result = [loss.module.discriminator.weight.grad, *loss.module.lecam.buffers(), total.detach()]
    torch.save(torch.stack(result), f"{folder}/{rank}.pt")
    del loss  # which holds the group: freed after it, it waited for the group's threads for ever
    torch.distributed.destroy_process_group()


def two_batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [
        (clips_with_mean([0.1, 0.9, 0.4, 0.7]), clips_with_mean([-0.3, 0.2, 0.6, -0.1])),
        (clips_with_mean([0.3, -0.2, 0.5, 0.8]), clips_with_mean([0.1, -0.9, -0.5, 0.4])),
    ]


def test_two_processes_equal_one_with_both_batches(tmp_path):
    loss = AdversarialLoss(MeanDiscriminator(2.0), kind="hinge", lecam_weight=1.0)
    for real, fake in two_batches():
        loss.zero_grad()
        total = loss(real, fake)["total"]
        total.backward()
    expected = torch.stack([loss.discriminator.weight.grad, *loss.lecam.buffers(), total.detach()])
    arguments = (str(tmp_path / "rendezvous"), str(tmp_path))
    multiprocessing.start_processes(one_of_two_processes, arguments, nprocs=2, start_method="fork")
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for result in found:
        assert_close(result[:3], expected[:3])
    assert torch.equal(found[0][1:3], found[1][1:3])
    assert_close((found[0] + found[1])[3] / 2, expected[3])
