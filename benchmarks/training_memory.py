"""What training takes of a GPU's memory: weights and what belongs to them, activations of a clip, batches that fit.

    python benchmarks/training_memory.py [--gigabytes 24 40 80] [--only tokenizer_paper ...]
    python benchmarks/training_memory.py --check

Nothing of the models is computed: fake tensors (`FakeTensorMode`) run the forward pass of a training step in the recipes'
sizes, under bfloat16 autocast, and the tensors that autograd keeps for the backward pass are counted. Two batch sizes tell
what a clip takes from what does not grow with the batch (casts of the weights, masks). Attention is counted as a fused
kernel, which keeps no attention matrices. Not counted: what a layer uses for a moment, the allocator's losses and the
libraries' own memory. `--check` compares such a count, for a small model without autocast, with what the CPU's allocator
really holds at the end of a forward pass.
"""

import argparse
import gc
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from transformers.modeling_layers import GradientCheckpointingLayer

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, AdapTokScorerConfig, AdapTokScorerModel
from adaptok_hf.losses import TokenizerLoss
from adaptok_hf.losses import prior as prior_module
from adaptok_hf.metrics.lpips_network import LPIPSNetwork
from adaptok_hf.training.tokenizer.arguments import Arguments
from adaptok_hf.training.tokenizer.training_step import TrainingStep, build_adversarial_loss, build_model, build_prior

SCRIPTS = Path(__file__).parents[1] / "training_scripts"
SHARDS = 8
USABLE = 0.9  # of a GPU's memory, a guess at what the list above leaves
GB = 1e9


@dataclass
class Stage:
    """A training script with a recipe.

    Args:
        trained: what has gradients and is sharded.
        whole: other trained modules, which stay whole (the discriminator).
        frozen: networks that are only run.
        averaged: part of `trained` that has an average (EMA).
        forward: batch size -> the loss.
        paper_batch: clips per GPU in the paper.
    """

    name: str
    trained: nn.Module
    whole: list[nn.Module]
    frozen: list[nn.Module]
    averaged: list[nn.Module]
    forward: Callable[[int], torch.Tensor]
    paper_batch: int


def bytes_of(*modules: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for module in modules for p in module.parameters())


def state_bytes(stage: Stage, shards: int = 1) -> int:
    """Weights, gradients, Adam's two averages, the weights' average; DDP's second copy of gradients where it is used."""
    weights = bytes_of(stage.trained)
    others = bytes_of(*stage.frozen) + 5 * bytes_of(*stage.whole)
    if shards == 1:
        return others + 5 * weights + bytes_of(*stage.averaged)
    layers = [bytes_of(part) for part in stage.trained.modules() if isinstance(part, GradientCheckpointingLayer)]
    # what is gathered at a time: two layers (one comes while the other is used), a layer's gradients, and all that is
    # in no layer with its gradients
    gathered = 3 * max(layers) + 2 * (weights - sum(layers))
    return others + (4 * weights + bytes_of(*stage.averaged)) // shards + gathered


class SavedBytes(saved_tensors_hooks):
    """Counts what autograd keeps within it, each storage once and none of the given modules' parameters."""

    def __init__(self, *modules: nn.Module):
        known = {t.untyped_storage()._cdata for m in modules for t in (*m.parameters(), *m.buffers())}
        self.total, self._kept = 0, []

        def count(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                known.add(storage._cdata)
                self._kept.append(storage)  # else another could get its address
                self.total += storage.nbytes()
            return tensor

        super().__init__(count, lambda tensor: tensor)

    def __enter__(self) -> "SavedBytes":
        super().__enter__()
        return self


def fused_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Fake tensors would take the plain formula, with its matrices; a fused kernel keeps neither these nor dropout's."""
    if enable_gqa:
        raise NotImplementedError("fewer heads of keys than of queries")
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -math.inf)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value.to(query.dtype), 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


