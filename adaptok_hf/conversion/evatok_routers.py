"""The routers among EVATok's files: vision transformers whose [CLS] token chooses among all assignments."""

import itertools
import os
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch

from ..models.configuration_adaptok_router import AdapTokRouterConfig
from ..models.modeling_adaptok_router import AdapTokRouterModel
from .evatok_files import GEOMETRY, SIZES, make_config, read_arguments, saved_config
from .evatok_names import PATCH_POSITIONS, QUERY, NameMatcher
from .evatok_tokenizers import Proof, order_pixels, read_clip

# Whether the last block varies fastest among the classes, and whether the levels rise.
CLASS_ORDERS = {
    "first-slowest": (True, True),
    "first-fastest": (False, True),
    "first-slowest-falling": (True, False),
    "first-fastest-falling": (False, False),
}
# What the network gets for a pixel of 0, and for one of 1.
PIXEL_RANGES = {"centered": (-0.5, 0.5), "unit": (0.0, 1.0), "signed": (-1.0, 1.0)}
# The YAML's arguments and ours, next to the geometry; all of them inferred.
ARGUMENTS = {
    "patch_size": "patch_size",
    "embed_dim": "hidden_size",
    "depth": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "mlp_ratio": "mlp_ratio",
}
SUPPORTED = {"use_rope": (False, None), "use_qk_norm": (False, None)}


def convert_router(
    tensors: Mapping[str, torch.Tensor],
    names: NameMatcher,
    config: Path,
    tokenizer: Mapping[str, object],
    *,
    patch_order: str | None = None,
    class_order: str = "first-slowest",
    pixel_range: str = "centered",
) -> tuple[AdapTokRouterModel, list[str], Proof]:
    """Return a router, notes about it, and what proves it on a video; see `convert_evatok`.

    Args:
        tokenizer: arguments of the YAML that are known from the tokenizer.
    """
    for name, value, known in (("class_order", class_order, CLASS_ORDERS), ("pixel_range", pixel_range, PIXEL_RANGES)):
        if value not in known:
            raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
    notes = [f"classes: {class_order}; pixels: {pixel_range}"]
    tensors = _fuse_projections(tensors)
    ours = _read_config(config, tensors, tokenizer)
    tensors, split = _split_positions(tensors, names, ours)
    notes += split
    with torch.device("meta"):
        model = AdapTokRouterModel(ours)
    mapped = names.match({name: p.shape for name, p in model.named_parameters()}, tensors)
    notes += mapped.notes()
    order_pixels(mapped, tensors, ours, patch_order, {"patch_embedding.projection.weight": (1, "cthw")})
    _scale_pixels(mapped.tensors, *PIXEL_RANGES[pixel_range])
    places = {assignment: place for place, assignment in enumerate(_assignments(ours, class_order))}
    rows = [places[assignment] for assignment in _assignments(ours, "first-slowest")]
    for end in ("weight", "bias"):
        mapped.tensors[f"head.{end}"] = mapped.tensors[f"head.{end}"][rows]
    model.load_state_dict(mapped.tensors, assign=True)
    return model.eval(), notes, partial(_verify, model, class_order)


def _read_config(path: Path, tensors: Mapping[str, torch.Tensor], tokenizer: Mapping[str, object]) -> AdapTokRouterConfig:
    if (saved := saved_config(path, AdapTokRouterConfig)) is not None:
        if (saved.attention_type, saved.price_conditioned) != ("full", False):
            raise ValueError(
                f"{path}: attention_type={saved.attention_type!r}, price_conditioned={saved.price_conditioned}; EVATok's "
                "router has 'full' and False"
            )
        return saved
    arguments = read_arguments(path, GEOMETRY, SUPPORTED, tokenizer)
    size = arguments.get("encoder_size") or "small"
    if size not in SIZES:
        raise ValueError(f"{path}: encoder_size={size!r} is not one of {', '.join(SIZES)}")
    ours = dict(zip(("hidden_size", "num_hidden_layers", "num_attention_heads"), SIZES[size], strict=True))
    ours |= {name: arguments[theirs] for theirs, name in (GEOMETRY | ARGUMENTS).items() if theirs in arguments}
    ours["attention_bias"] = any(re.fullmatch(r".*\.(qkv\.|wqkv\.|in_proj_)bias", name) for name in tensors)
    levels = ours.pop("levels")
    levels = sorted(levels) if isinstance(levels, list | tuple) else levels
    return make_config(path, AdapTokRouterConfig, levels=levels, attention_type="full", **ours)


