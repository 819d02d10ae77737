"""Checkpoints of the original code as pipelines, and as parts of pipelines."""

import os
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from ..models.checked_loading import read_entries

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors")
# These change nothing here: no code is run, and no weights are made only to be replaced.
_WITHOUT_EFFECT = ("trust_remote_code", "low_cpu_mem_usage", "use_safetensors")


def is_original(path: Path) -> bool:
    """Return whether a file or folder is a checkpoint of the original code, if it is one at all."""
    if path.is_file():
        return True
    if (path / "model_index.json").is_file():
        return False
    config = path / "config.json"
    if config.is_file():
        return not str(read_entries(config).get("model_type")).startswith(("adaptok", "evatok"))
    return any(path.glob("*.pth"))


def load_original(source: str | os.PathLike, path: Path, given: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """Return the components of a pipeline from a checkpoint of the original code.

    Args:
        source: what the user gave.
        path: where it is on this machine.
        given: components that the user gave, or `None` for those to leave out.
        options: of `from_pretrained`, without those of a download.

    Raises:
        TypeError: for options that only a folder of ours can have.
    """
    options = {name: value for name, value in options.items() if value is not None and name not in _WITHOUT_EFFECT}
    if unknown := sorted(options.keys() - {"dtype", "ema"}):
        raise TypeError(f"{source} is a checkpoint of the original code, which takes no {unknown}; convert it to a folder")
    parts = _originals().load_parts(path, **{"dtype": "auto"} | options)
    return _originals().complete_parts(source, parts | given)


def load_original_part(name: str, source: str | os.PathLike, path: Path, dtype: Any) -> Any:
    """Return one component from a checkpoint of the original code.

    Raises:
        ValueError: if it is no such checkpoint, or does not hold the component.
    """
    if not is_original(path):
        raise ValueError(f"{name}={str(source)!r} is no checkpoint of the original code; load the model and give that")
    parts = _originals().load_parts(path, dtype=dtype or "auto")
    if name not in parts:
        raise ValueError(f"{name}={str(source)!r} holds no such component, but {', '.join(sorted(parts))}")
    return parts[name]


def _originals() -> ModuleType:
    """Import by name, since a Hub repository has a copy of this file and not of `conversion`."""
    return import_module("adaptok_hf.conversion.originals")
