"""Turn the original's constructor arguments into our configurations."""

from collections.abc import Mapping
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from ..models.configuration_adaptok import AdapTokConfig
from ..models.configuration_adaptok_ar import AdapTokARConfig
from ..models.configuration_adaptok_prior import AdapTokPriorConfig
from ..models.configuration_adaptok_scorer import AdapTokScorerConfig
from .class_names import UCF101
from .original_names import (
    ARGUMENTS,
    ATTENTION_TYPES,
    EQUAL,
    GENERATOR_ARGUMENTS,
    GENERATOR_SUPPORTED,
    NONE,
    PRIORS,
    SCORER_ARGUMENTS,
    SUPPORTED,
)

# LARP's generators know no blocks. Its published tokenizers have this many of 4 frames; `take_blocks` changes it.
LARP_BLOCKS = 4
Config = AdapTokConfig | AdapTokScorerConfig | AdapTokPriorConfig | AdapTokARConfig


def read_configs(arguments: Mapping[str, Any]) -> dict[str, Config]:
    """Turn the original's constructor arguments into configurations: of a generator, or of a tokenizer and, if there are
    any, scorer and prior.

    Arguments that we have no use for are ignored.

    Raises:
        ValueError: naming the arguments that are missing or not supported.
    """
    try:
        return _read_generator_config(arguments) if "cls_token_num" in arguments else _read_tokenizer_configs(arguments)
    except StrictDataclassError as error:
        raise ValueError(f"not supported: {' '.join(str(error).split())}") from error


