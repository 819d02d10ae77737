"""Keeps the codebook in use: k-means sets it, averages follow the latents, and unused codes move onto latents."""

import torch
from accelerate.utils import broadcast, reduce
from torch import nn

from ...models.modeling_adaptok import AdapTokModel

DEAD_BELOW = 0.03  # a code that is chosen so much less often than the mean moves onto a latent


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


class CodebookAverage(nn.Module):
    """Lets each code follow the average of the latents that choose it, instead of a gradient.

    Nothing here waits for an accelerator.

    Args:
        decay: of the average, for each step.
    """

    def __init__(self, model: AdapTokModel, decay: float):
        super().__init__()
        self.codebook, self.decay = model.quantizer.codebook.weight, decay
        self.codebook.requires_grad_(False)
        self.register_buffer("counts", self.codebook.new_empty(len(self.codebook)))
        self.register_buffer("sums", torch.empty_like(self.codebook))
        self.reset()

    def reset(self) -> None:
        """Begin from the codes as they are."""
        self.counts.fill_(0.5)
        self.sums.copy_(0.5 * self.codebook.detach())

    @torch.no_grad()
    def update(self, codes: torch.Tensor, projected: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
        """Take a step's latents of this process into account, and set the codes. Every process must call this.

        Returns:
            (codes,) bool, the codes that latents chose.

        Args:
            codes: (tokens,) long.
            projected: (tokens, codebook_dim), unit latents.
            kept: (tokens,) bool, the latents that count; `None`: all.
        """
        weights = torch.ones_like(projected[:, 0]) if kept is None else kept.to(projected.dtype)
        counts = torch.zeros_like(self.counts).index_add_(0, codes, weights)
        sums = torch.zeros_like(self.sums).index_add_(0, codes, projected * weights[:, None])
        counts, sums = reduce(counts), reduce(sums)
        self.counts.lerp_(counts, 1 - self.decay)
        self.sums.lerp_(sums, 1 - self.decay)
        mean = self.counts.mean()
        dead = self.counts < DEAD_BELOW * mean
        seeds = broadcast(projected[torch.randint(len(projected), dead.shape, device=projected.device)])
        self.counts.copy_(torch.where(dead, mean / 2, self.counts))
        self.sums.copy_(torch.where(dead[:, None], seeds * mean / 2, self.sums))
        self.codebook.copy_(torch.nn.functional.normalize(self.sums, dim=-1))
        return counts > 0