def _fuse_projections(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with separate projections to query, key and value as one, `qkv`, as ours are."""
    fused = dict(tensors)
    for name in tensors:
        if match := re.fullmatch(r"(.*\.)q_proj\.(weight|bias)", name):
            parts = [f"{match[1]}{letter}_proj.{match[2]}" for letter in "qkv"]
            if len({tensors[part].shape if part in tensors else None for part in parts}) == 1:
                fused[f"{match[1]}qkv.{match[2]}"] = torch.cat([fused.pop(part) for part in parts])
    return fused


def _split_positions(
    tensors: Mapping[str, torch.Tensor], names: NameMatcher, config: AdapTokRouterConfig
) -> tuple[Mapping[str, torch.Tensor], list[str]]:
    """Return the tensors with the position of [CLS], if the table has one, added to it, and a note that says so."""
    positions, query = (names.sources(ours, tensors) for ours in (PATCH_POSITIONS, QUERY))
    shape = (config.num_blocks * config.patches_per_block + 1, config.hidden_size)
    if len(positions) != 1 or len(query) != 1 or names.rows(PATCH_POSITIONS, tensors) != shape:
        return tensors, []
    if tensors[query[0]].numel() != config.hidden_size:
        return tensors, []
    table = tensors[positions[0]].reshape(shape)
    split = {query[0]: tensors[query[0]].reshape(1, -1) + table[:1], positions[0]: table[1:]}
    return {**tensors, **split}, [f"{positions[0]}: its first row belongs to {query[0]}"]


def _scale_pixels(tensors: dict[str, torch.Tensor], lowest: float, highest: float) -> None:
    """Let the patch embedding take pixels in [0, 1] where the original's takes others."""
    weight, bias = (f"patch_embedding.projection.{end}" for end in ("weight", "bias"))
    tensors[bias] = tensors[bias] + lowest * tensors[weight].sum(1)
    tensors[weight] = (highest - lowest) * tensors[weight]


def _assignments(config: AdapTokRouterConfig, order: str) -> list[tuple[int, ...]]:
    """Return the assignments of levels to blocks in an order of `CLASS_ORDERS`."""
    last_fastest, rising = CLASS_ORDERS[order]
    assignments = itertools.product(sorted(config.levels, reverse=not rising), repeat=config.num_blocks)
    return [each if last_fastest else each[::-1] for each in assignments]


@torch.no_grad()
def _verify(model: AdapTokRouterModel, order: str, video: str | os.PathLike) -> list[str]:
    """Return the counts of a video's first clip; raise `ValueError` unless the order of classes is the likeliest.

    A clip that repeats one picture needs tokens for its first block, and the fewest for the others (the paper's Fig. 1). So
    the right order is the one that expects the smallest share of the tokens after the first block.
    """
    config, clip = model.config, read_clip(video, model.config)
    still = clip[:, :1].expand_as(clip)
    probabilities = model(still).logits[0].softmax(-1)
    shares = {}
    for candidate in dict.fromkeys([order, *CLASS_ORDERS]):  # the first of equals is the one that was given
        # what our classes would mean if the source's were in this order
        source = dict(zip(_assignments(config, order), _assignments(config, candidate), strict=True))
        counts = [source[assignment] for assignment in _assignments(config, "first-slowest")]
        expected = probabilities @ torch.tensor(counts, dtype=probabilities.dtype)
        shares[candidate] = float(expected[1:].sum() / expected.sum())
    best = min(shares, key=shares.get)
    stated = ", ".join(f"{name} {share:.1%}" for name, share in shares.items())
    stated = f"of the tokens of {video}'s first frame, repeated, so many come after the first block: {stated}"
    if best != order:
        raise ValueError(
            f"class_order={order!r} is not the best: {stated}. Give class_order={best!r} (--class-order); nothing was "
            "written"
        )
    if config.num_blocks > 1 and not shares[best] < (config.num_blocks - 1) / config.num_blocks:
        raise ValueError(f"no order of classes fits: {stated}. Some tensors are not where they belong; nothing was written")
    counts = [model.route(each)[0].tolist() for each in (clip, still)]
    return [f"verified: {stated}; counts of the clip: {counts[0]}, of the frame: {counts[1]}"]
