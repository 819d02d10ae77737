"""The training run of `train_scorer.py`."""

import torch
from accelerate.utils import set_seed

from ...data import VideoFolderClips
from ...models.modeling_adaptok import AdapTokModel
from ...pipelines.assignment_decoding import learn_schedules
from ..arguments import epochs_to_steps, share_of_batch
from ..clips import StreamBatches, shared_sampling
from ..folder_batches import FolderBatches
from ..run_folder import Progress, RunFolder
from ..trainer import Trainer
from .arguments import Arguments
from .examples import Example, measure_example, sample_settings
from .targets import BlockLoss
from .training_step import build_config, build_scorer, measure_statistics, scorer_loss
from .validation import measure_scores, plot_scores, predict_scores, rank_correlations


class ScorerTrainer(Trainer):
    """Trains a scorer on the losses of a frozen tokenizer."""

    def __init__(
        self,
        args: Arguments,
        run: RunFolder,
        tokenizer: AdapTokModel,
        block_loss: BlockLoss,
        clips: FolderBatches | StreamBatches,
        val_clips: VideoFolderClips | None,
    ):
        accelerator = run.accelerator
        self.share = share_of_batch(args.batch_size, accelerator.num_processes, args.gradient_accumulation_steps)
        steps = args.steps or epochs_to_steps(args.epochs, args.batch_size, clips.num_videos)
        super().__init__(args, run, steps, args.batch_size, clips.num_videos, Progress())
        self.tokenizer, self.block_loss, self.clips, self.val_clips = tokenizer, block_loss, clips, val_clips
        if args.measured_batches and not isinstance(clips, FolderBatches):
            raise ValueError(f"measured_batches={args.measured_batches} needs train_folders: streams do not return")
        self.measured: dict[tuple[int, int], Example] = {}  # by step and first clip; measured again in a resumed run
        config = build_config(args, tokenizer.config, args.model, args.init_from)
        if args.difference_weight and config.num_levels < 2:
            raise ValueError(f"difference_weight needs two levels, score_step {config.score_step} gives one")
        if val_clips is not None:
            self.val_losses = measure_scores(
                tokenizer, val_clips, config.score_step, block_loss, accelerator, args.score_target_span
            )
        if args.schedule_clips:
            set_seed(args.seed)
            frames = clips.sample(args.schedule_clips)
            with accelerator.autocast():
                config.schedules = learn_schedules(tokenizer, frames, loss=block_loss, batch_size=args.batch_size)
        set_seed(args.seed)
        self.statistics = measure_statistics(args, config, tokenizer, clips, block_loss, accelerator)
        set_seed(args.seed)
        self.scorer = scorer = build_scorer(args, config, self.statistics)
        size = sum(p.numel() for p in scorer.parameters()) / 1e6
        accelerator.print(f"{size:.2f}M parameters, {steps} steps on {accelerator.num_processes} processes")
        betas, decay = (args.adam_beta1, args.adam_beta2), args.weight_decay
        optimizer = torch.optim.AdamW(scorer.parameters(), lr=args.learning_rate, betas=betas, weight_decay=decay)
        self.wrapped, *self.optimizers = accelerator.prepare(scorer, optimizer)
        accelerator.register_for_checkpointing(clips)
        self.average_weights(scorer)

    def update(self, step: int) -> int:
        args, accelerator, config = self.args, self.accelerator, self.scorer.config
        step = step % args.measured_batches if args.measured_batches else step
        with shared_sampling(args.seed, step):
            # before the clips: a stream uses the same generator, but only when it begins
            settings = sample_settings(config, args.batch_size, args.levels_per_step, args.augment, args.score_target_span)
            videos = self.clips.next_batch(args.batch_size)
        settings = settings.of(slice(accelerator.process_index, None, accelerator.num_processes))
        typical_difference = self.statistics.typical_difference[settings.levels[:-1], settings.levels[1:]]
        for part in self.parts(self.share, self.wrapped):
            example = self.measured.get((step, part.start))
            if example is None:
                with accelerator.autocast():
                    example = measure_example(
                        self.tokenizer, videos[part], settings.of(part), config.score_step, self.block_loss
                    )
                if args.measured_batches:
                    self.measured[step, part.start] = example
            inputs = self.statistics.scale(example.latents, example.quantized)
            predicted = self.wrapped(*inputs, example.counts).scores[:, -1, settings.levels]
            weight = args.difference_weight
            terms = scorer_loss(predicted, example.losses, config.score_std, typical_difference, weight)
            accelerator.backward(terms["loss"] / args.gradient_accumulation_steps)
            self.progress.means.add(terms | {"target": example.losses.mean()})
            if settings.block > 0:
                self.progress.means.add({"tokens_kept": example.counts[:, :-1].float().mean()})  # of the earlier blocks
        self.progress.means.add({"grad_norm": self.apply_gradients(self.wrapped, self.optimizers)})
        if self.ema is not None:
            self.ema.update_parameters(self.scorer)
        return args.batch_size

    def validate(self) -> dict[str, float]:
        if self.val_clips is None:
            return {}
        measures = {}
        for prefix, scorer in (("", self.scorer), *((("ema_", self.ema.module),) if self.ema is not None else ())):
            folded = self.statistics.scale.fold(scorer)
            predicted = predict_scores(folded, self.tokenizer, self.val_clips, self.accelerator)
            correlations = rank_correlations(predicted, self.val_losses)
            measures |= {prefix + name: value for name, value in correlations.items()}
        if self.accelerator.is_main_process:
            picture = plot_scores(predicted, self.val_losses, self.scorer.config.score_step, self.args.target)
            self.run.save_picture("scores", picture, self.progress.step)
        return measures

    def save(self) -> None:
        scale = self.statistics.scale
        average = None if self.ema is None else scale.fold(self.ema.module)
        self.run.save(scale.fold(self.scorer), self.progress.step, self.args.checkpoints_total_limit, average)
