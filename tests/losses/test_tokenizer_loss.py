"""The perceptual loss, and all terms of the tokenizer's loss together."""

import math

import pytest
import torch
from torch.testing import assert_close

from adaptok_hf import AdapTokModel, AdapTokPriorConfig, AdapTokPriorModel
from adaptok_hf.losses import (
    AdversarialLoss,
    DiscriminatorConfig,
    TokenizerLoss,
    TokenizerLossWeights,
    VideoDiscriminator,
    prior_loss,
)
from adaptok_hf.metrics.lpips_network import LPIPSNetwork
from adaptok_hf.models.modeling_adaptok import AdapTokOutput


def close(ours: torch.Tensor, stored: float | torch.Tensor, bound: float = 1e-5) -> None:
    assert_close(ours.detach(), torch.as_tensor(stored, dtype=ours.dtype), atol=bound, rtol=0)


@pytest.fixture(scope="module")
def lpips() -> LPIPSNetwork:
    torch.manual_seed(0)
    return LPIPSNetwork("vgg").requires_grad_(False).eval()


@pytest.fixture
def adversarial() -> AdversarialLoss:
    torch.manual_seed(0)
    size = {"image_size": 16, "num_frames": 12, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 2}
    return AdversarialLoss(VideoDiscriminator(DiscriminatorConfig(**size)))


def perceptual_loss(lpips, reconstruction, video):
    loss = TokenizerLoss(TokenizerLossWeights(0, 0, 1, 0, 0, 0, 0), lpips)
    return loss(video, AdapTokOutput(pixel_values_videos=reconstruction), step=0)["perceptual"]


def test_perceptual_loss_is_the_mean_over_frames(lpips, tiny_video):
    other = tiny_video.flip(0)
    per_frame = torch.stack([lpips(a, b) for a, b in zip(tiny_video, other, strict=True)])  # (batch, frames)
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
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            TokenizerLossWeights(**{name: value})
    with pytest.raises(ValueError, match="perceptual_network"):
        TokenizerLoss(TokenizerLossWeights(), None, adversarial)
    with pytest.raises(ValueError, match="adversarial.*0.3"):
        TokenizerLoss(TokenizerLossWeights(perceptual=0))
    loss = TokenizerLoss(TokenizerLossWeights(perceptual=0, adversarial=0))
    output = AdapTokOutput(pixel_values_videos=tiny_video, codes=torch.zeros(2, 3, 6, dtype=torch.long))
    with pytest.raises(ValueError, match="0.06.*prior_term"):
        loss(tiny_video, output, step=0)
    with pytest.raises(ValueError, match=r"\(2, 4, 3, 16, 16\).*\(2, 12, 3, 16, 16\)"):
        loss(tiny_video[:, :4], output, step=0)
    nothing = TokenizerLoss(TokenizerLossWeights(0, 0, 0, 0, 0, 0, 0))
    with pytest.raises(ValueError, match="no term"):
        nothing(tiny_video, output, step=0)
