"""Convert checkpoints of the original AdapTok code to folders of ours.

The original's names are data, in `original_names`. One of its files holds tokenizer, scorer and prior; each becomes a
folder. A generator is a file of its own, and becomes a folder next to them.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from ..atomic_files import atomic_folder, write_json
from ..models.layers import SinCosPositions
from ..models.modeling_adaptok import AdapTokModel
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..models.modeling_adaptok_prior import AdapTokPriorModel
from ..models.modeling_adaptok_scorer import AdapTokScorerModel
from ..pipelines.component_checks import check_components, check_generators
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
        name: `"tokenizer"`, `"scorer"`, `"prior"`, `"router"`, `"ar_model"` (class-conditional generator) or `"fp_model"`
            (frame prediction); also the name of its folder.
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
        notes: what was assumed or proved.
    """

    source: Path
    source_sha256: str
    destination: Path
    models: tuple[ConvertedModel, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{self.source}", f"  sha256 {self.source_sha256}", f"-> {self.destination}"]
        for model in self.models:
            tables = f", {model.tables} position tables verified" if model.tables else ""
            lines.append(f"  {model.name}: {model.parameters:,} parameters in {model.tensors} tensors{tables}")
            lines.append(f"    sha256 {model.sha256}")
        return "\n".join([*lines, *(f"  {note}" for note in self.notes)])


def convert_checkpoint(
    source: str | os.PathLike, destination: str | os.PathLike, *, ema: float | None = None
) -> ConversionReport:
    """Convert a checkpoint of the original code.

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
    check_destination(destination)
    arguments, tensors, weights_file = read_source(source, ema)
    models = empty_models(arguments)
    check_addition(models, destination)
    states, tables = map_tensors(models, tensors)
    for name, model in models.items():
        model.load_state_dict(states[name], assign=True)
    save_models(models, destination)
    converted = []
    for name, state in states.items():
        size = sum(tensor.numel() for tensor in state.values())
        checksum = sha256_of(destination / name / "model.safetensors")
        converted.append(ConvertedModel(name, len(state), size, tables[name], checksum))
    return ConversionReport(weights_file, sha256_of(weights_file), destination, tuple(converted))


def empty_models(arguments: Mapping[str, Any]) -> dict[str, PreTrainedModel]:
    """Return the models (part -> model) that the original's constructor arguments describe, without memory for weights."""
    with torch.device("meta"):
        return {part: CLASSES[part](config) for part, config in read_configs(arguments).items()}


def _in_use(folder: Path) -> bool:
    return folder.exists() and (not folder.is_dir() or any(folder.iterdir()))


def check_destination(folder: Path) -> None:
    """Raise `ValueError` unless a folder is new, empty, a pipeline's, or holds converted parts of one and nothing else."""
    if not _in_use(folder) or (folder / "model_index.json").is_file():
        return
    if not folder.is_dir() or {path.name for path in folder.iterdir()} - {"ar_model", "fp_model", "router"}:
        raise ValueError(f"{folder} exists already; give a folder that does not exist or is empty")


def check_addition(models: Mapping[str, PreTrainedModel], folder: Path) -> None:
    """Raise `ValueError` unless `models` can become a part of the pipeline in `folder`, if there is one."""
    if "tokenizer" in models and _in_use(folder):
        raise ValueError(f"{folder} exists already; give a folder that does not exist or is empty")
    for name in models:
        if (folder / name).exists():
            raise ValueError(f"{folder / name} exists already; remove it, or give another folder")
    if (folder / "tokenizer").is_dir():
        config = AutoConfig.from_pretrained(folder / "tokenizer")
        with torch.device("meta"):
            tokenizer = AutoModel.from_config(config)
        try:
            check_components(_processor(config), tokenizer, None, models.get("router"))
            check_generators(tokenizer, models.get("ar_model"), models.get("fp_model"))
        except ValueError as error:
            raise ValueError(f"{folder}: {error}") from error


def save_models(models: Mapping[str, PreTrainedModel], destination: Path) -> None:
    """Write a new folder, or into that of a pipeline."""
    if _in_use(destination):
        _add_parts(models, destination)
        return
    with atomic_folder(destination) as partial:
        _write_models(models, partial)


def _processor(config: PreTrainedConfig) -> AdapTokVideoProcessor:
    return AdapTokVideoProcessor(config.image_size, config.num_frames, config.tubelet_size)


def _write_models(models: Mapping[str, PreTrainedModel], folder: Path) -> None:
    """Write each model and, with a tokenizer, what `AdapTokPipeline.from_pretrained` needs."""
    for name, model in models.items():
        model.save_pretrained(folder / name)
    if "tokenizer" in models:
        processor = _processor(models["tokenizer"].config)
        processor.save_pretrained(folder / "video_processor")
        parts = {name: model for name, model in models.items() if name != "prior"}  # which is for training only
        index = {"_class_name": "AdapTokPipeline", "_diffusers_version": version("diffusers"), "scorer": [None, None]}
        write_json(folder / "model_index.json", index | _components({"video_processor": processor, **parts}))


def _add_parts(models: Mapping[str, PreTrainedModel], folder: Path) -> None:
    """Write models into a pipeline's folder, and name them in the pipeline's index."""
    for name, model in models.items():
        with atomic_folder(folder / name) as partial:
            model.save_pretrained(partial)
    index_file = folder / "model_index.json"
    if index_file.is_file():
        write_json(index_file, json.loads(index_file.read_text(encoding="utf-8")) | _components(models))


def _components(components: Mapping[str, Any]) -> dict[str, list[str]]:
    return {name: [type(each).__module__, type(each).__name__] for name, each in components.items()}


def original_names(part: str, name: str) -> tuple[tuple[str, ...], Callable | None]:
    """Return the original's names for our parameter of `part` (a key of `KEYS`), and how to adapt its tensors."""
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
    """Turn tensors of the original into state dictionaries of `models` (part -> model, which may be on the meta device).

    Returns:
        The state dictionary and the number of verified position tables of each part.

    Raises:
        ValueError: listing what is missing, unexpected or of another shape, and tables that differ from ours.
    """
    states: dict[str, dict[str, torch.Tensor]] = {}
    tables = dict.fromkeys(models, 0)
    used: set[str] = set()
    problems: list[str] = []
    for part, model in models.items():
        states[part] = {}
        for name, parameter in model.named_parameters():
            originals, adapt = original_names(part, name)
            used.update(originals)
            if all(original in tensors for original in originals):
                stored = [tensors[original] for original in originals]
                states[part][name], problem = _adapt(stored, adapt, parameter.shape)
                problems += [f"{', '.join(originals)} {problem}"] if problem else []
        modules = dict(model.named_modules())
        for original, ours in TABLES[part].items():
            if isinstance(modules[ours], SinCosPositions):
                used.add(original)
                tables[part] += 1
                problem = _table_problem(tensors[original], modules[ours]) if original in tensors else None
                problems += [f"{original} {problem}"] if problem else []
    if missing := used - tensors.keys():
        problems.append(f"missing tensors: {', '.join(sorted(missing))}")
    if unexpected := tensors.keys() - used:
        problems.append(f"unexpected tensors: {', '.join(sorted(unexpected))}")
    if problems:
        raise ValueError(f"the weights do not fit the configuration; {'; '.join(problems)}")
    return states, tables


def _adapt(stored: list[torch.Tensor], adapt: Callable | None, shape: torch.Size) -> tuple[torch.Tensor, str | None]:
    """Return our tensor, and a description of the stored ones if they do not fit its shape."""
    try:
        tensor = stored[0] if adapt is None else adapt(*stored)
    except (RuntimeError, IndexError):  # shapes that cannot be added or flattened
        tensor = stored[0]
    if tensor.shape == shape and tensor.is_floating_point():
        return tensor.detach().contiguous(), None
    shapes = ", ".join(f"{tuple(each.shape)} {each.dtype}" for each in stored)
    return tensor, f"is {shapes}, which does not fit {tuple(shape)}"


def _table_problem(stored: torch.Tensor, positions: SinCosPositions) -> str | None:
    """Return a description of a stored position table that is not ours."""
    shape = positions.weight.shape
    if stored.numel() != shape.numel():
        return f"is {tuple(stored.shape)}, which does not fit {tuple(shape)}"
    if not (stored.float().reshape(shape) - positions.compute()).abs().max() <= TABLE_TOLERANCE:
        return "is not the sine-cosine table that the configuration describes"
    return None


def sha256_of(path: Path) -> str:
    """Return the hash of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["ConversionReport", "ConvertedModel", "convert_checkpoint"]
