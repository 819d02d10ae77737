"""Tiny EVATok models and inputs."""

import torch

from adaptok_hf import EVATokConfig, EVATokModel

TINY = {
    "image_size": 16,
    "patch_size": 4,
    "num_frames": 16,
    "levels": [2, 4, 16],
    "encoder_hidden_size": 16,
    "num_encoder_layers": 2,
    "num_encoder_attention_heads": 2,
    "decoder_hidden_size": 24,
    "num_decoder_layers": 2,
    "num_decoder_attention_heads": 3,
    "latent_size": 12,
    "codebook_size": 40,
    "codebook_dim": 8,
}


def make_evatok(**changes) -> EVATokModel:
    """4 blocks of 4 frames of 16x16 pixels, 16 patches a block."""
    torch.manual_seed(0)
    model = EVATokModel(EVATokConfig(**TINY | changes)).eval()
    # Xavier weights alone leave the latents of different videos almost equal
    model.encoder.patch_embedding.projection.weight.data.mul_(4)
    return model


def make_clips(batch: int = 3, num_frames: int = 16, size: int = 16) -> torch.Tensor:
    return torch.rand(batch, num_frames, 3, size, size, generator=torch.Generator().manual_seed(1))
