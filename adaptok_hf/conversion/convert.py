"""Checkpoints of the original AdapTok code -> our folders.

What the original calls things is data, in `conversion_tables`. One of its files holds tokenizer, scorer and prior
together; each becomes a folder of its own. A generator has a file of its own, and becomes a folder beside them.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from ..models.configuration_adaptok import AdapTokConfig
from ..models.layers import SinCosPositions
from ..models.modeling_adaptok import AdapTokModel
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..models.modeling_adaptok_prior import AdapTokPriorModel
from ..models.modeling_adaptok_scorer import AdapTokScorerModel
from ..video.video_processing_adaptok import AdapTokVideoProcessor
from .configs import read_configs
from .original_names import KEYS, TABLES
from .sources import read_source

# Stored position tables may differ from ours by this much.
TABLE_TOLERANCE = 1e-5
CLASSES = {
    "tokenizer": AdapTokModel,
    "scorer": AdapTokScorerModel,
    "prior": AdapTokPriorModel,
    "ar_model": AdapTokARForCausalLM,
    "fp_model": AdapTokARForCausalLM,
}


@dataclass(frozen=True)
class ConvertedModel:
    """
    Args:
        name: `"tokenizer"`, `"scorer"`, `"prior"`, `"ar_model"` (class-conditional generator) or `"fp_model"` (frame
            prediction); also the name of its folder.
        tensors, parameters: how many were taken over.
        tables: fixed position tables that the source holds, found equal to ours, and that are not saved.
        sha256: of the folder's `model.safetensors`.
    """

    name: str
    tensors: int
    parameters: int
    tables: int
    sha256: str


@dataclass(frozen=True)
class ConversionReport:
    """
    Args:
        source: the file that held the weights.
        source_sha256: its hash.
        destination: the folder written.
        models: what it holds.
    """

    source: Path
    source_sha256: str
    destination: Path
    models: tuple[ConvertedModel, ...]

    def __str__(self) -> str:
        lines = [f"{self.source}", f"  sha256 {self.source_sha256}", f"-> {self.destination}"]
        for model in self.models:
            tables = f", {model.tables} position tables verified" if model.tables else ""
            lines.append(f"  {model.name}: {model.parameters:,} parameters in {model.tensors} tensors{tables}")
            lines.append(f"    sha256 {model.sha256}")
        return "\n".join(lines)


def convert_checkpoint(
    source: str | os.PathLike, destination: str | os.PathLike, *, ema: float | None = None
) -> ConversionReport:
    """Converts a checkpoint of the original code.

    Of a tokenizer it writes `destination/tokenizer`, and `scorer` and `prior` where the source has them (safetensors, each
    for `from_pretrained`), and what makes `destination` a folder for `AdapTokPipeline.from_pretrained`. The folder appears
    only when all of it is written.

    Of a generator it writes `destination/ar_model` (class-conditional) or `destination/fp_model` (frame prediction). If
    `destination` is such a pipeline's folder, the model becomes a part of it.

    Args:
        source: a folder with `config.json` and `model.safetensors`, a training checkpoint (`.pth`), or, if there is no
            such path, the id of a Hub repository.
        destination: a folder that does not exist or is empty; for a generator also a converted folder.
        ema: of a training checkpoint, take the exponential average with this decay instead of the weights themselves.

    Raises:
        FileNotFoundError: if there is no such source, or it cannot be downloaded.
        ValueError: if `destination` is in use; if the source is damaged, asks for anything but tensors and plain
            values to be unpickled, or has no such average; for arguments that we do not support; for missing,
            unexpected or wrongly shaped tensors; for a position table that differs from ours; and for a generator whose
            codes are not those of the tokenizer in `destination`.
    """
    destination = Path(destination).expanduser().resolve()
    in_use = destination.exists() and (not destination.is_dir() or any(destination.iterdir()))
    if in_use and not _is_converted(destination):
        raise ValueError(f"{destination} exists already; give a folder that does not exist or is empty")
    arguments, tensors, weights_file = read_source(source, ema)
    models = _build_models(arguments)
    if in_use:
        _check_addition(models, destination)
    states, tables = map_tensors(models, tensors)

    partial = destination.with_name(f"{destination.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        converted = []
        for name, model in models.items():
            model.load_state_dict(states[name], assign=True)
            model.save_pretrained(partial / name)
            size = sum(tensor.numel() for tensor in states[name].values())
            checksum = _sha256(partial / name / "model.safetensors")
            converted.append(ConvertedModel(name, len(states[name]), size, tables[name], checksum))
        if "tokenizer" in models:
            config = models["tokenizer"].config
            AdapTokVideoProcessor(
                image_size=config.image_size, num_frames=config.num_frames, tubelet_size=config.tubelet_size
            ).save_pretrained(partial / "video_processor")
            # With this file the folder is one that AdapTokPipeline.from_pretrained loads.
            _write_json(partial / "model_index.json", _pipeline_index(models))
        if in_use:
            _add(models, partial, destination)
        else:
            if destination.exists():
                destination.rmdir()
            partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing is left of it if all went well
    return ConversionReport(weights_file, _sha256(weights_file), destination, tuple(converted))


def _is_converted(folder: Path) -> bool:
    """Whether a folder that is not empty is a pipeline's, or holds converted generators and nothing else."""
    if not folder.is_dir():
        return False
    return (folder / "model_index.json").is_file() or {path.name for path in folder.iterdir()} <= {"ar_model", "fp_model"}


