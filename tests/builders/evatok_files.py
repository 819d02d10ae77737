"""Checkpoints and their YAML in the layout that EVATok's files are expected to have."""

import argparse
import re
from pathlib import Path

import numpy as np
import torch
import yaml

from adaptok_hf import (
    AdapTokARConfig,
    AdapTokARForCausalLM,
    AdapTokRouterConfig,
    AdapTokRouterModel,
    EVATokConfig,
    EVATokModel,
)

SIZES = {"small": (12, 2, 2), "base": (16, 1, 2)}
CONFIG = {
    "image_size": 16,
    "num_frames": 8,
    "levels": [1, 2, 8],
    "encoder_hidden_size": 12,
    "num_encoder_layers": 2,
    "num_encoder_attention_heads": 2,
    "decoder_hidden_size": 16,
    "num_decoder_layers": 1,
    "num_decoder_attention_heads": 2,
    "latent_size": 10,
    "codebook_size": 24,
    "codebook_dim": 4,
}
RENAMED = (
    (r"(encoder|decoder)\.layers\.(\d+)\.(.*)", r"\1.transformer.\2.\3"),
    (r"self_attention", "self_attn"),
    (r"cross_attention", "multihead_attn"),
    (r"mlp\.fc", "linear"),
    (r"(encoder|decoder)\.patch_positions\.weight", r"\1.positional_embedding"),
    (r"(encoder|decoder)\.latent_positions\.weight", r"\1.latent_token_positional_embedding"),
    (r"encoder\.patch_embedding\.projection", "pixels.to_tokens"),
    (r"encoder\.query_projection", "encoder.global_proj"),
    (r"encoder\.norm", "encoder.ln_post"),
    (r"encoder\.projection", "encoder.conv_out"),
    (r"decoder\.latent_norm", "decoder.ln_pre"),
    (r"decoder\.latent_projection", "decoder.decoder_embed"),
    (r"decoder\.head\.norm", "decoder.ln_post"),
    (r"decoder\.head\.projection", "decoder.conv_out"),
    (r"quantizer\.project_in", "quant_conv"),
    (r"quantizer\.project_out", "post_quant_conv"),
    (r"quantizer\.codebook", "quantize.embedding"),
    (r"^encoder\.", "s2to1encoder."),
    (r"^decoder\.", "s1to2decoder."),
)


