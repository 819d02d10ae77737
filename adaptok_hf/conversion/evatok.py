"""Converts what EVATok's authors publish: tokenizers, generators and routers."""

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from ..models.modeling_evatok import EVATokModel
from .convert import ConversionReport, ConvertedModel, check_addition, check_destination, save_models, sha256_of
from .evatok_files import GEOMETRY, read_weights
from .evatok_generators import convert_generator
from .evatok_names import ALIASES, CLASSES, TELLTALES, NameMatcher, alias_candidates
from .evatok_routers import convert_router
from .evatok_tokenizers import convert_tokenizer

# Which options belong to what.
OPTIONS = {
    "tokenizer": ("patch_order", "mask_polarity"),
    "ar_model": ("id_order", "classes", "verify_class"),
    "fp_model": ("id_order", "condition_counts", "condition_length_tokens"),
    "router": ("patch_order", "class_order", "pixel_range"),
}


def convert_evatok(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    config: str | os.PathLike,
    part: str | None = None,
    names: str | os.PathLike | None = None,
    verify: str | os.PathLike | None = None,
    patch_order: str | None = None,
    mask_polarity: str | None = None,
    id_order: str | None = None,
    classes: str | os.PathLike | None = None,
    verify_class: str | None = None,
    condition_counts: Sequence[int] | None = None,
    condition_length_tokens: bool | None = None,
    class_order: str | None = None,
    pixel_range: str | None = None,
) -> ConversionReport:
    """Convert a tokenizer, a generator or a router of EVATok (.pt) to a part of a pipeline's folder.

    The layout of these files was inferred from GigaTok and never tried on a real one, so nothing is guessed: a tensor is
    taken where its name is a known alias, or where nothing else has its shape. What the tensors do not say is an option
    with a default, and `verify` proves the result on a video. A tokenizer makes a new folder; generators and routers join
    it.

    Args:
        source: the checkpoint. Nothing but tensors, plain values, numpy's numbers and `argparse.Namespace` is unpickled.
        destination: a folder that does not exist or is empty; for a generator or router also a converted folder. What is
            written appears only when all of it is.
        config: the YAML next to the checkpoint, or a `config.json` of [`EVATokConfig`], [`AdapTokARConfig`] or
            [`AdapTokRouterConfig`]. What a generator's or router's YAML does not say of clips and codes is taken from the
            tokenizer in `destination`.
        part: `"tokenizer"`, `"ar_model"` (generator by class), `"fp_model"` (generator from frames) or `"router"`; default:
            what the tensors' names say.
        names: a JSON file, our names -> the checkpoint's, for what has no alias.
        verify: a video. Of a tokenizer, its first clip must come back above 20 dB at most tokens. To a generator, its clip,
            tokenized by the tokenizer in `destination`, must be likelier in the given order of ids than in any that was
            tried, and likelier than by chance. A router must expect a smaller share of tokens after the first block of a
            clip that repeats one frame than with any other order of classes.
        patch_order: of a tokenizer or router, in which order the linear maps from and to pixels hold a patch: `"cthw"`,
            `"thwc"` or another order of these letters. Kernels of convolutions say it themselves.
        mask_polarity: of a tokenizer, what `True` in a mask means to a source with separate q_proj, k_proj and v_proj:
            `"sees"`, as here, or `"hides"`. Fused projections are `nn.MultiheadAttention`'s, where it hides.
        id_order: of a generator, what the rows of its token table, and then of its table of classes, are, by commas:
            `codes`, each token count, `classes` and `null` or `separator`, and `unused` (or `bos`, `eos`, `pad`) for a row
            that is left out. Default: in this order, counts rising, the separator last.
        classes: of a generator, a text file with the names of its classes, one a line. Default: UCF-101's, if it has 101.
        verify_class: of a generator, the class of the video of `verify`; its place by likelihood is reported.
        condition_counts: of a generator from frames, the token counts of the given blocks. Default: 512, 128.
        condition_length_tokens: of a generator from frames, whether length tokens stand in the condition. Default: they do.
        class_order: of a router, how its classes are sorted: `"first-slowest"` (default; the last block's count changes
            from class to class, rising), `"first-fastest"`, or either with `"-falling"` counts.
        pixel_range: of a router, what it takes for black to white: `"centered"`, -0.5 to 0.5 (default, as EVATok's
            tokenizers); `"unit"`, 0 to 1; `"signed"`, -1 to 1.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for names that cannot be matched (it lists both sides, and names the file to complete for `names`); for
            a file that asks for more to be unpickled; arguments that are not supported, missing, or of another part; a
            destination in use, or of a tokenizer that does not fit; and a result that does not pass `verify`.
    """
    given = {
        "patch_order": patch_order,
        "mask_polarity": mask_polarity,
        "id_order": id_order,
        "classes": classes,
        "verify_class": verify_class,
        "condition_counts": condition_counts,
        "condition_length_tokens": condition_length_tokens,
        "class_order": class_order,
        "pixel_range": pixel_range,
    }
    options: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    source, destination = Path(source).expanduser(), Path(destination).expanduser().resolve()
    check_destination(destination)
    if not source.is_file():
        raise FileNotFoundError(f"{source} does not exist; accepted is a checkpoint of EVATok (.pt)")
    tensors = read_weights(source)
    part = _find_part(source, tensors, part)
    if foreign := [name for name in options if name not in OPTIONS[part]]:
        raise ValueError(f"{', '.join(foreign)}: not of a {part}, which has {', '.join(OPTIONS[part])}")
    if verify_class is not None and verify is None:
        raise ValueError(f"verify_class={verify_class!r} is the class of a video, which verify must give")
    inputs = (tensors, NameMatcher(part, names, destination.parent / "names.json"), Path(config))
    if part == "tokenizer":
        model, notes, prove = convert_tokenizer(*inputs, **options)
    elif part == "router":
        model, notes, prove = convert_router(*inputs, _known_arguments(destination), **options)
    else:
        options["load_tokenizer"] = lambda: _load_tokenizer(destination)
        model, notes, prove = convert_generator(*inputs, _known_arguments(destination), part=part, **options)
    check_addition({part: model}, destination)
    if verify is not None:
        notes += prove(verify)
    save_models({part: model}, destination)
    size = sum(parameter.numel() for parameter in model.parameters())
    checksum = sha256_of(destination / part / "model.safetensors")
    converted = ConvertedModel(part, len(model.state_dict()), size, 0, checksum)
    return ConversionReport(source, sha256_of(source), destination, (converted,), tuple(notes))