def _check_addition(models: Mapping[str, PreTrainedModel], folder: Path) -> None:
    """Raises `ValueError` unless `models` can become a part of the pipeline in `folder`."""
    if "tokenizer" in models:
        raise ValueError(f"{folder} exists already; give a folder that does not exist or is empty")
    for name, model in models.items():
        if (folder / name).exists():
            raise ValueError(f"{folder / name} exists already; remove it, or give another folder")
        if not (folder / "tokenizer").is_dir():
            continue
        tokenizer = AdapTokConfig.from_pretrained(folder / "tokenizer")
        for size in ("codebook_size", "num_blocks", "latents_per_block"):
            ours, theirs = getattr(model.config, size), getattr(tokenizer, size)
            if ours != theirs:
                raise ValueError(f"the generator does not fit the tokenizer in {folder}: {size} is {ours}, there {theirs}")


def _add(models: Mapping[str, PreTrainedModel], partial: Path, folder: Path) -> None:
    """Moves what lies in `partial` into the pipeline's folder; its index is written last, and as a whole."""
    index_file, new_index = folder / "model_index.json", partial / "model_index.json"
    if index_file.is_file():
        _write_json(new_index, json.loads(index_file.read_text(encoding="utf-8")) | _components(models))
    for name in models:
        (partial / name).rename(folder / name)
    if index_file.is_file():
        new_index.replace(index_file)


def _pipeline_index(models: Mapping[str, PreTrainedModel]) -> dict[str, Any]:
    """The `model_index.json` of a pipeline of these components."""
    index: dict[str, Any] = {"_class_name": "AdapTokPipeline", "_diffusers_version": version("diffusers")}
    index["video_processor"] = [AdapTokVideoProcessor.__module__, AdapTokVideoProcessor.__name__]
    parts = {name: model for name, model in models.items() if name != "prior"}  # which is for training only
    return index | {"scorer": [None, None]} | _components(parts)


def _components(models: Mapping[str, PreTrainedModel]) -> dict[str, list[str]]:
    return {name: [type(model).__module__, type(model).__name__] for name, model in models.items()}


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def original_names(part: str, name: str) -> tuple[tuple[str, ...], Any]:
    """Our parameter of `part` (a key of `KEYS`) -> the original's names for it, how to adapt them."""
    for original, ours, *adapt in KEYS[part]:
        match = re.fullmatch(re.escape(ours).replace(r"\*", r"(?P<layer>\d+)") + r"(?P<end>(\.weight|\.bias)?)", name)
        if match is not None:
            originals = (original,) if isinstance(original, str) else original
            layer = match.groupdict().get("layer", "")
            return tuple(each.replace("*", layer) + match["end"] for each in originals), (adapt or [None])[0]
    raise AssertionError(f"KEYS[{part!r}] has no row for {name}")


def map_tensors(
    models: Mapping[str, PreTrainedModel], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, int]]:
    """Tensors of the original -> state dictionaries of `models` (part -> model, which may be on the meta device).

    Returns:
        The state dictionary and the number of verified position tables of each part.

    Raises:
        ValueError: listing what is missing, unexpected or of another shape, and tables that differ from ours.
    """
    states: dict[str, dict[str, torch.Tensor]] = {}
    tables = dict.fromkeys(models, 0)
    used: set[str] = set()
    missing: list[str] = []
    problems: list[str] = []
    for part, model in models.items():
        states[part] = {}
        for name, parameter in model.named_parameters():
            originals, adapt = original_names(part, name)
            used.update(originals)
            absent = [original for original in originals if original not in tensors]
            if absent:
                missing += absent
                continue
            found = [tensors[original] for original in originals]
            try:
                tensor = found[0] if adapt is None else adapt(*found)
            except (RuntimeError, IndexError):  # shapes that cannot be added or flattened
                tensor = found[0]
            if tensor.shape != parameter.shape or not tensor.is_floating_point():
                shapes = ", ".join(f"{tuple(each.shape)} {each.dtype}" for each in found)
                problems.append(f"{', '.join(originals)} is {shapes}, which does not fit {tuple(parameter.shape)}")
            states[part][name] = tensor.detach().contiguous()
        modules = dict(model.named_modules())
        for original, ours in TABLES[part].items():
            if not isinstance(modules[ours], SinCosPositions):
                continue
            used.add(original)
            if original not in tensors:
                missing.append(original)
                continue
            stored, shape = tensors[original].float(), modules[ours].weight.shape
            if stored.numel() != shape.numel():
                problems.append(f"{original} is {tuple(stored.shape)}, which does not fit {tuple(shape)}")
            elif not (stored.reshape(shape) - modules[ours].compute()).abs().max() <= TABLE_TOLERANCE:
                problems.append(f"{original} is not the sine-cosine table that the configuration describes")
            tables[part] += 1
    unexpected = sorted(set(tensors) - used)
    if missing:
        problems.append(f"missing tensors: {', '.join(sorted(missing))}")
    if unexpected:
        problems.append(f"unexpected tensors: {', '.join(unexpected)}")
    if problems:
        raise ValueError(f"the weights do not fit the configuration; {'; '.join(problems)}")
    return states, tables


def _build_models(arguments: Mapping[str, Any]) -> dict[str, PreTrainedModel]:
    """Models without memory: on the meta device."""
    with torch.device("meta"):
        return {part: CLASSES[part](config) for part, config in read_configs(arguments).items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["ConversionReport", "ConvertedModel", "convert_checkpoint"]
