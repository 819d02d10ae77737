"""Options of transformers' `generate`: merged, and raised by name where they would have no effect on block sequences."""

import copy
import math
from numbers import Real
from typing import Any

from transformers import GenerationConfig, PreTrainedModel

from .generation_adaptok import check_number

# Options that have no effect on block sequences or a wrong one, and what to use instead.
_UNSUPPORTED_OPTIONS = {
    **dict.fromkeys(("budget",), "a cap is max_tokens, the most codes of a whole sequence or of each block"),
    **dict.fromkeys(("negative_prompt_ids", "negative_prompt_attention_mask"), "guidance compares with the null class"),
    **dict.fromkeys(("inputs_embeds", "position_ids", "labels"), "a prompt is token ids without padding"),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id"), "the rules of blocks choose where <EOB> is forced"),
    **dict.fromkeys(
        ("num_assistant_tokens", "num_assistant_tokens_schedule", "assistant_confidence_threshold"),
        "transformers reads it in assistant_model.generation_config",
    ),
    **dict.fromkeys(
        (
            "assistant_early_exit", "assistant_ensemble_weight", "assistant_lookbehind", "assistant_tokenizer",
            "bos_token_id", "constraints", "continuous_batching_config", "custom_generate", "decoder_start_token_id",
            "diversity_penalty", "dola_layers", "encoder_no_repeat_ngram_size", "encoder_repetition_penalty",
            "force_words_ids", "low_memory", "num_beam_groups", "penalty_alpha", "prefill_chunk_size", "speculation_type",
            "stop_strings", "target_lookbehind", "token_healing", "tokenizer", "use_mtp",
        ),
        "",
    ),
}  # fmt: skip
_NEUTRAL_ONES = ("encoder_repetition_penalty", "num_beam_groups")

# Lower ones would overflow the logits; 0 stands for the likeliest token.
_LEAST_TEMPERATURE = 1e-6


def merge_options(
    model: PreTrainedModel, prompt_length: int, generation_config: GenerationConfig | None, options: dict[str, Any]
) -> tuple[GenerationConfig, dict[str, Any]]:
    """Return the settings of `generate`, and those of its arguments that are none.

    Arguments take precedence over `generation_config`, and that over the model's own. Clips are written whole unless
    `max_length` or `max_new_tokens` says otherwise; rows are filled with the layout's filler, such as `<EOB>`.

    Raises:
        ValueError: naming an option that would have no effect or a wrong one.
    """
    settings = GenerationConfig() if generation_config is None else copy.deepcopy(generation_config)
    new_tokens = options.get("max_new_tokens", settings.max_new_tokens)
    max_length = options.get("max_length", settings.max_length)
    if new_tokens is None and max_length is not None:
        if max_length <= prompt_length:
            raise ValueError(f"max_length={max_length} leaves no room after the prompt of {prompt_length} tokens")
        new_tokens = max_length - prompt_length
    settings.update(**model.generation_config.to_dict(), defaults_only=True)
    arguments = settings.update(**options)
    settings.max_new_tokens = new_tokens or settings.max_new_tokens or model.config.max_sequence_length
    settings.max_length = None
    if settings.pad_token_id is None:
        settings.pad_token_id = model.config.filler_token_id
    _check_values(settings, options)
    _check_combinations(settings)
    if settings.output_attentions and model.config._attn_implementation != "eager":
        raise ValueError("output_attentions=True needs model.set_attn_implementation('eager')")
    return settings, arguments


def _check_values(settings: GenerationConfig, options: dict[str, Any]) -> None:
    values = settings.to_dict() | options
    for name, hint in _UNSUPPORTED_OPTIONS.items():
        value = values.get(name)
        is_neutral = isinstance(value, Real) and (value == 0 or (value == 1 and name in _NEUTRAL_ONES))
        if value is not None and not is_neutral:
            raise ValueError(
                f"{name}={value!r} is not supported by the generation of block sequences{hint and ': ' + hint}"
            )
    for name, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
    if settings.do_sample is not False:
        for name, low, high in (("top_p", 1e-6, 1.0), ("temperature", _LEAST_TEMPERATURE, 1e6)):
            if getattr(settings, name) is not None:
                check_number(name, getattr(settings, name), low, high)


def _check_combinations(settings: GenerationConfig) -> None:
    has_beams, cache = (settings.num_beams or 1) > 1, settings.cache_implementation or ""
    for names, is_used, need in (
        (("output_scores", "output_logits", "output_attentions", "output_hidden_states"),
         settings.return_dict_in_generate, "return_dict_in_generate=True"),
        (("min_length", "min_new_tokens", "exponential_decay_length_penalty"),
         settings.eos_token_id is not None, "eos_token_id: block sequences end by their number of <EOB>"),
        (("early_stopping",), has_beams, "num_beams"),
        (("max_matching_ngram_size",), settings.prompt_lookup_num_tokens, "prompt_lookup_num_tokens"),
        (("max_cache_len",), cache.endswith("static"), "cache_implementation='static'"),
        (("cache_config",), cache == "quantized", "cache_implementation='quantized'"),
        (("cache_implementation",), settings.use_cache is not False, "use_cache=True"),
    ):  # fmt: skip
        for name in names:
            if getattr(settings, name) and not is_used:
                raise ValueError(f"{name}={getattr(settings, name)!r} needs {need}")
    if settings.length_penalty not in (None, 1.0) and not has_beams:
        raise ValueError(f"length_penalty={settings.length_penalty} needs num_beams")
    if cache == "paged":
        raise ValueError("cache_implementation='paged' is not supported: it leaves out the rules of block sequences")


def check_decoding(
    settings: GenerationConfig, number: int, scale: float, lookahead: int, arguments: dict[str, Any], has_seeds: bool
) -> None:
    """Raise ValueError for ways of decoding `number` sequences that exclude each other."""
    check_number("lookahead", lookahead, 1, math.inf, whole=True)
    has_beams, has_guidance = (settings.num_beams or 1) > 1, scale != 1
    cache, lookup = settings.cache_implementation or "", settings.prompt_lookup_num_tokens
    guessing = {
        f"lookahead={lookahead}": lookahead > 1,
        f"prompt_lookup_num_tokens={lookup}": lookup is not None,
        "assistant_model": arguments.get("assistant_model") is not None,
    }
    has_guesses = any(guessing.values())
    ways = guessing | {f"num_beams={settings.num_beams}": has_beams, f"guidance_scale={scale}": has_guidance}
    others = {
        f"{number} sequences": has_guesses and number > 1,
        "use_cache=False": has_guesses and settings.use_cache is False,
        f"cache_implementation={cache!r}": has_guesses and cache not in ("", "dynamic"),
        "seeds": has_beams and settings.do_sample and has_seeds,
        "streamer": has_beams and arguments.get("streamer") is not None,
        "past_key_values": arguments.get("past_key_values") is not None,
    }
    used = [name for name, is_used in ways.items() if is_used]
    excluded = used[1:] + [name for name, is_used in others.items() if is_used]
    if used and excluded:
        raise ValueError(f"{used[0]} does not work together with {', '.join(excluded)}")


__all__ = ["check_decoding", "merge_options"]
