"""What training takes of a GPU's memory: weights and what belongs to them, activations of a clip, batches that fit.

    python benchmarks/training_memory.py [--gigabytes 24 40 80] [--only tokenizer_paper ...]

Nothing of the models is computed: fake tensors (`FakeTensorMode`) run the forward pass of a training step in the recipes'
sizes, under bfloat16 autocast, and the tensors that autograd keeps for the backward pass are counted. The difference of two
batch sizes is what a clip takes; the rest does not grow with the batch (casts of the weights, masks). Attention is counted
as a fused kernel, which keeps no attention matrices. Not counted: what a layer uses for a moment, the allocator's losses
and the libraries' own memory.
"""

import argparse
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
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
from adaptok_hf.training.tokenizer.arguments import Arguments, StageOptions
from adaptok_hf.training.tokenizer.training_step import TrainingStep, build_adversarial_losses, build_model, build_prior

RECIPES = Path(__file__).parents[1] / "training_scripts" / "recipes"
TOKENIZERS = ["tokenizer_small", "tokenizer_paper", "tokenizer_large", "tokenizer_extra_large"]
SHARDS = 8
USABLE = 0.9  # of a GPU's memory, a guess at what the list above leaves
GB = 1e9


@dataclass
class Stage:
    """A training script with a recipe.

    Args:
        trained: what has gradients and is sharded.
        forward: batch size -> the loss.
        paper_batch: clips per GPU in the paper.
        whole: other trained modules, which stay whole (the discriminator).
        frozen: networks that are only run.
        averaged: part of `trained` that has an average (EMA).
    """

    trained: nn.Module
    forward: Callable[[int], torch.Tensor]
    paper_batch: int
    whole: list[nn.Module] = field(default_factory=list)
    frozen: list[nn.Module] = field(default_factory=list)
    averaged: list[nn.Module] = field(default_factory=list)


def bytes_of(*modules: nn.Module) -> int:
    return sum(p.nbytes for module in modules for p in module.parameters())


def state_bytes(stage: Stage, shards: int = 1) -> int:
    """Return weights, gradients, Adam's two averages, the weights' average, and DDP's copy of gradients if not sharded."""
    weights = bytes_of(stage.trained)
    others = bytes_of(*stage.frozen) + 5 * bytes_of(*stage.whole)
    if shards == 1:
        return others + 5 * weights + bytes_of(*stage.averaged)
    layers = [bytes_of(part) for part in stage.trained.modules() if isinstance(part, GradientCheckpointingLayer)]
    # what is gathered at a time: two layers (one comes while the other is used), a layer's gradients, and all that is
    # in no layer with its gradients
    gathered = 3 * max(layers) + 2 * (weights - sum(layers))
    return others + (4 * weights + bytes_of(*stage.averaged)) // shards + gathered


def saved_bytes(stage: Stage, batch: int) -> int:
    """Return what autograd keeps of a forward pass, each storage once and no parameters."""
    modules = (stage.trained, *stage.whole, *stage.frozen)
    storages = {t.untyped_storage()._cdata: None for m in modules for t in (*m.parameters(), *m.buffers())}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        storages.setdefault(storage._cdata, storage)  # held, or another could get its address
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), torch.autocast("cpu", torch.bfloat16):
        stage.forward(batch)
    return sum(storage.nbytes() for storage in storages.values() if storage is not None)


def fused_attention(query, key, value, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
    """Fake tensors would take the plain formula, with its matrices; a fused kernel keeps neither these nor dropout's."""
    assert not enable_gqa, "fewer heads of keys than of queries"
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=query.dtype).masked_fill(~attn_mask, -math.inf)
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return fused(query, key, value.to(query.dtype), 0.0, is_causal, attn_mask=attn_mask, scale=scale)[0]


def keep_all_tokens(vectors, codes, token_counts=None):
    """Replace `pack_kept_tokens` where nothing is dropped: fake tensors have no counts to read."""
    batch, length = len(codes), codes[0].numel()
    positions = torch.arange(length).expand(batch, length)
    valid = torch.ones(batch, length, dtype=torch.bool)
    return prior_module.PackedTokens(vectors.flatten(1, 2), codes.flatten(1), positions, valid)


