"""The tokenizers among EVATok's files."""

import os
import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch

from ..models.configuration_adaptok_router import AdapTokRouterConfig
from ..models.configuration_evatok import EVATokConfig
from ..models.modeling_evatok import EVATokModel
from ..video.video_processing_adaptok import AdapTokVideoProcessor
from .evatok_files import read_config
from .evatok_names import SEPARATE, Mapped, NameMatcher

VERIFIED_PSNR = 20.0  # dB at most tokens: the paper has 27, and wrongly matched tensors end below 12
POLARITIES = ("sees", "hides")
# Returns notes about what a video says of a converted model, or raises `ValueError`.
Proof = Callable[[str | os.PathLike], list[str]]


def convert_tokenizer(
    tensors: Mapping[str, torch.Tensor],
    names: NameMatcher,
    config: Path,
    *,
    patch_order: str | None = None,
    mask_polarity: str | None = None,
) -> tuple[EVATokModel, list[str], Proof]:
    """Return a tokenizer, notes about it, and what proves it on a video; see `convert_evatok`."""
    ours = _with_feature_size(read_config(config), tensors)
    notes = [_mask_note(tensors, mask_polarity)]
    with torch.device("meta"):
        model = EVATokModel(ours)
    mapped = names.match({name: p.shape for name, p in model.named_parameters()}, tensors)
    maps = {"encoder.patch_embedding.projection.weight": (1, "cthw")}
    maps |= {f"decoder.head.projection.{end}": (0, "thwc") for end in ("weight", "bias")}
    order_pixels(mapped, tensors, ours, patch_order, maps)
    model.load_state_dict(mapped.tensors, assign=True)
    model.eval()
    return model, [*notes, *mapped.notes()], partial(_verify, model)


def _with_feature_size(config: EVATokConfig, tensors: Mapping[str, torch.Tensor]) -> EVATokConfig:
    """Return the configuration with the width of what the encoder's first norm sees, which the YAML does not say."""
    norms = [tensor for name, tensor in tensors.items() if re.fullmatch(r"s[23]to1encoder\.ln_pre\.weight", name)]
    if config.feature_size is None and len(norms) == 1:
        config.feature_size = len(norms[0])
    return config


def _mask_note(tensors: Mapping[str, torch.Tensor], polarity: str | None) -> str:
    """Return what is assumed of the source's masks; raise `ValueError` where it must be said and is not."""
    if polarity not in (None, *POLARITIES):
        raise ValueError(f"mask_polarity must be one of {', '.join(map(repr, POLARITIES))}, got {polarity!r}")
    separate = [name for name in tensors if re.fullmatch(SEPARATE, name)]
    if not separate:
        if polarity == "sees":
            raise ValueError("mask_polarity='sees', but the projections are fused: nn.MultiheadAttention's masks hide")
        return "masks: True hides in the source (nn.MultiheadAttention); here True is what a query sees"
    if polarity is None:
        raise ValueError(
            f"{separate[0]} is a separate projection. In GigaTok a mask's True then means the opposite of what it means to "
            "fused ones, so it must be said: give mask_polarity (--mask-polarity), 'sees' if the source passes masks whose "
            "True is what a query sees, 'hides' if not"
        )
    if polarity == "hides":
        raise ValueError(
            "mask_polarity='hides' with separate projections: there the mask of earlier blocks would show later blocks "
            "only, which EVATokModel does not compute"
        )
    return "masks: True is what a query sees, in the source as here (as stated)"


def order_pixels(
    mapped: Mapped,
    tensors: Mapping[str, torch.Tensor],
    config: EVATokConfig | AdapTokRouterConfig,
    order: str | None,
    maps: Mapping[str, tuple[int, str]],
) -> None:
    """Bring the linear maps from and to pixels into our orders; kernels of convolutions are in it.

    Args:
        mapped: the tensors under our names, which are changed.
        tensors: the original's.
        config: has the sizes of a patch.
        order: the original's order of a patch's pixels in linear maps; `None` if there are none.
        maps: our names -> the axis of the pixels, and our order.

    Raises:
        ValueError: for an order that is missing, or of nothing.
    """
    if order is not None and sorted(order) != sorted("cthw"):
        raise ValueError(f"patch_order must be an order of the letters c, t, h and w, got {order!r}")
    kernels = {name.rpartition(".")[0] for name in maps if tensors[mapped.sources[name]].ndim == 5}
    linear = [name for name in maps if name.rpartition(".")[0] not in kernels]
    if bool(linear) != (order is not None):
        sources = ", ".join(mapped.sources[name] for name in linear or maps)
        if order is not None:
            raise ValueError(f"patch_order={order!r}, but the maps are kernels: {sources}")
        raise ValueError(
            f"linear maps hold patches in an unknown order: {sources}; give patch_order (--patch-order), such as thwc"
        )
    sizes = {"c": config.num_channels, "t": config.tubelet_size, "h": config.patch_size, "w": config.patch_size}
    for name in linear:
        axis, ours = maps[name]
        values = mapped.tensors[name].movedim(axis, 0).unflatten(0, [sizes[letter] for letter in order])
        values = values.movedim([order.index(letter) for letter in ours], [0, 1, 2, 3]).flatten(0, 3)
        mapped.tensors[name] = values.movedim(0, axis).contiguous()


def read_clip(video: str | os.PathLike, config: EVATokConfig | AdapTokRouterConfig) -> torch.Tensor:
    """Return the first clip of a video, (1, frames, channels, height, width)."""
    processor = AdapTokVideoProcessor(config.image_size, config.num_frames, config.tubelet_size)
    return processor(os.fspath(video))["pixel_values_videos"]


@torch.no_grad()
def _verify(model: EVATokModel, video: str | os.PathLike) -> list[str]:
    """Return the PSNR of a video's first clip at most tokens; raise `ValueError` below `VERIFIED_PSNR`."""
    config = model.config
    clip = read_clip(video, config)
    counts = torch.full((1, config.num_blocks), config.latents_per_block)
    decoded = model.decode(model.encode(clip, counts).codes, counts).pixel_values_videos
    psnr = -10 * float((decoded.clamp(0, 1) - clip).square().mean().clamp(min=1e-10).log10())
    if not psnr >= VERIFIED_PSNR:
        raise ValueError(
            f"{video} comes back with {psnr:.1f} dB at {config.num_blocks} x {config.latents_per_block} tokens, expected "
            f"at least {VERIFIED_PSNR:g}: some tensors are not where they belong, or of another patch order; nothing was "
            "written"
        )
    return [f"verified: {psnr:.1f} dB on {video} at {config.num_blocks} x {config.latents_per_block} tokens"]