def _read_tokenizer_configs(arguments: Mapping[str, Any]) -> dict[str, Config]:
    has_scorer = _lookup(arguments, "scorer_name", None) == "transformer_scorer"
    _check_present(arguments, ARGUMENTS + SUPPORTED + (SCORER_ARGUMENTS if has_scorer else ()))
    attention = {part: arguments.get(f"{part}_attn_type") for part in ("encoder", "decoder", "scorer")}
    prior = _lookup(arguments, "prior_model.name", None)
    geometry = {"bottleneck_token_num": 1024, "frame_num": 16, "temporal_patch_size": 4}
    tokens, frames, tubelet = (arguments.get(name, default) for name, default in geometry.items())

    problems = _unsupported(arguments, SUPPORTED)
    for path, other, default in EQUAL:
        value, expected = _lookup(arguments, path, default), _lookup(arguments, other, default)
        if value != expected:
            problems.append(f"{path}={value!r} (must be {other}={expected!r})")
    for part, value in attention.items():
        if value not in list(ATTENTION_TYPES):
            problems.append(f"{part}_attn_type={value!r} (supported: {', '.join(map(repr, ATTENTION_TYPES))})")
    if prior not in [*NONE, *PRIORS]:
        problems.append(f"prior_model.name={prior!r} (supported: 'none', {', '.join(map(repr, PRIORS))})")
    if not all(isinstance(value, int) and value > 0 for value in (tokens, frames, tubelet)):
        problems.append(f"{', '.join(geometry)} = {tokens!r}, {frames!r}, {tubelet!r} (must be positive integers)")
    elif frames % tubelet or tokens % (frames // tubelet):
        problems.append(f"bottleneck_token_num={tokens} (must be a multiple of the blocks, {frames} / {tubelet})")
    if problems:
        raise ValueError(f"not supported: {'; '.join(problems)}")

    num_blocks = frames // tubelet
    tokenizer = AdapTokConfig(
        latents_per_block=tokens // num_blocks,
        adaptive=_lookup(arguments, "mask_generator.mask_type", "none_masking") != "none_masking",
        encoder_attention_type=ATTENTION_TYPES[attention["encoder"]],
        decoder_attention_type=ATTENTION_TYPES[attention["decoder"]],
        **_renamed(arguments, ARGUMENTS),
    )
    configs: dict[str, Config] = {"tokenizer": tokenizer}
    if has_scorer:
        configs["scorer"] = AdapTokScorerConfig(
            latent_size=tokenizer.hidden_size,
            num_blocks=num_blocks,
            latents_per_block=tokenizer.latents_per_block,
            attention_type=ATTENTION_TYPES[attention["scorer"]],
            **_renamed(arguments, SCORER_ARGUMENTS),
        )
    if prior not in NONE:
        layers, heads, width = PRIORS[prior]
        dropouts = ("embedding_dropout", "residual_dropout", "attention_dropout")
        configs["prior"] = AdapTokPriorConfig(
            codebook_dim=tokenizer.codebook_dim,
            num_latent_tokens=tokens,
            hidden_size=width,
            num_attention_heads=heads,
            num_hidden_layers=layers,
            **(dict.fromkeys(dropouts, 0.0) if _lookup(arguments, "prior_model.no_dropout", False) else {}),
        )
    return configs


def _read_generator_config(arguments: Mapping[str, Any]) -> dict[str, AdapTokARConfig]:
    """Read the arguments of AdapTok's generators, or of LARP's, which have neither separators nor blocks."""
    has_separators = arguments.get("with_block_sep", False)
    required = ("cls_token_num", "max_seq_len", "dim") + (("tot_blocks",) if has_separators else ())
    _check_present(arguments, GENERATOR_ARGUMENTS + GENERATOR_SUPPORTED + tuple((name, name, ...) for name in required))
    problems = _unsupported(arguments, GENERATOR_SUPPORTED)
    sizes = {name: arguments[name] for name in required} | {
        "tot_blocks": arguments.get("tot_blocks", 1),
        "multiple_of": arguments.get("multiple_of", 256),
    }
    prompt, tokens, width, blocks, multiple = sizes.values()
    start = arguments.get("start_ar_block_idx", 0)
    frame_prediction = arguments.get("frame_prediction", False)
    if not all(isinstance(value, int) and value > 0 for value in sizes.values()):
        stated = ", ".join(f"{name}={value!r}" for name, value in sizes.items())
        problems.append(f"{stated} (must be positive integers)")
    elif tokens % blocks:
        problems.append(f"max_seq_len={tokens} (must be a multiple of tot_blocks={blocks})")
    if not frame_prediction and (prompt, start) != (1, 0):
        problems.append(f"cls_token_num={prompt!r}, start_ar_block_idx={start!r} (a class-conditional one has 1, 0)")
    if not isinstance(start, int) or start < 0:
        problems.append(f"start_ar_block_idx={start!r} (must be an integer of at least 0)")
    if not has_separators and (blocks, start) != (1, 0):
        problems.append(
            f"with_block_sep={has_separators!r}, tot_blocks={blocks!r}, start_ar_block_idx={start!r} (supported: True, or "
            "LARP's layout without separators: False, 1, 0)"
        )
    if problems:
        raise ValueError(f"not supported: {'; '.join(problems)}")

    if frame_prediction:
        # Without a number of its own, AdapTok's condition has as many codes as the blocks that are generated.
        has_number = not has_separators or arguments.get("custom_cls_token_num", False)
        codes = prompt - 1 if has_number else tokens
        condition: dict[str, Any] = {"num_classes": 0, "num_condition_codes": codes, "class_dropout": 0.0}
    else:
        classes = arguments.get("num_classes", 101)
        condition = {"num_classes": classes, "class_dropout": arguments.get("class_dropout_prob", 0.1)}
        if classes == len(UCF101):
            condition |= {"id2label": dict(enumerate(UCF101)), "label2id": {name: i for i, name in enumerate(UCF101)}}
    if not has_separators and tokens % LARP_BLOCKS == 0:
        blocks = LARP_BLOCKS
    config = AdapTokARConfig(
        num_blocks=start + blocks,
        latents_per_block=tokens // blocks,
        start_block=start,
        block_separators=has_separators,
        position_embedding="absolute",
        learned_positions=not arguments.get("use_fixed_pe", False),
        intermediate_size=-(-int(8 * width / 3) // multiple) * multiple,
        **condition,
        **_renamed(arguments, GENERATOR_ARGUMENTS),
    )
    return {"fp_model" if frame_prediction else "ar_model": config}


def _check_present(arguments: Mapping[str, Any], rows: tuple[tuple[str, Any, Any], ...]) -> None:
    """Raise `ValueError` naming the arguments without default that are missing."""
    missing = dict.fromkeys(path for path, _, default in rows if _lookup(arguments, path, default) is ...)
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}")


def _unsupported(arguments: Mapping[str, Any], rows: tuple[tuple[str, tuple, Any], ...]) -> list[str]:
    """Describe each argument whose value we do not support."""
    problems = []
    for path, values, default in rows:
        value = _lookup(arguments, path, default)
        if value not in values:
            problems.append(f"{path}={value!r} (supported: {', '.join(map(repr, values))})")
    return problems


def _renamed(arguments: Mapping[str, Any], rows: tuple[tuple[str, str, Any], ...]) -> dict[str, Any]:
    """Return the arguments under our names."""
    return {ours: _lookup(arguments, path, default) for path, ours, default in rows}


def _lookup(arguments: Mapping[str, Any], path: str, default: Any) -> Any:
    value: Any = arguments
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value