def make_model(**changes) -> EVATokModel:
    torch.manual_seed(0)
    model = EVATokModel(EVATokConfig(**CONFIG | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # also biases and norms
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def original_tensors(model: EVATokModel) -> dict[str, torch.Tensor]:
    """The model's weights under the expected names: fused projections, kernels, tables (tokens, 1, width)."""
    tensors: dict[str, torch.Tensor] = {}
    for name, weight in model.state_dict().items():
        for pattern, theirs in RENAMED:
            name = re.sub(pattern, theirs, name)
        if "positional_embedding" in name:
            weight = weight.transpose(0, 1)
        elif name == "pixels.to_tokens.weight":
            weight = weight.unflatten(1, (3, 4, 8, 8))  # a Conv3d's kernel
        elif name in ("quant_conv.weight", "post_quant_conv.weight"):
            weight = weight[:, :, None, None]
        if match := re.fullmatch(r"(.*\.)([qkv])_proj\.(weight|bias)", name):
            tensors.setdefault(f"{match[1]}in_proj_{match[3]}", []).append(weight)
        else:
            tensors[name] = weight
    tensors = {name: torch.cat(each) if isinstance(each, list) else each for name, each in tensors.items()}
    tensors |= {"s1to2decoder.distill_mlp.0.weight": torch.rand(3, 3), "quantize.codebook_used": torch.zeros(65536)}
    return {name: tensor.clone() for name, tensor in tensors.items()}


def write_checkpoint(folder: Path, tensors: dict[str, torch.Tensor], **changes) -> tuple[Path, Path]:
    """`evatok.pt` and `evatok.yaml`; the weights are the average, which differs from `model`."""
    arguments = {
        "frame_num": CONFIG["num_frames"],
        "input_size": CONFIG["image_size"],
        "temporal_patch_size": 4,
        "spatial_token_num_choices": CONFIG["levels"],
        "codebook_size": CONFIG["codebook_size"],
        "codebook_embed_dim": CONFIG["codebook_dim"],
        "z_channels": CONFIG["latent_size"],
        "encoder_size": "small",
        "decoder_size": "base",
    } | changes
    (folder / "evatok.yaml").write_text(yaml.safe_dump({"model": {"init_args": arguments}}))
    checkpoint = {
        "model": {name: tensor + 1 for name, tensor in tensors.items()},
        "ema": tensors,
        "steps": np.int64(400_000),
        "best": [np.float32(9.7), np.float64(0.1), np.bool_(True)],
        "args": argparse.Namespace(lr=np.float64(1e-4), levels=[32, 64]),
    }
    torch.save(checkpoint, folder / "evatok.pt")
    return folder / "evatok.pt", folder / "evatok.yaml"


# --- generators: three blocks of up to 8 codes -------------------------------------------------------------------

GENERATOR_ARGUMENTS = {"dim": 32, "n_layer": 2, "n_head": 2, "multiple_of": 32, "num_classes": 3}
GENERATOR_NAMES = (
    (r"^model\.layers\.(\d+)\.self_attn\.o_proj", r"layers.\1.attention.wo"),
    (r"^model\.layers\.(\d+)\.mlp\.gate_proj", r"layers.\1.feed_forward.w1"),
    (r"^model\.layers\.(\d+)\.mlp\.up_proj", r"layers.\1.feed_forward.w3"),
    (r"^model\.layers\.(\d+)\.mlp\.down_proj", r"layers.\1.feed_forward.w2"),
    (r"^model\.layers\.(\d+)\.input_layernorm", r"layers.\1.attention_norm"),
    (r"^model\.layers\.(\d+)\.post_attention_layernorm", r"layers.\1.ffn_norm"),
    (r"^model\.norm", "norm"),
)


def make_generator(**changes) -> AdapTokARForCausalLM:
    torch.manual_seed(0)
    config = {"codebook_size": 24, "num_blocks": 3, "latents_per_block": 8, "length_tokens": [1, 2, 8], "num_classes": 3}
    config |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 96}
    model = AdapTokARForCausalLM(AdapTokARConfig(**{"position_embedding": "absolute"} | config | changes)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    model.lm_head.weight.data[model.config.num_sequence_ids :] = 0
    return model


def generator_tensors(model: AdapTokARForCausalLM, order: str | None = None) -> dict[str, torch.Tensor]:
    """The model's weights under the expected names, with one position more than is read, and ids in an order.

    The classes have a table of their own; rows of "unused" ids are noise.
    """
    config, state = model.config, model.state_dict()
    others = ["classes", "null"] if config.num_classes else ["separator"] * config.condition_separator
    ours = ["codes", *map(str, config.length_tokens), *others]
    sizes = {"codes": config.codebook_size, "classes": config.num_classes}
    starts = {entry: sum(sizes.get(before, 1) for before in ours[:place]) for place, entry in enumerate(ours)}
    embeddings, output = [], []
    for entry in order.split(",") if order else ours:
        size = sizes.get(entry, 1)
        for rows, name in ((embeddings, "model.embed_tokens.weight"), (output, "lm_head.weight")):
            start = starts.get(entry)
            rows.append(torch.randn(size, 32) if start is None else state[name][start : start + size])
    embeddings, output = torch.cat(embeddings), torch.cat(output)
    num_classes = config.num_classes + 1 if config.num_classes else 0
    num_tokens = len(embeddings) - num_classes
    tensors = {"tok_embeddings.weight": embeddings[:num_tokens], "output.weight": output[:num_tokens]}
    if num_classes:
        tensors["cls_embedding.embedding_table.weight"] = embeddings[num_tokens:]
    tensors["positional_embedding"] = torch.cat([state["model.positions.weight"][0], torch.randn(1, 32)])
    for name, weight in state.items():
        theirs = name
        for pattern, replacement in GENERATOR_NAMES:
            theirs = re.sub(pattern, replacement, theirs)
        if theirs != name:
            tensors[theirs] = weight
    for layer in range(config.num_hidden_layers):
        parts = [state[f"model.layers.{layer}.self_attn.{letter}_proj.weight"] for letter in "qkv"]
        tensors[f"layers.{layer}.attention.wqkv.weight"] = torch.cat(parts)
    return {name: tensor.clone() for name, tensor in tensors.items()}


# --- routers: two blocks -----------------------------------------------------------------------------------------

ROUTER_NAMES = (
    (r"^patch_embedding\.projection", "patch_embed.proj"),
    (r"^layers\.(\d+)\.attention", r"blocks.\1.attn"),
    (r"^layers\.", "blocks."),
    (r"^queries\.weight", "cls_token"),
    (r"^patch_positions\.weight", "pos_embed"),
)


def make_evatok_router(**changes) -> AdapTokRouterModel:
    torch.manual_seed(0)
    sizes = {"image_size": 16, "num_frames": 8, "levels": [1, 2, 8], "hidden_size": 12, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "attention_type": "full", "attention_bias": True}
    model = AdapTokRouterModel(AdapTokRouterConfig(**sizes | changes)).eval()
    for parameter in model.parameters():
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


def router_tensors(model: AdapTokRouterModel) -> dict[str, torch.Tensor]:
    """The model's weights under a vision transformer's names: a kernel, and positions with a row for [CLS]."""
    tensors = {}
    for name, weight in model.state_dict().items():
        for pattern, theirs in ROUTER_NAMES:
            name = re.sub(pattern, theirs, name)
        tensors[name] = weight.clone()
    tensors["patch_embed.proj.weight"] = tensors["patch_embed.proj.weight"].unflatten(1, (3, 4, 8, 8))
    position = torch.randn(1, 1, model.config.hidden_size)
    tensors["pos_embed"] = torch.cat([position, tensors["pos_embed"]], dim=1)
    tensors["cls_token"] -= position
    return tensors
