"""How many tokens each block keeps in a training step."""

import math

import torch


def sample_token_counts(batch: int, num_blocks: int, latents_per_block: int) -> torch.Tensor:
    """Sample counts from a truncated normal, independently per clip and block: (batch, num_blocks) long.

    Mean M/2, standard deviation M/4, bounds M/16..M for M = `latents_per_block` (AdapTok, block-mask sampler).
    """
    low, high = max(1, latents_per_block // 16), latents_per_block
    counts = torch.empty(batch, num_blocks)
    torch.nn.init.trunc_normal_(counts, mean=latents_per_block / 2, std=latents_per_block / 4, a=low, b=high)
    return counts.round().long().clamp_(low, high)


def sample_grouped_token_counts(groups: int, num_blocks: int, latents_per_block: int) -> torch.Tensor:
    """Sample counts of groups of clips, so that small budgets count as much as large ones: (groups, num_blocks) long.

    The first half of the groups keeps M/2..M tokens, a third of it all. The other half keeps M/16..M/2, uniform in their
    logarithm. Half of the groups have one count for all blocks.
    """
    full = latents_per_block
    many = torch.randint(full // 2, full + 1, (groups, num_blocks))
    many[torch.rand(groups, num_blocks) < 1 / 3] = full
    exponents = torch.rand(groups, num_blocks) * math.log(8) + math.log(full / 16)
    few = exponents.exp().round().long().clamp_(min=1)
    counts = torch.where(torch.arange(groups)[:, None] < groups / 2, many, few)
    return torch.where(torch.rand(groups, 1) < 0.5, counts[:, :1], counts)
