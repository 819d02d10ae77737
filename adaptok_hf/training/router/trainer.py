"""The training run of `train_router.py`."""

import math
from collections.abc import Iterator

import numpy as np
import torch
from accelerate.utils import set_seed

from ...allocation import assignments, reward_price
from ...models.configuration_adaptok_router import AdapTokRouterConfig
from ...models.modeling_adaptok_router import AdapTokRouterModel
from ...pipelines.pipeline_adaptok import AdapTokPipeline
from ..arguments import epochs_to_steps, share_of_batch
from ..clips import shared_sampling
from ..run_folder import Progress, RunFolder
from ..trainer import Trainer
from .arguments import Arguments
from .assignment_labels import LabelledVideos, read_labels
from .targets import ClipCosts
from .validation import choice_percentile, schedule_percentiles, scorer_percentile

VALIDATION_PRICES = 5


class Labels:
    """Labelled clips in memory."""

    def __init__(self, folder: str, data_root: str):
        self.plan, self.choices, trees = read_labels(folder)
        plan = self.plan
        self.videos = LabelledVideos(data_root, plan["folders"], plan["num_frames"], plan["image_size"])
        if missing := {choice.source for choice in self.choices} - self.videos.frames.keys():
            raise ValueError(f"{data_root} lacks {len(missing)} of the labelled videos, such as {min(missing)}")
        self.costs = [ClipCosts(tree) for tree in trees]

    def __len__(self) -> int:
        return len(self.choices)

    def frames(self) -> Iterator[torch.Tensor]:
        """Yield each clip, uint8 (1, frames, 3, size, size)."""
        return (self.videos.cut([choice]) for choice in self.choices)

    def price_of(self, quality_weight: float) -> float:
        """Return the price of a token at which the cheapest assignment has the highest reward of this weight.

        Raises:
            ValueError: if not all assignments of all clips were measured, for then their spread is not known.
        """
        every = assignments(self.plan["levels"], self.plan["num_blocks"])
        fewest = min(len(clip.known) for clip in self.costs)
        if fewest < len(every):
            raise ValueError(
                f"quality_weight={quality_weight} needs labels of all {len(every)} assignments, a clip has {fewest}: label "
                f"with a beam_width of {len(every) // len(self.plan['levels'])}"
            )
        losses = torch.cat([clip.losses for clip in self.costs])
        return reward_price(quality_weight, float(losses.std(correction=0)), float(every.sum(1).std()))