def keep_all_tokens(vectors, codes, token_counts=None):
    """`pack_kept_tokens` where nothing is dropped: fake tensors have no counts to read."""
    batch, length = len(codes), codes[0].numel()
    positions = torch.arange(length).expand(batch, length)
    valid = torch.ones(batch, length, dtype=torch.bool)
    return prior_module.PackedTokens(vectors.flatten(1, 2), codes.flatten(1), positions, valid)


def tokenizer_stage(name: str, recipe: dict, checkpointing: bool) -> Stage:
    recipe = recipe | {"stream_folders": ["."], "gradient_checkpointing": checkpointing}
    args = Arguments(data_root=".", output_dir=".", **recipe)
    model = build_model(args)
    config = model.config
    prior, adversarial = build_prior(args, config), build_adversarial_loss(args, config)
    step = TrainingStep(model, prior, args)
    whole, frozen = [m for m in (adversarial,) if m], []
    if args.perceptual_weight:
        frozen.append(LPIPSNetwork("vgg").requires_grad_(False))
    loss = TokenizerLoss(args.loss_weights, frozen[0] if frozen else None, adversarial)

    def forward(batch: int) -> torch.Tensor:
        video = torch.rand(batch, config.num_frames, config.num_channels, config.image_size, config.image_size)
        output, _, prior_term = step(video, None, True, 0.5)
        return loss(video, output, 10**9, prior_term)["total"]

    return Stage(name, step, whole, frozen, [model] if args.ema_decay else [], forward, 4)


def scorer_stage(checkpointing: bool) -> Stage:
    recipe = json.loads((SCRIPTS / "recipes" / "tokenizer_paper.json").read_text())
    tokenizer = tokenizer_stage("", recipe, False)
    scorer = AdapTokScorerModel(AdapTokScorerConfig()).train()
    if checkpointing:
        scorer.gradient_checkpointing_enable({"use_reentrant": False})
    config = scorer.config

    def forward(batch: int) -> torch.Tensor:
        latents = torch.rand(batch, config.num_blocks, config.latents_per_block, config.latent_size)
        return scorer(latents, latents).scores.float().square().mean()

    frozen = [tokenizer.trained.model, *tokenizer.frozen]
    return Stage("scorer_paper", scorer, [], frozen, [], forward, 4)


def ar_stage(checkpointing: bool) -> Stage:
    recipe = json.loads((SCRIPTS / "recipes" / "ar_paper.json").read_text())
    model = AdapTokARForCausalLM(AdapTokARConfig(**recipe["model"])).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(batch: int) -> torch.Tensor:
        ids = torch.randint(model.config.codebook_size, (batch, model.config.max_position_embeddings))
        return model(ids, labels=ids).loss

    return Stage("ar_paper", model, [], [], [model] if recipe["ema_decay"] else [], forward, 8)


def all_stages(only: list[str], checkpointing: bool) -> list[Stage]:
    sizes = ("tokenizer_small", "tokenizer_paper", "tokenizer_large", "tokenizer_extra_large")
    builders = {
        name: lambda name=name: tokenizer_stage(
            name, json.loads((SCRIPTS / "recipes" / f"{name}.json").read_text()), checkpointing
        )
        for name in sizes
    }
    builders |= {"scorer_paper": lambda: scorer_stage(checkpointing), "ar_paper": lambda: ar_stage(checkpointing)}
    return [build() for name, build in builders.items() if not only or name in only]


def activation_bytes(stage: Stage) -> tuple[int, int]:
    """Of a step: (what does not grow with the batch, what each clip takes), without recomputed layers."""
    totals = []
    for batch in (1, 2):
        with SavedBytes(stage.trained, *stage.whole, *stage.frozen) as saved, torch.autocast("cpu", torch.bfloat16):
            stage.forward(batch)
        totals.append(saved.total)
    return 2 * totals[0] - totals[1], totals[1] - totals[0]


