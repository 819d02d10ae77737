"""The original authors' models as parts of a pipeline, converted in memory."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from diffusers.utils import logging
from transformers import PreTrainedModel

from ..allocation import STRATEGIES
from ..video.video_processing_adaptok import AdapTokVideoProcessor
from .convert import CLASSES, empty_models, map_tensors
from .sources import read_source

logger = logging.get_logger(__name__)

PARTS = {
    "tokenizer": "a tokenizer",
    "scorer": "a scorer",
    "ar_model": "a generator by class",
    "fp_model": "a generator from frames",
}


def load_parts(
    source: str | os.PathLike,
    *,
    dtype: torch.dtype | str | Mapping[str, torch.dtype] | None = None,
    ema: float | None = None,
) -> dict[str, PreTrainedModel]:
    """Return what a checkpoint of the original code holds, by the names in [`AdapTokPipeline`].

    Nothing is written, and nothing but tensors and plain values is unpickled. The prior, which is for training only, is
    left out.

    Args:
        source, ema: as in [`convert_checkpoint`].
        dtype: of the weights; or for each part, and `"default"` for the others; `None` keeps what they have.

    Raises:
        FileNotFoundError, ValueError: as [`convert_checkpoint`].
    """
    arguments, tensors, _ = read_source(source, ema)
    models = empty_models(arguments)
    states, _ = map_tensors(models, tensors)
    dtypes = dtype if isinstance(dtype, Mapping) else {"default": dtype}
    default = dtypes.get("default", torch.float32)
    return {
        name: CLASSES[name].from_pretrained(
            None, config=model.config, state_dict=states[name], dtype=dtypes.get(name, default) or "auto"
        )
        for name, model in models.items()
        if name in PARTS
    }


def complete_parts(source: str | os.PathLike, parts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of a pipeline with a video processor, and log what it has and lacks: as a warning, if few strategies
    of allocation are left.

    Args:
        source: what the user gave.
        parts: those that are `None` are missing.

    Raises:
        ValueError: if there is no tokenizer.
    """
    found = [name for name in PARTS if parts.get(name) is not None]
    missing = ", ".join(text for name, text in PARTS.items() if name not in found)
    message = f"{source}: a checkpoint of the original code, with {', '.join(PARTS[name] for name in found) or 'nothing'}"
    message += f"; without {missing}" if missing else ""
    if "tokenizer" not in found:
        example = f', {found[0]}="{source}"' if found else ""
        is_larp = any(not parts[name].config.block_separators for name in found if name in ("ar_model", "fp_model"))
        tokenizer = "hywang66/LARP-L-long-tokenizer" if is_larp else "yeahhhh326/AdapTok-Scorer"
        raise ValueError(
            f"{message}; a pipeline needs a tokenizer, such as that of "
            f'AdapTokPipeline.from_pretrained("{tokenizer}"{example})'
        )
    config = parts["tokenizer"].config
    if not config.adaptive:
        whole = " and sees whole clips, so it cannot stream" if config.encoder_attention_type == "full" else ""
        logger.warning("%s; the tokenizer is not adaptive: it keeps all tokens and takes no budget%s", message, whole)
    elif "scorer" not in found:
        usable = ", ".join(name for name, row in STRATEGIES.items() if row.is_usable(False, False, False))
        logger.warning("%s; strategies of allocation without a scorer: %s", message, usable)
    else:
        logger.info("%s", message)
    processor = AdapTokVideoProcessor(config.image_size, config.num_frames, config.tubelet_size)
    return {"video_processor": processor} | dict(parts)
