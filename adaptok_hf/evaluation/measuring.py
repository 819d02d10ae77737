"""The networks of an evaluation, and the metrics of clips against their originals."""

import logging
from dataclasses import dataclass
from functools import cached_property

import torch

from ..metrics import I3DNetwork, LPIPSNetwork, VideoLPIPS, VideoPSNR, VideoSSIM
from ..metrics.weight_formats import tensors_sha256

logger = logging.getLogger(__name__)

LPIPS_NETS = ("vgg", "alex", "none")


@dataclass
class Networks:
    """The networks that metrics need.

    Args:
        lpips: distance of images, or `None`: LPIPS is not measured.
        features: of whole clips, for FVD, or `None`.
        missing: why a network that was asked for is not available.
    """

    lpips: torch.nn.Module | None = None
    features: torch.nn.Module | None = None
    missing: tuple[str, ...] = ()

    @property
    def lpips_name(self) -> str | None:
        return _name(self.lpips)

    @cached_property
    def lpips_sha256(self) -> str | None:
        """Hash of the weights."""
        return None if self.lpips is None else tensors_sha256(self.lpips.state_dict())

    @property
    def lpips_key(self) -> str | None:
        """Name and hash of the weights."""
        return None if self.lpips is None else f"{self.lpips_name}-{self.lpips_sha256[:12]}"

    @cached_property
    def features_key(self) -> str | None:
        """Name and hash of the weights."""
        if self.features is None:
            return None
        return f"{_name(self.features)}-{tensors_sha256(self.features.state_dict())[:12]}"


def _name(network: torch.nn.Module | None) -> str | None:
    return None if network is None else getattr(network, "net", type(network).__name__)


def load_networks(lpips: str = "vgg", fvd: bool = True, device: str | torch.device = "cpu") -> Networks:
    """Load the true networks; one whose weights are not available is left out with a warning.

    Args:
        lpips: `"vgg"`, `"alex"` or `"none"`.

    Raises:
        ValueError: for another network.
    """
    if lpips not in LPIPS_NETS:
        raise ValueError(f"lpips must be one of {', '.join(LPIPS_NETS)}, got {lpips!r}")
    networks, missing = {}, []
    for name, wanted, load in (
        ("lpips", lpips != "none", lambda: LPIPSNetwork.from_pretrained(lpips)),
        ("features", fvd, I3DNetwork.from_pretrained),
    ):
        if wanted:
            try:
                networks[name] = load().to(device)
            except OSError as error:
                logger.warning("left out: %s", error)
                missing.append(f"{'LPIPS' if name == 'lpips' else 'FVD'} was not measured: {error}")
    return Networks(**networks, missing=tuple(missing))


def measure_clips(networks: Networks, videos: torch.Tensor, originals: torch.Tensor) -> list[dict[str, float]]:
    """Measure clips against their originals.

    Args:
        videos, originals: (clips, frames, 3, height, width) in [0, 1], on the networks' device.

    Returns:
        One dict per clip: `psnr`, `ssim` (frames of at least 11 x 11 pixels) and `lpips` (if there is a network).
    """
    values = {"psnr": VideoPSNR().measure(videos, originals)}
    if min(videos.shape[-2:]) >= 11:
        values["ssim"] = VideoSSIM().measure(videos, originals)
    if networks.lpips is not None:
        values["lpips"] = VideoLPIPS(network=networks.lpips).measure(videos, originals)
    columns = {name: value.tolist() for name, value in values.items()}
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


@torch.no_grad()
def clip_features(network: torch.nn.Module, videos: torch.Tensor, feature_size: int | None = None) -> torch.Tensor:
    """Return features of clips, computed on the network's device.

    Clips are taken one at a time, because I3D's activations of a clip are large.

    Args:
        videos: (clips, frames, 3, height, width) in [0, 1].
        feature_size: resize to this square first (antialiased bilinear), for protocols that ask for it.

    Returns:
        (clips, D) float32, on the CPU.
    """
    rows = []
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    for video in videos.to(device).split(1):
        if feature_size is not None:
            size = (feature_size, feature_size)
            video = torch.nn.functional.interpolate(video[0], size=size, mode="bilinear", antialias=True)[None].clamp(0, 1)
        rows.append(network(video).float().cpu())
    return torch.cat(rows) if rows else torch.zeros(0, network.num_features)
