"""Vector quantizer of EVATok: the nearest code, and an entropy term that keeps all codes in use."""

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from .quantization import QuantizerOutput, VectorQuantizer, mean_square

_VALUES_AT_ONCE = 2**25  # probabilities in memory: those of a whole batch would take gigabytes


@dataclass
class EVATokQuantizerOutput(QuantizerOutput):
    """
    Args:
        entropy_loss: scalar, the mean entropy of the tokens' code probabilities, minus that of their mean; `None` if it
            was not asked for.
    """

    entropy_loss: torch.Tensor | None = None


class EVATokQuantizer(VectorQuantizer):
    """Replaces each latent by the nearest codebook vector, both of unit length unless `normalized_codes` is off."""

    def __init__(self, config):
        super().__init__(config, config.latent_size)
        self.normalized, self.rotates = config.normalized_codes, config.rotation_trick
        self.entropy_temperature = config.entropy_temperature

    def normalized_codebook(self) -> torch.Tensor:
        """(codebook_size, codebook_dim) in float32, rows of unit length if codes are normalised."""
        return self.codebook() if self.normalized else self.codebook.weight.float()

    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, latent_size) -> (batch, tokens, codebook_dim) in float32, unit length if codes are normalised."""
        return super().project(latents) if self.normalized else self.project_in(latents).float()

    def forward(
        self,
        latents: torch.Tensor,
        kept: torch.Tensor | None = None,
        sample: bool = False,
        return_entropy: bool = False,
    ) -> EVATokQuantizerOutput:
        """
        Args:
            latents, kept, sample: as in `VectorQuantizer`, of width `latent_size`.
            return_entropy: whether to compute `entropy_loss`.
        """
        projected, codebook = self.project(latents), self.normalized_codebook()
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            similarity = projected @ codebook.T
            if sample:  # Gumbel-max, as in `VectorQuantizer`
                similarity = similarity / self.temperature - torch.empty_like(similarity).exponential_().log()
            elif not self.normalized:  # the nearest has the highest of these
                similarity = similarity - codebook.square().sum(1) / 2
            codes = similarity.argmax(-1)
        chosen = nn.functional.embedding(codes, codebook)
        code_vectors = rotate(projected, chosen) if self.rotates else projected + (chosen - projected).detach()
        return EVATokQuantizerOutput(
            codes,
            self._out(code_vectors),
            code_vectors,
            mean_square(projected - chosen.detach(), kept),
            mean_square(projected.detach() - chosen, kept),
            self.entropy_loss(projected, kept) if return_entropy else None,
        )

    def entropy_loss(self, projected: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
        """Return the mean entropy of tokens, minus the entropy of the mean: low where tokens are sure and codes all used.

        A token's probabilities are softmax(-squared distance / `entropy_temperature`).

        Args:
            projected: (batch, tokens, codebook_dim).
            kept: (batch, tokens) bool, the tokens that count; `None`: all.
        """
        return entropy_loss(projected, self.normalized_codebook(), self.entropy_temperature, kept)


def entropy_loss(
    projected: torch.Tensor, codebook: torch.Tensor, temperature: float = 0.01, kept: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the entropy term of any quantizer, see `EVATokQuantizer.entropy_loss`."""
    tokens = projected.flatten(0, -2)
    weights = tokens.new_ones(len(tokens)) if kept is None else kept.flatten().float()
    entropy, mean = 0.0, 0.0
    with torch.autocast(projected.device.type, enabled=False):
        size = max(1, _VALUES_AT_ONCE // len(codebook))
        for some, share in zip(tokens.split(size), (weights / weights.sum()).split(size), strict=True):
            sums = checkpoint(_entropy_sums, some, share, codebook, temperature, use_reentrant=False)
            entropy, mean = entropy + sums[0], mean + sums[1]
        return entropy + (mean * (mean + 1e-5).log()).sum()


def _entropy_sums(tokens: torch.Tensor, weights: torch.Tensor, codebook: torch.Tensor, temperature: float):
    """Return the weighted sums of the tokens' entropies, and of their probabilities, (codes,)."""
    # squared distances without the tokens' own squares, which the softmax does not see
    distances = codebook.square().sum(1) - 2 * tokens @ codebook.T
    log_probabilities = (-distances / temperature).log_softmax(-1)
    probabilities = log_probabilities.exp()
    return -(probabilities * log_probabilities).sum(-1) @ weights, weights @ probabilities


def rotate(vectors: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return `targets`, as `vectors` turned and stretched by constants: gradients turn back (arXiv 2410.06424)."""
    start, end = (nn.functional.normalize(states.detach(), dim=-1) for states in (vectors, targets))
    middle = nn.functional.normalize(start + end, dim=-1)
    length = (targets.norm(dim=-1, keepdim=True) / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-12)).detach()

    def along(direction):
        return (vectors * direction).sum(-1, keepdim=True)

    return length * (vectors - 2 * along(middle) * middle + 2 * along(start) * end)
