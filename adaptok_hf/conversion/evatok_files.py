"""Reads the files that EVATok's authors publish: a checkpoint (.pt) and the YAML with its configuration.

None of these files was available here. Their layout is inferred from GigaTok, by the same first author.
"""

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedConfig

from ..models.configuration_evatok import EVATokConfig
from .sources import unpickle

Config = TypeVar("Config", bound=PreTrainedConfig)
_NUMBERS = ("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64")
_NUMBERS += ("Float16", "Float32", "Float64")
# what such files hold next to tensors and plain values: numpy's numbers, and the trainer's arguments
ALLOWED = [
    argparse.Namespace,
    np.dtype,
    *(getattr(np.dtypes, f"{name}DType") for name in _NUMBERS),
    *((np._core.multiarray.scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
]
# Sizes by name, as GigaTok has them: width, layers, heads.
SIZES = {"small": (512, 6, 8), "base": (768, 12, 12)}
# The YAML's arguments and ours. Those of the geometry are known, the others inferred.
GEOMETRY = {
    "frame_num": "num_frames",
    "input_size": "image_size",
    "temporal_patch_size": "tubelet_size",
    "spatial_token_num_choices": "levels",
}
ARGUMENTS = GEOMETRY | {
    "patch_size": "patch_size",
    "z_channels": "latent_size",
    "codebook_size": "codebook_size",
    "codebook_embed_dim": "codebook_dim",
    "codebook_l2_norm": "normalized_codes",
    "use_qk_norm": "qk_norm",
    "rot": "rotation_trick",
    "stochastic": "stochastic_quantizer",
    "stochastic_temperature": "quantizer_temperature",
}
# Arguments of GigaTok that change what the network computes, with the values that our model has.
SUPPORTED = {
    "use_rope": (False, None),
    "rope_1d": (False, None),
    "rope_2d": (False, None),
    "simvq": (False, None),
    "codebook_transform": (None,),
    "use_lfq": (False, None),
    "bernoulli_sample": (False, None),
    "last_level_2d_query_init": (False, None),
    "multi_level_2d_query_init": (False, None),
    "learnable_2d_query_init": (False, None),
    "res_codebook_updown_sample": (False, None),
}


def read_weights(path: str | Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a checkpoint by their names: its average (`ema`) if it has one, else `model` or `state_dict`.

    Raises:
        ValueError: for a file that asks for anything but tensors, numbers and plain values, or holds no weights.
    """
    checkpoint = _plain(unpickle(Path(path), ALLOWED))
    held = checkpoint if isinstance(checkpoint, Mapping) else {}
    for name in ("ema", "model", "state_dict"):
        if isinstance(held.get(name), Mapping) and held[name]:
            held = held[name]
            break
    tensors = {name: value for name, value in held.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise ValueError(f"{path} has no weights under ema, model or state_dict; it holds {list(held)[:8]}")
    for prefix in ("module.", "_orig_mod."):  # of torch's wrappers
        if all(name.startswith(prefix) for name in tensors):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _plain(value: Any) -> Any:
    """Return numpy's numbers as Python's, and namespaces as dictionaries, also inside of others."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, argparse.Namespace):
        return _plain(vars(value))
    if isinstance(value, Mapping):
        return {key: _plain(each) for key, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, list | tuple) else value


def read_entries(path: str | Path) -> Mapping[str, Any]:
    """Return what a YAML of the original holds, or a `config.json` of ours.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give the YAML of the checkpoint, or a config.json of ours")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    model = entries.get("model") if isinstance(entries, Mapping) else None
    arguments = model.get("init_args") if isinstance(model, Mapping) else None
    if not isinstance(arguments, Mapping) and not (isinstance(entries, Mapping) and "model_type" in entries):
        raise ValueError(f"{path} has no model.init_args")
    return entries


def saved_config(path: str | Path, config_class: type[Config]) -> Config | None:
    """Return the configuration in a `config.json` of ours; `None` for a YAML of the original.

    Raises:
        ValueError: for one of another kind.
    """
    entries = read_entries(path)
    if "model_type" not in entries:
        return None
    if entries["model_type"] != config_class.model_type:
        raise ValueError(f"{path} has model_type={entries['model_type']!r}, expected {config_class.model_type!r}")
    return config_class.from_json_file(path)


def read_arguments(
    path: str | Path,
    required: Iterable[str] = (),
    supported: Mapping[str, tuple] = MappingProxyType({}),
    defaults: Mapping[str, Any] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return the constructor arguments in a YAML of the original.

    Raises:
        ValueError: naming what is missing or not supported.
    """
    arguments = {**defaults, **read_entries(path)["model"]["init_args"]}
    problems = [f"{name} is missing" for name in required if name not in arguments]
    for name, values in supported.items():
        if name in arguments and arguments[name] not in values:
            problems.append(f"{name}={json.dumps(arguments[name])} is not supported")
    if problems:
        raise ValueError(f"{path}: {'; '.join(problems)}")
    return arguments


def make_config(path: str | Path, config_class: type[Config], **entries) -> Config:
    """Return a configuration; name the file in its errors."""
    try:
        return config_class(**entries)
    except (StrictDataclassError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: {' '.join(str(error).split())}") from error


def read_config(path: str | Path) -> EVATokConfig:
    """Return the tokenizer's configuration that a YAML of the original describes, or a `config.json` of ours.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: naming what is missing or not supported.
    """
    if (saved := saved_config(path, EVATokConfig)) is not None:
        return saved
    arguments = read_arguments(path, GEOMETRY, SUPPORTED)
    ours = {name: arguments[theirs] for theirs, name in ARGUMENTS.items() if theirs in arguments}
    for part, default in (("encoder", "small"), ("decoder", "base")):
        size = arguments.get(f"{part}_size") or default
        if size not in SIZES:
            raise ValueError(f"{path}: {part}_size={size!r} is not one of {', '.join(SIZES)}")
        width, layers, heads = SIZES[size]
        ours |= {f"{part}_hidden_size": width, f"num_{part}_layers": layers, f"num_{part}_attention_heads": heads}
    if arguments.get("learnable_1d_query_init"):
        ours["query_init"] = "learned"
    elif not arguments.get("multi_level_query_init", True):
        ours["query_init"] = "mean"
    return make_config(path, EVATokConfig, **ours)
