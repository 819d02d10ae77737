"""LARP's tokenizer and generators, converted, against numbers computed with its public code (arXiv 2410.21264), and our
generator with the weights of GigaTok's, from which EVATok's descends.

`ADAPTOK_LARP_PARITY_DIR` names the folder with `larp_tiny/` and `gigatok_tiny/`; without it, `parity_evatok_larp` next to
the folder that `ADAPTOK_PARITY_DIR` names. Sizes and settings are read from the files, so that other sets serve too.
"""

import argparse
import json
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.parity_table import Comparison, Golden
from torch.nn import functional

import adaptok_hf.models.generation_adaptok
from adaptok_hf import AdapTokARForCausalLM, AdapTokModel, AdapTokPipeline
from adaptok_hf.conversion.convert import convert_checkpoint, empty_models, map_tensors, original_names
from adaptok_hf.conversion.original_names import TABLES
from adaptok_hf.models.layers import SinCosPositions

if "ADAPTOK_LARP_PARITY_DIR" in os.environ:
    LARP = Path(os.environ["ADAPTOK_LARP_PARITY_DIR"]) / "larp_tiny"
else:
    LARP = Path(os.environ.get("ADAPTOK_PARITY_DIR", "nowhere")).absolute().with_name("parity_evatok_larp") / "larp_tiny"
pytestmark = pytest.mark.skipif(
    not LARP.is_dir(), reason="neither ADAPTOK_LARP_PARITY_DIR nor ADAPTOK_PARITY_DIR leads to LARP's golden tensors"
)
GIGATOK = LARP.with_name("gigatok_tiny")
# Pickled next to GigaTok's weights.
PLAIN_CLASSES = [argparse.Namespace, np.dtype, np._core.multiarray.scalar, *(type(np.dtype(name)) for name in "fdil")]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory) -> AdapTokPipeline:
    return AdapTokPipeline.from_pretrained(LARP / "tokenizer", ar_model=LARP / "ar", fp_model=LARP / "ar_fp")


def golden(name: str) -> Golden:
    return Golden(LARP / f"{name}.safetensors")


def sequences_of(file: Golden, prefix: str) -> list[str]:
    """Return the names of stored sequences."""
    return [name.removesuffix(".seqs") for name in file if name.startswith(prefix) and name.endswith(".seqs")]


def settings(name: str) -> dict[str, float]:
    """Return the settings of `generate` that a name such as `cfg2_interval9` or `sampled_T0.8_k20_p0.9` states."""
    names = {"T": "temperature", "k": "top_k", "p": "top_p", "cfg": "guidance_scale", "interval": "guidance_interval"}
    found = re.findall(r"(?:^|_)(T|k|p|cfg|interval)([\d.]+)", name)
    stated = {names[key]: int(value) if key in ("k", "interval") else float(value) for key, value in found}
    return {key: value for key, value in stated.items() if (key, value) != ("guidance_scale", 1)}


def check(comparisons: Iterator[Comparison], *files: Golden) -> None:
    """Every comparison is within its bound, and every tensor of the files was looked at."""
    measured = []
    for name, ours, stored, bound in comparisons:
        assert ours.shape == stored.shape, name
        measured.append((name, float((ours.double() - stored.double()).abs().max()), bound))
    assert [comparison for comparison in measured if not comparison[1] <= comparison[2]] == []
    assert [file.unread for file in files] == [set()] * len(files)


def recorded(module: torch.nn.Module, run) -> tuple:
    """Return the input and the output of a module in a call of `run`, and what that returns."""
    calls = []
    hook = module.register_forward_hook(lambda module, inputs, output: calls.append((inputs[0], output)))
    returned = run()
    hook.remove()
    return *calls[0], returned


# --- tokenizer ---------------------------------------------------------------------------------------------------


