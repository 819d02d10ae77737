"""EVATok's parts against numbers computed with the code of GigaTok, from which EVATok descends (MIT).

Every stored tensor with what we compute for it. The numbers lie in `tests/assets/parity_evatok`; a folder with another such
set is used as well where `ADAPTOK_LARP_PARITY_DIR` names one.
`PYTHONPATH=tests python -m builders.parity_evatok` prints the differences.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from builders.parity_table import Comparison, Golden
from torch.nn.functional import conv2d, linear, normalize

from adaptok_hf.models.configuration_evatok import EVATokConfig
from adaptok_hf.models.modeling_evatok import EVATokModel
from adaptok_hf.models.qformer_evatok import EVATokLayer, LatentRows, average_cells, run_qformer, sees
from adaptok_hf.models.quantization_evatok import EVATokQuantizer

COMMITTED = Path(__file__).parents[1] / "assets" / "parity_evatok"
FULL = Path(os.environ["ADAPTOK_LARP_PARITY_DIR"]) if "ADAPTOK_LARP_PARITY_DIR" in os.environ else None

Weights = dict[str, torch.Tensor]
# GigaTok's names of a layer -> ours
LAYER_NAMES = {
    "linear1": "mlp.fc1",
    "linear2": "mlp.fc2",
    "multihead_attn": "cross_attention",
    "self_attn": "self_attention",
}
STACK_NAMES = {
    "positional_embedding": "patch_positions.weight",
    "latent_token_positional_embedding": "latent_positions.weight",
    "query_1d": "queries.weight",
    "global_proj": "query_projection",
}
ENCODER_NAMES = STACK_NAMES | {
    "ln_pre": "feature_norm",
    "encoder_embed": "feature_projection",
    "ln_post": "norm",
    "conv_out": "projection",
}
DECODER_NAMES = STACK_NAMES | {
    "ln_pre": "latent_norm",
    "decoder_embed": "latent_projection",
    "ln_post": "head.norm",
}


def below(weights: Weights, prefix: str) -> Weights:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def layer_weights(weights: Weights) -> Weights:
    ours = {}
    for name, value in weights.items():
        first, _, rest = name.partition(".")
        first = LAYER_NAMES.get(first, first)
        if rest.startswith("in_proj_"):  # queries, keys, values
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                ours[f"{first}.{part}_proj.{rest.removeprefix('in_proj_')}"] = rows
        else:
            ours[f"{first}.{rest.replace('wo.', 'out_proj.')}"] = value
    return ours


def stack_weights(weights: Weights, names: dict[str, str]) -> Weights:
    ours = {}
    for name, value in weights.items():
        first, _, rest = name.partition(".")
        if first == "transformer":
            index, _, rest = rest.partition(".")
            ours |= {f"layers.{index}.{key}": part for key, part in layer_weights({rest: value}).items()}
        elif first in names:
            value = value.transpose(0, 1) if value.ndim == 3 else value.flatten(1) if value.ndim == 4 else value
            ours[names[first] + (f".{rest}" if rest else "")] = value
    return ours


def load_exactly(module: torch.nn.Module, weights: Weights, without: tuple[str, ...] = ()) -> torch.nn.Module:
    """Load all weights; only those of the ends, that GigaTok has not, may be missing."""
    result = module.load_state_dict(weights, strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith(without) for key in result.missing_keys), result.missing_keys
    return module.eval()


def load_checkpoint(path: Path) -> dict:
    numbers = [getattr(np.dtypes, name) for name in ("Float32DType", "Float64DType", "Int32DType", "Int64DType")]
    with torch.serialization.safe_globals([argparse.Namespace, np.dtype, np._core.multiarray.scalar, *numbers]):
        return torch.load(path, weights_only=True)


def config_of(grid: int, **options) -> EVATokConfig:
    """A clip of one block of one frame, each patch a pixel."""
    return EVATokConfig(image_size=grid, patch_size=1, tubelet_size=1, num_frames=1, **options)


def rows_of(config: EVATokConfig, count: int) -> LatentRows:
    return LatentRows.of(torch.tensor([[count]]), config)


def pyramid(root: Path) -> Iterator[Comparison]:
    golden = Golden(root / "pyramid.safetensors")
    for name in [name for name in golden if not name.endswith(".x")]:
        grid, _, rest = name.partition(".")
        patches, by_column = golden[f"{grid}.x"].permute(0, 2, 3, 1), rest.startswith("col.")
        cells = average_cells(patches.transpose(1, 2) if by_column else patches, int(rest.rpartition("k")[2]))
        if by_column:  # rows are halved before columns there; the cells lie in rows all the same
            cells = transpose_cells(cells)
        yield f"pyramid {name}", cells, golden[name], 1e-6
    yield from unread("pyramid", golden)


def transpose_cells(cells: torch.Tensor) -> torch.Tensor:
    levels, start, size = [cells[:, :1]], 1, 1
    for level in range(cells.shape[1].bit_length() - 1):
        rows = 2 ** (level // 2)
        some = cells[:, start : start + size].unflatten(1, (rows, size // rows))
        levels.append(some.transpose(1, 2).flatten(1, 2))
        start, size = start + size, 2 * size
    return torch.cat(levels, dim=1)


def layers(root: Path) -> Iterator[Comparison]:
    golden = Golden(root / "qformer_layer.safetensors")
    num_heads = golden["queries"].shape[2] // len(golden["qknorm.weights.self_attn.q_norm.weight"])
    queries, refs, query_pos, ref_pos = (
        golden[name].transpose(0, 1) for name in ("queries", "refs", "query_pos", "ref_pos")
    )
    query_block, ref_block = golden["query_block"][None], golden["ref_block"][None]
    self_mask, cross_mask = sees(query_block, query_block), sees(query_block, ref_block)
    for name, mask in (("forbid_self", self_mask), ("forbid_cross", cross_mask)):
        yield name, (~mask[0, 0]).to(torch.uint8), golden[name], 0
    per_token = sees(*[torch.arange(queries.shape[1])[None]] * 2)
    for kind in ("pre", "post", "qknorm"):
        config = config_of(16, norm_first=kind != "post", qk_norm=kind == "qknorm")
        weights = below(golden, f"{kind}.weights.")
        for name in weights:
            golden[f"{kind}.weights.{name}"]
        layer = load_exactly(EVATokLayer(config, 0, queries.shape[2], num_heads), layer_weights(weights))
        given = {"references": refs, "positions": query_pos, "reference_positions": ref_pos}
        cross = cross_mask
        if kind == "qknorm":
            length = queries.shape[1]
            given |= {"references": refs[:, :length], "reference_positions": ref_pos[:, :length]}
            cross = self_mask
        both = {"self_mask": self_mask, "cross_mask": cross}
        without = {"positions": 0.0, "reference_positions": 0.0}
        calls = {
            "nomask": {},
            "self_mask": {"self_mask": self_mask},
            "cross_mask": {"cross_mask": cross},
            "both_masks": both,
            "per_token": {"self_mask": per_token},
            "no_positions": without,
        }
        stages: dict[str, torch.Tensor] = {}
        hooks = [
            layer.norm2.register_forward_pre_hook(lambda _, inputs, to=stages: to.update(after_self=inputs[0])),
            layer.norm3.register_forward_pre_hook(lambda _, inputs, to=stages: to.update(after_cross=inputs[0])),
        ]
        for call, options in calls.items():
            if f"{kind}.{call}" not in golden:
                continue
            output = layer(queries, **given | options).transpose(0, 1)
            yield f"{kind}.{call}", output, golden[f"{kind}.{call}"], 2e-5
            for stage, states in stages.items():
                name = f"{kind}.{call}.{stage}"
                if name in golden:
                    yield name, states.transpose(0, 1), golden[name], 2e-5
        for hook in hooks:
            hook.remove()
        name = f"{kind}.decoder_direction"
        if name in golden:
            masks = sees(ref_block, ref_block), sees(ref_block, query_block)
            output = layer(refs, queries, ref_pos, query_pos, *masks).transpose(0, 1)
            yield name, output, golden[name], 2e-5
    yield from unread("layers", golden)


def make_model(root: Path) -> tuple[EVATokModel, Weights]:
    """The tokenizer, and its weights under GigaTok's names."""
    saved = load_checkpoint(root / "tokenizer.pt")
    weights = saved.get("ema", saved["model"])
    settings = json.loads((root / "tokenizer.json").read_text())
    given, encoder, decoder = settings["model"]["init_args"], settings["encoder"], settings["decoder"]
    num_tokens = given["num_latent_tokens"]
    query_init = "learned" if given["learnable_1d_query_init"] else "mean"
    config = config_of(
        encoder["grid"],
        levels=[num_tokens // 4, num_tokens],
        encoder_hidden_size=encoder["width"],
        num_encoder_layers=encoder["layers"],
        num_encoder_attention_heads=encoder["heads"],
        decoder_hidden_size=decoder["width"],
        num_decoder_layers=decoder["layers"],
        num_decoder_attention_heads=decoder["heads"],
        query_init="pyramid" if given["multi_level_query_init"] else query_init,
        qk_norm=given["use_qk_norm"],
        feature_size=given["z_channels"],
        latent_size=given["z_channels"],
        codebook_size=given["codebook_size"],
        codebook_dim=given["codebook_embed_dim"],
        normalized_codes=given["codebook_l2_norm"],
        rotation_trick=given["rot"],
    )
    model = EVATokModel(config)
    load_exactly(
        model.encoder, stack_weights(below(weights, "s2to1encoder."), ENCODER_NAMES), without=("patch_embedding.",)
    )
    load_exactly(
        model.decoder, stack_weights(below(weights, "s1to2decoder."), DECODER_NAMES), without=("head.projection.",)
    )
    convolutions = {"quant_conv.": "project_in.", "post_quant_conv.": "project_out."}
    quantizer = {"codebook.weight": weights["quantize.embedding.weight"]}
    for theirs, ours in convolutions.items():
        quantizer |= {
            ours + name: value.flatten(1) if value.ndim > 1 else value for name, value in below(weights, theirs).items()
        }
    load_exactly(model.quantizer, quantizer)
    return model.eval(), weights


def as_image(tokens: torch.Tensor) -> torch.Tensor:
    """(batch, tokens, channels) -> (batch, channels, 1, tokens), as GigaTok has it."""
    return tokens.transpose(1, 2)[:, :, None]


def as_tokens(image: torch.Tensor) -> torch.Tensor:
    return image.flatten(2).transpose(1, 2)


def tokenizer_encoder(model: EVATokModel, golden: Golden) -> Iterator[Comparison]:
    encoder, config, bound = model.encoder, model.config, 2e-5
    num_tokens = config.latents_per_block
    refs = encoder.feature_projection(encoder.feature_norm(as_tokens(golden["x"])))
    yield "encoder.refs", refs.transpose(0, 1), golden["encoder.refs"], bound
    rows, quarter = rows_of(config, num_tokens), rows_of(config, num_tokens // 4)
    grid = refs.unflatten(1, (config.grid_size, config.grid_size))
    if "encoder.pooled" in golden:
        yield "encoder.pooled", average_cells(grid, num_tokens).transpose(0, 1), golden["encoder.pooled"], bound
    queries = encoder.first_queries(refs, rows)
    yield "encoder.queries", queries.transpose(0, 1), golden["encoder.queries"], bound
    first_layer = []
    hook = encoder.layers[0].register_forward_hook(lambda *call: first_layer.append(call[-1]))
    latents = encoder.encode_patches(refs, rows)
    hook.remove()
    yield "encoder.layer0_out", first_layer[0].transpose(0, 1), golden["encoder.layer0_out"], bound
    yield "encoder.out", as_image(latents), golden["encoder.out"], bound
    prefix = encoder.encode_patches(refs, quarter)
    yield "encoder.prefix_quarter", as_image(prefix), golden["encoder.prefix_quarter"], bound
    token = torch.arange(num_tokens)[None]
    level = token.clamp(min=1).log2().floor().long()
    for name, order in (("per_token", token), ("per_level", level), ("per_level_cut", level[:, : num_tokens // 4])):
        if f"encoder.{name}" in golden:
            length = order.shape[1]
            positions = encoder.latent_positions()[:, :length], encoder.patch_positions()
            everywhere = torch.zeros(1, refs.shape[1], dtype=torch.long)
            states = run_qformer(encoder.layers, queries[:, :length], refs, positions, (order, everywhere))
            states = encoder.projection(encoder.norm(states))
            yield f"encoder.{name}", as_image(states), golden[f"encoder.{name}"], bound


def tokenizer_decoder(model: EVATokModel, golden: Golden, weights: Weights, align_at: int) -> Iterator[Comparison]:
    decoder, config, bound = model.decoder, model.config, 2e-5
    num_tokens = config.latents_per_block
    tokens = golden["post_quant_conv.out"][:, :, 0].transpose(1, 2)
    refs = decoder.latent_projection(decoder.latent_norm(tokens))
    yield "decoder.refs", refs.transpose(0, 1), golden["decoder.refs"], bound
    seen = []
    hooks = [decoder.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][:, :1]))]
    hooks += [layer.register_forward_hook(lambda *call: seen.append(call[-1])) for layer in decoder.layers]
    rows, quarter = rows_of(config, num_tokens), rows_of(config, num_tokens // 4)

    def picture(quantized, rows):  # GigaTok ends in a convolution, in place of our linear map to pixels
        states = decoder.head.norm(decoder.decode_patches(quantized[:, None], rows))
        image = states.transpose(1, 2).unflatten(2, (config.grid_size, config.grid_size))
        return conv2d(image, *(weights[f"s1to2decoder.conv_out.{name}"] for name in ("weight", "bias")), padding=1)

    yield "decoder.out", picture(tokens, rows), golden["decoder.out"], bound
    for hook in hooks:
        hook.remove()
    yield "decoder.layer0_in", seen[0].transpose(0, 1), golden["decoder.layer0_in"], bound
    yield "decoder.layer0_out", seen[1][:1].transpose(0, 1), golden["decoder.layer0_out"], bound
    name = "decoder.features_at_alignment_layer"
    if name in golden:
        yield name, seen[align_at][:1], golden[name], bound
        states = seen[align_at]
        for index in (0, 2, 4):
            layer = below(weights, f"s1to2decoder.distill_mlp.{index}.")
            states = linear(torch.nn.functional.silu(states) if index else states, layer["weight"], layer["bias"])
        yield "decoder.alignment_features", states, golden["decoder.alignment_features"], bound
    name = "decoder.quarter_of_the_tokens"
    if name in golden:
        yield name, picture(tokens, quarter), golden[name], bound


def tokenizer(root: Path) -> Iterator[Comparison]:
    golden = Golden(root / "tokenizer.safetensors")
    model, weights = make_model(root)
    yield from tokenizer_encoder(model, golden)
    quantizer, latents = model.quantizer, as_tokens(golden["encoder.out"])
    output = quantizer(latents)
    yield "quant_conv.out", as_image(quantizer.project_in(latents)), golden["quant_conv.out"], 2e-5
    yield "codes", output.codes, golden["codes"], 0
    best, second = (quantizer.project(latents) @ quantizer.normalized_codebook().T).topk(2).values.unbind(-1)
    yield "index_margin", best - second, golden["index_margin"], 1e-5
    yield "quantized", as_image(output.code_vectors), golden["quantized"], 1e-5
    from_codes = quantizer.normalized_codebook()[golden["codes"]]
    yield "quantized_from_codes", as_image(from_codes), golden["quantized_from_codes"], 1e-6
    yield "post_quant_conv.out", as_image(output.quantized), golden["post_quant_conv.out"], 2e-5
    depth = json.loads((root / "tokenizer.json").read_text())["model"]["init_args"]["distill_depth"]
    yield from tokenizer_decoder(model, golden, weights, depth)
    for part in ("encoder", "decoder"):
        given = {name.rpartition(".")[2]: golden[name] for name in golden if name.startswith(f"masked_{part}.")}
        if given:
            queries, refs, query_pos, ref_pos = (
                given[name].transpose(0, 1) for name in ("queries", "refs", "query_pos", "ref_pos")
            )
            blocks = given["query_block"][None], given["ref_block"][None]
            states = run_qformer(getattr(model, part).layers, queries, refs, (query_pos, ref_pos), blocks)
            yield f"masked_{part}.out", states.transpose(0, 1), given["out"], 2e-5
    yield from unread("tokenizer", golden)


def variants(root: Path) -> Iterator[Comparison]:
    golden = Golden(root / "encoder_variants.safetensors")
    for kind in sorted({name.partition(".")[0] for name in golden}):
        weights = {name: golden[f"{kind}.weights.{name}"] for name in below(golden, f"{kind}.weights.")}
        (num_tokens, _, width), image = weights["latent_token_positional_embedding"].shape, golden[f"{kind}.x"]
        config = config_of(
            image.shape[-1],
            levels=[num_tokens],
            encoder_hidden_size=width,
            num_encoder_layers=len({name.split(".")[1] for name in weights if name.startswith("transformer.")}),
            num_encoder_attention_heads=3,
            query_init=kind,
            feature_size=image.shape[1],
            latent_size=image.shape[1],
            codebook_size=4,
            decoder_hidden_size=4,
            num_decoder_layers=1,
            num_decoder_attention_heads=1,
        )
        encoder = EVATokModel(config).encoder
        load_exactly(encoder, stack_weights(weights, ENCODER_NAMES), without=("patch_embedding.",))
        refs = encoder.feature_projection(encoder.feature_norm(as_tokens(image)))
        latents = encoder.encode_patches(refs, rows_of(config, num_tokens))
        yield f"{kind}.out", as_image(latents), golden[f"{kind}.out"], 2e-5
    yield from unread("variants", golden)


def make_quantizer(codebook: torch.Tensor, kind: str) -> EVATokQuantizer:
    """Takes code vectors as they are: maps to and from the codes' width are the identity."""
    num_codes, dim = codebook.shape
    options = {"rotation": {"rotation_trick": True}, "no_l2": {"normalized_codes": False}}.get(kind, {})
    config = config_of(16, codebook_size=num_codes, codebook_dim=dim, latent_size=dim, **options)
    quantizer = EVATokQuantizer(config).train()
    for linear_map in (quantizer.project_in, quantizer.project_out):
        torch.nn.init.eye_(linear_map.weight)
        torch.nn.init.zeros_(linear_map.bias)
    quantizer.codebook.weight.data = codebook.clone()
    return quantizer


def quantizers(root: Path) -> Iterator[Comparison]:
    golden = Golden(root / "quantizer.safetensors")
    codebook, latents, cotangent = golden["codebook"], as_tokens(golden["z"]), golden["cotangent"]
    for kind in ("plain", "rotation", "no_l2"):
        quantizer, given = make_quantizer(codebook, kind), latents.clone().requires_grad_()
        output = quantizer(given, return_entropy=True)
        yield f"{kind}.codes", output.codes, golden[f"{kind}.codes"], 0
        yield f"{kind}.quantized", as_image(output.quantized), golden[f"{kind}.quantized"], 1e-5
        yield f"{kind}.from_codes", as_image(quantizer.lookup(output.codes)), golden[f"{kind}.from_codes"], 1e-6
        losses = {
            "codebook_loss": output.codebook_loss,
            "commitment_loss": 0.25 * output.commitment_loss,
            "entropy_loss": 0.02 * output.entropy_loss,
        }
        for name, loss in losses.items():
            yield f"{kind}.{name}", loss[None], golden[f"{kind}.{name}"], 1e-7
        wanted = given, quantizer.codebook.weight
        gradients = torch.autograd.grad(sum(losses.values()), wanted, retain_graph=True)
        yield f"{kind}.grad_z", as_image(gradients[0]), golden[f"{kind}.grad_z"], 1e-5
        yield f"{kind}.grad_codebook", gradients[1], golden[f"{kind}.grad_codebook"], 1e-5
        (pullback,) = torch.autograd.grad((as_image(output.quantized) * cotangent).sum(), given)
        yield f"{kind}.pullback_z", as_image(pullback), golden[f"{kind}.pullback_z"], 1e-5
    quantizer = make_quantizer(codebook, "plain")
    for name in [name for name in golden if name.startswith("entropy_raw_T")]:
        quantizer.entropy_temperature = float(name.removeprefix("entropy_raw_T"))
        yield name, quantizer.entropy_loss(quantizer.project(latents))[None], golden[name], 1e-6
    # the draw of the reference with its noise: argmax(p / e)
    cosines = normalize(latents, dim=-1) @ quantizer.normalized_codebook().T
    noise = golden["stochastic.noise"].double().view(cosines.shape)
    scores = cosines.double() / quantizer.temperature - noise.log()
    yield "stochastic.codes", scores.argmax(-1), golden["stochastic.codes"], 0
    yield from unread("quantizers", golden)


def unread(section: str, golden: Golden) -> Iterator[Comparison]:
    """A comparison that fails if tensors were left out."""
    missing = sorted(golden.unread)
    yield f"{section} left out: {missing}", torch.tensor(len(missing)), torch.tensor(0), 0


SECTIONS = {
    "pyramid": pyramid,
    "layers": layers,
    "tokenizer": tokenizer,
    "variants": variants,
    "quantizers": quantizers,
}


def measure(root: Path, section: str) -> Iterator[tuple[str, float, float]]:
    """(name, largest difference, bound) of each comparison; shapes and dtypes must be equal."""
    for name, ours, stored, bound in SECTIONS[section](root / "gigatok_tiny"):
        if ours.shape != stored.shape or ours.dtype != stored.dtype:
            raise AssertionError(f"{name}: {ours.shape} {ours.dtype} against {stored.shape} {stored.dtype}")
        yield name, float((ours.detach().double() - stored.double()).abs().max()), bound


def main() -> None:
    print(f"{'section':12}{'tensors':48}{'max |difference|':>18}{'bound':>10}")
    for section in SECTIONS:
        for name, difference, bound in measure(FULL or COMMITTED, section):
            print(f"{section:12}{name:48}{difference:18.2g}{bound:10.0e}")


if __name__ == "__main__":
    main()
