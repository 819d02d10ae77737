"""Tiny random backbones for losses that look through one."""

import torch
from transformers import VideoMAEConfig, VideoMAEModel, VJEPA2Config, VJEPA2Model


def make_vjepa(size: int = 16) -> VJEPA2Model:
    """Patches of 2 frames of 8x8 pixels, width 12."""
    torch.manual_seed(5)
    predictor = {"pred_hidden_size": 12, "pred_num_attention_heads": 2, "pred_num_hidden_layers": 1}
    return VJEPA2Model(
        VJEPA2Config(crop_size=size, patch_size=8, hidden_size=12, num_attention_heads=2, num_hidden_layers=2, **predictor)
    )


def make_videomae() -> VideoMAEModel:
    """Patches of 2 frames of 8x8 pixels, 8 frames of 16x16, width 12."""
    torch.manual_seed(6)
    sizes = {"image_size": 16, "patch_size": 8, "num_frames": 8, "hidden_size": 12, "intermediate_size": 24}
    return VideoMAEModel(VideoMAEConfig(**sizes, num_attention_heads=2, num_hidden_layers=2, initializer_range=0.2))
