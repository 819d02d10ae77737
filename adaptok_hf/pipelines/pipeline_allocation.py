"""The second and third step of the pipeline: scores of encoded videos, and how many tokens each block keeps."""

import math
from typing import Any

import numpy as np
import torch

from ..allocation import STRATEGIES, AllocationRequest, Strategy
from ..allocation.beam_search import search_levels
from ..models.generation_adaptok import check_number
from ..video.tokenized_video import TokenizedVideo
from .assignment_decoding import assignment_trees, choose_loss
from .encoded_videos import EncodedVideos, allocate_by_block, lookup_codes, stopwatch
from .measured_losses import levels_to_measure, measure_losses

# Of all latents of a block, the least that `search` tries, unless others need it: finer than most scorers' levels.
_SEARCH_STEPS = 64


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
        if not measured and (self.scorer is None or encoded.latents is None):
            raise ValueError("scores need a scorer and the latents of `encode`; without, measured=True measures losses")
        levels, losses, seconds = self._levels(measured), [], encoded.seconds
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

    def allocate(
        self, encoded: EncodedVideos, request: AllocationRequest | None = None, *, batch_size: int = 8
    ) -> TokenizedVideo | list[TokenizedVideo]:
        """Decide how many tokens each block keeps: the third step. All videos share the budget.

        Args:
            encoded: what `encode` returned.
            request: budget, price or threshold, and the strategy. `None` keeps all tokens.
            batch_size: clips that are scored together.

        Returns:
            The tokens of the video; of a list of videos, a list.

        Raises:
            ValueError: for a request that cannot be met.
        """
        request = request or AllocationRequest()
        strategy, valid = self.choose_strategy(request), encoded.valid_blocks
        facts: dict[str, float] = {}
        if strategy is None:
            token_counts = valid.long() * self.tokenizer.config.latents_per_block
        else:
            self.check_request(request, valid)
            parameters = request.parameters(self.tokenizer.config.latents_per_block)
            if strategy.order == "block":
                token_counts = self._allocate_by_block(encoded, strategy, parameters, batch_size)
            elif strategy.scores == "searched":
                token_counts, facts = self._search(encoded, strategy, parameters, batch_size)
            else:
                measured = strategy.scores == "measured"
                levels = self._levels(measured)
                if strategy.scores == "none":
                    table = np.zeros((*valid.shape, len(levels)))
                else:
                    table = self.score(encoded, measured=measured, batch_size=batch_size)
                with stopwatch(encoded.seconds, "allocate", self.device):
                    counts, facts = strategy.allocate(table, step=levels.step, valid=valid.numpy(), **parameters)
                token_counts = torch.from_numpy(counts)
            if "budget" in parameters and valid.any():
                budget, num_blocks = parameters["budget"], int(valid.sum())
                if isinstance(budget, tuple):  # one number per block position
                    budget = float((valid.numpy() * budget).sum()) / num_blocks
                facts = {"budget": budget, "reached": int(token_counts.sum()) / num_blocks} | facts
        chosen_by = {"strategy": strategy.name if strategy else "all tokens"} | facts
        tokens, start = [], 0
        for clips in encoded.clips:
            rows = slice(start, start + len(clips))
            start = rows.stop
            tokens.append(
                TokenizedVideo(
                    codes=encoded.codes[rows],
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
                )
            )
        return tokens if encoded.is_list else tokens[0]

    def choose_strategy(self, request: AllocationRequest) -> Strategy | None:
        """Return the strategy of a request, or `None` for keeping everything."""
        is_adaptive = self.tokenizer.config.adaptive  # if not, no other part would help
        strategy = request.choose_strategy(self.scorer is not None or not is_adaptive)
        if strategy is not None and not is_adaptive:
            raise ValueError(
                f"strategy {strategy.name!r}: this tokenizer is not adaptive (CausalTok, LARP): it keeps all tokens and "
                "takes no budget"
            )
        return strategy

    def _levels(self, measured: bool = False) -> range:
        """Return the candidate token counts of a table's levels."""
        per_block = self.tokenizer.config.latents_per_block
        step = self.scorer.config.score_step if self.scorer is not None else 1
        return levels_to_measure(per_block, step) if measured else range(step, per_block + 1, step)

    def check_request(self, request: AllocationRequest, valid_blocks: torch.Tensor | None = None) -> None:
        """Raise `ValueError` if blocks cannot meet a request, before anything is encoded or scored.

        Args:
            valid_blocks: (clips, blocks) bool, see `EncodedVideos.valid_blocks`; default: one whole clip.
        """
        strategy = self.choose_strategy(request)
        if strategy is None:
            return
        valid = torch.ones(1, self.tokenizer.config.num_blocks, dtype=torch.bool) if valid_blocks is None else valid_blocks
        levels = self._levels(strategy.scores == "measured")
        parameters = request.parameters(self.tokenizer.config.latents_per_block)
        if strategy.scores == "searched":  # on a budget or at a price, as these are
            strategy = STRATEGIES["fixed" if "budget" in parameters else "quality"]
            choose_loss(parameters.pop("loss", "rmse"))
        table = np.zeros((*valid.shape, len(levels)))
        strategy.allocate(table, step=levels.step, valid=valid.numpy(), **parameters)

    def _search(
        self, encoded: EncodedVideos, strategy: Strategy, parameters: dict[str, Any], batch_size: int
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Return (clips of all videos, blocks) long by decoding, and what is known of them."""
        step, valid = self._levels().step, encoded.valid_blocks
        per_block = self.tokenizer.config.latents_per_block
        finest = max(per_block // _SEARCH_STEPS, 1)
        options = {"levels": search_levels(per_block, finest), "loss": parameters.pop("loss", "rmse")}
        given, candidates = {"step": step, "valid": valid.numpy()}, []
        if "budget" in parameters:
            amount, blank = {"budget": parameters["budget"]}, np.zeros((*valid.shape, per_block // step))
            candidates.append(STRATEGIES["fixed"].allocate(blank, **given, **amount)[0])
            if self.scorer is not None and ("predicted" in encoded.tables or encoded.latents is not None):
                scores = self.score(encoded, batch_size=batch_size)
                candidates.append(STRATEGIES["joint"].allocate(scores, **given, **amount)[0])
            measured, levels = self.score(encoded, measured=True, batch_size=batch_size), self._levels(measured=True)
            if amount["budget"] >= levels.step:
                candidates.append(STRATEGIES["joint"].allocate(measured, **given | {"step": levels.step}, **amount)[0])
        frames = encoded.frames(slice(0, len(encoded.codes)))
        with stopwatch(encoded.seconds, "search", self.device):
            trees = assignment_trees(self.tokenizer, frames, encoded.codes.to(self.device), valid, **options)
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
