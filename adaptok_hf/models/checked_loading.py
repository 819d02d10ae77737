"""Loading of models that accepts a folder only if its weights are all there, and its configuration fits them."""

import json
import math
import re
from pathlib import Path

import torch
from transformers import GenerationConfig

from .offloading import execution_device

_SMALL = 2**20  # values; fixed tables of this size need no weights to justify them


class CheckedLoading:
    """`from_pretrained` that raises an error where transformers would fill in random weights."""

    @property
    def device(self) -> torch.device:
        """Where the model computes. The weights of an offloaded model lie elsewhere."""
        return execution_device(self) or super().device

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, output_loading_info: bool = False, **kwargs):
        """Load a model as transformers does, with every tensor.

        A local folder is checked before memory is taken: names, shapes and sizes of its weights, by their headers.

        Raises:
            FileNotFoundError: for a folder without configuration or weights.
            ValueError: for missing or unexpected tensors, and a configuration that does not fit them.
        """
        folder = None if pretrained_model_name_or_path is None else Path(pretrained_model_name_or_path)
        if folder is not None and folder.is_dir() and not isinstance(kwargs.get("state_dict"), dict):
            folder = folder / kwargs.get("subfolder", "")
            adapter = (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
            if not adapter:  # of peft: transformers loads the model that it names, and then the adapter
                check_folder(cls, folder, kwargs.get("config"), kwargs.get("variant"))
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, output_loading_info=True, **kwargs)
        # peft ties the trainable tokens of a tied head to those of the embeddings, which transformers does not know
        missing, unexpected = (
            [name for name in info[kind] if not name.startswith("lm_head.token_adapter.")]
            for kind in ("missing_keys", "unexpected_keys")
        )
        _check_names(pretrained_model_name_or_path, missing, unexpected)
        return (model, info) if output_loading_info else model


def check_folder(model_class: type, folder: Path, config=None, variant: str | None = None) -> None:
    """Raise an error unless the weights of a folder are those of its configuration; see `CheckedLoading`."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; a model's folder has its configuration there")
    files = _weights(folder, variant)
    shapes = _read_shapes(files)
    num_values = sum(map(math.prod, shapes.values()))
    entries = read_entries(path)
    for name, value in entries.items():
        most = len(shapes) if name.endswith("_layers") else max(num_values, _SMALL)
        if isinstance(value, int | float) and not abs(value) <= most:
            raise ValueError(f"{path}: {name}={value}, but the weights hold {num_values} values in {len(shapes)} tensors")
    model_type = model_class.config_class.model_type
    if entries.get("model_type", model_type) != model_type:
        raise ValueError(f"{path}: model_type={entries['model_type']!r}, expected {model_type!r}")
    for name in entries.keys() & {"dtype", "torch_dtype"}:
        if entries[name] is not None and not isinstance(getattr(torch, str(entries[name]), None), torch.dtype):
            raise ValueError(f"{path}: {name}={entries[name]!r} is not a type of numbers, such as 'float32'")
    if model_class.can_generate():
        _check_generation(folder)
    if "quantization_config" in entries:
        return  # has other tensors
    try:
        with torch.device("meta"):
            config = config if hasattr(config, "to_dict") else model_class.config_class.from_pretrained(folder)
            model = model_class(config)
    except Exception as error:  # whatever a damaged value leads to in transformers and torch
        raise ValueError(f"{path}: {error}") from error
    tables = sum(buffer.numel() for buffer in model.buffers())
    if tables > max(num_values, _SMALL):
        raise ValueError(f"{path}: asks for tables of {tables} values, but the weights hold {num_values}")
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    prefix = f"{model_class.base_model_prefix}."
    if not any(name.startswith(prefix) for name in expected):  # a base model, which may be that of a model with a head
        headless = {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}
        shapes = headless or shapes
    _check_names(
        folder, expected.keys() - shapes.keys() - set(model.all_tied_weights_keys), shapes.keys() - expected.keys()
    )
    for name in sorted(expected.keys() & shapes.keys()):
        if shapes[name] != expected[name]:
            raise ValueError(f"{folder}: {name} is {shapes[name]}, but config.json asks for {expected[name]}")


def _check_generation(folder: Path) -> None:
    """Raise an error unless the defaults of `generate` can be read; transformers ignores a damaged file."""
    path = folder / "generation_config.json"
    if not path.is_file():
        path = folder / "config.json"
    read_entries(path)
    try:
        GenerationConfig.from_pretrained(folder, path.name)
    except Exception as error:  # as above
        raise ValueError(f"{path}: {error}") from error


def _weights(folder: Path, variant: str | None) -> list[Path]:
    """Return the safetensors files of a model, which are several where it is large."""
    stem = "model" if variant is None else f"model.{variant}"
    if (folder / f"{stem}.safetensors").is_file():
        return [folder / f"{stem}.safetensors"]
    files = [path for path in folder.iterdir() if re.fullmatch(re.escape(stem) + r"-\d+-of-\d+\.safetensors", path.name)]
    if not files:
        found = ", ".join(sorted(path.name for path in folder.glob("*.safetensors"))) or "no weights"
        raise FileNotFoundError(f"{folder / stem}.safetensors: no such file (variant={variant!r}); the folder has {found}")
    return sorted(files)


def _read_shapes(files: list[Path]) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    shapes = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path}: not a weights file, or damaged ({error})") from error
    return shapes


def read_entries(path: Path) -> dict:
    """Return the entries of a configuration file, before any code makes something of them."""
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a configuration, or damaged ({error})") from error
    if not isinstance(entries, dict):
        raise ValueError(f"{path}: not a configuration but {type(entries).__name__}")
    return entries


def _check_names(source, missing, unexpected) -> None:
    for problem, names in (("has no", sorted(missing)), ("has unexpected", sorted(unexpected))):
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ValueError(f"the weights of {source}: {problem} {', '.join(names[:5])}{more}")
