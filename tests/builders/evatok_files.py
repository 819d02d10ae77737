"""A checkpoint and its YAML in the layout that EVATok's files are expected to have."""

import argparse
import re
from pathlib import Path

import numpy as np
import torch
import yaml

from adaptok_hf import EVATokConfig, EVATokModel

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