def encoded(model: AdapTokModel, file: Golden) -> Iterator[Comparison]:
    quantizer, encoder = model.quantizer, model.encoder
    video = file["video_uint8"].transpose(1, 2) / 255
    _, first_layer, output = recorded(encoder.layers[0], partial(model, video))
    latents, blocks, per_block = output.latents.flatten(1, 2), model.config.num_blocks, model.config.latents_per_block
    kinds = first_layer.unflatten(1, (blocks, -1)).split([per_block, model.config.patches_per_block], dim=2)
    patches = encoder.patch_embedding(video) + encoder.patch_positions()
    if encoder.patch_type is not None:
        patches = patches + encoder.patch_type()
    queries = encoder.latent_queries() + (0 if encoder.latent_type is None else encoder.latent_type())
    yield "patch_tokens", patches, file["patch_tokens"], 1e-5
    yield "queries", queries.expand(len(video), -1, -1), file["queries"], 1e-6
    yield "encoder_block0_out", torch.cat([each.flatten(1, 2) for each in kinds[::-1]], 1), file["encoder_block0_out"], 1e-5
    projected = quantizer.project_in(latents)
    yield "z", latents, file["z"], 1e-5
    yield "projected_z", projected, file["projected_z"], 1e-5
    yield "normalized_z", quantizer.project(latents), file["normalized_z"], 1e-5
    yield "codebook_normalized", quantizer.normalized_codebook(), file["codebook_normalized"], 1e-6
    yield "indices", output.codes.flatten(1), file["indices"], 0
    cosines = quantizer.project(latents) @ quantizer.normalized_codebook().T
    best, second = cosines.topk(2).values.unbind(-1)
    yield "index_margin", best - second, file["index_margin"], 1e-5
    yield "regularized_z", output.code_vectors.flatten(1, 2), file["regularized_z"], 1e-6
    yield "encoded", output.quantized.flatten(1, 2), file["encoded"], 1e-6
    yield "loss_commit", output.commitment_loss[None], file["loss_commit"], 1e-7
    yield "loss_codebook", output.codebook_loss[None], file["loss_codebook"], 1e-7
    yield "loss_q", (0.25 * output.commitment_loss + output.codebook_loss)[None], file["loss_q"], 1e-7

    noise = file["stochastic_noise"].view_as(cosines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "exponential_", lambda tensor: tensor.copy_(noise))
        sampled = model.encode(video, sample_codes=True)
    probabilities = (cosines / model.config.quantizer_temperature).softmax(-1)
    yield "stochastic_probs_clip0", probabilities[0], file["stochastic_probs_clip0"], 1e-5
    yield "stochastic_indices", sampled.codes.flatten(1), file["stochastic_indices"], 0
    yield "stochastic_encoded", sampled.quantized.flatten(1, 2), file["stochastic_encoded"], 1e-6
    best, second = (probabilities.double() / noise.double()).log().topk(2).values.unbind(-1)
    yield "stochastic_margin", best - second, file["stochastic_margin"], 1e-4


def decoded(model: AdapTokModel, file: Golden, codes: torch.Tensor) -> Iterator[Comparison]:
    decoder, config = model.decoder, model.config
    sizes = (config.num_blocks, config.latents_per_block)
    clips = codes.unflatten(1, sizes)
    sequence, _, output = recorded(decoder.layers[0], partial(model.decode, clips))
    latents, queries = sequence.unflatten(1, (sizes[0], -1)).split([sizes[1], config.patches_per_block], dim=2)
    latents, queries = latents.flatten(1, 2), queries.flatten(1, 2)
    yield "latents_in", latents, file["latents_in"], 1e-6
    yield "queries_in", queries[:1], file["queries_in"], 1e-6
    tokens, _, _ = recorded(decoder.head, partial(model.decode, clips))
    yield "decoder_out", tokens, file["decoder_out"], 1e-5
    video = output.pixel_values_videos.transpose(1, 2)
    yield "video", video[: len(file["video"])], file["video"], 1e-6
    codes = file["random_indices"]
    embeddings = functional.embedding(codes, model.quantizer.normalized_codebook())
    yield "random_embeddings", embeddings, file["random_embeddings"], 1e-6
    video = model.decode(codes.unflatten(1, sizes)).pixel_values_videos.transpose(1, 2)
    yield "random_video", video, file["random_video"], 1e-6
    hidden_states = torch.cat([latents, queries[:, : int(file["short_num_patches"])]], dim=1)
    for layer in decoder.layers:  # the reference decodes fewer frames from all latents
        hidden_states = layer(hidden_states)
    video = decoder.head(hidden_states[:, latents.shape[1] :]).transpose(1, 2)
    yield "short_video", video[: len(file["short_video"])], file["short_video"], 1e-6  # of the first clips


