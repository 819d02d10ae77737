"""The sections of `parity_table` about the generators."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch.nn import functional

from adaptok_hf.models.modeling_adaptok_ar import AdapTokARForCausalLM
from adaptok_hf.models.token_layout import pack

if TYPE_CHECKING:
    from builders.parity_table import Comparison, Golden, Parity

EOB = 128
SIZE = 129  # ids that have a logit in the original
# The original's names of guidance settings.
GUIDANCE = {
    "cfg1": {},
    "cfg2": {"guidance_scale": 2.0},
    "cfg2_interval20": {"guidance_scale": 2.0, "guidance_interval": 20},
}


def every(logits: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Of some logits only those of every 8th position are committed."""
    return logits[:, :: -(-logits.shape[1] // stored.shape[1])]


def last_frames(videos: torch.Tensor, stored: torch.Tensor) -> torch.Tensor:
    """Of some videos only the last frames of the first clips are committed."""
    return videos[: len(stored), :, -stored.shape[2] :]


def class_conditional(parity: Parity) -> Iterator[Comparison]:
    model, golden = parity.ar_model, parity.golden("ar_tiny/logits")
    prompt = model.build_prompt(class_labels=golden["cond_idx"])
    recorded = {}
    first = model.model.layers[0]
    hooks = [
        first.register_forward_pre_hook(lambda module, inputs: recorded.update(embedded=inputs[0])),
        first.register_forward_hook(lambda module, inputs, output: recorded.update(layer0_out=output)),
    ]
    logits = model(torch.cat([prompt, golden["idx"]], 1)).logits[..., :SIZE]
    for hook in hooks:
        hook.remove()
    yield "logits", every(logits, golden["logits"]), golden["logits"], 1e-4
    for name in recorded:
        if name in golden:
            yield name, recorded[name], golden[name], 1e-4

    golden = parity.golden("ar_tiny/loss")
    yield from _loss(model, golden, 0, class_labels=golden["labels"])

    golden = parity.golden("ar_tiny/sampling")
    classes = golden["classes"]
    for name, settings in GUIDANCE.items():
        yield from _greedy(model, golden, f"{name}.", model.build_prompt(class_labels=classes), settings)
    sequences, valid = golden["cfg1.sampled_seqs"].long(), golden["cfg1.valid"].bool()
    logits = model(torch.cat([model.build_prompt(class_labels=classes), sequences[:, :-1]], 1)).logits[..., :SIZE]
    nll = functional.cross_entropy(logits[valid], sequences[valid])[None]
    yield "cfg1.nll", nll, golden["cfg1.nll"], 1e-5
    generated = model.generate(class_labels=classes[:2], do_sample=False)
    video = parity.tokenizer.decode(*model.unpack_sequences(generated)).pixel_values_videos.transpose(1, 2)
    stored = golden["cfg1.video_first2"]
    yield "cfg1.video_first2", last_frames(video, stored), stored, 1e-5


def frame_prediction(parity: Parity) -> Iterator[Comparison]:
    model, golden = parity.fp_model, parity.golden("fp_tiny/logits")
    logits = model(torch.cat([golden["cond_idx"], golden["idx"]], 1)).logits[:, 32:, :SIZE]
    yield "logits", every(logits, golden["logits"]), golden["logits"], 1e-4

    golden = parity.golden("fp_tiny/loss")
    conditions = golden["conditions"].unflatten(1, (4, 16))
    yield "loss: cond_idx", model.build_prompt(condition_codes=conditions), golden["cond_idx"], 0
    yield from _loss(model, golden, 1, condition_codes=conditions)

    golden = parity.golden("fp_tiny/sampling")
    video = parity.golden("tokenizer_tiny/encode")["video"].transpose(1, 2)
    condition = torch.cat([video[:, :5], video[:, 4:5].expand(-1, 11, -1, -1, -1)], dim=1)
    codes = parity.tokenizer.encode(condition).codes
    yield "cond_codes_full", codes.flatten(1), golden["cond_codes_full"], 0
    prompt = model.build_prompt(condition_codes=codes)
    yield "cond_idx", prompt, golden["cond_idx"], 0
    yield from _greedy(model, golden, "", prompt, {}, codes)

    block_codes, counts = model.unpack_sequences(model.generate(prompt, do_sample=False), codes)
    yield "full_latent_nums", counts, golden["full_latent_nums"], 0
    yield "full_block_codes", block_codes.flatten(1), golden["full_block_codes"], 0
    sequences, mask = pack(block_codes, counts, EOB)
    yield "full_seqs", sequences[mask], golden["full_seqs"][:, : mask.shape[1]][mask], 0
    decoded = parity.tokenizer.decode(block_codes, counts).pixel_values_videos.transpose(1, 2)
    yield "decoded", last_frames(decoded, golden["decoded"]), golden["decoded"], 1e-5
    name = "decoded_clamped_64_first_clip_first4"
    if name in golden:
        frames = decoded[0, :, :4].clamp(0, 1).transpose(0, 1)
        resized = functional.interpolate(frames, (64, 64), mode="bilinear", antialias=True, align_corners=False)
        yield name, resized.transpose(0, 1)[None], golden[name], 1e-5


def _loss(model: AdapTokARForCausalLM, golden: Golden, start: int, **condition: torch.Tensor) -> Iterator[Comparison]:
    """The training pack, our loss, which is that of the untruncated pack, and the original's."""
    codes, counts = golden["bottleneck_rep"].unflatten(1, (4, 16)), golden["latent_nums"]
    inputs = model.build_inputs(codes, counts, **condition)
    prompt = model.config.prompt_length
    sequences, mask = inputs["input_ids"][:, prompt:], inputs["attention_mask"][:, prompt:]
    length = sequences.shape[1]
    yield "z_untruncated", sequences, golden["z_untruncated"], 0
    yield "latent_mask_untruncated", mask, golden["latent_mask_untruncated"].long(), 0
    blocks = 4 - start
    for name, ours in (("packed", sequences), ("packed_mask", mask)):
        yield name, functional.pad(ours, (0, 17 * blocks - length)), golden[name].long(), 0
    each = [pack(codes[:, [block]], counts[:, [block]], EOB) for block in range(start, 4)]
    for name, parts in zip(("inserted", "inserted_mask"), zip(*each, strict=True), strict=True):
        ours = torch.cat([functional.pad(part, (0, 17 - part.shape[1])) for part in parts], dim=1)
        yield name, ours.long(), golden[name].long(), 0

    output = model(**inputs)
    logits = output.logits[:, prompt - 1 : -1, :SIZE]
    yield "loss_untruncated", output.loss[None], golden["loss_untruncated"], 1e-5
    unmasked = model(inputs["input_ids"]).logits[:, prompt - 1 : -1, :SIZE]  # the original has no mask for padding
    if "logits_untruncated" in golden:
        yield "logits_untruncated", unmasked, golden["logits_untruncated"], 1e-4
    if "loss_no_valid_mask_untruncated" in golden:
        plain = functional.cross_entropy(unmasked.flatten(0, 1), sequences.flatten())[None]
        yield "loss_no_valid_mask_untruncated", plain, golden["loss_no_valid_mask_untruncated"], 1e-5

    # The original's: the longest row has lost as many entries as there are <EOB>.
    target, kept = golden["z"], golden["latent_mask"].bool()
    cut = target.shape[1]
    yield "z", sequences[:, :cut], target, 0
    yield "latent_mask", mask[:, :cut], kept.long(), 0
    yield "tokens cut off", torch.tensor(length - cut), torch.tensor(blocks), 0
    labels = inputs["labels"].clone()
    labels[:, prompt + cut :] = -100
    yield "loss", model(**inputs | {"labels": labels}).loss[None], golden["loss"], 1e-5
    if "logits" in golden:
        yield "loss: logits", unmasked[:, :cut], golden["logits"], 1e-4
    best = logits[:, :cut][kept].topk(5).indices == target[kept][:, None]
    yield "top1_acc", 100 * best[:, :1].any(1).float().mean()[None], golden["top1_acc"], 1e-4
    yield "top5_acc", 100 * best.any(1).float().mean()[None], golden["top5_acc"], 1e-4


def _greedy(
    model: AdapTokARForCausalLM,
    golden: Golden,
    prefix: str,
    prompt: torch.Tensor,
    settings: dict,
    codes: torch.Tensor | None = None,
) -> Iterator[Comparison]:
    """Greedy sequences, their counts, and the logits that they were chosen by."""
    valid, forced = golden[f"{prefix}valid"].bool(), golden[f"{prefix}forced_separator"].bool()
    stored = golden[f"{prefix}sampled_seqs"].long()
    length = stored.shape[1]

    def generate(rows: list[int], **options) -> torch.Tensor:
        ids = model.generate(prompt[rows], do_sample=False, **settings, **options)
        return functional.pad(ids, (0, prompt.shape[1] + length - ids.shape[1]), value=EOB)

    everything, some = list(range(len(prompt))), [0, len(prompt) // 2, len(prompt) - 1]
    together = generate(everything)
    for way, rows, ids in (
        ("batched", everything, together),
        ("static cache", everything, generate(everything, cache_implementation="static")),
        ("one by one", some, torch.cat([generate([row]) for row in some])),
    ):
        sequences, expected = ids[:, prompt.shape[1] :] * valid[rows], stored[rows] * valid[rows]
        yield f"{prefix}sampled_seqs, {way}", sequences, expected, 0
        counts = model.unpack_sequences(ids, None if codes is None else codes[rows])[1][:, model.config.start_block :]
        yield f"{prefix}latent_nums, {way}", counts, golden[f"{prefix}latent_nums"][rows], 0

    # The original's choices in one pass; what it fed itself after the end is in its sequences.
    conditional = model(torch.cat([prompt, stored[:, :-1]], 1)).logits[:, prompt.shape[1] - 1 :, :SIZE]
    logits = conditional.clone()
    if settings:
        null = torch.full_like(prompt, model.config.null_class_token_id)
        without = model(torch.cat([null, stored[:, :-1]], 1)).logits[..., :SIZE]
        guided = settings.get("guidance_interval", length) + 2
        logits[:, :guided] = (without + settings["guidance_scale"] * (conditional - without))[:, :guided]
    logits[:, 0, EOB] = -torch.inf
    if f"{prefix}step_logits" in golden:
        steps = golden[f"{prefix}step_logits"]
        made = logits[:, : steps.shape[1]]
        yield f"{prefix}step_logits, -inf", made.isinf(), steps.isinf(), 0
        yield f"{prefix}step_logits", made.masked_fill(made.isinf(), 0), steps.masked_fill(steps.isinf(), 0), 1e-4
    # Forced are separators where another token would have been chosen.
    yield f"{prefix}forced_separator", (together[:, prompt.shape[1] :] != logits.argmax(-1)) & valid, forced & valid, 0
    best, second = logits.topk(2).values.unbind(-1)
    counts_here = valid & ~forced
    yield f"{prefix}margin", (best - second)[counts_here], golden[f"{prefix}margin"][counts_here], 1e-4


def filtering(parity: Parity) -> Iterator[Comparison]:
    """The scores that `generate` samples from in the second step, where nothing is banned."""
    model, golden = parity.ar_model, parity.golden("ar_tiny/filtering")
    logits = golden["logits"]
    padded = functional.pad(logits, (0, model.config.vocab_size - SIZE))[:, None]
    for top_k, top_p in ((1, 1.0), (10, 1.0), (0, 0.7), (0, 0.05), (20, 0.5)):
        name = f"top_k{top_k}_top_p{top_p}"
        for temperature in (1.0, 0.8):
            hook = model.lm_head.register_forward_hook(lambda *call: padded)
            sampling = {"do_sample": True, "temperature": temperature, "top_k": top_k, "top_p": top_p}
            output = model.generate(
                class_labels=[0] * 5, max_new_tokens=2, return_dict_in_generate=True, output_scores=True, **sampling
            )
            hook.remove()
            scores = output.scores[1][:, :SIZE]
            if temperature == 1:
                yield f"{name}, -inf", scores.isinf(), golden[name].isinf(), 0
                kept = ~golden[name].isinf()
                yield name, scores[kept], golden[name][kept], 0
            else:
                yield f"{name}.probs_T0.8", scores.softmax(-1), golden[f"{name}.probs_T0.8"], 1e-6
