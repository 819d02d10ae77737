"""Keeps the codebook in use: k-means initializes it, and unused codes move onto latents."""

import torch
from accelerate.utils import broadcast

from ...models.modeling_adaptok import AdapTokModel


@torch.no_grad()
def initialize_codebook(model: AdapTokModel, projected: torch.Tensor, rounds: int = 12) -> None:
    """Set the codes to the result of k-means on unit latents (tokens, codebook_dim) of the main process.

    Each round looks at 16 latents for each code, others every time, and its sums count 0.7 times in the next round.
    """
    codebook = model.quantizer.codebook.weight
    projected = projected.float()
    order = torch.randperm(len(projected), device=projected.device)
    pick = order[: len(codebook)]
    missing = len(codebook) - len(pick)  # fewer latents than codes: some codes are copies, apart by noise
    codes = projected[torch.cat([pick, pick[torch.randint(len(pick), (missing,), device=pick.device)]])]
    codes = codes + 1e-3 * torch.randn_like(codes)
    sums = torch.zeros_like(codes)
    count = min(len(projected), 16 * len(codes))
    for round in range(rounds):
        codes = torch.nn.functional.normalize(codes, dim=-1)
        batch = projected[order.roll(-round * count)[:count]]
        nearest = torch.cat([(some @ codes.T).argmax(-1) for some in batch.split(2048)])
        used = torch.bincount(nearest, minlength=len(codes)) > 0
        sums = (0.7 * sums).index_add_(0, nearest, batch)
        codes = torch.where(used[:, None], sums, batch[torch.randint(len(batch), (len(codes),), device=batch.device)])
        sums = torch.where(used[:, None], sums, 0)
    codebook.copy_(broadcast(torch.nn.functional.normalize(codes, dim=-1)))


@torch.no_grad()
def reseed_codes(model: AdapTokModel, last_used: torch.Tensor, step: int, projected: torch.Tensor, every: int) -> int:
    """Move codes that nothing chose for `every` steps onto latents of the current batch; return how many.

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
    codebook.copy_(broadcast(codebook.detach()))  # each process has another batch
    return len(dead)
