"""The loss of the tokenizer: the weighted sum of named terms."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import torch

from ..models.modeling_adaptok import AdapTokOutput
from .adversarial import AdversarialLoss

if TYPE_CHECKING:
    from ..metrics.lpips_network import LPIPSNetwork

LOG_MSE_FLOOR = 1e-4  # 40 dB: better blocks have nothing to gain


@dataclass(frozen=True)
class TokenizerLossWeights:
    """The defaults are the paper's; a term of weight 0 is not computed. Raises `ValueError` for negative weights.

    Args:
        l1, mse: mean absolute and mean squared error of pixels in [0, 1].
        perceptual: LPIPS (vgg).
        adversarial: the tokenizer's adversarial loss.
        commitment, codebook: the quantizer's two losses, 0.1 x 0.25 and 0.1 x 1.
        prior: cross-entropy of the prior.
        log_mse: mean logarithm of the mean squared error of each block; tiny errors count as 1e-4.
        entropy: of the quantizer: the entropy of a token's choice less that of all choices (EVATok: 0.02).
        alignment: minus the cosine between decoder and teacher (EVATok: 0.7).
        feature_adversarial: the adversarial loss of a second discriminator, which looks through a frozen backbone.
    """

    l1: float = 1.0
    mse: float = 0.0
    perceptual: float = 1.0
    adversarial: float = 0.3
    commitment: float = 0.025
    codebook: float = 0.1
    prior: float = 0.06
    log_mse: float = 0.0
    entropy: float = 0.0
    alignment: float = 0.0
    feature_adversarial: float = 0.0

    def __post_init__(self):
        for name, weight in asdict(self).items():
            if not (weight >= 0 and math.isfinite(weight)):
                raise ValueError(f"the weight {name} must be finite and not negative, got {weight}")


class TokenizerLoss:
    """Computes the terms and their weighted sum.

    `training.tokenizer.trainer` shows a training step. It is no module, so that the frozen networks in it are neither
    wrapped nor saved.

    Args:
        weights: of the terms.
        perceptual_network: `LPIPSNetwork.from_pretrained("vgg")`, on the right device.
        adversarial: the adversarial loss itself, not its distributed wrapper.
        tubelet_size: frames of a block.
        feature_adversarial: the same, of a `FeatureDiscriminator`.

    Raises:
        ValueError: if a term has a weight but not what computes it.
    """

    def __init__(
        self,
        weights: TokenizerLossWeights,
        perceptual_network: "LPIPSNetwork | None" = None,
        adversarial: AdversarialLoss | None = None,
        tubelet_size: int = 4,
        feature_adversarial: AdversarialLoss | None = None,
    ):
        if weights.perceptual and perceptual_network is None:
            raise ValueError(f"the weight perceptual is {weights.perceptual}, but there is no perceptual_network")
        self.adversaries = {"adversarial": adversarial, "feature_adversarial": feature_adversarial}
        for name, adversary in self.adversaries.items():
            if getattr(weights, name) and adversary is None:
                raise ValueError(f"the weight {name} is {getattr(weights, name)}, but there is no such adversarial loss")
        self.weights, self.tubelet_size = weights, tubelet_size
        self.perceptual_network = perceptual_network

    def __call__(
        self,
        video: torch.Tensor,
        output: AdapTokOutput,
        step: int,
        prior_term: torch.Tensor | None = None,
        entropy_term: torch.Tensor | None = None,
        alignment_term: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the terms and their weighted sum.

        Args:
            video: (batch, frames, 3, height, width) float32 in [0, 1].
            output: of `AdapTokModel` for that video. Where a run starts without quantizer, its losses are `None`.
            step: counted from 0.
            prior_term, entropy_term: of prior and quantizer; needed if the weight is not 0 and there are codes.
            alignment_term: from `AlignmentLoss`; needed if its weight is not 0.

        Returns:
            scalars: `total`, to be minimized, and each unweighted term by the name of its weight. Terms that are not
            active yet are left out.

        Raises:
            ValueError: if one of these has a weight and no term, or for shapes that do not fit.
        """
        weights = self.weights
        reconstruction = output.pixel_values_videos.float()
        if reconstruction.shape != video.shape:
            raise ValueError(f"video is {tuple(video.shape)}, its reconstruction {tuple(reconstruction.shape)}")
        given = {"prior": prior_term, "entropy": entropy_term, "alignment": alignment_term}
        given = {name: term for name, term in given.items() if getattr(weights, name)}
        for name, term in given.items():
            if term is None and (output.codes is not None or name == "alignment"):
                raise ValueError(f"the weight {name} is {getattr(weights, name)}, but there is no {name}_term")
        terms = {
            "commitment": output.commitment_loss if weights.commitment else None,
            "codebook": output.codebook_loss if weights.codebook else None,
        } | given
        if weights.l1:
            terms["l1"] = (reconstruction - video).abs().mean()
        if weights.mse:
            terms["mse"] = (reconstruction - video).square().mean()
        if weights.log_mse:
            squared = (reconstruction - video).square().unflatten(1, (-1, self.tubelet_size))
            terms["log_mse"] = (squared.flatten(2).mean(2) + LOG_MSE_FLOOR).log().mean()
        if weights.perceptual:
            # not clamped, so that values outside [0, 1] have a gradient too
            terms["perceptual"] = self.perceptual_network(reconstruction.flatten(0, 1), video.flatten(0, 1)).float().mean()
        for name, adversary in self.adversaries.items():
            if getattr(weights, name) and adversary.is_active(step):
                terms[name] = adversary.generator_loss(reconstruction)
        terms = {name: term for name, term in terms.items() if term is not None}
        if not terms:
            raise ValueError("no term has a weight: nothing to minimize")
        return {"total": sum(getattr(weights, name) * term for name, term in terms.items())} | terms
