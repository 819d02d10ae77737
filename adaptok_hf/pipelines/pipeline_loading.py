"""Loading the pipeline: checkpoints by name, and repositories of the Hub without running their code."""

import os
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from huggingface_hub import snapshot_download

from ..checkpoints import find_checkpoint
from ..models.checked_loading import read_entries
from ..models.modeling_adaptok import AdapTokModel
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..models.modeling_adaptok_scorer import AdapTokScorerModel
from ..video.video_processing_adaptok import AdapTokVideoProcessor
from .original_loading import WEIGHT_SUFFIXES, is_original, load_original, load_original_part

_CLASSES = {each.__name__: each for each in (AdapTokModel, AdapTokScorerModel, AdapTokARForCausalLM, AdapTokVideoProcessor)}
_DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision")


class LoadingMixin:
    """`from_pretrained` of [`AdapTokPipeline`]: of an exported repository it takes weights and configurations only.

    diffusers would run the code files of such a repository, or raise an error without `trust_remote_code=True`.
    """

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike | None = None, **kwargs):
        """Load a pipeline as [`DiffusionPipeline.from_pretrained`] does, by default the small checkpoint in this package.

        Args:
            pretrained_model_name_or_path: `"small"` or `"detailed"`, the checkpoints in this package (see
                `adaptok_hf.checkpoints`); a folder; a Hub id. A local folder comes first. A checkpoint of the original
                code is converted in memory, see [`convert_checkpoint`]: a Hub id, a folder or a training checkpoint.
            kwargs: as there. `dtype` is float32 by default. A component can be the name of an original:
                `ar_model="yeahhhh326/AdapTok-AR"`. Of an original training checkpoint, `ema=0.999` takes that average.

        Raises:
            OSError: for a folder of which a file is missing.
            TypeError: for options that an original cannot have.
            ValueError: for files that are damaged, or do not fit together.
        """
        kwargs["dtype"] = kwargs.pop("torch_dtype", None) or kwargs.get("dtype") or torch.float32
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
            if str(source) in str(error):
                raise
            raise ValueError(f"{source}: {error}") from error

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