class RouterTrainer(Trainer):
    """Trains a router to choose what was cheapest, at one price or at prices sampled from a range."""

    def __init__(self, args: Arguments, run: RunFolder):
        self.labels = labels = Labels(args.labels, args.data_root)
        self.val_labels = Labels(args.val_labels, args.data_root) if args.val_labels else None
        accelerator, plan = run.accelerator, labels.plan
        self.share = share_of_batch(args.batch_size, accelerator.num_processes, args.gradient_accumulation_steps)
        steps = args.steps or epochs_to_steps(args.epochs, args.batch_size, len(labels))
        super().__init__(args, run, steps, args.batch_size, len(labels), Progress())
        prices = args.prices or [min(plan["prices"]), max(plan["prices"])]
        if args.quality_weight is not None:
            prices = [labels.price_of(args.quality_weight)]
        self.log_prices = math.log(prices[0]), math.log(prices[-1])
        sizes = {name: plan[name] for name in ("levels", "num_frames", "image_size", "tubelet_size", "num_channels")}
        low, high = self.log_prices
        scale = {"log_price_mean": (low + high) / 2, "log_price_std": (high - low) / math.sqrt(12) or 1.0}
        set_seed(args.seed)
        if args.init_from:
            self.router = AdapTokRouterModel.from_pretrained(args.init_from, dtype=torch.float32).train()
        else:
            self.router = AdapTokRouterModel(AdapTokRouterConfig(**sizes | scale | args.model)).train()
        if self.router.config.levels != plan["levels"]:
            raise ValueError(f"the router chooses among {self.router.config.levels}, the labels among {plan['levels']}")
        if low != high and not self.router.config.price_conditioned:
            raise ValueError(f"a router that is not price_conditioned learns one price, got {prices}")
        size = sum(p.numel() for p in self.router.parameters()) / 1e6
        accelerator.print(f"{size:.2f}M parameters, {len(labels)} clips, {steps} steps")
        betas, decay = (args.adam_beta1, args.adam_beta2), args.weight_decay
        optimizer = torch.optim.AdamW(self.router.parameters(), lr=args.learning_rate, betas=betas, weight_decay=decay)
        self.wrapped, *self.optimizers = accelerator.prepare(self.router, optimizer)
        self.average_weights(self.router)
        self.baselines = self._measure_baselines()

    def update(self, step: int) -> int:
        args, accelerator, labels = self.args, self.accelerator, self.labels
        with shared_sampling(args.seed, step):
            chosen = torch.randint(len(labels), (args.batch_size,))
            low, high = self.log_prices
            prices = (low + (high - low) * torch.rand(args.batch_size)).exp()
        share = slice(accelerator.process_index, None, accelerator.num_processes)
        chosen, prices = chosen[share].tolist(), prices[share]
        for part in self.parts(self.share, self.wrapped):
            targets = torch.stack(
                [self._target(labels, i, p) for i, p in zip(chosen[part], prices[part].tolist(), strict=True)]
            )
            frames = labels.videos.cut([labels.choices[index] for index in chosen[part]]).to(accelerator.device) / 255
            price = prices[part].to(accelerator.device) if self.router.config.price_conditioned else None
            with accelerator.autocast():
                loss = self.wrapped(frames, price, labels=targets.to(accelerator.device)).loss
            accelerator.backward(loss / args.gradient_accumulation_steps)
            self.progress.means.add({"loss": loss.detach()})
        self.progress.means.add({"grad_norm": self.apply_gradients(self.wrapped, self.optimizers)})
        if self.ema is not None:
            self.ema.update_parameters(self.router)
        return args.batch_size

    def _target(self, labels: Labels, index: int, price: float) -> torch.Tensor:
        costs, temperature = labels.costs[index], self.args.temperature
        if self.router.config.head == "blocks":
            return costs.block_targets(price, temperature)
        return costs.assignment_targets(price, temperature)

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Return the cross-entropy on the validation labels, how often the best assignment is chosen, and the percentile of
        the reward's range, next to those of schedules and of a scorer, with how many choices were measured."""
        if self.val_labels is None:
            return {}
        router, labels, chosen = self.router.eval(), self.val_labels, []
        losses, hits, measured = [], [], []
        for index, frames in enumerate(labels.frames()):
            frames, costs = frames.to(self.accelerator.device) / 255, labels.costs[index]
            chosen.append([])
            for price in self.validation_prices:
                given = price if router.config.price_conditioned else None
                target = self._target(labels, index, price)[None].to(frames.device)
                losses.append(router(frames, given, labels=target).loss.item())
                chosen[-1].append(tuple(router.route(frames, given)[0].tolist()))
                cost = costs.cost(chosen[-1][-1], price)
                measured.append(cost is not None)
                hits.append(cost == float(costs.costs(price).min()))
        router.train()
        measures = {"val_loss": losses, "val_top1": hits, "val_measured_share": measured}
        pairs = zip(zip(*chosen, strict=True), self.validation_prices, strict=True)
        percentiles = [choice_percentile(labels.costs, counts, price) for counts, price in pairs]
        measures["val_percentile"] = [each for each in percentiles if each is not None]
        return {name: sum(values) / len(values) for name, values in measures.items() if values} | self.baselines

    @property
    def validation_prices(self) -> list[float]:
        low, high = self.log_prices
        return np.geomspace(math.exp(low), math.exp(high), VALIDATION_PRICES if low != high else 1).tolist()

    def _measure_baselines(self) -> dict[str, float]:
        """Return the percentiles that training does not change."""
        if self.val_labels is None:
            return {}
        labels, prices = self.val_labels, self.validation_prices
        baselines = schedule_percentiles(self.labels.costs, labels.costs, prices)
        if self.args.scored_by:
            pipeline = AdapTokPipeline.from_pretrained(self.args.scored_by).to(self.accelerator.device)
            found = scorer_percentile(pipeline, labels.frames(), labels.costs, prices)
            baselines |= {} if found is None else {"val_percentile_scorer": found}
        return baselines

    def save(self) -> None:
        average = None if self.ema is None else self.ema.module
        self.run.save(self.router, self.progress.step, self.args.checkpoints_total_limit, average)
