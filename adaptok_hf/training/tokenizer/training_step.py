"""What `train_tokenizer.py` trains: the tokenizer, its prior, the discriminator and their optimizers."""

import torch
from torch import nn

from ...losses import AdversarialLoss, DiscriminatorConfig, VideoDiscriminator, prior_loss
from ...models.configuration_adaptok import AdapTokConfig
from ...models.configuration_adaptok_prior import AdapTokPriorConfig
from ...models.modeling_adaptok import AdapTokModel, AdapTokOutput
from ...models.modeling_adaptok_prior import AdapTokPriorModel
from .arguments import Arguments, StageOptions


class TrainingStep(nn.Module):
    """Tokenizer and prior in one module, so that distributed wrappers see one forward pass."""

    def __init__(self, model: AdapTokModel, prior: AdapTokPriorModel | None, args: Arguments):
        super().__init__()
        self.model, self.prior, self.args = model, prior, args

    def forward(
        self, video: torch.Tensor, token_counts: torch.Tensor | None, stage: StageOptions, sampling_ratio: float
    ) -> tuple[AdapTokOutput, torch.Tensor, torch.Tensor | None]:
        """Video (batch, frames, 3, height, width) in [0, 1] -> output, unit latents (batch, tokens, codebook_dim) without
        gradient, the prior's loss. Without quantizer there are no codes."""
        model, args = self.model, self.args
        if not stage.quantize:
            projected = model.quantizer.project(model.encoder(video))
            if stage.noise:
                noise = torch.randn_like(projected) * stage.noise * projected.shape[-1] ** -0.5
                projected = nn.functional.normalize(projected + noise, dim=-1)
            quantized = model.quantizer.project_out(projected).unflatten(1, (-1, model.config.latents_per_block))
            output = AdapTokOutput(pixel_values_videos=model.decoder(quantized, token_counts))
            return output, projected.detach(), None
        output = model(video, token_counts, return_loss=False)
        with torch.no_grad():
            projected = model.quantizer.project(output.latents).flatten(1, 2)
        prior_term = None
        if self.prior is not None:
            prior_term = prior_loss(
                self.prior,
                output.code_vectors,
                output.codes,
                model.quantizer.normalized_codebook(),
                token_counts,
                sampling_ratio=sampling_ratio,
                num_rounds=args.prior_num_rounds,
                temperature=args.prior_temperature,
            )
        return output, projected, prior_term


def build_model(args: Arguments) -> AdapTokModel:
    if args.init_from:
        model = AdapTokModel.from_pretrained(args.init_from, dtype=torch.float32)
    else:
        model = AdapTokModel(AdapTokConfig(**args.model))
    if args.decoder_only:
        model.encoder.requires_grad_(False)
        model.quantizer.requires_grad_(False)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def build_prior(args: Arguments, config: AdapTokConfig) -> AdapTokPriorModel | None:
    if not args.prior_weight:
        return None
    entries = {"codebook_dim": config.codebook_dim, "num_latent_tokens": config.num_latent_tokens} | args.prior
    prior = AdapTokPriorModel(AdapTokPriorConfig(**entries))
    if args.gradient_checkpointing:
        prior.gradient_checkpointing_enable({"use_reentrant": False})
    return prior.train()


def build_adversarial_loss(args: Arguments, config: AdapTokConfig) -> AdversarialLoss | None:
    if not args.adversarial_weight:
        return None
    names = ("image_size", "num_frames", "num_channels", "tubelet_size")
    entries = {name: getattr(config, name) for name in names} | args.discriminator
    return AdversarialLoss(
        VideoDiscriminator(DiscriminatorConfig(**entries)),
        kind=args.adversarial_kind,
        lecam_weight=args.lecam_weight,
        r1_weight=args.r1_weight,
        start_step=args.adversarial_start_step,
        update_every=args.discriminator_update_every,
    )


def build_optimizers(step_module: TrainingStep, args: Arguments) -> list[torch.optim.Optimizer]:
    """Adam, and before it Muon for the matrices of the tokenizer's layers if it is used; the prior has its own group.

    A group's `factor` is its learning rate over that of the run.
    """
    named = [(name, p) for name, p in step_module.model.named_parameters() if p.requires_grad]
    matrices = [p for name, p in named if args.use_muon and ".layers." in name and p.ndim == 2]
    others = [p for name, p in named if not (args.use_muon and ".layers." in name and p.ndim == 2)]
    decay = 0.0 if args.use_muon else args.weight_decay
    groups = [{"params": others, "factor": args.adam_learning_rate_factor, "weight_decay": decay}]
    if step_module.prior is not None:
        parameters = list(step_module.prior.parameters())
        groups.append({"params": parameters, "factor": args.prior_learning_rate_factor, "weight_decay": decay})
    adam = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2))
    if not matrices:
        return [adam]
    muon = [{"params": matrices, "factor": 1.0}]
    return [
        torch.optim.Muon(muon, lr=args.learning_rate, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"),
        adam,
    ]
