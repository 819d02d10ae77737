"""Loading the pipeline: checkpoints by name, and repositories of the Hub without running their code."""

import os
from typing import Any

import torch
from huggingface_hub import snapshot_download

from ..checkpoints import find_checkpoint
from ..models.modeling_adaptok import AdapTokModel
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..models.modeling_adaptok_scorer import AdapTokScorerModel
from ..video.video_processing_adaptok import AdapTokVideoProcessor

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
                `adaptok_hf.checkpoints`); a folder; a Hub id. A local folder comes first.
            kwargs: as there. `dtype` is float32 by default.
        """
        kwargs.setdefault("dtype", torch.float32)
        return super().from_pretrained(find_checkpoint(pretrained_model_name_or_path), **kwargs)

    @classmethod
    def download(cls, pretrained_model_name: str | os.PathLike, **kwargs) -> str:
        """Return the local folder of a Hub repository, code left out."""
        options = {name: kwargs[name] for name in _DOWNLOAD_OPTIONS if kwargs.get(name) is not None}
        return snapshot_download(str(pretrained_model_name), allow_patterns=["*.json", "*.safetensors"], **options)

    @classmethod
    def _dict_from_json_file(cls, json_file: str | os.PathLike) -> dict[str, Any]:
        """Return `model_index.json` with the modules of our classes, whatever modules the file names."""
        index = super()._dict_from_json_file(json_file)
        for name, value in index.items():
            if name == "_class_name" and isinstance(value, list):
                index[name] = value[-1]
            elif isinstance(value, list) and len(value) == 2 and value[1] in _CLASSES:
                index[name] = [_CLASSES[value[1]].__module__, value[1]]
        return index
