"""Standardized inputs for the scorer while it is trained."""

import copy

import torch

from ...models.modeling_adaptok_scorer import AdapTokScorerModel


class InputScale:
    """Standardizes the scorer's input channels while it is trained.

    A few channels of the latents are a hundred times larger than others; Adam's steps, equally long for all weights, would
    be too long for some and too short for others. The saved model has the scale in its first layer's weights.

    Args:
        mean, std: (2 * latent_size,), of latents and quantized latents.
    """

    def __init__(self, mean: torch.Tensor, std: torch.Tensor):
        self.mean, self.std = mean, std.clamp(min=1e-4)

    def __call__(self, latents: torch.Tensor, quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        inputs = (torch.cat([latents, quantized], dim=-1) - self.mean) / self.std
        return inputs.chunk(2, dim=-1)

    @torch.no_grad()
    def fold(self, scorer: AdapTokScorerModel) -> AdapTokScorerModel:
        """Return a copy, for evaluation, of a scorer of standardized inputs that takes them as they are.

        Its scores are the same wherever tokens are kept (dropped ones are zeroes to either; nothing looks at their scores).
        """
        scorer = copy.deepcopy(scorer).eval()
        scorer.project_in.weight /= self.std
        scorer.project_in.bias -= scorer.project_in.weight @ self.mean
        return scorer

    @torch.no_grad()
    def unfold(self, scorer: AdapTokScorerModel) -> None:
        """Undo `fold`, in place."""
        scorer.project_in.bias += scorer.project_in.weight @ self.mean
        scorer.project_in.weight *= self.std
