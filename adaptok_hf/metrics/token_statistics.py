"""Statistics of tokens: how much of the codebook they use, and their rate."""

import math

import torch
from torchmetrics import Metric


def _check_range(name: str, values: torch.Tensor, maximum: int) -> None:
    if values.is_floating_point():
        raise ValueError(f"{name} must be integers, got {values.dtype}")
    low, high = (int(end) for end in values.aminmax()) if values.numel() else (0, 0)
    if low < 0 or high > maximum:
        raise ValueError(f"{name} must be 0 to {maximum}, got {low} to {high}")


class CodebookUsage(Metric):
    """How the kept codes spread over the codebook.

    `compute()` gives `usage` (share of codes seen at least once, 0 to 1), `perplexity` (2 to the entropy of the
    frequencies; the codebook size if all are equally frequent) and `tokens` (how many were counted: few tokens bound both
    numbers).

    Args:
        codebook_size: V.
    """

    full_state_update = False

    def __init__(self, codebook_size: int, **kwargs):
        super().__init__(**kwargs)
        self.add_state("histogram", torch.zeros(codebook_size, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, codes: torch.Tensor, token_counts: torch.Tensor | None = None) -> None:
        """Add clips.

        Args:
            codes: (clips, K, M) integers in 0..V-1.
            token_counts: (clips, K), how many leading codes of each block are kept; all by default.

        Raises:
            ValueError: for other shapes or values. Codes that are not kept may be anything.
        """
        kept = codes.flatten()
        if token_counts is not None:
            if token_counts.shape != codes.shape[:2]:
                raise ValueError(f"token_counts must be {tuple(codes.shape[:2])}, got {tuple(token_counts.shape)}")
            _check_range("token_counts", token_counts, codes.shape[2])
            kept = codes[torch.arange(codes.shape[2], device=codes.device) < token_counts[..., None]]
        size = len(self.histogram)
        _check_range("codes", kept, size - 1)
        self.histogram = self.histogram + torch.bincount(kept, minlength=size)

    def compute(self) -> dict[str, torch.Tensor]:
        total = self.histogram.sum()
        if total == 0:
            raise ValueError("CodebookUsage: no codes were given")
        frequency = self.histogram.double() / total
        entropy = -torch.special.xlogy(frequency, frequency).sum()
        return {"usage": (self.histogram > 0).double().mean(), "perplexity": entropy.exp(), "tokens": total}


class TokenRate(Metric):
    """Rates of tokens: `compute()` gives `tokens_per_second`, `bits_per_second` and `tokens_per_block`.

    A kept code costs log2(V) bits and a block's count log2(M + 1), as in `TokenizedVideo`.

    Args:
        codebook_size: V.
        latents_per_block: M.
    """

    full_state_update = False

    def __init__(self, codebook_size: int, latents_per_block: int, **kwargs):
        super().__init__(**kwargs)
        self.codebook_size, self.latents_per_block = codebook_size, latents_per_block
        for name, zero in (("tokens", 0), ("blocks", 0), ("seconds", torch.zeros((), dtype=torch.float64))):
            self.add_state(name, torch.as_tensor(zero), dist_reduce_fx="sum")

    def update(self, token_counts: torch.Tensor, seconds: float) -> None:
        """Add clips.

        Args:
            token_counts: (clips, K) integers in 0..M.
            seconds: duration of all the clips together.

        Raises:
            ValueError: for other shapes or values, or seconds that are not positive.
        """
        _check_range("token_counts", token_counts, self.latents_per_block)
        if not 0 < seconds < math.inf:
            raise ValueError(f"seconds must be positive, got {seconds!r}")
        self.tokens = self.tokens + token_counts.sum()
        self.blocks = self.blocks + token_counts.numel()
        self.seconds = self.seconds + seconds

    def compute(self) -> dict[str, torch.Tensor]:
        if self.blocks == 0:
            raise ValueError("TokenRate: no tokens were given")
        bits = self.tokens * math.log2(self.codebook_size) + self.blocks * math.log2(self.latents_per_block + 1)
        return {
            "tokens_per_second": self.tokens / self.seconds,
            "bits_per_second": bits / self.seconds,
            "tokens_per_block": self.tokens.double() / self.blocks,
        }
