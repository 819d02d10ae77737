"""Losses of the tokenizer: reconstruction, perceptual, adversarial, alignment and prior. Training only."""

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
from .alignment import AlignmentLoss
from .discriminator import DiscriminatorConfig, VideoDiscriminator, convert_discriminator_weights
from .feature_discriminator import FeatureDiscriminator
from .frozen_backbones import load_backbone
from .prior import prior_loss, scheduled_sampling_ratio
from .tokenizer_loss import TokenizerLoss, TokenizerLossWeights

__all__ = [
    "AdversarialLoss",
    "AlignmentLoss",
    "DiscriminatorConfig",
    "FeatureDiscriminator",
    "LeCam",
    "TokenizerLoss",
    "TokenizerLossWeights",
    "VideoDiscriminator",
    "convert_discriminator_weights",
    "hinge_discriminator_loss",
    "hinge_generator_loss",
    "load_backbone",
    "non_saturating_discriminator_loss",
    "non_saturating_generator_loss",
    "prior_loss",
    "r1_penalty",
    "scheduled_sampling_ratio",
    "smoothed_non_saturating_discriminator_loss",
]
