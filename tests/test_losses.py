import json
import math

import pytest
import torch
from parity_table import COMMITTED, FULL, Parity, blocks
from safetensors.torch import load_file
from torch import multiprocessing, nn
from torch.nn.functional import cross_entropy, normalize, pad
from torch.testing import assert_close

from adaptok_hf import AdapTokModel, AdapTokPriorConfig, AdapTokPriorModel
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
    perceptual_loss,
    prior_loss,
    r1_penalty,
    scheduled_sampling_ratio,
    smoothed_non_saturating_discriminator_loss,
)
from adaptok_hf.losses.prior import code_logits, pack_kept_tokens
from adaptok_hf.metrics.lpips_network import LPIPSNetwork
from adaptok_hf.modeling_adaptok import AdapTokOutput

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


# Adversarial losses


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
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\), got 1.0"):
        LeCam(decay=1.0)


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


# Perceptual loss


@pytest.fixture(scope="module")
def lpips() -> LPIPSNetwork:
    torch.manual_seed(0)
    return LPIPSNetwork("vgg").requires_grad_(False).eval()


def test_perceptual_loss_is_the_mean_over_frames(lpips, tiny_video):
    other = tiny_video.flip(0)
    per_frame = torch.stack([lpips(a, b) for a, b in zip(tiny_video, other, strict=True)])  # (batch, frames)
    per_block = perceptual_loss(lpips, tiny_video, other, frames_per_block=4)
    assert per_block.shape == (2, 3) and per_frame.std() > 0
    assert_close(per_block, per_frame.view(2, 3, 4).mean(-1))
    assert_close(perceptual_loss(lpips, tiny_video, other), per_frame.mean())
    assert perceptual_loss(lpips, tiny_video, tiny_video) == 0


def test_perceptual_gradient_lowers_the_loss(lpips, tiny_video):
    video = tiny_video[:1, :2]
    # beyond [0, 1], where a clamp would leave no gradient
    reconstruction = (video + 0.1 * torch.randn(video.shape, generator=torch.Generator().manual_seed(0))).requires_grad_()
    loss = perceptual_loss(lpips, reconstruction, video)
    (gradient,) = torch.autograd.grad(loss, reconstruction)
    assert (gradient.abs()[(reconstruction > 1) | (reconstruction < 0)] > 0).any()
    better = reconstruction.detach() - 0.05 * loss.detach() * gradient / gradient.square().sum()
    assert perceptual_loss(lpips, better, video) < loss


def test_perceptual_loss_refuses(lpips):
    video = torch.zeros(2, 4, 3, 16, 16)
    for pair in ((video, video[:1]), (video[0], video[0]), (video[:, :, :1], video[:, :, :1])):
        with pytest.raises(ValueError, match=r"must both be \(batch, frames, 3, height, width\)"):
            perceptual_loss(lpips, *pair)
    with pytest.raises(ValueError, match="4 frames cannot be cut into blocks of 3"):
        perceptual_loss(lpips, video, video, frames_per_block=3)


# The prior's loss

COUNTS = torch.tensor([[3, 0, 4], [1, 2, 0]])


