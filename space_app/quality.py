"""How near a reconstruction is to its original: LPIPS where its network is on this machine, else SSIM."""

import functools

import numpy as np
import torch

from adaptok_hf.metrics import LPIPSNetwork
from adaptok_hf.metrics.network_weights import cache_folder

# Frames that are compared: both measures change slowly from frame to frame, and a visitor waits.
_FRAMES = 16


def perceptual_quality(reconstruction: np.ndarray, original: np.ndarray) -> tuple[str, float]:
    """Name and mean value over up to 16 evenly spaced frames.

    Args:
        reconstruction, original: uint8 (frames, height, width, 3).
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    index = np.unique(np.linspace(0, len(original) - 1, _FRAMES).round().astype(int))
    pair = [torch.from_numpy(frames[index]).permute(0, 3, 1, 2).float() / 255 for frames in (reconstruction, original)]
    network = _lpips()
    if network is None:
        return "SSIM", float(structural_similarity_index_measure(*pair, data_range=1.0))
    with torch.no_grad():
        return "LPIPS", float(network(*pair).mean())


@functools.cache
def _lpips() -> LPIPSNetwork | None:
    """The network if its weights lie in the cache; nothing is downloaded for a demo."""
    weights = cache_folder() / "lpips_vgg.safetensors"
    if not weights.exists():
        return None
    try:
        return LPIPSNetwork.from_pretrained("vgg", weights=weights)
    except (OSError, ValueError):  # a damaged file: SSIM will do
        return None
