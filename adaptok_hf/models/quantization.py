"""Stochastic vector quantiser on the unit sphere (AdapTok, after LARP)."""

from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class QuantizerOutput:
    """
    Args:
        codes: (batch, tokens) long.
        quantized: (batch, tokens, hidden_size), codebook vectors after the output projection.
        code_vectors: (batch, tokens, codebook_dim), unit codebook vectors with the straight-through gradient.
        commitment_loss, codebook_loss: scalars, mean squared distance between latents and codebook vectors, with the
            gradient to the latents or to the codebook.
    """

    codes: torch.Tensor
    quantized: torch.Tensor
    code_vectors: torch.Tensor
    commitment_loss: torch.Tensor
    codebook_loss: torch.Tensor


class FullPrecisionLinear(nn.Linear):
    """A linear map in float32, whatever the type of its weights and of its input.

    bfloat16 would leave 8 bits to cosines, and near codes differ by less.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        with torch.autocast(hidden_states.device.type, enabled=False):
            return nn.functional.linear(hidden_states.float(), self.weight.float(), self.bias.float())


class Codebook(nn.Embedding):
    """Vectors of unit length. Called without arguments, so that hooks of a module that is offloaded see the call."""

    def forward(self) -> torch.Tensor:
        """Return (codebook_size, codebook_dim), unit rows in float32."""
        return nn.functional.normalize(self.weight.float(), dim=-1)


class VectorQuantizer(nn.Module):
    """Projects latents to `codebook_dim`, and replaces each by a unit codebook vector.

    Latents and codebook are normalised to unit length; the code is the one with the highest cosine similarity, or, when
    sampling, a draw from softmax(similarity / `quantizer_temperature`).
    """

    def __init__(self, config, width: int | None = None):
        super().__init__()
        width = width or config.hidden_size
        self.temperature = config.quantizer_temperature
        self.project_in = FullPrecisionLinear(width, config.codebook_dim)
        self.codebook = Codebook(config.codebook_size, config.codebook_dim)
        self.project_out = nn.Linear(config.codebook_dim, width)

    def normalized_codebook(self) -> torch.Tensor:
        """(codebook_size, codebook_dim), unit rows in float32."""
        return self.codebook()

    def project(self, latents: torch.Tensor) -> torch.Tensor:
        """(batch, tokens, hidden_size) -> (batch, tokens, codebook_dim), unit length, in float32."""
        return nn.functional.normalize(self.project_in(latents).float(), dim=-1)

    def forward(self, latents: torch.Tensor, kept: torch.Tensor | None = None, sample: bool = False) -> QuantizerOutput:
        """
        Args:
            latents: (batch, tokens, hidden_size).
            kept: (batch, tokens) bool, the tokens over which the losses are averaged (default: all). It has no influence
                on the codes.
            sample: draw the codes instead of taking the most similar ones.
        """
        projected = self.project(latents)
        codebook = self.normalized_codebook()
        with torch.no_grad(), torch.autocast(latents.device.type, enabled=False):
            similarity = projected @ codebook.T  # (batch, tokens, codebook_size)
            if sample:  # Gumbel-max: the same law as sampling from the softmax, without the softmax
                noise = -torch.empty_like(similarity, dtype=torch.float32).exponential_().log()
                similarity = similarity.float() / self.temperature + noise
            codes = similarity.argmax(-1)
        chosen = nn.functional.embedding(codes, codebook)

        commitment_loss = mean_square(projected - chosen.detach(), kept)
        codebook_loss = mean_square(projected.detach() - chosen, kept)
        code_vectors = projected + (chosen - projected).detach()
        return QuantizerOutput(codes, self._out(code_vectors), code_vectors, commitment_loss, codebook_loss)

    def lookup(self, codes: torch.Tensor) -> torch.Tensor:
        """Codes (...) long -> (..., hidden_size), as the decoder reads them."""
        return self._out(nn.functional.embedding(codes, self.normalized_codebook()))

    def _out(self, code_vectors: torch.Tensor) -> torch.Tensor:
        return self.project_out(code_vectors.to(self.codebook.weight.dtype))


def mean_square(difference: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
    """Return the mean square of (batch, tokens, width) over kept tokens, (batch, tokens) bool; `None`: all."""
    squared = difference.float().square().mean(-1)
    return squared.mean() if kept is None else (squared * kept).sum() / kept.sum()
