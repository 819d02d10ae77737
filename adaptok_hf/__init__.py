"""AdapTok for Hugging Face: an adaptive, temporally causal video tokenizer.

Importing the package registers its models with transformers' Auto classes. Everything else is imported at first use, so
importing the package takes milliseconds.
"""

import gc
import importlib
from typing import TYPE_CHECKING

from .auto_registration import register_auto_classes

__version__ = "0.1.0"

# name -> module that defines it
_HOMES = {
    "AdapTokConfig": "models.configuration_adaptok",
    "AdapTokRouterConfig": "models.configuration_adaptok_router",
    "AdapTokScorerConfig": "models.configuration_adaptok_scorer",
    "AdapTokPriorConfig": "models.configuration_adaptok_prior",
    "AdapTokARConfig": "models.configuration_adaptok_ar",
    "EVATokConfig": "models.configuration_evatok",
    "AdapTokModel": "models.modeling_adaptok",
    "EVATokModel": "models.modeling_evatok",
    "BlockCache": "models.block_cache",
    "AdapTokRouterModel": "models.modeling_adaptok_router",
    "AdapTokScorerModel": "models.modeling_adaptok_scorer",
    "AdapTokPriorModel": "models.modeling_adaptok_prior",
    "AdapTokARForCausalLM": "models.modeling_adaptok_ar",
    "AdapTokVideoProcessor": "video.video_processing_adaptok",
    "AdapTokPipeline": "pipelines.pipeline_adaptok",
    "TokenizedVideo": "video.tokenized_video",
    "Video": "video.video_io",
    "VideoError": "video.damage",
    "read_video": "video.video_io",
    "write_video": "video.video_writing",
    "EncodedVideos": "pipelines.encoded_videos",
    "AllocationRequest": "allocation",
    "allocate": "allocation",
    "convert_checkpoint": "conversion.convert",
    "convert_evatok": "conversion.evatok",
    "export_repository": "hub.export",
    "find_checkpoint": "checkpoints",
}

__all__ = ["__version__", *_HOMES]

if TYPE_CHECKING:
    from .allocation import AllocationRequest, allocate
    from .checkpoints import find_checkpoint
    from .conversion.convert import convert_checkpoint
    from .conversion.evatok import convert_evatok
    from .hub.export import export_repository
    from .models.block_cache import BlockCache
    from .models.configuration_adaptok import AdapTokConfig
    from .models.configuration_adaptok_ar import AdapTokARConfig
    from .models.configuration_adaptok_prior import AdapTokPriorConfig
    from .models.configuration_adaptok_router import AdapTokRouterConfig
    from .models.configuration_adaptok_scorer import AdapTokScorerConfig
    from .models.configuration_evatok import EVATokConfig
    from .models.modeling_adaptok import AdapTokModel
    from .models.modeling_adaptok_ar import AdapTokARForCausalLM
    from .models.modeling_adaptok_prior import AdapTokPriorModel
    from .models.modeling_adaptok_router import AdapTokRouterModel
    from .models.modeling_adaptok_scorer import AdapTokScorerModel
    from .models.modeling_evatok import EVATokModel
    from .pipelines.encoded_videos import EncodedVideos
    from .pipelines.pipeline_adaptok import AdapTokPipeline
    from .video.damage import VideoError
    from .video.tokenized_video import TokenizedVideo
    from .video.video_io import Video, read_video
    from .video.video_processing_adaptok import AdapTokVideoProcessor
    from .video.video_writing import write_video


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    collects = gc.isenabled()
    gc.disable()  # an import makes a million objects and frees almost none: looking for garbage only takes time
    try:
        return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
    finally:
        if collects:
            gc.enable()


def __dir__():
    return sorted([*globals(), *_HOMES])


register_auto_classes()
