"""What `train_tokenizer.py` trains: the tokenizer, its prior, the discriminators and their optimizers."""

import torch
from torch import nn
from transformers import VideoMAEModel, VJEPA2Model

from ...losses import (
    AdversarialLoss,
    AlignmentLoss,
    DiscriminatorConfig,
    FeatureDiscriminator,
    VideoDiscriminator,
    load_backbone,
    prior_loss,
)
from ...models.attention_masks import kept_tokens
from ...models.configuration_adaptok import AdapTokConfig
from ...models.configuration_adaptok_prior import AdapTokPriorConfig
from ...models.configuration_evatok import EVATokConfig
from ...models.modeling_adaptok import AdapTokModel, AdapTokOutput
from ...models.modeling_adaptok_prior import AdapTokPriorModel
from ...models.modeling_evatok import EVATokModel
from ...models.quantization_evatok import entropy_loss
from .arguments import Arguments, StageOptions

Tokenizer = AdapTokModel | EVATokModel
Config = AdapTokConfig | EVATokConfig


class TrainingStep(nn.Module):
    """Tokenizer, prior and alignment in one module, so that distributed wrappers see one forward pass."""

    def __init__(
        self,
        model: Tokenizer,
        prior: AdapTokPriorModel | None,
        args: Arguments,
        alignment: AlignmentLoss | None = None,
    ):
        super().__init__()
        self.model, self.prior, self.args, self.alignment = model, prior, args, alignment

    def forward(
        self, video: torch.Tensor, token_counts: torch.Tensor | None, stage: StageOptions, sampling_ratio: float
    ) -> tuple[AdapTokOutput, torch.Tensor, dict[str, torch.Tensor]]:
        """Video (batch, frames, 3, height, width) in [0, 1] -> output, unit latents (batch, tokens, codebook_dim) without
        gradient, terms for `TokenizerLoss`. Without quantizer there are no codes."""
        model, args, terms = self.model, self.args, {}
        layer = None if self.alignment is None else args.alignment_layer
        if not stage.quantize:
            projected = model.quantizer.project(model.encoder(video))
            if stage.noise:
                noise = torch.randn_like(projected) * stage.noise * projected.shape[-1] ** -0.5
                projected = nn.functional.normalize(projected + noise, dim=-1)
            quantized = model.quantizer.project_out(projected).unflatten(1, (-1, model.config.latents_per_block))
            recorded = {} if layer is None else {"output_hidden_states": [layer]}
            decoded = model.decode(quantized=quantized, token_counts=token_counts, **recorded)
            output = AdapTokOutput(pixel_values_videos=decoded.pixel_values_videos)
            if layer is not None:
                terms["alignment_term"] = self._align(decoded.hidden_states[layer], video, token_counts)
            return output, projected.detach(), terms
        if layer is not None:
            layer += model.config.num_encoder_layers
        recorded = {} if layer is None else {"output_hidden_states": [layer]}
        output = model(video, token_counts, return_loss=False, **recorded)
        if layer is not None:
            terms["alignment_term"] = self._align(output.hidden_states[layer], video, token_counts)
        kept = None if token_counts is None else kept_tokens(token_counts, model.config.latents_per_block)
        if isinstance(model, EVATokModel):
            terms["entropy_term"] = output.entropy_loss
            if kept is not None:  # the first token's in place of padding, which must not count as a use of its code
                kept = kept.to(output.codes.device)
                output.codes = torch.where(kept, output.codes, output.codes[:, :1, :1])
                output.latents = torch.where(kept[..., None], output.latents, output.latents[:, :1, :1])
        with torch.set_grad_enabled(torch.is_grad_enabled() and args.uses("entropy")):
            projected = model.quantizer.project(output.latents).flatten(1, 2)
        if args.uses("entropy") and isinstance(model, AdapTokModel):
            codebook = model.quantizer.normalized_codebook()
            terms["entropy_term"] = entropy_loss(projected, codebook, kept=kept)
        projected = projected.detach()
        if self.prior is not None:
            terms["prior_term"] = prior_loss(
                self.prior,
                output.code_vectors,
                output.codes,
                model.quantizer.normalized_codebook(),
                token_counts,
                sampling_ratio=sampling_ratio,
                num_rounds=args.prior_num_rounds,
                temperature=args.prior_temperature,
            )
        return output, projected, terms

    def _align(self, hidden_states: torch.Tensor, video: torch.Tensor, token_counts: torch.Tensor | None) -> torch.Tensor:
        """Return the alignment of a decoder layer's patches, which lie after the latents of each block."""
        config = self.model.config
        if isinstance(self.model, EVATokModel):  # whose decoder has patches only
            return self.alignment(hidden_states.unflatten(1, (-1, config.grid_size, config.grid_size)), video)
        num_blocks, patches, start = video.shape[1] // config.tubelet_size, [], 0
        counts = [config.latents_per_block] * num_blocks if token_counts is None else token_counts.amax(0).tolist()
        for count in counts:
            patches.append(hidden_states[:, start + count : start + count + config.patches_per_block])
            start += count + config.patches_per_block
        return self.alignment(torch.stack(patches, 1).unflatten(2, (config.grid_size, -1)), video)