@pytest.fixture
def prior() -> AdapTokPriorModel:
    torch.manual_seed(0)
    config = AdapTokPriorConfig(
        codebook_dim=8,
        num_latent_tokens=12,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        initializer_range=0.3,
    )
    return AdapTokPriorModel(config).eval()


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Code vectors (2, 3, 4, 8), codes (2, 3, 4), and the codebook (20, 8)."""
    generator = torch.Generator().manual_seed(1)
    codebook = normalize(torch.randn(20, 8, generator=generator), dim=-1)
    codes = torch.randint(20, (2, 3, 4), generator=generator)
    return codebook[codes], codes, codebook


def plain_prior_loss(prior, code_vectors, codes, codebook, token_counts) -> float:
    """Clip by clip and target by target; each prediction from a sequence of its own."""
    losses = []
    for vectors, clip, counts in zip(code_vectors, codes, token_counts.tolist(), strict=True):
        kept = [(q, m) for q, count in enumerate(counts) for m in range(count)]
        for t in range(1, len(kept)):
            known = torch.stack([vectors[q, m] for q, m in kept[:t]])
            hidden = prior.project_in(known) + torch.stack([prior.positions.weight[0, 4 * q + m] for q, m in kept[:t]])
            mask = torch.full((t, t), -torch.inf).triu(1)[None, None]
            hidden = hidden[None]
            for layer in prior.layers:
                hidden = layer(hidden, mask)
            prediction = prior.head(prior.norm(hidden))[0, -1]
            similarity = codebook @ (prediction / prediction.norm())
            q, m = kept[t]
            losses.append(float(similarity.logsumexp(0) - similarity[clip[q, m]]))
    return sum(losses) / len(losses)


@torch.no_grad()
def test_prior_loss_is_that_of_each_kept_token(prior, tokens):
    expected = plain_prior_loss(prior, *tokens, COUNTS)
    assert float(prior_loss(prior, *tokens, COUNTS, num_rounds=1)) == pytest.approx(expected, abs=1e-5)
    assert float(prior_loss(prior, *tokens, COUNTS)) == pytest.approx(expected, abs=1e-5)
    full = torch.full_like(COUNTS, 4)
    expected = plain_prior_loss(prior, *tokens, full)
    assert float(prior_loss(prior, *tokens, full)) == pytest.approx(expected, abs=1e-5)
    assert float(prior_loss(prior, *tokens)) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_unpacked_predictions_are_the_models(prior, tokens):
    packed = pack_kept_tokens(*tokens[:2])
    assert torch.equal(packed.positions, torch.arange(12).expand(2, -1)) and packed.valid.all()
    predictions = prior(packed.vectors, position_ids=packed.positions).predictions[:, 1:]
    assert_close(predictions, prior(tokens[0].flatten(1, 2)).predictions[:, 1:], atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Parity:
    return Parity(FULL, tmp_path_factory.mktemp("parity"))


@needs_full
@pytest.mark.parametrize("pattern", ["uneven", "zeros", "full", None])
@torch.no_grad()
def test_prior_equals_the_original(original, pattern):
    golden = load_file(FULL / "prior_tiny" / "prior.safetensors")
    prior = AdapTokPriorModel.from_pretrained(original.folder / "prior").eval()
    vectors, codes, codebook = blocks(golden["regularized_z"]), blocks(golden["indices"]), golden["codebook_normalized"]
    if pattern is None:
        for rounds in (1, 2):
            close(prior_loss(prior, vectors, codes, codebook, num_rounds=rounds), golden["nomask.loss"][0])
        return
    counts = golden[f"{pattern}.latent_nums"]
    for rounds in (1, 2):
        loss = prior_loss(prior, vectors, codes, codebook, counts, num_rounds=rounds)
        close(loss, golden[f"{pattern}.loss_label_validity"][0])

    packed = pack_kept_tokens(vectors, codes, counts)
    length = packed.codes.shape[1]
    for name, ours in (("packed_input", packed.vectors), ("packed_mask", packed.valid), ("pos_ids", packed.positions)):
        stored = golden[f"{pattern}.{name}"]
        assert torch.equal(stored[:, :length].to(ours.dtype), ours) and not stored[:, length:].any()
    assert torch.equal(golden[f"{pattern}.labels"], pad(packed.codes[:, 1:], (0, 64 - length)))

    predictions = prior(packed.vectors, position_ids=packed.positions).predictions[:, 1:]
    logits = code_logits(predictions, codebook)
    known = packed.valid[:, :-1]  # a prediction is made behind each of these
    assert_close(predictions[known], golden[f"{pattern}.ar_predict"][:, 1:length][known], atol=1e-5, rtol=0)
    assert_close(logits[known], golden[f"{pattern}.logits"][:, : length - 1][known], atol=1e-5, rtol=0)

    # The original counts a target "code 0" behind each clip that has dropped tokens.
    vectors, codes = pad(packed.vectors, (0, 0, 0, 1)), pad(packed.codes, (0, 1))
    valid, positions = pad(packed.valid, (0, 1))[:, :64], pad(packed.positions, (0, 1))
    logits = code_logits(prior(vectors, position_ids=positions).predictions[:, 1:], codebook)[:, :63]
    known, targets = valid[:, :-1], codes[:, 1:64]
    close(cross_entropy(logits[known], targets[known]), golden[f"{pattern}.loss"][0])
    ranks = (logits[known] > logits[known].gather(1, targets[known][:, None])).sum(1)
    for top in (1, 5):
        close(100 * (ranks < top).float().mean(), golden[f"{pattern}.top{top}"][0], 1e-3)


def test_packing():
    codes = torch.arange(1, 13).view(1, 3, 4).repeat(2, 1, 1)
    packed = pack_kept_tokens(codes[..., None].float(), codes, COUNTS)
    assert packed.codes.tolist() == [[1, 2, 3, 9, 10, 11, 12], [1, 5, 6, 0, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 8, 9, 10, 11], [0, 4, 5, 0, 0, 0, 0]]
    assert torch.equal(packed.valid, packed.codes > 0)
    assert torch.equal(packed.vectors[..., 0], packed.codes.float())


def test_dropped_tokens_play_no_part(prior, tokens):
    vectors, codes, codebook = tokens
    vectors = vectors.clone().requires_grad_()
    loss = prior_loss(prior, vectors, codes, codebook, COUNTS)
    (gradient,) = torch.autograd.grad(loss, vectors)
    kept = torch.arange(4) < COUNTS[..., None]
    for last in ((0, 2, 3), (1, 1, 1)):  # (clip, block, latent): nothing is predicted from a clip's last token
        assert kept[last] and gradient[last].abs().max() == 0
        kept[last] = False
    assert (gradient[kept].abs().amax(-1) > 0).all() and (gradient[~kept] == 0).all()
    other = torch.where(torch.arange(4) < COUNTS[..., None], codes, 7)
    assert torch.equal(prior_loss(prior, vectors, other, codebook, COUNTS), loss)


def test_prior_gradient_reaches_the_latents_and_not_the_codebook(prior, tiny_tokenizer, tiny_video):
    """Through the straight-through code vectors: the encoder gets their gradient unchanged."""
    torch.manual_seed(0)
    config = AdapTokPriorConfig(
        codebook_dim=8, num_latent_tokens=18, hidden_size=16, num_attention_heads=2, num_hidden_layers=1
    )
    prior = AdapTokPriorModel(config)
    output = tiny_tokenizer(tiny_video, torch.tensor([[6, 2, 1], [1, 4, 6]]))
    output.code_vectors.retain_grad()
    codebook = tiny_tokenizer.quantizer.normalized_codebook()
    ratio = {"sampling_ratio": 0.5}
    prior_loss(prior, output.code_vectors, output.codes, codebook, torch.tensor([[6, 2, 1], [1, 4, 6]]), **ratio).backward()
    assert output.code_vectors.grad.abs().max() > 0
    assert tiny_tokenizer.encoder.patch_embedding.projection.weight.grad.abs().max() > 0
    assert tiny_tokenizer.quantizer.project_in.weight.grad.abs().max() > 0
    assert tiny_tokenizer.quantizer.codebook.weight.grad is None
    without = {name for name, parameter in prior.named_parameters() if parameter.grad is None}
    assert without == set()


def test_scheduled_sampling_replaces_inputs_by_draws(prior, tokens):
    vectors, codes, codebook = tokens
    with torch.no_grad():
        torch.manual_seed(0)
        plain = prior_loss(prior, vectors, codes, codebook, COUNTS)
        mixed = {round(float(prior_loss(prior, vectors, codes, codebook, COUNTS, sampling_ratio=0.5)), 6) for _ in range(4)}
        assert len(mixed) > 1 and round(float(plain), 6) not in mixed
        one_round = prior_loss(prior, vectors, codes, codebook, COUNTS, sampling_ratio=1.0, num_rounds=1)
        assert torch.equal(one_round, prior_loss(prior, vectors, codes, codebook, COUNTS, num_rounds=1))

    # At ratio 1 and next to no temperature the second round reads the first one's best codes, which can be written out.
    with torch.no_grad():
        temperature = 1e-3
        loss = prior_loss(prior, vectors, codes, codebook, sampling_ratio=1.0, temperature=temperature)
        packed = pack_kept_tokens(vectors, codes)
        first = code_logits(prior(packed.vectors, position_ids=packed.positions).predictions[:, 1:], codebook, temperature)
        inputs = torch.cat([packed.vectors[:, :1], codebook[first.argmax(-1)]], dim=1)
        second = code_logits(prior(inputs, position_ids=packed.positions).predictions[:, 1:], codebook, temperature)
        targets = packed.codes[:, 1:].flatten()
        expected = sum(cross_entropy(logits.flatten(0, 1), targets) for logits in (first, second)) / 2
    assert_close(loss, expected, rtol=1e-5, atol=0)


def test_replaced_inputs_get_no_gradient_in_the_second_round(prior, tokens):
    """With every input but the first replaced, the others' gradient is that of the first round alone."""
    vectors, codes, codebook = tokens
    vectors = vectors.clone().requires_grad_()
    both = prior_loss(prior, vectors, codes, codebook, sampling_ratio=1.0)
    (gradient,) = torch.autograd.grad(both, vectors)
    (alone,) = torch.autograd.grad(prior_loss(prior, vectors, codes, codebook, num_rounds=1), vectors)
    assert_close(gradient.flatten(1, 2)[:, 1:], alone.flatten(1, 2)[:, 1:] / 2)
    assert (gradient[:, 0, 0] - alone[:, 0, 0] / 2).abs().max() > 1e-6


