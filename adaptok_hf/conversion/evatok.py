"""Converts the tokenizers that EVATok's authors publish."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import torch

from ..atomic_files import atomic_folder, write_json
from ..models.configuration_evatok import EVATokConfig
from ..models.modeling_evatok import EVATokModel
from ..video.video_processing_adaptok import AdapTokVideoProcessor
from .convert import ConversionReport, ConvertedModel, sha256_of, write_models
from .evatok_files import read_config, read_weights
from .evatok_names import SEPARATE, Mapped, UnmatchedNamesError, match_names

VERIFIED_PSNR = 20.0  # dB at most tokens: the paper has 27, and wrongly matched tensors end below 12
POLARITIES = ("sees", "hides")


def convert_evatok(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    config: str | os.PathLike,
    names: str | os.PathLike | None = None,
    patch_order: str | None = None,
    mask_polarity: str | None = None,
    verify: str | os.PathLike | None = None,
) -> ConversionReport:
    """Convert a tokenizer of EVATok (.pt) to a folder for `AdapTokPipeline.from_pretrained`.

    The layout of these files was inferred from GigaTok and never tried on a real one, so nothing is guessed: a tensor is
    taken where its name is a known alias, or where nothing else has its shape. `verify` proves the result.

    Args:
        source: the checkpoint. Nothing but tensors, plain values, numpy's numbers and `argparse.Namespace` is unpickled.
        destination: a folder that does not exist or is empty; it appears only when all of it is written.
        config: the YAML next to the checkpoint, or a `config.json` of [`EVATokConfig`].
        names: a JSON file, our names -> the checkpoint's, for what has no alias.
        patch_order: in which order the linear maps from and to pixels hold a patch: `"cthw"`, `"thwc"` or another order of
            these letters. Kernels of convolutions say it themselves.
        mask_polarity: what `True` in a mask means to a source with separate q_proj, k_proj and v_proj: `"sees"`, as here,
            or `"hides"`. Fused projections are `nn.MultiheadAttention`'s, where it hides.
        verify: a video, of which the first clip must come back above 20 dB at most tokens.

    Raises:
        FileNotFoundError: if a file is missing.
        UnmatchedNamesError (a ValueError): lists both sides, and names the file to complete for `names`.
        ValueError: for a file that asks for more to be unpickled, arguments that are not supported or missing, a
            destination in use, and a result that does not pass `verify`.
    """
    source, destination = Path(source).expanduser(), Path(destination).expanduser().resolve()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ValueError(f"{destination} exists already; give a folder that does not exist or is empty")
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; accepted is a checkpoint of EVATok (.pt)")
    tensors = read_weights(source)
    if "tok_embeddings.weight" in tensors:
        raise ValueError(f"{source} holds a generator; of EVATok only tokenizers are converted")
    ours = _with_feature_size(read_config(config), tensors)
    notes = [_mask_note(tensors, mask_polarity)]
    with torch.device("meta"):
        model = EVATokModel(ours)
    given = _read_names(names) if names is not None else {}
    try:
        mapped = match_names({name: p.shape for name, p in model.named_parameters()}, tensors, given)
    except UnmatchedNamesError as error:
        path = Path(names) if names is not None else destination.parent / "names.json"
        if names is None and path.exists():
            raise ValueError(f"{error}\n{path} exists already: complete it and give it as names (--names)") from error
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, given | error.template)
        raise ValueError(f"{error}\ncomplete {path} and give it as names (--names)") from error
    _order_pixels(mapped, tensors, ours, patch_order)
    model.load_state_dict(mapped.tensors, assign=True)
    model.eval()
    if mapped.by_shape:
        notes.append("matched by shape: " + ", ".join(f"{name} = {mapped.sources[name]}" for name in mapped.by_shape))
    if verify is not None:
        notes.append(_verify(model, verify))
    with atomic_folder(destination) as partial:
        write_models({"tokenizer": model}, partial)
    size = sum(p.numel() for p in model.parameters())
    checksum = sha256_of(destination / "tokenizer" / "model.safetensors")
    converted = ConvertedModel("tokenizer", len(mapped.tensors), size, 0, checksum)
    return ConversionReport(source, sha256_of(source), destination, (converted,), tuple(notes))


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


def _read_names(path: str | os.PathLike) -> dict[str, str | None]:
    try:
        names = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(names, dict) or not all(isinstance(value, str | None) for value in names.values()):
        raise ValueError(f"{path} must hold an object, our names -> the checkpoint's or null")
    return names


def _order_pixels(mapped: Mapped, tensors: Mapping[str, torch.Tensor], config: EVATokConfig, order: str | None) -> None:
    """Bring the linear maps from and to pixels into our orders; kernels of convolutions are in it."""
    if order is not None and sorted(order) != sorted("cthw"):
        raise ValueError(f"patch_order must be an order of the letters c, t, h and w, got {order!r}")
    maps = {"encoder.patch_embedding.projection.weight": (1, "cthw")}
    maps |= {f"decoder.head.projection.{end}": (0, "thwc") for end in ("weight", "bias")}
    kernels = {name.rpartition(".")[0] for name in maps if tensors[mapped.sources[name]].ndim == 5}
    linear = [name for name in maps if name.rpartition(".")[0] not in kernels]
    if bool(linear) != (order is not None):
        sources = ", ".join(mapped.sources[name] for name in linear or maps)
        if order is not None:
            raise ValueError(f"patch_order={order!r}, but both maps are kernels: {sources}")
        raise ValueError(
            f"linear maps hold patches in an unknown order: {sources}; give patch_order (--patch-order), such as thwc"
        )
    sizes = {"c": config.num_channels, "t": config.tubelet_size, "h": config.patch_size, "w": config.patch_size}
    for name in linear:
        axis, ours = maps[name]
        values = mapped.tensors[name].movedim(axis, 0).unflatten(0, [sizes[letter] for letter in order])
        values = values.movedim([order.index(letter) for letter in ours], [0, 1, 2, 3]).flatten(0, 3)
        mapped.tensors[name] = values.movedim(0, axis).contiguous()


@torch.no_grad()
def _verify(model: EVATokModel, video: str | os.PathLike) -> str:
    """Return the PSNR of a video's first clip at most tokens; raise `ValueError` below `VERIFIED_PSNR`."""
    config = model.config
    processor = AdapTokVideoProcessor(config.image_size, config.num_frames, config.tubelet_size)
    clip = processor(os.fspath(video))["pixel_values_videos"]
    counts = torch.full((1, config.num_blocks), config.latents_per_block)
    decoded = model.decode(model.encode(clip, counts).codes, counts).pixel_values_videos
    psnr = -10 * float((decoded.clamp(0, 1) - clip).square().mean().clamp(min=1e-10).log10())
    if not psnr >= VERIFIED_PSNR:
        raise ValueError(
            f"{video} comes back with {psnr:.1f} dB at {config.num_blocks} x {config.latents_per_block} tokens, expected "
            f"at least {VERIFIED_PSNR:g}: some tensors are not where they belong, or of another patch order; nothing was "
            "written"
        )
    return f"verified: {psnr:.1f} dB on {video} at {config.num_blocks} x {config.latents_per_block} tokens"


__all__ = ["convert_evatok"]
