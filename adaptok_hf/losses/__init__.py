"""Losses of the tokenizer: reconstruction, perceptual, adversarial and prior. Training only."""

from .adversarial import (
    AdversarialLoss,
    LeCam,
    hinge_discriminator_loss,
    hinge_generator_loss,
    non_saturating_discriminator_loss,
    non_saturating_generator_loss,
    r1_penalty,
    smoothed_non_saturating_discriminator_loss,
)
from .discriminator import DiscriminatorConfig, VideoDiscriminator, convert_discriminator_weights
from .prior import prior_loss, scheduled_sampling_ratio
from .tokenizer_loss import TokenizerLoss, TokenizerLossWeights

__all__ = [
    "AdversarialLoss",
    "DiscriminatorConfig",
    "LeCam",
    "TokenizerLoss",
    "TokenizerLossWeights",
    "VideoDiscriminator",
    "convert_discriminator_weights",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "non_saturating_discriminator_loss",
    "non_saturating_generator_loss",
    "prior_loss",
    "r1_penalty",
    "scheduled_sampling_ratio",
    "smoothed_non_saturating_discriminator_loss",
]