def test_scheduled_sampling_ratio():
    ratios = [scheduled_sampling_ratio(step, 1000) for step in (0, 150, 300, 600, 1000)]
    assert ratios == pytest.approx([0, 0.25, 0.5, 0.5, 0.5])
    assert scheduled_sampling_ratio(0, 0) == 0


def test_a_single_kept_token_has_no_loss(prior, tokens):
    counts = torch.tensor([[1, 0, 0], [1, 0, 0]])
    vectors = tokens[0].clone().requires_grad_()
    loss = prior_loss(prior, vectors, *tokens[1:], counts, sampling_ratio=0.5)
    loss.backward()
    assert loss == 0 and (vectors.grad == 0).all() and all((p.grad == 0).all() for p in prior.parameters())


def test_prior_loss_refuses(prior, tokens):
    vectors, codes, codebook = tokens
    with pytest.raises(ValueError, match=r"token_counts has shape \(2, 2\), expected \(batch, blocks\) = \(2, 3\)"):
        prior_loss(prior, vectors, codes, codebook, COUNTS[:, :2])
    with pytest.raises(ValueError, match="token_counts must lie in 0..4, got values from 0 to 5"):
        prior_loss(prior, vectors, codes, codebook, COUNTS + (COUNTS == 4))
    with pytest.raises(ValueError, match=r"codes without the last axis, got \(2, 12, 8\) and \(2, 3, 4\)"):
        prior_loss(prior, vectors.flatten(1, 2), codes, codebook)
    with pytest.raises(ValueError, match="24 tokens of width 8 and a codebook of width 8 do not fit .* up to 12 tokens"):
        prior_loss(prior, vectors.repeat(1, 2, 1, 1), codes.repeat(1, 2, 1), codebook)
    with pytest.raises(ValueError, match="12 tokens of width 8 and a codebook of width 5 do not fit"):
        prior_loss(prior, vectors, codes, codebook[:, :5])
    with pytest.raises(ValueError, match="at least 2 tokens, got 1"):
        prior_loss(prior, vectors[:, :1, :1], codes[:, :1, :1], codebook)
    for name, value in (("sampling_ratio", 1.5), ("num_rounds", 0), ("temperature", 0.0)):
        with pytest.raises(ValueError, match=f"{name} must .*{value}"):
            prior_loss(prior, vectors, codes, codebook, **{name: value})