@torch.no_grad()
def test_tokenizer(pipeline):
    files = golden("tokenizer/encode"), golden("tokenizer/decode")
    check(encoded(pipeline.tokenizer, files[0]), files[0])
    check(decoded(pipeline.tokenizer, files[1], files[0]["indices"]), files[1])
    config = pipeline.tokenizer.config
    assert (config.encoder_attention_type, config.decoder_attention_type, config.adaptive) == ("full", "full", False)


# --- generators --------------------------------------------------------------------------------------------------


def one_pass(model: AdapTokARForCausalLM, prompt: torch.Tensor, file: Golden, **condition) -> Iterator[Comparison]:
    """The stored logits and loss of given codes."""
    start, size = prompt.shape[1] - 1, model.config.codebook_size
    ids = torch.cat([prompt, file["idx"]], dim=1)
    embedded, layer, output = recorded(model.model.layers[0], partial(model, ids))
    yield "embedded", embedded, file["embedded"], 1e-5
    yield "layer0_out", layer, file["layer0_out"], 1e-4
    yield "logits", output.logits[:, start:, :size], file["logits"], 1e-4
    codes = file["loss_targets"].unflatten(1, (model.config.num_blocks, -1))
    counts = torch.full(codes.shape[:2], codes.shape[2])
    yield "loss", model(**model.build_inputs(codes, counts, **condition)).loss[None], file["loss"], 1e-5


def greedy(model: AdapTokARForCausalLM, prompt: torch.Tensor, file: Golden, name: str, **guidance) -> Iterator[Comparison]:
    """The greedy sequences, and the logits of each step as guidance makes them."""
    stored, start, size = file[f"{name}.seqs"].long(), prompt.shape[1], model.config.codebook_size
    for way in ({}, {"cache_implementation": "static"}):
        yield f"{name}.seqs", model.generate(prompt, do_sample=False, **guidance, **way)[:, start:], stored, 0
    logits = model(torch.cat([prompt, stored[:, :-1]], dim=1)).logits[:, start - 1 :, :size]
    if f"{name}.nll" in file:
        nll = functional.cross_entropy(logits.flatten(0, 1), stored.flatten())
        yield f"{name}.nll", nll[None], file[f"{name}.nll"], 1e-5
    if guidance:
        null = torch.full_like(prompt, model.config.null_class_token_id)
        without = model(torch.cat([null, stored[:, :-1]], dim=1)).logits[..., :size]
        last = guidance.get("guidance_interval", stored.shape[1]) + 2
        guided = without + guidance["guidance_scale"] * (logits - without)
        logits = torch.cat([guided[:, :last], logits[:, last:]], dim=1)
    if f"{name}.step_logits" in file:
        yield f"{name}.step_logits", logits, file[f"{name}.step_logits"], 1e-4
    best, second = logits.topk(2).values.unbind(-1)
    yield f"{name}.margin", best - second, file[f"{name}.margin"], 1e-4


def sampled(model: AdapTokARForCausalLM, prompt: torch.Tensor, file: Golden, name: str, **options) -> Iterator[Comparison]:
    """Sequences from stored exponential noise: the largest p / e is the largest log p - log e."""
    noise = -file[f"{name}.noise"].double().log()

    def stored_noise(rows, position, size):
        return functional.pad(noise[position, rows], (0, size - noise.shape[2]))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptok_hf.models.generation_adaptok, "gumbel_noise", stored_noise)
        ids = model.generate(prompt, do_sample=True, seeds=range(len(prompt)), **options)
    yield f"{name}.seqs", ids[:, prompt.shape[1] :], file[f"{name}.seqs"].long(), 0