def _find_part(source: Path, tensors: Mapping[str, torch.Tensor], part: str | None) -> str:
    """Return what tensors are a part of: as given, or by names that only such files have."""
    if part is not None:
        if part not in OPTIONS:
            raise ValueError(f"part must be one of {', '.join(OPTIONS)}, got {part!r}")
        return part
    found = [each for each, pattern in TELLTALES.items() if any(re.fullmatch(pattern, name) for name in tensors)]
    if len(found) != 1:
        raise ValueError(
            f"{source} may hold {' or '.join(found) or 'anything'}, by its names: give part (--part), one of "
            f"{', '.join(OPTIONS)}"
        )
    if found == ["ar_model"] and not alias_candidates(CLASSES, tensors, ALIASES["ar_model"]):
        raise ValueError(
            f"{source} holds a generator without a table of classes (cls_embedding): give part (--part), fp_model if it "
            "continues frames, or ar_model if the table has another name"
        )
    return found[0]


def _known_arguments(destination: Path) -> dict[str, Any]:
    """Return the original's arguments of clips and codes, as the tokenizer in a folder has them."""
    if not (destination / "tokenizer").is_dir():
        return {}
    config = AutoConfig.from_pretrained(destination / "tokenizer")
    names = {**GEOMETRY, "codebook_size": "codebook_size"}
    return {theirs: getattr(config, ours) for theirs, ours in names.items() if hasattr(config, ours)}


def _load_tokenizer(destination: Path) -> EVATokModel:
    if not (destination / "tokenizer").is_dir():
        raise ValueError(f"verify needs the tokenizer, and {destination} has none: convert it first")
    return EVATokModel.from_pretrained(destination / "tokenizer").eval()


__all__ = ["convert_evatok"]
