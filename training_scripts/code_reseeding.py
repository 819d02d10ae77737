"""Keeps the codebook in use: codes start from latents, and unused ones move onto latents."""

import torch
from accelerate.utils import broadcast

from adaptok_hf import AdapTokModel


@torch.no_grad()
def start_codebook(model: AdapTokModel, projected: torch.Tensor) -> None:
    """Puts the codes near projected latents (tokens, codebook_dim) of the main process."""
    codebook = model.quantizer.codebook.weight
    pick = torch.randint(len(projected), (len(codebook),), device=projected.device)
    chosen = projected[pick].float()
    codebook.copy_(broadcast(chosen + 0.02 * torch.randn_like(chosen)))


@torch.no_grad()
def reseed_codes(model: AdapTokModel, last_used: torch.Tensor, step: int, projected: torch.Tensor, every: int) -> int:
    """Moves codes that nothing chose for `every` steps onto latents of the current batch; returns how many.

    Args:
        last_used: (codes,) long, the step at which each code was last chosen or moved; updated.
        projected: (tokens, codebook_dim), unit latents of the current batch of this process.
    """
    dead = (step - last_used >= every).nonzero().flatten()
    if len(dead) == 0:
        return 0
    codebook = model.quantizer.codebook.weight
    dead = dead[: len(projected)]  # the same on every process, as is `last_used`
    codebook[dead] = projected[torch.randperm(len(projected))[: len(dead)]].to(codebook)
    last_used[dead] = step
    codebook.copy_(broadcast(codebook.detach()))  # each process drew from its own batch
    return len(dead)