def filtered(model: AdapTokARForCausalLM, file: Golden) -> Iterator[Comparison]:
    logits = file["filter.logits"]
    padded = functional.pad(logits, (0, model.config.vocab_size - logits.shape[1]))[:, None]
    for name in [name for name in file if name.startswith("filter.top_k")]:
        top_k, top_p = name.removeprefix("filter.top_k").split("_top_p")
        hook = model.lm_head.register_forward_hook(lambda *call: padded)
        options = {"do_sample": True, "top_k": int(top_k), "top_p": float(top_p), "return_dict_in_generate": True}
        output = model.generate(class_labels=[0] * len(logits), max_new_tokens=1, output_scores=True, **options)
        hook.remove()
        scores, stored = output.scores[0][:, : logits.shape[1]], file[name]
        yield f"{name}, -inf", scores.isinf(), stored.isinf(), 0
        yield name, scores.masked_fill(stored.isinf(), 0), stored.masked_fill(stored.isinf(), 0), 0


@torch.no_grad()
def test_class_conditional(pipeline):
    model, file = pipeline.ar_model, golden("ar/logits")
    check(one_pass(model, model.build_prompt(file["cond_idx"]), file, class_labels=file["loss_cond"]), file)
    file = golden("ar/sampling")
    prompt = model.build_prompt(class_labels=file["cond"])
    for name in sequences_of(file, "cfg"):
        check(greedy(model, prompt, file, name, **settings(name)))
    for name in sequences_of(file, "sampled"):
        is_guided = "top_k" in settings(name)  # which the name does not state
        check(sampled(model, prompt, file, name, **settings(name), **({"guidance_scale": 1.25} if is_guided else {})))
    check(filtered(model, file))
    generated = model.generate(prompt[:1], do_sample=False, guidance_scale=1.25)
    codes, counts = model.unpack_sequences(generated)
    assert counts.tolist() == [[model.config.latents_per_block] * model.config.num_blocks]
    video = pipeline.tokenizer.decode(codes).pixel_values_videos.transpose(1, 2)[:, :, :1]
    name = "cfg1.25.video_first_clip_first_frame"
    check([(name, video, file[name], 1e-6)], file)


@torch.no_grad()
def test_frame_prediction(pipeline):
    model, file, video = pipeline.fp_model, golden("ar_fp/logits"), golden("tokenizer/encode")["video_uint8"]
    assert file["loss_cond"].eq(model.config.condition_separator_token_id).sum(1).tolist() == [1] * len(file["loss_cond"])
    blocks = (model.config.num_blocks, model.config.latents_per_block)
    condition = file["loss_cond"][:, :-1].unflatten(1, blocks)
    check(one_pass(model, file["cond_idx"], file, condition_codes=condition), file)
    file = golden("ar_fp/sampling")
    windows = video.transpose(1, 2)[: len(file["cond"])]
    codes = pipeline.tokenize_condition(windows, 5)
    check([("cond", model.build_prompt(condition_codes=codes), file["cond"], 0)])
    for name in sequences_of(file, "plain"):
        check(greedy(model, file["cond"], file, name))
    for name in sequences_of(file, "sampled"):
        check(sampled(model, file["cond"], file, name, **settings(name)))
    assert file.unread == set()


def gigatok_generator() -> AdapTokARForCausalLM:
    """Our generator without separators, with the weights of GigaTok's; its last position is never read."""
    sizes = json.loads((GIGATOK / "gpt.json").read_text())
    with torch.serialization.safe_globals(PLAIN_CLASSES):
        checkpoint = torch.load(GIGATOK / "gpt.pt", weights_only=True)
    tensors = dict(checkpoint["model"])
    length = len(tensors["positional_embedding"]) - 1
    tensors["abs_pe"] = tensors.pop("positional_embedding")[None, :length]
    arguments = sizes | {"max_seq_len": length, "model_type": "class_cond"}
    models = empty_models(arguments)
    states, _ = map_tensors(models, tensors)
    models["ar_model"].load_state_dict(states["ar_model"], assign=True)
    return models["ar_model"].eval()