def build_model(args: Arguments) -> Tokenizer:
    kind, config = {"adaptok": (AdapTokModel, AdapTokConfig), "evatok": (EVATokModel, EVATokConfig)}[args.architecture]
    model = kind.from_pretrained(args.init_from, dtype=torch.float32) if args.init_from else kind(config(**args.model))
    if args.codebook_decay and not getattr(model.config, "normalized_codes", True):
        raise ValueError(f"codebook_decay={args.codebook_decay} makes codes of unit length: it needs normalized_codes")
    if args.decoder_only:
        model.encoder.requires_grad_(False)
        model.quantizer.requires_grad_(False)
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def build_prior(args: Arguments, config: Config) -> AdapTokPriorModel | None:
    if not args.uses("prior"):
        return None
    entries = {"codebook_dim": config.codebook_dim, "num_latent_tokens": config.num_latent_tokens} | args.prior
    prior = AdapTokPriorModel(AdapTokPriorConfig(**entries))
    if args.gradient_checkpointing:
        prior.gradient_checkpointing_enable({"use_reentrant": False})
    return prior.train()


def build_alignment(args: Arguments, config: Config) -> AlignmentLoss | None:
    if not args.uses("alignment"):
        return None
    if not 1 <= args.alignment_layer <= config.num_decoder_layers:
        raise ValueError(f"alignment_layer must lie in 1..{config.num_decoder_layers}, got {args.alignment_layer}")
    teacher = load_backbone(VJEPA2Model, args.alignment_teacher)
    width = config.decoder_hidden_size if isinstance(config, EVATokConfig) else config.hidden_size
    return AlignmentLoss(teacher, width, args.alignment_image_size)


def build_adversarial_losses(args: Arguments, config: Config) -> dict[str, AdversarialLoss]:
    """Return the adversarial losses that have a weight, by its name."""
    options = {
        "kind": args.adversarial_kind,
        "lecam_weight": args.lecam_weight,
        "start_step": args.adversarial_start_step,
        "update_every": args.discriminator_update_every,
    }
    losses = {}
    if args.uses("adversarial"):
        names = ("image_size", "num_frames", "num_channels", "tubelet_size")
        entries = {name: getattr(config, name) for name in names} | args.discriminator
        discriminator = VideoDiscriminator(DiscriminatorConfig(**entries))
        losses["adversarial"] = AdversarialLoss(discriminator, r1_weight=args.r1_weight, **options)
    if args.uses("feature_adversarial"):
        entries = dict(args.feature_discriminator)
        backbone = load_backbone(VideoMAEModel, entries.pop("backbone"))
        losses["feature_adversarial"] = AdversarialLoss(FeatureDiscriminator(backbone, **entries), **options)
    return losses


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
    if step_module.alignment is not None:
        groups.append(groups[0] | {"params": list(step_module.alignment.parameters())})
    adam = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(args.adam_beta1, args.adam_beta2))
    if not matrices:
        return [adam]
    muon = [{"params": matrices, "factor": 1.0}]
    return [
        torch.optim.Muon(muon, lr=args.learning_rate, weight_decay=args.weight_decay, adjust_lr_fn="match_rms_adamw"),
        adam,
    ]
