"""Tiny real models, shared by the tests."""

import pytest
import torch

from adaptok_hf import (
    AdapTokConfig,
    AdapTokModel,
    AdapTokPipeline,
    AdapTokScorerConfig,
    AdapTokScorerModel,
    AdapTokVideoProcessor,
)


@pytest.fixture
def tiny_config() -> AdapTokConfig:
    """3 blocks of 4 frames of 16x16 pixels, 4 patches and 6 latents a block."""
    return AdapTokConfig(
        image_size=16,
        num_frames=12,
        patch_size=8,
        hidden_size=32,
        num_attention_heads=2,
        num_encoder_layers=2,
        num_decoder_layers=2,
        latents_per_block=6,
        codebook_size=50,
        codebook_dim=8,
    )


@pytest.fixture
def tiny_tokenizer(tiny_config) -> AdapTokModel:
    torch.manual_seed(0)
    model = AdapTokModel(tiny_config).eval()
    # Xavier weights alone leave the latents of different videos almost equal.
    with torch.no_grad():
        model.encoder.patch_embedding.projection.weight.mul_(8)
    return model


@pytest.fixture
def tiny_scorer() -> AdapTokScorerModel:
    torch.manual_seed(1)
    config = AdapTokScorerConfig(
        latent_size=32,
        num_blocks=3,
        latents_per_block=6,
        score_step=2,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
    )
    return AdapTokScorerModel(config).eval()


@pytest.fixture
def tiny_video() -> torch.Tensor:
    """(2, 12, 3, 16, 16) in [0, 1]."""
    return torch.rand(2, 12, 3, 16, 16, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def tiny_pipeline(tiny_tokenizer, tiny_scorer) -> AdapTokPipeline:
    processor = AdapTokVideoProcessor(image_size=16, num_frames=12, tubelet_size=4)
    pipeline = AdapTokPipeline(processor, tiny_tokenizer, tiny_scorer)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
