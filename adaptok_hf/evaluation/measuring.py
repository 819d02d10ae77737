"""The networks of an evaluation, and the metrics of clips against their originals."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from ..metrics import I3DNetwork, LPIPSNetwork, Protocol, VideoLPIPS, VideoPSNR, VideoSSIM
from ..metrics.weight_formats import tensors_sha256

if TYPE_CHECKING:
    from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
    from ..pipelines.pipeline_adaptok import AdapTokPipeline

logger = logging.getLogger(__name__)


@dataclass
class Networks:
    """The networks that metrics need.

    Args:
        lpips: distance of images, or `None`: LPIPS is not measured.
        features: of whole clips, for FVD, or `None`.
        missing: why a network that was asked for is not available.

    Keys are names with hashes of the weights.
    """

    lpips: torch.nn.Module | None = None
    features: torch.nn.Module | None = None
    missing: tuple[str, ...] = ()

    @property
    def lpips_name(self) -> str | None:
        return None if self.lpips is None else getattr(self.lpips, "net", type(self.lpips).__name__)

    @cached_property
    def lpips_sha256(self) -> str | None:
        return None if self.lpips is None else tensors_sha256(self.lpips.state_dict())

    @property
    def lpips_key(self) -> str | None:
        return None if self.lpips is None else f"{self.lpips_name}-{self.lpips_sha256[:12]}"

    @cached_property
    def features_key(self) -> str | None:
        weights = None if self.features is None else tensors_sha256(self.features.state_dict())
        return None if weights is None else f"{type(self.features).__name__}-{weights[:12]}"


def load_networks(lpips: str = "vgg", fvd: bool = True, device: str | torch.device = "cpu") -> Networks:
    """Load the true networks; one whose weights are not available is left out with a warning.

    Args:
        lpips: `"vgg"`, `"alex"` or `"none"`.

    Raises:
        ValueError: for another network.
    """
    loaders = {} if lpips == "none" else {"LPIPS": lambda: LPIPSNetwork.from_pretrained(lpips)}
    loaders |= {"FVD": I3DNetwork.from_pretrained} if fvd else {}
    networks, missing = {}, []
    for name, load in loaders.items():
        try:
            networks[name] = load().to(device)
        except OSError as error:
            logger.warning("left out: %s", error)
            missing.append(f"{name} was not measured: {error}")
    return Networks(networks.get("LPIPS"), networks.get("FVD"), tuple(missing))


def check_clip_size(name: str, pipeline: "AdapTokPipeline", protocol: Protocol) -> None:
    """Raise `ValueError` if a model's clips are not those of a protocol."""
    config = pipeline.tokenizer.config
    if (config.num_frames, config.image_size) != (protocol.num_frames, protocol.image_size):
        raise ValueError(
            f"{name} reads {config.num_frames} frames of {config.image_size} x {config.image_size}, the protocol "
            f"{protocol.name} has {protocol.num_frames} of {protocol.image_size} x {protocol.image_size}"
        )


def sampling_settings(generator: "AdapTokARForCausalLM", sampling: Mapping[str, Any]) -> dict[str, Any]:
    """Return how tokens are sampled: what is given, and the generator's own settings for the rest."""
    given = {name: value for name, value in sampling.items() if value is not None}
    settings = generator.generation_config.to_diff_dict() | given
    return {name: value for name, value in settings.items() if name != "transformers_version"}


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


def device_of(network: torch.nn.Module | None) -> torch.device:
    """Return where a network is; the CPU for one without parameters, and for none."""
    parameters = iter(()) if network is None else network.parameters()
    return next((parameter.device for parameter in parameters), torch.device("cpu"))


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
    for video in videos.to(device_of(network)).split(1):
        if feature_size is not None:
            size = (feature_size, feature_size)
            video = torch.nn.functional.interpolate(video[0], size=size, mode="bilinear", antialias=True)[None].clamp(0, 1)
        rows.append(network(video).float().cpu())
    return torch.cat(rows) if rows else torch.zeros(0, network.num_features)
