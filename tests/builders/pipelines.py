"""Pipelines of 32x32 pixels, and what they take of the memory."""

import numpy as np
import torch

from adaptok_hf import (
    AdapTokConfig,
    AdapTokModel,
    AdapTokPipeline,
    AdapTokScorerConfig,
    AdapTokScorerModel,
    AdapTokVideoProcessor,
)


def peak_bytes(run) -> int:
    """Return the most that torch's allocator on the CPU held while `run` ran, above what it held before."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiler:
        result = run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    events.sort(key=lambda event: event.start_ns())
    del result
    return int(np.cumsum([event.nbytes() for event in events]).max())


def make_pipeline(scorer_layers: int = 2, dtype: torch.dtype = torch.float32, **changes) -> AdapTokPipeline:
    """Build one for clips of 4 blocks of 4 frames of 32x32 pixels."""
    torch.manual_seed(0)
    config = AdapTokConfig(
        **{
            "image_size": 32,
            "patch_size": 8,
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_encoder_layers": 2,
            "num_decoder_layers": 2,
            "latents_per_block": 64,
            "codebook_size": 64,
            "codebook_dim": 8,
        }
        | changes
    )
    scorer = AdapTokScorerConfig(
        latent_size=config.hidden_size,
        latents_per_block=config.latents_per_block,
        score_step=8,
        hidden_size=64,
        num_attention_heads=2,
        num_hidden_layers=scorer_layers,
    )
    models = AdapTokModel(config).eval().to(dtype), AdapTokScorerModel(scorer).eval().to(dtype)
    pipeline = AdapTokPipeline(AdapTokVideoProcessor(config.image_size, 16, 4), *models)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def noisy_video(num_frames: int, seed: int = 0, size: int = 16) -> np.ndarray:
    """uint8 (num_frames, size, size, 3), every frame different."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8)
