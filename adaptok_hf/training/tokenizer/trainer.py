"""The training run of `train_tokenizer.py`."""

import dataclasses
from typing import NamedTuple

import torch
from accelerate.utils import set_seed
from torch import nn

from ...data import VideoFolderClips
from ...losses import AdversarialLoss, TokenizerLoss, scheduled_sampling_ratio
from ...metrics.lpips_network import LPIPSNetwork
from ...models.attention_masks import kept_tokens
from ..block_mask_sampler import sample_grouped_token_counts
from ..clips import StreamBatches, shared_sampling
from ..folder_batches import FolderBatches
from ..run_folder import Progress, RunFolder
from ..sharding import ShardedAverage, save_shards_with_checkpoints, shard, whole_copy
from ..trainer import Trainer
from .arguments import Arguments, Stage, plan_stages
from .assignments import Assignments
from .codebook import CodebookAverage, initialize_codebook, reseed_codes
from .pyramid_start import start_as_pyramid
from .training_coordinates import fold, unfold
from .training_step import (
    Tokenizer,
    TrainingStep,
    build_adversarial_losses,
    build_alignment,
    build_optimizers,
    build_prior,
)
from .validation import Reconstructor, draw_reconstructions, measure_psnr

PYRAMID_CLIPS = 256  # whose patches the start looks at
LATENTS_PER_CODE = 16  # that k-means looks at


class TokenizerProgress(Progress):
    """Also knows when each code was last used, and which stages have begun."""

    def __init__(self, codebook_size: int):
        super().__init__()
        self.stages_begun = 0
        self.last_used = torch.zeros(codebook_size, dtype=torch.long)
        self.recent = torch.zeros(codebook_size, dtype=torch.bool)  # the codes used since the last log entry

    def state_dict(self):
        return super().state_dict() | {
            "stages_begun": self.stages_begun,
            "last_used": self.last_used,
            "recent": self.recent,
        }

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.stages_begun = state["stages_begun"]
        self.last_used, self.recent = state["last_used"], state["recent"]


class Adversary(NamedTuple):
    """A discriminator in training.

    Args:
        loss, wrapped: the adversarial loss, and itself or its distributed wrapper.
        learning_rate: the peak.
        prefix: of its measures in the log.
    """

    loss: AdversarialLoss
    wrapped: nn.Module
    optimizer: torch.optim.Optimizer
    learning_rate: float
    prefix: str


