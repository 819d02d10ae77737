"""Reads checkpoints of the original AdapTok code: folders, training checkpoints, Hub repositories."""

import json
import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file

from .original_names import GENERATORS

ACCEPTED = "a folder with config.json and model.safetensors, a training checkpoint (.pth), or a Hub repository's id"


def read_source(source: str | os.PathLike, ema: float | None) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor], Path]:
    """Constructor arguments, tensors, and the file that held the tensors."""
    path = Path(source).expanduser()
    if not path.exists():
        path = _download(str(source))
    if path.is_dir() and not (path / "model.safetensors").exists() and len(files := list(path.glob("*.pth"))) == 1:
        path = files[0]
    if path.is_file() and path.suffix != ".safetensors":
        weights_file = path
        arguments, tensors = _read_training_checkpoint(path, ema)
    elif ema is not None:
        raise ValueError(f"ema={ema} was given, but only training checkpoints (.pth) hold averages, {source} does not")
    else:
        folder = path if path.is_dir() else path.parent
        weights_file = folder / "model.safetensors"
        arguments, tensors = _read_folder(folder)
    if str(arguments.get("model_type", "")).startswith(("adaptok", "evatok")):
        raise ValueError(f"{source} is converted already (model_type {arguments['model_type']!r})")
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"the weights in {weights_file} are not all tensors")
    return arguments, tensors, weights_file


def _download(source: str) -> Path:
    """The local folder of a Hub repository."""
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", source) or source.endswith((".pth", ".pt", ".safetensors")):
        raise FileNotFoundError(f"{source} does not exist; accepted is {ACCEPTED}")
    try:
        return Path(snapshot_download(source, allow_patterns=["config.json", "model.safetensors"]))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{source} is not a path here, and could not be downloaded from the Hub ({type(error).__name__}: {reason})"
        ) from error


def _read_folder(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            others = ", ".join(sorted(path.name for path in folder.glob("*.pth")))
            others = f", but {others}: give one of them" if others else ""
            raise FileNotFoundError(f"{folder} has no {file.name}{others}; accepted is {ACCEPTED}")
    try:
        arguments = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config_file} is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"{config_file} must hold a JSON object, got {type(arguments).__name__}")
    try:
        return arguments, load_file(weights_file)
    except SafetensorError as error:
        raise ValueError(f"{weights_file} is not a safetensors file, or is damaged: {error}") from error


def unpickle(path: Path, allowed: list) -> Any:
    """Return what a PyTorch file holds: tensors, plain values and `allowed` (see `torch.serialization.safe_globals`).

    Raises:
        ValueError: if it asks for anything else, which is named, or is damaged.
    """
    try:
        with torch.serialization.safe_globals(allowed):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged or hostile file can make the unpickler raise anything
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and forbidden:
            raise ValueError(
                f"{path} was refused: it asks for {forbidden[1]}, and only tensors and plain values are unpickled"
            ) from error
        raise ValueError(f"{path} is not a PyTorch checkpoint, or is damaged ({type(error).__name__})") from error


def _read_training_checkpoint(path: Path, ema: float | None) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
    """`{"model": {"name", "args", "sd", "ema_sd"}, ...}`; nothing but tensors and plain values is unpickled.

    The original's `args` are EasyDicts; they are read as the ordered dictionaries that they are.
    """
    checkpoint = unpickle(path, [(OrderedDict, "easydict.EasyDict")])
    model = checkpoint.get("model") if isinstance(checkpoint, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(model.get("args"), Mapping):
        raise ValueError(f"{path} is not a training checkpoint of AdapTok: it has no model.args")
    weights = model.get("sd")
    if ema is not None:
        averages = model.get("ema_sd")
        averages = averages if isinstance(averages, Mapping) else {}
        weights = {float(decay): average for decay, average in averages.items()}.get(float(ema))
        if weights is None:
            held = ", ".join(map(str, averages)) or "none"
            raise ValueError(f"{path} holds no average with decay {ema}; it holds: {held}")
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path} is not a training checkpoint of AdapTok: it has no model.sd")
    sizes = GENERATORS.get(model.get("name")) if isinstance(model.get("name"), str) else None
    return dict(model["args"]) | (dict(zip(("n_layer", "n_head", "dim"), sizes, strict=True)) if sizes else {}), weights
