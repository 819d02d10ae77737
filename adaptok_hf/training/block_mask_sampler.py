"""How many tokens each block keeps in a training step."""

import torch


def sample_token_counts(
    batch: int, num_blocks: int, latents_per_block: int, generator: torch.Generator | None = None
) -> torch.Tensor:
    """Draws counts from a truncated normal, independently per clip and block: (batch, num_blocks) long.

    Mean M/2, standard deviation M/4, bounds M/16..M for M = `latents_per_block` (AdapTok, block-mask sampler).
    """
    low, high = max(1, latents_per_block // 16), latents_per_block
    counts = torch.empty(batch, num_blocks)
    torch.nn.init.trunc_normal_(
        counts, mean=latents_per_block / 2, std=latents_per_block / 4, a=low, b=high, generator=generator
    )
    return counts.round().long().clamp_(low, high)
