"""Closed-form initialization of a tokenizer: a codec before the first step of training."""

import pytest
import torch

from adaptok_hf import AdapTokConfig, AdapTokModel
from adaptok_hf.training.closed_form.transform_codec import initialize_as_transform_codec
from adaptok_hf.training.closed_form.transform_codec_layout import scattered_order
from adaptok_hf.training.tokenizer.codebook import initialize_codebook

GEOMETRY = {
    "image_size": 32,
    "num_frames": 8,
    "patch_size": 8,
    "hidden_size": 96,
    "num_attention_heads": 2,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "latents_per_block": 64,
    "codebook_size": 512,
    "codebook_dim": 8,
    "learned_encoder_patch_positions": True,
    "learned_decoder_latent_positions": True,
    "learned_decoder_patch_queries": True,
    "stochastic_quantizer": False,
}


def smooth_clips(count, seed):
    """Random waves with energy at low frequencies, (count, 8, 3, 32, 32) in [0, 1]; the two blocks differ."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.randn(count, 8, 3, 32, 17, 2, generator=generator)
    rows, columns = torch.fft.fftfreq(32).abs()[:, None], torch.fft.rfftfreq(32)
    spectrum = spectrum / (0.003 + rows.square() + columns.square()).pow(1.2)[..., None]
    waves = torch.fft.irfft2(torch.view_as_complex(spectrum), s=(32, 32))
    return (0.5 + 0.15 * waves / waves.std()).clamp(0, 1).repeat_interleave(4, 1)[:, 8:16]


def psnr(decoded, video):
    return float((-10 * (decoded - video).square().flatten(1).mean(1).log10()).mean())


@pytest.fixture(scope="module")
def initialized():
    torch.manual_seed(0)
    model = AdapTokModel(AdapTokConfig(**GEOMETRY)).eval()
    initialize_as_transform_codec(model, smooth_clips(64, 0)[:, :4])
    return model


@torch.no_grad()
def test_every_doubling_of_the_budget_helps(initialized):
    video = smooth_clips(8, 1)
    codes = initialized.encode(video).codes
    values = [
        psnr(initialized.decode(codes, torch.full((8, 2), count)).pixel_values_videos, video)
        for count in (4, 8, 16, 32, 64)
    ]
    mean_picture = psnr(video.mean((0, 1, 3, 4), keepdim=True).expand_as(video), video)
    assert values[2] > mean_picture + 1, values  # one latent at every patch
    assert values[-1] > mean_picture + 6
    assert all(more > less + 0.3 for less, more in zip(values[:-1], values[1:], strict=True)), values
    assert codes.unique().numel() > 200


@torch.no_grad()
def test_patches_fall_back_on_the_coarse_latents():
    """4 latents for 2 x 2 patches each, then 3 groups of 16: one latent for every patch."""
    torch.manual_seed(0)
    layers = {"num_encoder_layers": 3, "num_decoder_layers": 3}
    model = AdapTokModel(AdapTokConfig(**GEOMETRY | layers | {"latents_per_block": 52}))
    initialize_as_transform_codec(model.eval(), smooth_clips(64, 0)[:, :4], coarse=True)
    video = smooth_clips(8, 1)
    codes = model.encode(video).codes
    decoded = {n: model.decode(codes, torch.full((8, 2), n)).pixel_values_videos for n in (1, 2, 4, 12, 20, 36, 52)}
    values = {n: psnr(frames, video) for n, frames in decoded.items()}
    order = list(values.values())
    assert all(more > less for less, more in zip(order[:-1], order[1:], strict=True)), values
    # the 4 coarse latents hold what the patches of one region have in common, first of all its mean
    regions, coarse = (torch.nn.functional.avg_pool3d(x.transpose(1, 2), (4, 16, 16)) for x in (video, decoded[4]))
    assert torch.nn.functional.mse_loss(coarse, regions) < 0.25 * regions.var((0, 2, 3, 4)).mean()
    assert values[52] > values[4] + 5, values


@torch.no_grad()
def test_all_blocks_are_as_good_as_the_first(initialized):
    video = smooth_clips(8, 2)
    decoded = initialized.decode(initialized.encode(video).codes).pixel_values_videos
    assert psnr(decoded[:, 4:], video[:, 4:]) == pytest.approx(psnr(decoded[:, :4], video[:, :4]), abs=1.0)


@torch.no_grad()
def test_equal_patches_have_equal_codes_wherever_they_are(initialized):
    """After a layer norm, channels hold what the norm subtracts, which differs from place to place: no head copies it."""

    def contents(video):  # (clips, groups, places, content)
        return initialized.quantizer.project(initialized.encoder(video))[..., :-1].unflatten(1, (4, 16))

    typical = contents(smooth_clips(16, 4)[:, :4]).std((0, 2)).mean()
    assert contents(torch.full((1, 4, 3, 32, 32), 0.6)).std(2).max() < 0.1 * typical


@torch.no_grad()
def test_a_dropped_latent_changes_its_patch_only(initialized):
    video = smooth_clips(1, 3)[:, :4]
    quantized = initialized.encode(video).quantized
    full, fewer = (
        initialized.decode(quantized=quantized, token_counts=torch.tensor([[n]])).pixel_values_videos for n in (64, 63)
    )
    changed = (full - fewer).abs().amax((0, 1, 2)).unflatten(0, (4, 8)).unflatten(2, (4, 8)).amax((1, 3)).flatten()
    changed = changed.sort(descending=True).values
    assert changed[0] > 20 * changed[1]


def test_scattered_order_covers_the_frame_evenly():
    order = scattered_order(8)
    assert sorted(order.tolist()) == list(range(64))
    first = order[:4]
    assert len({(int(i) // 8 // 4, int(i) % 8 // 4) for i in first}) == 4  # one in each quarter


def test_too_few_heads():
    model = AdapTokModel(AdapTokConfig(**GEOMETRY | {"latents_per_block": 128}))
    with pytest.raises(ValueError, match="8 heads"):
        initialize_as_transform_codec(model, smooth_clips(2, 0)[:, :4])


def test_coarse_latents_alone():
    model = AdapTokModel(AdapTokConfig(**GEOMETRY | {"latents_per_block": 4}))
    with pytest.raises(ValueError, match="4 x 4 patches"):
        initialize_as_transform_codec(model, smooth_clips(2, 0)[:, :4], coarse=True)


@torch.no_grad()
def test_k_means_initializes_the_codebook():
    model = AdapTokModel(AdapTokConfig(**GEOMETRY | {"codebook_size": 4, "codebook_dim": 4}))
    centers = torch.eye(4)
    latents = torch.nn.functional.normalize(centers.repeat(50, 1) + 0.05 * torch.randn(200, 4), dim=-1)
    torch.manual_seed(1)
    initialize_codebook(model, torch.cat([latents, latents[:20]]), rounds=20)
    similarity = model.quantizer.normalized_codebook() @ latents.T
    assert similarity.amax(0).mean() > 0.8
    initialize_codebook(model, latents[:2])  # fewer latents than codes
    assert torch.isfinite(model.quantizer.codebook.weight).all()
