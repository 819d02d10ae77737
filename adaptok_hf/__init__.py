"""AdapTok for Hugging Face: an adaptive, temporally causal video tokenizer.

Importing the package registers its models with transformers' Auto classes. Everything is imported at first use:
importing the package is instant.
"""

import importlib
from typing import TYPE_CHECKING

from .auto_registration import register_auto_classes

__version__ = "0.1.0"

# name -> module that defines it
_HOMES = {
    "AdapTokConfig": "configuration_adaptok",
    "AdapTokScorerConfig": "configuration_adaptok_scorer",
    "AdapTokPriorConfig": "configuration_adaptok_prior",
    "AdapTokARConfig": "configuration_adaptok_ar",
    "AdapTokModel": "modeling_adaptok",
    "BlockCache": "block_cache",
    "AdapTokScorerModel": "modeling_adaptok_scorer",
    "AdapTokPriorModel": "modeling_adaptok_prior",
    "AdapTokARForCausalLM": "modeling_adaptok_ar",
    "AdapTokVideoProcessor": "video_processing_adaptok",
    "AdapTokPipeline": "pipeline_adaptok",
    "Video": "video_io",
    "read_video": "video_io",
    "write_video": "video_io",
    "allocate": "allocation",
    "convert_checkpoint": "conversion",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from .allocation import allocate
    from .block_cache import BlockCache
    from .configuration_adaptok import AdapTokConfig
    from .configuration_adaptok_ar import AdapTokARConfig
    from .configuration_adaptok_prior import AdapTokPriorConfig
    from .configuration_adaptok_scorer import AdapTokScorerConfig
    from .conversion import convert_checkpoint
    from .modeling_adaptok import AdapTokModel
    from .modeling_adaptok_ar import AdapTokARForCausalLM
    from .modeling_adaptok_prior import AdapTokPriorModel
    from .modeling_adaptok_scorer import AdapTokScorerModel
    from .pipeline_adaptok import AdapTokPipeline
    from .video_io import Video, read_video, write_video
    from .video_processing_adaptok import AdapTokVideoProcessor


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)


def __dir__():
    return sorted([*globals(), *_HOMES])


register_auto_classes()