@pytest.mark.skipif(not (GIGATOK / "gpt.pt").is_file(), reason="the folder has no gigatok_tiny/gpt.pt")
@torch.no_grad()
def test_gigatok_generator():
    model, file = gigatok_generator(), Golden(GIGATOK / "gpt.safetensors")
    classes = file["cond_idx"].where(file["cond_idx"] < model.config.num_classes, -1)  # its null class is the last id
    check(one_pass(model, model.build_prompt(classes), file, class_labels=classes))
    prompt = model.build_prompt(class_labels=file["classes"])
    for name in sequences_of(file, "cfg"):
        if name.endswith("_linear"):  # a schedule that `generate` does not have
            stored, size = file[f"{name}.seqs"].long(), model.config.codebook_size
            ids = torch.cat([prompt, stored[:, :-1]], dim=1)
            without = torch.cat([torch.full_like(prompt, model.config.null_class_token_id), stored[:, :-1]], dim=1)
            conditional, unconditional = model(ids).logits[..., :size], model(without).logits[..., :size]
            scale, steps = settings(name)["guidance_scale"], torch.arange(stored.shape[1])
            scales = torch.where(steps == 0, scale, 1 + (scale - 1) * steps / (len(steps) - 1) + 1e-4)
            logits = unconditional + scales[:, None] * (conditional - unconditional)
            best, second = logits.topk(2)[0].unbind(-1)
            check([(f"{name}.seqs", logits.argmax(-1), stored, 0), (name, best - second, file[f"{name}.margin"], 1e-4)])
        else:
            check(greedy(model, prompt, file, name, **settings(name)))
    for name in sequences_of(file, "sampled"):
        check(sampled(model, prompt, file, name, **settings(name)))
    check(filtered(model, file), file)


# --- conversion --------------------------------------------------------------------------------------------------


def test_training_checkpoints(pipeline, tmp_path):
    """The same weights in the training layout, and an average that differs in one tensor."""
    for name in ("tokenizer", "ar"):
        part = {"ar": "ar_model"}.get(name, name)
        source, model = LARP / name / "checkpoint_easydict.pth", getattr(pipeline, part)
        convert_checkpoint(source, tmp_path / name)
        state = type(model).from_pretrained(tmp_path / name / part).state_dict()
        assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    averaged = AdapTokPipeline.from_pretrained(LARP / "tokenizer" / "checkpoint_easydict.pth", ema=0.999).tokenizer
    state = pipeline.tokenizer.state_dict()
    different = [key for key, value in averaged.state_dict().items() if not torch.equal(state[key], value)]
    assert different == ["decoder.head.projection.weight"]


@pytest.mark.parametrize("kind", ["tokenizer", "ar", "ar_fp"])
def test_released_size(kind):
    """Every name and shape of the published models is used; their numbers of parameters are those of the specification."""
    released = json.loads((LARP / "fullsize_state_dict_spec.json").read_text())[kind]
    models = empty_models(released["config"])
    used = {
        original
        for part, model in models.items()
        for name, _ in model.named_parameters()
        for original in original_names(part, name)[0]
    }
    for part, model in models.items():
        tables = {name for name, ours in TABLES[part].items() if isinstance(model.get_submodule(ours), SinCosPositions)}
        used |= tables
    assert used == set(released["entries"])
    without_logit = 0  # ids that the original's output layer has no row for
    if kind == "tokenizer":
        assert models["prior"].config.num_latent_tokens == released["config"]["bottleneck_token_num"]
        assert models["prior"].num_parameters() == released["of which prior"]
    else:
        (model,) = models.values()
        without_logit = len(model.config.conditioning_token_ids) * model.config.hidden_size
    assert sum(model.num_parameters() for model in models.values()) == released["parameters"] + without_logit
