"""The start of scorer training: a scorer that predicts before the first step (`training_scripts/scorer_start.py`)."""

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from adaptok_hf import AdapTokScorerConfig, AdapTokScorerModel

SIZES = {"latent_size": 24, "num_blocks": 3, "latents_per_block": 32, "score_step": 4, "score_mean": 0.5, "score_std": 0.4}


@pytest.fixture
def scorer_start(scripts):
    import scorer_start

    return scorer_start


def measured_blocks(scorer_start, count, seed):
    """Batches of 4 clips whose blocks have more or less content; what is dropped of it is the loss."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for index in range(count):
        blocks = 1 + index % 3
        amount = 2 ** (3 * torch.rand(4, blocks, generator=generator) - 2)
        latents = torch.randn(4, blocks, 32, 24, generator=generator) * amount[..., None, None]
        latents[..., 5] += torch.linspace(-20, 20, 32)  # of the place, not of the content
        levels = torch.randperm(8, generator=generator)[:4].sort().values
        losses = amount[:, -1:] * (1.1 - (levels + 1) / 8).sqrt()
        batches.append(scorer_start.MeasuredBlocks(latents, torch.full((4, blocks), 32), levels, losses))
    return batches


def test_losses_are_predicted_from_the_start(scorer_start):
    torch.manual_seed(0)
    config = AdapTokScorerConfig(**SIZES, hidden_size=128, num_attention_heads=8, num_hidden_layers=2)
    scorer = AdapTokScorerModel(config).eval()
    scorer_start.initialize_as_energy_scorer(scorer, measured_blocks(scorer_start, 40, seed=1))
    new = measured_blocks(scorer_start, 15, seed=2)
    with torch.no_grad():
        scores = [scorer(b.latents, b.latents, b.counts).scores[:, -1, b.levels] for b in new]
    predicted, wanted = torch.cat(scores), torch.cat([b.losses for b in new])
    assert np.corrcoef(predicted.flatten(), wanted.flatten())[0, 1] > 0.95
    assert spearmanr(predicted.mean(1), wanted.mean(1)).statistic > 0.95  # across clips
    assert np.mean([spearmanr(row, other).statistic for row, other in zip(predicted, wanted, strict=True)]) > 0.95


def test_too_small(scorer_start):
    scorer = AdapTokScorerModel(AdapTokScorerConfig(**SIZES, hidden_size=32, num_attention_heads=2, num_hidden_layers=1))
    with pytest.raises(ValueError, match="needs 2 layers"):
        scorer_start.initialize_as_energy_scorer(scorer, measured_blocks(scorer_start, 2, seed=1))