def tokenizer_stage(name: str, checkpointing: bool) -> Stage:
    recipe = json.loads((RECIPES / f"{name}.json").read_text())
    recipe |= {"stream_folders": ["."], "gradient_checkpointing": checkpointing}
    args = Arguments(data_root=".", output_dir=".", **recipe)
    model = build_model(args)
    config = model.config
    prior, adversarial = build_prior(args, config), build_adversarial_losses(args, config).get("adversarial")
    step = TrainingStep(model, prior, args)
    perceptual = LPIPSNetwork("vgg").requires_grad_(False) if args.perceptual_weight else None
    loss = TokenizerLoss(args.loss_weights, perceptual, adversarial)

    def forward(batch: int) -> torch.Tensor:
        video = torch.rand(batch, config.num_frames, config.num_channels, config.image_size, config.image_size)
        output, _, terms = step(video, None, StageOptions(), 0.5)
        return loss(video, output, 10**9, **terms)["total"]

    whole, frozen = [m for m in (adversarial,) if m], [m for m in (perceptual,) if m]
    return Stage(step, forward, 4, whole, frozen, [model] if args.ema_decay else [])


def scorer_stage(checkpointing: bool) -> Stage:
    tokenizer = tokenizer_stage("tokenizer_paper", False)
    scorer = AdapTokScorerModel(AdapTokScorerConfig()).train()
    if checkpointing:
        scorer.gradient_checkpointing_enable({"use_reentrant": False})
    config = scorer.config

    def forward(batch: int) -> torch.Tensor:
        latents = torch.rand(batch, config.num_blocks, config.latents_per_block, config.latent_size)
        return scorer(latents, latents).scores.float().square().mean()

    return Stage(scorer, forward, 4, frozen=[tokenizer.trained.model, *tokenizer.frozen])


def ar_stage(checkpointing: bool) -> Stage:
    recipe = json.loads((RECIPES / "ar_paper.json").read_text())
    model = AdapTokARForCausalLM(AdapTokARConfig(**recipe["model"])).train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})

    def forward(batch: int) -> torch.Tensor:
        ids = torch.randint(model.config.codebook_size, (batch, model.config.max_position_embeddings))
        return model(ids, labels=ids).loss

    return Stage(model, forward, 8, averaged=[model] if recipe["ema_decay"] else [])


def build_stage(name: str, checkpointing: bool) -> Stage:
    builders = {"scorer_paper": scorer_stage, "ar_paper": ar_stage}
    return builders[name](checkpointing) if name in builders else tokenizer_stage(name, checkpointing)


def table_row(name: str, gigabytes: list[float]) -> list[str]:
    plain, checkpointed = build_stage(name, False), build_stage(name, True)
    one, two = saved_bytes(plain, 1), saved_bytes(plain, 2)
    clip = two - one
    clip_checkpointed = saved_bytes(checkpointed, 2) - saved_bytes(checkpointed, 1)
    # a checkpointed layer is run again with all that it keeps: about that of the difference, once
    layers = sum(isinstance(m, GradientCheckpointingLayer) for m in plain.trained.modules())
    clip_checkpointed += (clip - clip_checkpointed) // layers
    # what does not grow with the batch stays with checkpointing: autocast keeps the casts of the weights
    states = [state_bytes(plain, shards) + one - clip for shards in (1, SHARDS)]
    row = [name, f"{sum(p.numel() for p in plain.trained.parameters()) / 1e6:.0f}M"]
    row += [f"{state / GB:.1f} GB" for state in states] + [f"{each / GB:.2f} GB" for each in (clip, clip_checkpointed)]
    for size in gigabytes:
        fits = [max(0, int((USABLE * size * GB - s) // each)) for s in states for each in (clip, clip_checkpointed)]
        row.append("{} ({}) / {} ({})".format(*fits))
    return [*row, str(plain.paper_batch)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, nargs="+", default=[24, 40, 80], help="memory of GPUs")
    parser.add_argument("--only", nargs="+", default=[*TOKENIZERS, "scorer_paper", "ar_paper"], help="recipes")
    arguments = parser.parse_args()
    titles = ["recipe", "trained", "state, whole", f"state, {SHARDS} shards", "a clip", "a clip, checkpointed"]
    titles += [f"clips in {size:g} GB" for size in arguments.gigabytes] + ["the paper's clips"]
    print(f"| {' | '.join(titles)} |\n|" + "---|" * len(titles))
    attention = patch("torch.nn.functional.scaled_dot_product_attention", fused_attention)
    with attention, patch.object(prior_module, "pack_kept_tokens", keep_all_tokens), FakeTensorMode():
        for name in arguments.only:
            print(f"| {' | '.join(table_row(name, arguments.gigabytes))} |", flush=True)


if __name__ == "__main__":
    main()