class TokenizerTrainer(Trainer):
    """Trains a tokenizer with its prior and discriminators, as the weights of the losses say."""

    def __init__(
        self,
        args: Arguments,
        run: RunFolder,
        model: Tokenizer,
        clips: FolderBatches | StreamBatches,
        val_clips: VideoFolderClips | None,
    ):
        config, accelerator = model.config, run.accelerator
        self.stages = plan_stages(args, clips.num_videos, accelerator.num_processes, config.num_blocks)
        progress, batch_size = TokenizerProgress(config.codebook_size), self.stages[0].batch_size
        timed = "seconds" in args.stages[0]
        super().__init__(args, run, self.stages[-1].end, batch_size, clips.num_videos, progress, timed=timed)
        if args.patch_components:
            video = clips.sample(PYRAMID_CLIPS)[:, : config.tubelet_size]
            start = unfold if args.init_from else start_as_pyramid
            start(model, video.cpu().float() / 255, args.patch_components)
        self.model, self.clips, self.val_clips = model, clips, val_clips
        if args.assignments and not config.adaptive:
            raise ValueError(f"a tokenizer that is not adaptive keeps all tokens: leave out assignments {args.assignments}")
        self.assignments = Assignments(args.assignments, config, accelerator.device)
        alignment = build_alignment(args, config)
        if alignment is not None:
            alignment.to(accelerator.device)
        self.step_module = TrainingStep(model, build_prior(args, config), args, alignment)
        self.adversarial_losses = build_adversarial_losses(args, config)
        lpips = None
        if args.uses("perceptual"):
            lpips = LPIPSNetwork.from_pretrained("vgg", args.perceptual_network)
            lpips.to(accelerator.device, memory_format=torch.channels_last)  # half the time of its convolutions in bfloat16
        self.loss = TokenizerLoss(args.loss_weights, lpips, tubelet_size=config.tubelet_size, **self.adversarial_losses)
        size = sum(p.numel() for p in self.step_module.parameters()) / 1e6
        length = f"{self.length} {'seconds' if timed else 'steps'}"
        accelerator.print(f"{size:.2f}M parameters, {length} on {accelerator.num_processes} processes")
        self._prepare()

    def _prepare(self) -> None:
        """Move everything to the device, wrap it for several processes, and register what a checkpoint holds."""
        args, accelerator = self.args, self.accelerator
        # cuDNN's attention takes a second to plan each new shape, and every step keeps other numbers of tokens
        torch.backends.cuda.enable_cudnn_sdp(False)
        if accelerator.device.type == "cpu":  # where the backward pass of fused attention is slow
            self.model.set_attn_implementation("eager")
        set_seed(args.seed, device_specific=True)  # processes sample the same clips, but noise of their own
        if args.shard_over:
            shard(self.step_module, accelerator, args.shard_over)
        self.optimizers = build_optimizers(self.step_module, args)
        if not args.shard_over:
            self.step_module, *self.optimizers = accelerator.prepare(self.step_module, *self.optimizers)
        self.adversaries = []
        for name, loss in self.adversarial_losses.items():
            prefix = name.removesuffix("adversarial")
            rate, betas = getattr(args, f"{prefix}discriminator_learning_rate"), (args.adam_beta1, args.adam_beta2)
            optimizer = torch.optim.Adam(loss.parameters(), lr=rate, betas=betas)
            self.adversaries.append(Adversary(loss, *accelerator.prepare(loss, optimizer), rate, prefix))
        self.codebook_average = None
        if args.codebook_decay:
            self.codebook_average = CodebookAverage(self.model, args.codebook_decay).to(accelerator.device)
            accelerator.register_for_checkpointing(self.codebook_average)
        accelerator.register_for_checkpointing(self.clips)
        if args.shard_over:
            self.ema = ShardedAverage(self.model, args.ema_decay) if args.ema_decay else None
            save_shards_with_checkpoints(accelerator, self.step_module, self.optimizers, self.ema)
        else:
            self.average_weights(self.model)

    def update(self, step: int) -> int:
        args, progress = self.args, self.progress
        stage = self._begin_stage(step)
        videos, counts = self._next_batch(step, stage)
        peaks = args.prior_sampling_peak, args.prior_sampling_peak_at
        sampling_ratio = scheduled_sampling_ratio(step, self.length, *peaks)
        adversaries = [each for each in self.adversaries if each.loss.is_discriminator_turn(step)]
        modules = [self.step_module, *(adversary.wrapped for adversary in adversaries)]
        codes, projected = [], []
        for part in self.parts(len(videos), *modules):
            video, part_counts = videos[part].float() / 255, None if counts is None else counts[part]
            with self.accelerator.autocast():
                output, part_projected, terms = self.step_module(video, part_counts, stage.options, sampling_ratio)
                terms = self.loss(video, output, step, **terms)
            self._backward(terms["total"])
            progress.means.add({"loss": terms.pop("total")} | terms)
            projected.append(part_projected.flatten(0, 1))
            if output.codes is not None:
                codes.append(output.codes)
            for adversary in adversaries:
                with self.accelerator.autocast():
                    terms = adversary.wrapped(video, output.pixel_values_videos.detach())
                self._backward(terms.pop("total"))
                progress.means.add({adversary.prefix + name: term for name, term in terms.items()})
        progress.means.add({"grad_norm": self.apply_gradients(self.step_module, self.optimizers)})
        for adversary in adversaries:
            self._update_discriminator(adversary, step)
        if codes:
            self._count_codes(step, torch.cat(codes), torch.cat(projected), counts)
        if counts is not None:
            kept = counts.float().mean(0)
            progress.means.add({"tokens_kept": kept.mean()} | {f"tokens_kept_{i}": n for i, n in enumerate(kept)})
        if self.ema is not None:
            self.ema.update_parameters(self.model)
        return stage.batch_size

    @property
    def _stage(self) -> Stage:
        return next((stage for stage in self.stages if self.position < stage.end), self.stages[-1])

    def _begin_stage(self, step: int) -> Stage:
        """Return the stage of a step; where it begins, fit the codebook if it says so."""
        stage = self._stage
        begun = 1 + self.stages.index(stage)
        if begun > self.progress.stages_begun:
            self.progress.stages_begun = begun
            self.accelerator.print(f"stage {begun} begins")
            if stage.options.fit_codebook:
                self._initialize_codebook(step, stage)
        self.loss.weights = dataclasses.replace(self.args.loss_weights, **stage.options.loss_weights)
        return stage

    def _next_batch(self, step: int, stage: Stage) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return this process' clips, uint8, and their random token counts, or `None` where all tokens are kept."""
        config, accelerator, counts = self.model.config, self.accelerator, None
        num_blocks, batch_size, options = stage.num_blocks, stage.batch_size, stage.options
        with shared_sampling(self.args.seed, step):
            if options.single_blocks and torch.rand(()) < options.single_blocks:
                num_blocks, batch_size = 1, batch_size * num_blocks
            num_frames = num_blocks * config.tubelet_size
            videos = self.clips.next_batch(batch_size)
            start = int(torch.randint(config.num_frames - num_frames + 1, ()))
            if config.adaptive and options.drop_tails and self.args.count_groups:
                groups = sample_grouped_token_counts(self.args.count_groups, num_blocks, config.latents_per_block)
                # on the CPU, since their values decide what is worked on
                counts = groups.repeat(-(-len(videos) // len(groups)), 1)[: len(videos)]
            elif config.adaptive and options.drop_tails:
                counts = self.assignments.sample(batch_size, num_blocks)
        videos = videos[:, start : start + num_frames].to(accelerator.device)
        if counts is not None and not self.args.count_groups:
            counts = counts[accelerator.process_index :: accelerator.num_processes].to(accelerator.device)
        elif self.assignments.router is not None and options.drop_tails:
            counts = self.assignments.of_clips(videos)
        return videos, counts

    def _backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss / self.args.gradient_accumulation_steps)

    @torch.no_grad()
    def _initialize_codebook(self, step: int, stage: Stage) -> None:
        config, model = self.model.config, self.model
        count = -(-LATENTS_PER_CODE * config.codebook_size // (stage.num_blocks * config.latents_per_block))
        with shared_sampling(self.args.seed + 1, step):
            videos = self.clips.sample(count)[:, : stage.num_blocks * config.tubelet_size]
        projected = []
        for some in videos.split(min(stage.batch_size, 64)):
            with self.accelerator.autocast():
                latents = model.encoder(some.to(self.accelerator.device).float() / 255)
            projected.append(model.quantizer.project(latents).flatten(0, 1))
        initialize_codebook(model, torch.cat(projected))
        self.progress.last_used.fill_(step)
        if self.codebook_average is not None:
            self.codebook_average.reset()

    def _update_discriminator(self, adversary: Adversary, step: int) -> None:
        for group in adversary.optimizer.param_groups:  # the tokenizer's schedule, with a peak of its own
            group["lr"] = adversary.learning_rate * self.learning_rate(step) / self.args.learning_rate
        norm = self.apply_gradients(adversary.wrapped, [adversary.optimizer])
        self.progress.means.add({f"{adversary.prefix}discriminator_grad_norm": norm})

    def _count_codes(self, step: int, codes: torch.Tensor, projected: torch.Tensor, counts: torch.Tensor | None) -> None:
        """Note which codes were used, let them follow the latents, and re-seed those that have long been unused."""
        progress, every = self.progress, self.args.reseed_every
        if self.codebook_average is not None:
            kept = None
            if counts is not None:
                kept = kept_tokens(counts, self.model.config.latents_per_block).flatten().to(codes.device)
            used = self.codebook_average.update(codes.flatten(), projected, kept)
            progress.recent = progress.recent.to(used.device) | used
            return
        used = self.accelerator.gather(codes).flatten().unique().cpu()
        progress.last_used[used] = step
        progress.recent[used] = True
        if every and self.position < 0.8 * self.length:
            reseed_codes(self.model, progress.last_used, step, projected, every)

    def log_entries(self) -> dict[str, int]:
        used = int(self.progress.recent.sum())
        self.progress.recent.zero_()
        return {"codes_used": used}

    def whole_models(self) -> dict[str, Tokenizer]:
        """Return the model and its average to be measured or saved, by the prefix of their measures' names."""
        model, ema = self.model, self.ema
        if not self.args.shard_over:
            return {"": model} | ({"ema_": ema.module} if ema else {})
        return {"": whole_copy(model)} | ({"ema_": whole_copy(model, ema.weights)} if ema else {})

    def validate(self) -> dict[str, float]:
        if self.val_clips is None:
            return {}
        step, measures = self.progress.step, {}
        stage = self.stages[max(0, self.progress.stages_begun - 1)]
        with self.accelerator.autocast():
            for prefix, model in self.whole_models().items():
                reconstruct = Reconstructor(model, stage.num_blocks, stage.options.quantize, self.assignments)
                psnr = measure_psnr(reconstruct, self.val_clips, self.accelerator)
                measures |= {prefix + name: value for name, value in psnr.items()}
            if self.accelerator.is_main_process:
                picture = draw_reconstructions(reconstruct, self.val_clips, self.accelerator.device)
                self.run.save_picture("reconstructions", picture, step)
        return measures

    def save(self) -> None:
        models = {name: fold(model) for name, model in self.whole_models().items()}
        self.run.save(models[""], self.progress.step, self.args.checkpoints_total_limit, models.get("ema_"))
