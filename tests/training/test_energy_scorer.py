"""Closed-form initialization of a scorer: it predicts before the first step of training."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import nn

from adaptok_hf import AdapTokScorerConfig, AdapTokScorerModel
from adaptok_hf.training.closed_form import energy_scorer
from adaptok_hf.training.closed_form.energy_scorer import MeasuredBlocks, check_groups, initialize_as_energy_scorer

SIZES = {"latent_size": 24, "num_blocks": 3, "latents_per_block": 32, "score_step": 4, "score_mean": 0.5, "score_std": 0.4}


def codec_projection() -> nn.Linear:
    """6 of the 24 channels, as a tokenizer's quantizer sees them."""
    project_in = nn.Linear(24, 6)
    with torch.no_grad():
        project_in.weight.copy_(torch.eye(6, 24))
        project_in.bias.zero_()
    return project_in


def measured_blocks(count, seed):
    """Batches of 4 clips whose blocks have more or less content, in two groups; the loss is the energy that is dropped."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for index in range(count):
        blocks = 1 + index % 3
        amounts = (2 ** (3 * torch.rand(4, blocks, 2, generator=generator) - 2)).repeat_interleave(16, dim=2)
        latents = torch.randn(4, blocks, 32, 24, generator=generator)
        latents[..., :6] *= amounts[..., None]
        latents[..., 10] += torch.linspace(-20, 20, 32)  # of the place, not of the content
        levels = torch.randperm(8, generator=generator)[:4].sort().values
        energies = latents[:, -1, :, :6].square().sum(-1) + 0.05
        dropped = energies.flip(1).cumsum(1).flip(1)  # of each latent and those after it
        dropped = torch.cat([dropped, torch.zeros(4, 1)], 1)[:, (levels + 1) * 4]
        losses = ((dropped + 0.2 * (energies.sum(1, keepdim=True) - dropped)) / 200).sqrt()
        batches.append(MeasuredBlocks(latents, levels, losses))
    return batches


@pytest.mark.parametrize("starts", [[0, 16], None])
def test_losses_are_predicted(starts, monkeypatch):
    monkeypatch.setattr(energy_scorer, "HEAD_STEPS", 400)
    torch.manual_seed(0)
    config = AdapTokScorerConfig(**SIZES, hidden_size=128, num_attention_heads=8, num_hidden_layers=2)
    scorer = AdapTokScorerModel(config).eval()
    initialize_as_energy_scorer(scorer, measured_blocks(30, seed=1), codec_projection(), starts)
    new = measured_blocks(15, seed=2)
    with torch.no_grad():
        scores = [scorer(b.latents, b.latents).scores[:, -1, b.levels] for b in new]
    predicted, losses = torch.cat(scores), torch.cat([b.losses for b in new])
    assert np.corrcoef(predicted.flatten(), losses.flatten())[0, 1] > 0.98
    assert spearmanr(predicted.mean(1), losses.mean(1)).statistic > 0.95  # across clips
    assert np.mean([spearmanr(row, other).statistic for row, other in zip(predicted, losses, strict=True)]) > 0.95


@pytest.mark.parametrize("starts", [[], [4, 16], [0, 16, 16], [0, 20, 10], [0, 32], list(range(9))])
def test_groups_that_do_not_fit(starts):
    config = AdapTokScorerConfig(**SIZES, hidden_size=128, num_attention_heads=8, num_hidden_layers=2)
    with pytest.raises(ValueError, match="below 32, at most 8"):
        check_groups(config, 6, starts)


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2},
        {"hidden_size": 64, "num_attention_heads": 32, "num_hidden_layers": 2},
        {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 1},
    ],
)
def test_too_small(sizes):
    config = AdapTokScorerConfig(**SIZES, **sizes)
    with pytest.raises(ValueError, match="needs 2 layers"):
        check_groups(config, 24 if sizes["hidden_size"] == 32 else 6, None)
