"""Codes that follow latents, and the counts that batches keep."""

import pytest
import torch
from torch import nn

from adaptok_hf import AdapTokConfig, AdapTokModel
from adaptok_hf.training.block_mask_sampler import sample_grouped_token_counts
from adaptok_hf.training.tokenizer.codebook import CodebookAverage


@pytest.fixture
def model():
    sizes = {
        "image_size": 16,
        "hidden_size": 16,
        "num_attention_heads": 1,
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
    }
    torch.manual_seed(0)
    return AdapTokModel(AdapTokConfig(**sizes, latents_per_block=4, codebook_size=4, codebook_dim=3))


def test_codes_move_to_the_mean_of_their_latents(model):
    average = CodebookAverage(model, decay=0.5)
    targets = nn.functional.normalize(torch.randn(4, 3), dim=-1)
    codes = torch.arange(4).repeat(50)
    for _ in range(30):
        average.update(codes, targets[codes], None)
    torch.testing.assert_close(model.quantizer.codebook.weight, targets, rtol=0, atol=1e-4)
    assert not model.quantizer.codebook.weight.requires_grad


def test_dropped_latents_do_not_count(model):
    average = CodebookAverage(model, decay=0.5)
    latents = nn.functional.normalize(torch.tensor([[1.0, 0, 0], [0, 1.0, 0]]), dim=-1).repeat(40, 1)
    kept = torch.tensor([True, False]).repeat(40)
    for _ in range(30):
        average.update(torch.zeros(80, dtype=torch.long), latents, kept)
    torch.testing.assert_close(model.quantizer.codebook.weight[0], latents[0], rtol=0, atol=1e-4)


def test_unused_codes_move_onto_latents(model):
    average = CodebookAverage(model, decay=0.5)
    latents = nn.functional.normalize(torch.randn(60, 3), dim=-1)
    for _ in range(30):
        average.update(torch.arange(60) % 2, latents, None)
    distance = torch.cdist(model.quantizer.codebook.weight[2:], latents).amin(1)
    assert distance.max() < 1e-5


def test_counts_of_groups():
    torch.manual_seed(0)
    counts = torch.stack([sample_grouped_token_counts(4, 3, 128) for _ in range(2000)])
    many, few = counts[:, :2].flatten(), counts[:, 2:].flatten()
    assert (many.min(), many.max()) == (64, 128) and (few.min(), few.max()) == (8, 64)
    assert (many == 128).float().mean() == pytest.approx(1 / 3, abs=0.03)
    assert (few < 23).float().mean() == pytest.approx(0.5, abs=0.03)  # the middle of the logarithms
    assert (counts == counts[..., :1]).all(-1).float().mean() == pytest.approx(0.5, abs=0.06)
