"""Tiny real models and other things that several test files need."""

import gc
import importlib

import pytest
import torch
from builders.script_runs import SCRIPTS
from builders.video_files import make_frames, write_mp4

from adaptok_hf import (
    AdapTokARConfig,
    AdapTokARForCausalLM,
    AdapTokConfig,
    AdapTokModel,
    AdapTokPipeline,
    AdapTokScorerConfig,
    AdapTokScorerModel,
    AdapTokVideoProcessor,
)


def pytest_collection_finish() -> None:
    """Leave what is imported out of all later garbage collections."""
    gc.freeze()


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


@pytest.fixture
def complete_pipeline(tiny_tokenizer, tiny_scorer) -> AdapTokPipeline:
    """All parts, of another geometry than the shipped ones: 3 blocks of 6 latents, 50 codes, 3 classes."""
    torch.manual_seed(3)
    sizes = {"codebook_size": 50, "num_blocks": 3, "latents_per_block": 6, "hidden_size": 16, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    names = {0: "first_class", 1: "second", 2: "third"}
    by_class = AdapTokARForCausalLM(AdapTokARConfig(num_classes=3, id2label=names, **sizes)).eval()
    by_frames = AdapTokARForCausalLM(AdapTokARConfig(num_classes=0, num_condition_codes=9, start_block=1, **sizes)).eval()
    processor = AdapTokVideoProcessor(image_size=16, num_frames=12, tubelet_size=4)
    pipeline = AdapTokPipeline(processor, tiny_tokenizer, tiny_scorer, by_class, by_frames)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def clip_file(tmp_path) -> str:
    """`clip.mp4`, 20 frames of 40x64."""
    return str(write_mp4(tmp_path / "clip.mp4", frames=make_frames(20, 40, 64)))


@pytest.fixture
def scripts(monkeypatch):
    """Imports a module of `training_scripts/`."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module
