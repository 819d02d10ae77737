"""The second and third step of the pipeline: scores of encoded videos, and how many tokens each block keeps."""

import math
from typing import Any

import numpy as np
import torch

from ..allocation import STRATEGIES, AllocationRequest, Strategy
from ..allocation.beam_search import search_levels
from ..allocation.budgets import round_to_level
from ..allocation.routing import spread_levels
from ..allocation.schedules import nearest_schedule, pull_to_schedule
from ..models.generation_adaptok import check_number
from ..video.tokenized_video import TokenizedVideo
from .assignment_decoding import assignment_trees, choose_loss
from .encoded_videos import EncodedVideos, allocate_by_block, lookup_codes, stopwatch
from .measured_losses import levels_to_measure, measure_losses

# Of all latents of a block, the least that `search` tries, unless others need it: finer than most scorers' levels.
_SEARCH_STEPS = 64
# At so many prices a router is asked; between them its answers are interpolated.
_ROUTER_PRICES = 8


class AllocationMixin:
    """`score` and `allocate` of [`AdapTokPipeline`]."""

    @torch.no_grad()
    def score(self, encoded: EncodedVideos, *, measured: bool = False, batch_size: int = 8) -> np.ndarray:
        """Predict the loss of every block at every level with the scorer, or measure it: the second step.

        The table is computed once and kept in `encoded.tables`.

        Args:
            encoded: what `encode` returned.
            measured: decode every block at up to 40 levels and measure, see [`measure_losses`], in place of asking the
                scorer.
            batch_size: clips that are scored together.

        Returns:
            (clips of all videos, blocks, levels) float64, lower is better. Level `j` keeps `(j + 1) * step` tokens, where
            the step is `score_step` of the scorer, or that of [`levels_to_measure`].

        Raises:
            ValueError: without a scorer, or without latents of `encoded`, unless `measured`.
        """
        kind = "measured" if measured else "predicted"
        if kind in encoded.tables:
            return encoded.tables[kind]
        if not self.tokenizer.prefix_decodable:
            name = type(self.tokenizer).__name__
            raise ValueError(f"score looks at encoded tokens, and a {name} needs token counts to encode")
        if not measured and (self.scorer is None or encoded.latents is None):
            raise ValueError("scores need a scorer and the latents of `encode`; without, measured=True measures losses")
        levels, losses, seconds = self._levels(kind), [], encoded.seconds
        stage = "measure" if measured else "score"
        for start in self.batches(len(encoded.codes), batch_size, stage):
            rows = slice(start, start + batch_size)
            codes = encoded.codes[rows].to(self.device)
            with stopwatch(seconds, stage, self.device), torch.inference_mode():
                if measured:
                    frames = encoded.frames(rows).to(self.device) / 255
                    losses.append(measure_losses(self.tokenizer, frames, codes, levels).cpu())
                else:
                    quantized = lookup_codes(self.tokenizer, codes).to(self.device)
                    latents = encoded.latents[rows].to(self.device)
                    losses.append(self.scorer(latents, quantized, return_dict=True).scores.cpu())
        encoded.tables[kind] = torch.cat(losses).double().numpy()
        return encoded.tables[kind]

    @torch.no_grad()
    def route(self, encoded: EncodedVideos, *, price: float | None = None, batch_size: int = 8) -> np.ndarray:
        """Ask the router what each level of each block is worth: what `score` is to other strategies.

        It looks at frames alone. The table is computed once and kept in `encoded.tables`.

        Args:
            encoded: what `encode` returned.
            price: loss per token. Without, a `price_conditioned` router is asked at 8 prices over its `price_range`.
            batch_size: clips that it sees together.

        Returns:
            (clips of all videos, prices, blocks, levels) float64, minus log-probabilities. Level `j` keeps `(j + 1) * step`
            tokens, where the step is the greatest common divisor of the router's levels; with a tokenizer that takes no
            other counts than its levels, they are the router's.
        """
        key = "routed" if price is None else f"routed at {price}"
        if key not in encoded.tables:
            router, losses, prices = self.router, [], self._router_prices(price) or [None]
            for start in self.batches(len(encoded.codes), batch_size, "route"):
                with stopwatch(encoded.seconds, "route", self.device), torch.inference_mode():
                    frames = encoded.frames(slice(start, start + batch_size)).to(self.device) / 255
                    at_prices = [router.level_losses(frames, each).cpu() for each in prices]
                losses.append(torch.stack(at_prices, dim=1))
            none = torch.empty(0, len(prices), router.config.num_blocks, len(router.config.levels))
            table = torch.cat([none, *losses]).double().numpy()
            is_spread = self.tokenizer.prefix_decodable
            encoded.tables[key] = spread_levels(table, router.config.levels) if is_spread else table
        return encoded.tables[key]

    def allocate(
        self, encoded: EncodedVideos, request: AllocationRequest | None = None, *, batch_size: int = 8
    ) -> TokenizedVideo | list[TokenizedVideo]:
        """Decide how many tokens each block keeps: the third step. All videos share the budget.

        With a tokenizer that needs token counts to encode, this encodes.

        Args:
            encoded: what `encode` returned.
            request: budget, price or threshold, and the strategy. `None` keeps all tokens.
            batch_size: clips that are scored, or encoded, together.

        Returns:
            The tokens of the video; of a list of videos, a list.

        Raises:
            ValueError: for a request that cannot be met.
        """
        request = request or AllocationRequest()
        strategy, valid = self.choose_strategy(request), encoded.valid_blocks
        facts: dict[str, float] = {}
        self.check_request(request, valid)
        if strategy is None or not len(valid):
            token_counts = valid.long() * self.tokenizer.config.latents_per_block
        else:
            parameters = request.parameters(self.tokenizer.config.latents_per_block)
            if strategy.order == "block":
                token_counts = self._allocate_by_block(encoded, strategy, parameters, batch_size)
            elif strategy.scores == "searched":
                token_counts, facts = self._search(encoded, strategy, parameters, batch_size)
            else:
                levels = self._levels(strategy.scores)
                given = {"step": levels.step, "valid": valid.numpy()} | self._only_levels(strategy)
                if strategy.needs_router:
                    given["prices"] = self._router_prices(price := parameters.pop("price", None))
                    table = self.route(encoded, price=price, batch_size=batch_size)
                elif strategy.scores == "none":
                    table = np.zeros((*valid.shape, len(levels)))
                else:
                    table = self.score(encoded, measured=strategy.scores == "measured", batch_size=batch_size)
                if strategy.name == "joint":
                    table = self._pull_to_schedule(table, parameters["budget"], valid)
                with stopwatch(encoded.seconds, "allocate", self.device):
                    counts, facts = strategy.allocate(table, **given, **parameters)
                token_counts = torch.from_numpy(counts)
            if "budget" in parameters and valid.any():
                budget, num_blocks = parameters["budget"], int(valid.sum())
                if isinstance(budget, tuple):  # one number per block position
                    budget = float((valid.numpy() * budget).sum()) / num_blocks
                facts = {"budget": budget, "reached": int(token_counts.sum()) / num_blocks} | facts
        codes = encoded.codes
        if not self.tokenizer.prefix_decodable:
            codes = self._encode_counts(encoded, token_counts, batch_size)
        chosen_by = {"strategy": strategy.name if strategy else "all tokens"} | facts
        tokens, start = [], 0
        for clips in encoded.clips:
            rows = slice(start, start + len(clips))
            start = rows.stop
            tokens.append(
                TokenizedVideo(
                    codes=codes[rows],
                    token_counts=token_counts[rows],
                    codebook_size=self.tokenizer.config.codebook_size,
                    num_frames=clips.num_frames,
                    fps=clips.fps,
                    timestamps=clips.timestamps,
                    source_size=tuple(clips.source_size),
                    resize_mode=encoded.resize_mode,
                    model_hash=encoded.model_hash,
                    allocation=dict(chosen_by),
                    tiles=getattr(clips, "grid", None),
                    overlap_blocks=getattr(clips, "overlap_blocks", 0),
                    dtype=str(self.tokenizer.dtype).removeprefix("torch."),
                )
            )
        return tokens if encoded.is_list else tokens[0]

    def choose_strategy(self, request: AllocationRequest) -> Strategy | None:
        """Return the strategy of a request, or `None` for keeping everything."""
        if not self.tokenizer.prefix_decodable:
            name = request.strategy or ("quality" if request.price is not None else None)
            name = name or ("threshold" if request.threshold is not None else "fixed")
            if name in STRATEGIES and not STRATEGIES[name].decides_first:
                usable = ", ".join(row.name for row in STRATEGIES.values() if row.decides_first)
                raise ValueError(
                    f"strategy {name!r} looks at encoded tokens, and a {type(self.tokenizer).__name__} needs token counts "
                    f"to encode; these decide first: {usable}"
                )
        is_adaptive = self.tokenizer.config.adaptive  # if not, no other part would help
        strategy = request.choose_strategy(
            self.scorer is not None or not is_adaptive, self.router is not None, self.has_schedules
        )
        if strategy is not None and not is_adaptive:
            raise ValueError(
                f"strategy {strategy.name!r}: this tokenizer is not adaptive (CausalTok, LARP): it keeps all tokens and "
                "takes no budget"
            )
        return strategy

    def _only_levels(self, strategy: Strategy) -> dict[str, Any]:
        """Return the argument of strategies by which counts are levels, for a tokenizer that takes no others."""
        if self.tokenizer.prefix_decodable:
            return {}
        return {"levels": self.router.config.levels if strategy.needs_router else self.tokenizer.config.levels}

    def _encode_counts(self, encoded: EncodedVideos, token_counts: torch.Tensor, batch_size: int) -> torch.Tensor:
        """Return the codes of all clips, encoded with these token counts."""
        codes = [torch.empty(0, *encoded.codes.shape[1:], dtype=torch.long)]
        for start in self.batches(len(token_counts), batch_size, "encode"):
            rows = slice(start, start + batch_size)
            with stopwatch(encoded.seconds, "encode", self.device), torch.inference_mode():
                frames = encoded.frames(rows)
                if frames.ndim != 5:
                    raise ValueError("allocate encodes with this tokenizer: it needs the frames that were left out")
                frames = (frames.to(self.device) / 255).to(self.tokenizer.dtype)
                counts = token_counts[rows].to(self.device)
                codes.append(self.tokenizer.encode(frames, counts, return_dict=True).codes.cpu())
        return torch.cat(codes)

    def _levels(self, scores: str = "predicted") -> range:
        """Return the candidate token counts of a table's levels, by where it comes from."""
        if scores == "routed":
            levels = self.router.config.levels
            return range(math.gcd(*levels), levels[-1] + 1, math.gcd(*levels))
        per_block = self.tokenizer.config.latents_per_block
        if not self.tokenizer.prefix_decodable:
            return range(step := math.gcd(*self.tokenizer.config.levels), per_block + 1, step)
        step = self.scorer.config.score_step if self.scorer is not None else 1
        return levels_to_measure(per_block, step) if scores == "measured" else range(step, per_block + 1, step)

    def check_request(self, request: AllocationRequest, valid_blocks: torch.Tensor | None = None) -> None:
        """Raise `ValueError` if blocks cannot meet a request, before anything is encoded or scored.

        Args:
            valid_blocks: (clips, blocks) bool, see `EncodedVideos.valid_blocks`; default: one whole clip.
        """
        strategy = self.choose_strategy(request)
        if strategy is None:
            return
        valid = torch.ones(1, self.tokenizer.config.num_blocks, dtype=torch.bool) if valid_blocks is None else valid_blocks
        levels = self._levels(strategy.scores)
        parameters, only_levels = request.parameters(self.tokenizer.config.latents_per_block), self._only_levels(strategy)
        if strategy.needs_router:
            self.check_router(parameters)
        if only_levels and "budget" in parameters and strategy.scores != "none":
            round_to_level(parameters["budget"], only_levels["levels"])  # raises outside
        if strategy.scores == "searched":  # on a budget or at a price, as these are
            strategy = STRATEGIES["fixed" if "budget" in parameters else "quality"]
            choose_loss(parameters.pop("loss", "rmse"))
        elif strategy.needs_router:
            if "budget" not in parameters:
                return
            strategy = STRATEGIES["joint"]
        elif strategy.name == "fixed":
            parameters |= only_levels
        table = np.zeros((*valid.shape, len(levels)))
        strategy.allocate(table, step=levels.step, valid=valid.numpy(), **parameters)

    def check_router(self, parameters: dict[str, Any]) -> None:
        """Raise `ValueError` unless the router takes a price where there is one, and is given one where it needs one."""
        conditioned, price = self.router.config.price_conditioned, parameters.get("price")
        if price is not None and not (conditioned and price > 0):
            takes = "takes prices above 0" if conditioned else "was trained at one price and takes none"
            raise ValueError(f"this router {takes}, got price={price}")
        if conditioned and not parameters.keys() & {"budget", "price"}:
            raise ValueError("this router is price_conditioned: strategy 'router' needs `budget` or `price`")

    def _router_prices(self, price: float | None) -> list[float] | None:
        """Return the prices at which the router is asked, or `None` if it takes none."""
        if not self.router.config.price_conditioned:
            return None
        return np.geomspace(*self.router.config.price_range, _ROUTER_PRICES).tolist() if price is None else [price]

    @property
    def has_schedules(self) -> bool:
        return self.scorer is not None and bool(self.scorer.config.schedules)

    def find_schedule(self, budget: float, valid_blocks: torch.Tensor | None = None) -> tuple[int, ...]:
        """Return the best constant schedule for a budget, of those that the scorer carries: one count per block position.

        Args:
            budget: average tokens per block.
            valid_blocks: (clips, blocks) bool, see `EncodedVideos.valid_blocks`; default: one whole clip.
        """
        known, valid = [of_budget[0] for of_budget in self.scorer.config.schedules], None
        if valid_blocks is not None:
            valid = valid_blocks.numpy()
        return nearest_schedule(known, budget, self.tokenizer.config.latents_per_block, valid)

    def _list_schedules(self, budget: float, valid: torch.Tensor) -> list[np.ndarray]:
        """Return what the scorer carries for a budget of each clip, and for several clips also the best for more and less.

        Each is a table of (clips, blocks) token counts.
        """
        most = self.tokenizer.config.latents_per_block
        amounts = [(rank, budget) for rank in range(len(self.scorer.config.schedules[0]))]
        if len(valid) > 1:
            moves = sorted({int(min(budget, most - budget) * share) for share in (0.25, 0.5)} - {0})
            amounts += [(0, amount) for move in moves for amount in (budget - move, budget + move)]
        tables = []
        for rank, amount in amounts:
            known = [of_budget[rank] for of_budget in self.scorer.config.schedules]
            by_pattern = {
                row: nearest_schedule(known, amount, most, [row]) for row in set(map(tuple, valid.tolist())) if any(row)
            }
            tables.append(np.array([np.multiply(row, by_pattern.get(tuple(row), 0)) for row in valid.tolist()]))
        return tables

    def _pull_to_schedule(self, scores: np.ndarray, budget: float, valid: torch.Tensor) -> np.ndarray:
        config = self.scorer.config
        if not config.schedule_pull or not valid.any():
            return scores
        schedule = self.find_schedule(budget, valid)
        return pull_to_schedule(scores, step=config.score_step, schedule=schedule, pull=config.schedule_pull)

    def _search(
        self, encoded: EncodedVideos, strategy: Strategy, parameters: dict[str, Any], batch_size: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return (clips of all videos, blocks) long by decoding, and what is known of them."""
        step, valid = self._levels().step, encoded.valid_blocks
        per_block = self.tokenizer.config.latents_per_block
        finest = max(per_block // _SEARCH_STEPS, 1)
        options = {"levels": search_levels(per_block, finest), "loss": parameters.pop("loss", "rmse")}
        given, candidates, only_levels = {"step": step, "valid": valid.numpy()}, [], self._only_levels(strategy)
        if only_levels:
            options, parameters = options | only_levels, parameters | {"levels_only": True}
        if strategy.needs_schedules:
            candidates = self._list_schedules(parameters["budget"], valid)
        elif "budget" in parameters:
            amount, blank = {"budget": parameters["budget"]}, np.zeros((*valid.shape, per_block // step))
            candidates.append(STRATEGIES["fixed"].allocate(blank, **given, **amount, **only_levels)[0])
            if self.has_schedules:
                candidates += self._list_schedules(amount["budget"], valid)
            if self.scorer is not None and ("predicted" in encoded.tables or encoded.latents is not None):
                scores = self._pull_to_schedule(self.score(encoded, batch_size=batch_size), amount["budget"], valid)
                candidates.append(STRATEGIES["joint"].allocate(scores, **given, **amount)[0])
            levels = self._levels("measured")
            if not only_levels and amount["budget"] >= levels.step:
                measured = self.score(encoded, measured=True, batch_size=batch_size)
                candidates.append(STRATEGIES["joint"].allocate(measured, **given | {"step": levels.step}, **amount)[0])
        frames, codes = encoded.frames(slice(0, len(encoded.codes))), None
        if self.tokenizer.prefix_decodable:
            codes = encoded.codes.to(self.device)
        with stopwatch(encoded.seconds, "search", self.device):
            trees = assignment_trees(self.tokenizer, frames, codes, valid, **options)
            counts, facts = strategy.allocate(trees, step=1, valid=valid.numpy(), candidates=candidates, **parameters)
        return torch.from_numpy(counts), facts

    def _allocate_by_block(
        self, encoded: EncodedVideos, strategy: Strategy, parameters: dict[str, Any], batch_size: int
    ) -> torch.Tensor:
        """Return (clips of all videos, blocks) long: batch by batch, unless all clips share the budget."""
        if encoded.latents is None:
            raise ValueError(f"strategy {strategy.name!r} needs the latents of `encode`, which were not kept")
        latents, codes = encoded.latents.split(batch_size), encoded.codes.split(batch_size)
        models, rest = (self.tokenizer, self.scorer), (strategy, parameters, encoded.seconds)
        if strategy.shares_budget:
            return allocate_by_block(*models, list(latents), list(codes), encoded.valid_blocks, *rest)
        batches = zip(latents, codes, encoded.valid_blocks.split(batch_size), strict=True)
        return torch.cat([allocate_by_block(*models, [a], [b], valid, *rest) for a, b, valid in batches])

    def batches(self, total: int, batch_size: int, stage: str):
        """Start indices, with a progress bar where there is more than one batch."""
        check_number("batch_size", batch_size, 1, math.inf, whole=True)
        starts = range(0, total, batch_size)
        if len(starts) == 1:
            return starts
        bar = self.progress_bar(starts)
        bar.set_description(stage)
        return bar