# All together


def training_step(
    model: AdapTokModel, adversarial: AdversarialLoss, lpips: LPIPSNetwork, video: torch.Tensor
) -> tuple[dict[str, torch.Tensor], AdapTokPriorModel, AdapTokOutput]:
    """What the training script does at a step, with all of the paper's terms."""
    torch.manual_seed(3)
    prior = AdapTokPriorModel(
        AdapTokPriorConfig(codebook_dim=8, num_latent_tokens=18, hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    )
    counts = torch.tensor([[6, 2, 1], [1, 4, 6]])
    output = model(video, counts)
    codebook = model.quantizer.normalized_codebook()
    prior_term = prior_loss(prior, output.code_vectors, output.codes, codebook, counts, sampling_ratio=0.25)
    terms = TokenizerLoss(TokenizerLossWeights(), lpips, adversarial)(video, output, 0, prior_term)
    return terms, prior, output


def test_the_papers_loss(tiny_tokenizer, adversarial, lpips, tiny_video):
    terms, prior, output = training_step(tiny_tokenizer, adversarial, lpips, tiny_video)
    weights = {"l1": 1, "perceptual": 1, "adversarial": 0.3, "commitment": 0.1 * 0.25, "codebook": 0.1, "prior": 0.06}
    assert set(terms) == {"total", *weights}
    close(terms["total"], sum(weight * terms[name].detach() for name, weight in weights.items()))
    close(terms["l1"], (output.pixel_values_videos - tiny_video).abs().mean())
    close(terms["commitment"], output.commitment_loss)
    terms["total"].backward()
    for module in (tiny_tokenizer, prior):
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in module.parameters())
    for module in (adversarial, lpips):
        assert all(parameter.grad is None for parameter in module.parameters())


