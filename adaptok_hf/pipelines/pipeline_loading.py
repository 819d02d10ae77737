"""Loading the pipeline: checkpoints by name, and repositories of the Hub without running their code."""

import json
import os
from inspect import signature
from pathlib import Path
from types import NoneType
from typing import Any

import diffusers
import torch
from accelerate.hooks import remove_hook_from_module
from diffusers import DiffusionPipeline
from huggingface_hub import snapshot_download

from ..checkpoints import find_checkpoint
from ..models.checked_loading import read_entries
from ..models.modeling_adaptok import AdapTokModel
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..models.modeling_adaptok_router import AdapTokRouterModel
from ..models.modeling_adaptok_scorer import AdapTokScorerModel
from ..models.modeling_evatok import EVATokModel
from ..video.video_processing_adaptok import AdapTokVideoProcessor
from .original_loading import WEIGHT_SUFFIXES, is_original, load_original, load_original_part
from .remote_code import write_pipeline_index

_MODELS = AdapTokModel, EVATokModel, AdapTokScorerModel, AdapTokRouterModel, AdapTokARForCausalLM
_CLASSES = {each.__name__: each for each in (*_MODELS, AdapTokVideoProcessor)}
_UPLOAD_OPTIONS = {"commit_message", "private", "create_pr", "token", "repo_id"}
_DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class LoadingMixin:
    """`from_pretrained` and `save_pretrained` of [`AdapTokPipeline`].

    What is saved holds its code and loads elsewhere by `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`.
    Where this package is installed, weights and configurations are all that is taken from there.
    """

    def to_json_file(self, json_file_path: str | os.PathLike) -> None:
        """Write `model_index.json` and the code, the last step of `save_pretrained` before an upload."""
        write_pipeline_index(Path(json_file_path), json.loads(self.to_json_string()))

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None = None, **kwargs):
        """Load a pipeline as [`DiffusionPipeline.from_pretrained`] does, by default `"small"`.

        Args:
            pretrained_model_name_or_path: `"small"` (videos of any kind) or `"figures"` (animated figures, with
                generators), which are in this package; a folder; a Hub id. A local folder comes first. A checkpoint of the
                original code is converted in memory, see [`convert_checkpoint`]: a Hub id, a folder or a training
                checkpoint.
            kwargs: as there. `dtype` (or by its older name `torch_dtype`) is float32 by default: a type, its name, `"auto"`
                for that of the weights, or one for each component, `{"scorer": torch.bfloat16, "default": torch.float32}`.
                A component can be the name of an original: `ar_model="yeahhhh326/AdapTok-AR"`. Of an original training
                checkpoint, `ema=0.999` takes that average.

        Raises:
            OSError: for a folder of which a file is missing.
            TypeError: for arguments that it does not have, or that do not go with an original.
            ValueError: for files that are damaged, or do not fit together.
        """
        if kwargs.get("dtype") is None:  # diffusers raises an error if both are given
            kwargs["dtype"] = kwargs.pop("torch_dtype", None) or torch.float32
        kwargs["dtype"] = _read_dtype(kwargs["dtype"], cls._get_signature_keys(cls)[0])
        source = find_checkpoint(pretrained_model_name_or_path)
        components = kwargs.keys() & cls._get_signature_keys(cls)[0]
        for name in components:
            if isinstance(value := kwargs[name], str | os.PathLike):
                path = cls._find(find_checkpoint(value), {**kwargs, "revision": None})
                kwargs[name] = load_original_part(name, value, path, kwargs["dtype"])
        path = cls._find(source, kwargs)
        if is_original(path):
            given = {name: kwargs.pop(name) for name in components}
            options = {name: value for name, value in kwargs.items() if name not in _DOWNLOAD_OPTIONS}
            pipeline = cls(**load_original(source, path, given, **options))
            pipeline.register_to_config(_name_or_path=source)
            return pipeline
        try:
            pipeline = super().from_pretrained(str(path), **kwargs)
            pipeline.register_to_config(_name_or_path=source)
            return pipeline
        except (ValueError, TypeError, LookupError, AttributeError) as error:  # what damaged entries lead to in diffusers
            if str(source) in str(error) or "from_pretrained()" in str(error):
                raise
            raise ValueError(f"{source}: {error}") from error

    @classmethod
    def extract_init_dict(
        cls, config_dict: dict[str, Any], **kwargs
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """Split a configuration as [`DiffusionPipeline`] does, which would ignore what nobody knows."""
        init, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        if unknown := sorted(name for name in kwargs.keys() & unused.keys() if kwargs[name] is not None):
            raise TypeError(f"from_pretrained() got unexpected keyword arguments: {', '.join(unknown)}")
        return init, unused, hidden

    @classmethod
    def from_pipe(cls, pipeline: DiffusionPipeline, **kwargs):
        """Return a pipeline with the components of another, which are shared, and those that are given instead.

        The weights keep their type, unless `dtype` asks for another: diffusers would make them float32, in both pipelines.
        """
        if kwargs.get("dtype") is None and kwargs.get("torch_dtype") is None:
            kwargs["dtype"] = pipeline.dtype
        return super().from_pipe(pipeline, **kwargs)

    def save_pretrained(self, save_directory: str | os.PathLike, *args, **kwargs) -> None:
        """Save as [`DiffusionPipeline.save_pretrained`] does, with the code that the folder needs to load elsewhere.

        Raises:
            TypeError: for arguments that it does not have.
            ValueError: for a model in peft's wrapper, which would be left out.
        """
        for name, component in self.components.items():
            if hasattr(component, "merge_and_unload"):
                raise ValueError(
                    f"{name} is a {type(component).__name__}; a pipeline saves what its merge_and_unload() returns"
                )
        known = signature(DiffusionPipeline.save_pretrained).parameters.keys() | _UPLOAD_OPTIONS
        if unknown := sorted(kwargs.keys() - known):
            raise TypeError(f"save_pretrained() got unexpected keyword arguments: {', '.join(unknown)}")
        super().save_pretrained(os.fspath(save_directory), *args, **kwargs)

    def enable_sequential_cpu_offload(self, gpu_id: int | None = None, device: torch.device | str | None = None) -> None:
        """Offload as [`DiffusionPipeline.enable_sequential_cpu_offload`] does, all but the small quantizer."""
        super().enable_sequential_cpu_offload(gpu_id, device)
        # it computes with the weights of its layers, which accelerate loads for their own `forward` only
        remove_hook_from_module(self.tokenizer.quantizer, recurse=True)
        self.tokenizer.quantizer.to(self._offload_device)

    def enable_group_offload(self, *args, **kwargs) -> None:
        """Raise `NotImplementedError`: diffusers moves groups in hooks of `forward`, and encode and decode compute, too."""
        raise NotImplementedError(
            "enable_group_offload moves weights for `forward` only; use enable_model_cpu_offload or "
            "enable_sequential_cpu_offload"
        )

    @classmethod
    def _find(cls, source: str | os.PathLike, options: dict[str, Any]) -> Path:
        """Return where a checkpoint is on this machine, downloaded if it is not a path; or a path that does not exist."""
        path = Path(source).expanduser()
        if path.suffix in WEIGHT_SUFFIXES and not path.exists():
            raise FileNotFoundError(f"{source}: no such file")
        return path if path.exists() or str(source).count("/") > 1 else Path(cls.download(source, **options))

    @classmethod
    def download(cls, pretrained_model_name: str | os.PathLike, **kwargs) -> str:
        """Return the local folder of a Hub repository, code left out."""
        options = {name: kwargs[name] for name in _DOWNLOAD_OPTIONS if kwargs.get(name) is not None}
        return snapshot_download(str(pretrained_model_name), allow_patterns=["*.json", "*.safetensors"], **options)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """Return `model_index.json` with the modules of our classes, whatever modules the file names."""
        index, components = read_entries(Path(json_file)), cls._get_signature_keys(cls)[0]
        for name, value in index.items():
            if name.startswith("_"):
                continue
            if name not in components:
                raise ValueError(f"{json_file}: unknown component {name!r}, expected {sorted(components)}")
            if not isinstance(value, list) or len(value) != 2 or {type(each) for each in value} not in ({str}, {NoneType}):
                raise ValueError(f"{json_file}: {name}={value!r}, expected a module and a class")
            if value[1] in _CLASSES:
                index[name] = [_CLASSES[value[1]].__module__, value[1]]
        class_name = index.get("_class_name")
        index["_class_name"] = class_name[-1] if isinstance(class_name, list) and class_name else class_name
        if not isinstance(index["_class_name"], str):
            raise ValueError(f"{json_file}: _class_name={class_name!r}, expected {cls.__name__!r}")
        return index


def _read_dtype(dtype: Any, components: set[str]) -> torch.dtype | dict[str, torch.dtype | None] | None:
    """Return what diffusers takes, `None` for the type of the weights; it would replace anything else by float32."""
    if isinstance(dtype, dict):
        if unknown := sorted(dtype.keys() - components - {"default"}):
            raise ValueError(f"dtype has {unknown}, expected {sorted(components)} or 'default'")
        return {name: _read_dtype(value, components) for name, value in dtype.items()}
    if dtype is None or dtype == "auto":
        return None
    named = getattr(torch, dtype.removeprefix("torch."), None) if isinstance(dtype, str) else dtype
    if not isinstance(named, torch.dtype):
        raise ValueError(f"dtype={dtype!r} is not a type such as torch.bfloat16 or 'bfloat16'")
    return named


def register_pipeline(pipeline_class: type[DiffusionPipeline]) -> None:
    """Let `DiffusionPipeline.from_pretrained` find the class, as transformers' Auto classes find registered models.

    A folder with code is read as one without: what is installed is loaded, and `trust_remote_code` is not needed.
    """
    setattr(diffusers, pipeline_class.__name__, pipeline_class)  # there diffusers looks up what a folder names
    read = DiffusionPipeline._dict_from_json_file

    def read_index(json_file: str | os.PathLike) -> dict[str, Any]:
        index = read(json_file)
        name = index.get("_class_name")
        is_ours = isinstance(name, list) and name[-1:] == [pipeline_class.__name__]
        return pipeline_class._dict_from_json_file(json_file) if is_ours else index

    DiffusionPipeline._dict_from_json_file = staticmethod(read_index)
