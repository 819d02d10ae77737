"""Adversarial losses of discriminator and tokenizer, LeCam regularization and the R1 penalty.

Logits are those of a `VideoDiscriminator`, (batch,), or of a `FeatureDiscriminator`, (batch, logits), high for "real". The
tokenizer is the generator; "fake" videos are its reconstructions.
"""

import torch
from torch import distributed, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import binary_cross_entropy_with_logits, relu, softplus


def hinge_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Return half of mean(relu(1 - real)) + mean(relu(1 + fake))."""
    return 0.5 * (relu(1 - real_logits).mean() + relu(1 + fake_logits).mean())


def hinge_generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    return -fake_logits.mean()


def non_saturating_discriminator_loss(real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy with the targets 1 and 0 (Goodfellow et al., 2014)."""
    return softplus(-real_logits).mean() + softplus(fake_logits).mean()


def non_saturating_generator_loss(fake_logits: torch.Tensor) -> torch.Tensor:
    """-log of the probability that the discriminator gives to "real"; also for the smoothed loss."""
    return softplus(-fake_logits).mean()


def smoothed_non_saturating_discriminator_loss(
    real_logits: torch.Tensor,
    fake_logits: torch.Tensor,
    real_noise: torch.Tensor | None = None,
    fake_noise: torch.Tensor | None = None,
) -> torch.Tensor:
    """Binary cross-entropy with random targets: each is off 1 or 0 by |N(0, 0.15)|, at most 0.3 (the paper's choice).

    Args:
        real_noise, fake_noise: standard normal values in the shape of the logits; sampled by default.
    """
    real_noise = torch.randn_like(real_logits) if real_noise is None else real_noise
    fake_noise = torch.randn_like(fake_logits) if fake_noise is None else fake_noise
    real_target = 1 - (0.15 * real_noise.abs()).clamp(max=0.3)
    fake_target = (0.15 * fake_noise.abs()).clamp(max=0.3)
    real_loss = binary_cross_entropy_with_logits(real_logits, real_target)
    return real_loss + binary_cross_entropy_with_logits(fake_logits, fake_target)


def mean_over_processes(logits: torch.Tensor) -> torch.Tensor:
    """Return the mean over the batches (of one size) of all processes, which must all call this.

    The gradient goes to the logits of this process, as if they were the whole batch: where gradients are then averaged
    over processes (DDP), that is the gradient of one process with the whole batch.
    """
    mean = logits.mean()
    if not (distributed.is_available() and distributed.is_initialized()):
        return mean
    everywhere = mean.detach().clone()
    distributed.all_reduce(everywhere)
    return everywhere / distributed.get_world_size() + (mean - mean.detach())


class LeCam(nn.Module):
    """Keeps the discriminator's logits of real and of fake videos close (Tseng et al., arXiv 2104.03310).

    relu(real - average fake)^2 + relu(average real - fake)^2, on means over the batch and all processes, with the moving
    averages before their update. The averages are buffers, hence in the state dictionary; they start at 0, and in
    evaluation mode they stay as they are.

    Args:
        decay: share of the old average that an update keeps.
    """

    def __init__(self, decay: float = 0.999):
        super().__init__()
        self.decay = decay
        self.register_buffer("real_average", torch.zeros(()))
        self.register_buffer("fake_average", torch.zeros(()))

    def forward(self, real_logits: torch.Tensor, fake_logits: torch.Tensor) -> torch.Tensor:
        """Return the scalar penalty for (batch,) logits."""
        real, fake = mean_over_processes(real_logits), mean_over_processes(fake_logits)
        penalty = relu(real - self.fake_average).square() + relu(self.real_average - fake).square()
        if self.training:
            self.real_average.lerp_(real.detach(), 1 - self.decay)
            self.fake_average.lerp_(fake.detach(), 1 - self.decay)
        return penalty


def r1_penalty(discriminator: nn.Module, real: torch.Tensor) -> torch.Tensor:
    """Return the mean over clips of |d logit / d video|^2 at real videos.

    Mescheder et al., arXiv 1801.04406, without their factor 1/2.

    Args:
        discriminator: (batch, ...) -> (batch,) logits, independently per clip.
        real: (batch, frames, channels, height, width).

    Returns:
        scalar; its gradient reaches the discriminator's parameters.
    """
    real = real.detach().requires_grad_()
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention cannot be differentiated twice
        (gradient,) = torch.autograd.grad(discriminator(real).sum(), real, create_graph=True)
    return gradient.float().square().flatten(1).sum(1).mean()


