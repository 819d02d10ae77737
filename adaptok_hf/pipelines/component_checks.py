"""Whether the components of a pipeline belong together."""

from collections.abc import Sequence
from typing import Any

from ..models.configuration_adaptok import AdapTokConfig
from ..models.configuration_evatok import EVATokConfig
from ..models.modeling_adaptok import AdapTokModel
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..models.modeling_adaptok_router import AdapTokRouterModel
from ..models.modeling_adaptok_scorer import AdapTokScorerModel
from ..models.modeling_evatok import EVATokModel
from ..video.video_processing_adaptok import AdapTokVideoProcessor

CLIP_ENTRIES = ("image_size", "num_frames", "tubelet_size", "num_channels")


def check_entries(name: str, part: Any, config: AdapTokConfig | EVATokConfig, entries: Sequence[str]) -> None:
    """Raise `ValueError` unless a part, or its configuration, has the same entries as the tokenizer's configuration."""
    for entry in entries:
        theirs, ours = getattr(part, entry), getattr(config, entry)
        if theirs != ours:
            raise ValueError(f"{name} has {entry}={theirs}, the tokenizer {ours}: they do not belong together")


def check_components(
    video_processor: AdapTokVideoProcessor,
    tokenizer: AdapTokModel | EVATokModel,
    scorer: AdapTokScorerModel | None,
    router: AdapTokRouterModel | None = None,
) -> None:
    """Raise `ValueError` unless processor, tokenizer, scorer and router have the same sizes."""
    config = tokenizer.config
    check_entries("the video processor", video_processor, config, ("image_size", "num_frames", "tubelet_size"))
    if scorer is not None and not tokenizer.prefix_decodable:
        raise ValueError(f"a scorer looks at encoded tokens, and a {type(tokenizer).__name__} needs token counts to encode")
    if scorer is not None:
        ours = (config.hidden_size, config.num_blocks, config.latents_per_block)
        theirs = (scorer.config.latent_size, scorer.config.num_blocks, scorer.config.latents_per_block)
        if ours != theirs:
            raise ValueError(f"the scorer is for (width, blocks, latents) {theirs}, the tokenizer has {ours}")
    if router is not None:
        check_entries("the router", router.config, config, CLIP_ENTRIES)
        unknown = set() if tokenizer.prefix_decodable else set(router.config.levels) - set(config.levels)
        if unknown:
            raise ValueError(f"the router has levels {sorted(unknown)}, the tokenizer has {config.levels} only")
        if router.config.levels[-1] > config.latents_per_block:
            raise ValueError(
                f"the router has levels up to {router.config.levels[-1]}, the tokenizer "
                f"latents_per_block={config.latents_per_block}"
            )


def check_generators(
    tokenizer: AdapTokModel | EVATokModel, ar_model: AdapTokARForCausalLM | None, fp_model: AdapTokARForCausalLM | None
) -> None:
    """Raise `ValueError` for a generator in the other's place, or of another tokenizer."""
    levels = None if tokenizer.prefix_decodable else tokenizer.config.levels
    for name, model, is_class_conditional in (("ar_model", ar_model, True), ("fp_model", fp_model, False)):
        if model is None:
            continue
        if model.config.is_class_conditional != is_class_conditional:
            kind = "frame-prediction" if is_class_conditional else "class-conditional"
            raise ValueError(f"{name} is a {kind} generator: it is in the place of the other")
        model.config.take_blocks(tokenizer.config.num_blocks, tokenizer.config.latents_per_block)
        check_entries(name, model.config, tokenizer.config, ("codebook_size", "num_blocks", "latents_per_block"))
        if levels and model.config.block_separators and not set(model.config.length_tokens or [0]) <= set(levels):
            raise ValueError(
                f"{name} has length_tokens={model.config.length_tokens}, the tokenizer takes blocks of {levels} tokens only"
            )
