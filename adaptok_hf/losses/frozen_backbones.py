"""Frozen networks that losses look through: loading, their inputs, and modules that hold one without owning it."""

import torch
from torch import nn
from torch.nn.functional import interpolate
from transformers import PreTrainedModel

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class HoldsBackbone(nn.Module):
    """A module with a frozen backbone that moves with it, and is no part of its parameters or state dictionary."""

    def __init__(self, backbone: nn.Module):
        super().__init__()
        self._held = (backbone.eval().requires_grad_(False),)  # in a tuple, so that it is no sub-module

    @property
    def backbone(self) -> nn.Module:
        return self._held[0]

    def _apply(self, fn, recurse=True):
        self.backbone._apply(fn, recurse)
        return super()._apply(fn, recurse)


def load_backbone(model_class: type[PreTrainedModel], name: str) -> PreTrainedModel:
    """Return a frozen model in float32.

    Args:
        name: folder or Hub id.

    Raises:
        ValueError: if its weights are not those of such a model.
        OSError: if it is missing.
    """
    model, report = model_class.from_pretrained(name, dtype=torch.float32, output_loading_info=True)
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{name} is no {model_class.__name__}: {len(missing)} weights are missing, such as {missing[0]}")
    return model.eval().requires_grad_(False)


def backbone_pixels(video: torch.Tensor, size: tuple[int, int], num_frames: int | None = None) -> torch.Tensor:
    """Return a video as image backbones expect it: resized, and standardized by ImageNet's mean and deviation.

    Args:
        video: (batch, frames, 3, height, width), in [0, 1] but not clamped.
        size: height and width.
        num_frames: frames are repeated or left out to be so many; `None` keeps them.
    """
    if num_frames is not None and num_frames != (frames := video.shape[1]):
        video = video[:, torch.arange(num_frames, device=video.device) * frames // num_frames]
    flat = video.flatten(0, 1).float()
    if flat.shape[-2:] != size:
        flat = interpolate(flat, size, mode="bicubic", align_corners=False, antialias=max(flat.shape[-2:]) > max(size))
    mean, std = (flat.new_tensor(values)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((flat - mean) / std).unflatten(0, video.shape[:2])