_DISCRIMINATOR_LOSSES = {
    "hinge": hinge_discriminator_loss,
    "non_saturating": non_saturating_discriminator_loss,
    "smoothed_non_saturating": smoothed_non_saturating_discriminator_loss,
}


class AdversarialLoss(nn.Module):
    """A discriminator and its losses. The defaults are the paper's.

    Prepare it for distributed training together with the discriminator's optimizer: its forward is the discriminator's
    turn. `generator_loss` is the tokenizer's turn and is called on the module itself, not on its wrapper. Its state
    dictionary holds the discriminator and the averages of LeCam.

    Args:
        discriminator: (batch, frames, channels, height, width) -> (batch,) or (batch, logits).
        kind: see the functions of that name; the tokenizer's loss is the same for both non-saturating ones.
        lecam_weight: the original multiplies by it twice, so its published 0.001 acts as 1e-6; here it acts once.
        r1_weight: weight of `r1_penalty`; 0 leaves it out.
        start_step: the first step at which either side has a loss.
        update_every: from then on the discriminator is updated at every such step.

    Raises:
        ValueError: for an unknown kind, negative weights or steps, `update_every` below 1, and `r1_weight` with a
            discriminator that uses batch statistics, where clips are not judged independently.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        *,
        kind: str = "smoothed_non_saturating",
        lecam_weight: float = 0.001,
        r1_weight: float = 0.0,
        start_step: int = 0,
        update_every: int = 5,
    ):
        super().__init__()
        if kind not in _DISCRIMINATOR_LOSSES:
            raise ValueError(f"kind must be one of {', '.join(map(repr, _DISCRIMINATOR_LOSSES))}, got {kind!r}")
        for name, value in (("lecam_weight", lecam_weight), ("r1_weight", r1_weight), ("start_step", start_step)):
            if not value >= 0:
                raise ValueError(f"{name} must not be negative, got {value}")
        if update_every < 1:
            raise ValueError(f"update_every must be at least 1, got {update_every}")
        if r1_weight and getattr(discriminator, "uses_batch_statistics", False):
            raise ValueError(f"r1_weight must be 0 with a {type(discriminator).__name__}, got {r1_weight}")
        self.discriminator = discriminator
        self.lecam = LeCam()
        self.kind, self.lecam_weight, self.r1_weight = kind, lecam_weight, r1_weight
        self.start_step, self.update_every = start_step, update_every

    def is_active(self, step: int) -> bool:
        """Return whether the tokenizer has an adversarial term at this step, counted from 0."""
        return step >= self.start_step

    def is_discriminator_turn(self, step: int) -> bool:
        """Return whether the discriminator is updated at this step, counted from 0."""
        return self.is_active(step) and (step - self.start_step) % self.update_every == 0

    def generator_loss(self, fake: torch.Tensor) -> torch.Tensor:
        """Return the tokenizer's scalar loss. The gradient goes to `fake` and not to the discriminator's parameters."""
        fixed = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        logits = functional_call(self.discriminator, fixed, (fake,)).float()
        return hinge_generator_loss(logits) if self.kind == "hinge" else non_saturating_generator_loss(logits)

    def forward(self, real: torch.Tensor, fake: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the discriminator's loss; every process must call this.

        Args:
            real, fake: (batch, frames, channels, height, width); the gradient does not go to them.

        Returns:
            scalars: `total`, to be minimized; its unweighted terms `discriminator`, and `lecam` and `r1` where their
            weights are not 0; `real_logit` and `fake_logit`, the means of this process.
        """
        fake = fake.detach().to(real.dtype)
        if getattr(self.discriminator, "uses_batch_statistics", False):  # which must not mix both
            real_logits, fake_logits = self.discriminator(real).float(), self.discriminator(fake).float()
        else:
            real_logits, fake_logits = self.discriminator(torch.cat([real, fake])).float().split([len(real), len(fake)])
        terms = {"discriminator": _DISCRIMINATOR_LOSSES[self.kind](real_logits, fake_logits)}
        total = terms["discriminator"]
        if self.lecam_weight:
            terms["lecam"] = self.lecam(real_logits, fake_logits)
            total = total + self.lecam_weight * terms["lecam"]
        if self.r1_weight:
            terms["r1"] = r1_penalty(self.discriminator, real)
            total = total + self.r1_weight * terms["r1"]
        means = {"real_logit": real_logits.detach().mean(), "fake_logit": fake_logits.detach().mean()}
        return {"total": total} | terms | means