def fitting(gigabytes: float, state: int, fixed: int, per_clip: int) -> str:
    return str(max(0, int((USABLE * gigabytes * GB - state - fixed) // per_clip)))


def print_tables(gigabytes: list[float], only: list[str]) -> None:
    patches = (
        patch("torch.nn.functional.scaled_dot_product_attention", fused_attention),
        patch.object(prior_module, "pack_kept_tokens", keep_all_tokens),
    )
    titles = ["recipe", "trained", "state, whole", f"state, {SHARDS} shards", "a clip", "a clip, checkpointed"]
    titles += [f"clips in {g:g} GB" for g in gigabytes] + ["the paper's clips"]
    print("| " + " | ".join(titles) + " |\n|" + "---|" * len(titles))
    with patches[0], patches[1], FakeTensorMode():
        for plain, checkpointed in zip(all_stages(only, False), all_stages(only, True), strict=True):
            states = [state_bytes(plain), state_bytes(plain, SHARDS)]
            counts = [activation_bytes(plain), activation_bytes(checkpointed)]
            # a checkpointed layer is run again with all that it keeps: about that of the difference, once
            layers = sum(isinstance(m, GradientCheckpointingLayer) for m in plain.trained.modules())
            again = (counts[0][1] - counts[1][1]) // layers
            per_clip = [counts[0][1], counts[1][1] + again]
            fixed = counts[0][0]  # with checkpointing too: autocast keeps the casts of the weights
            parameters = f"{sum(p.numel() for p in plain.trained.parameters()) / 1e6:.0f}M"
            row = [plain.name, parameters, *(f"{(state + fixed) / GB:.1f} GB" for state in states)]
            row += [f"{clip / GB:.2f} GB" for clip in per_clip]
            for g in gigabytes:
                fit = [fitting(g, state, fixed, clip) for state in states for clip in per_clip]
                row.append("{} ({}) / {} ({})".format(*fit))
            print("| " + " | ".join([*row, str(plain.paper_batch)]) + " |", flush=True)


def check() -> None:
    """A small tokenizer: the count against what the allocator holds at the end of a forward pass."""
    from torch.profiler import ProfilerActivity, profile

    recipe = json.loads((SCRIPTS / "recipes" / "tokenizer_tiny.json").read_text())
    recipe |= {"model": json.loads((SCRIPTS / "recipes" / "tokenizer_tiny_init.json").read_text())["model"]}
    for name in ("init_from", "train_folders", "train_weights", "val_folder"):
        recipe.pop(name)
    recipe["prior"]["attention_dropout"] = 0.0  # a CPU has no fused attention with dropout
    for checkpointing in (False, True):
        with patch.object(prior_module, "pack_kept_tokens", keep_all_tokens):
            stage = tokenizer_stage("tiny", recipe, checkpointing)
            held = []
            for batch in (4, 8):
                with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
                    loss = stage.forward(batch)
                    gc.collect()
                events = [event for event in profiled.profiler.kineto_results.events() if event.name() == "[memory]"]
                held.append(sum(event.nbytes() for event in events))
                del loss
            with patch("torch.nn.functional.scaled_dot_product_attention", fused_attention), FakeTensorMode():
                fake, counts = tokenizer_stage("tiny", recipe, checkpointing), []
                for batch in (4, 8):
                    with SavedBytes(fake.trained, *fake.whole, *fake.frozen) as saved:
                        fake.forward(batch)
                    counts.append(saved.total)
        counted, real = ((totals[1] - totals[0]) / 4e6 for totals in (counts, held))
        print(f"gradient checkpointing {checkpointing}: a clip takes {counted:.2f} MB by count, {real:.2f} MB in truth")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[24, 40, 80], help="memory of GPUs")
    parser.add_argument("--only", nargs="+", default=[], help="recipes")
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    if arguments.check:
        check()
    else:
        print_tables(arguments.gigabytes, arguments.only)


if __name__ == "__main__":
    main()