def test_everything_is_finite_in_bf16(tiny_tokenizer, adversarial, lpips, tiny_video):
    exact, _, output = training_step(tiny_tokenizer, adversarial, lpips, tiny_video)
    adversarial.r1_weight = 1.0
    with torch.autocast("cpu", torch.bfloat16):
        terms, prior, output = training_step(tiny_tokenizer, adversarial, lpips, tiny_video)
        discriminator_terms = adversarial(tiny_video, output.pixel_values_videos)
    for name, term in (terms | {f"discriminator.{k}": v for k, v in discriminator_terms.items()}).items():
        assert term.dtype == torch.float32 and term.ndim == 0 and term.isfinite(), name
    for name in ("l1", "perceptual", "adversarial"):
        assert_close(terms[name], exact[name], atol=0.02, rtol=0.05)
    terms["total"].backward()
    discriminator_terms["total"].backward()
    for module in (tiny_tokenizer, prior, adversarial):
        assert all(parameter.grad.isfinite().all() for parameter in module.parameters())


def test_terms_come_and_go(adversarial, tiny_video):
    adversarial.start_step = 10
    weights = TokenizerLossWeights(mse=5.0, perceptual=0, prior=0)
    loss = TokenizerLoss(weights, None, adversarial)
    without_quantizer = AdapTokOutput(pixel_values_videos=tiny_video + 0.1)
    terms = loss(tiny_video, without_quantizer, step=9)
    assert set(terms) == {"total", "l1", "mse"}
    close(terms["total"], 0.1 + 5 * 0.01)
    assert set(loss(tiny_video, without_quantizer, step=10)) == {"total", "l1", "mse", "adversarial"}


def test_tokenizer_loss_refuses(adversarial, tiny_video):
    for name, value in (("l1", -1.0), ("prior", math.inf)):
        with pytest.raises(ValueError, match=f"the weight {name} must be finite and not negative, got {value}"):
            TokenizerLossWeights(**{name: value})
    with pytest.raises(ValueError, match="the weight perceptual is 1.0, but there is no perceptual_network"):
        TokenizerLoss(TokenizerLossWeights(), None, adversarial)
    with pytest.raises(ValueError, match="the weight adversarial is 0.3, but there is no adversarial loss"):
        TokenizerLoss(TokenizerLossWeights(perceptual=0))
    loss = TokenizerLoss(TokenizerLossWeights(perceptual=0, adversarial=0))
    output = AdapTokOutput(pixel_values_videos=tiny_video, codes=torch.zeros(2, 3, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="the weight prior is 0.06, but there is no prior_term"):
        loss(tiny_video, output, step=0)
    with pytest.raises(ValueError, match=r"video is \(2, 4, 3, 16, 16\), its reconstruction \(2, 12, 3, 16, 16\)"):
        loss(tiny_video[:, :4], output, step=0)
    nothing = TokenizerLoss(TokenizerLossWeights(0, 0, 0, 0, 0, 0, 0))
    with pytest.raises(ValueError, match="nothing to minimise"):
        nothing(tiny_video, output, step=0)
