"""The rules of block sequences: logits processors, a stopping criterion and guesses for transformers' decoding loops.

The loops are transformers' own; [`AdapTokARForCausalLM.generate`] hands these to them.
"""

from collections.abc import Callable, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import Any

import torch
from transformers import LogitsProcessor, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import Cache
from transformers.generation.candidate_generator import CandidateGenerator
from transformers.utils import ModelOutput

from .configuration_adaptok_ar import AdapTokARConfig
from .token_layout import block_starts, count_blocks


def in_eval_mode(method: Callable) -> Callable:
    """Decorate a method of a model, so that it runs without dropout, of classes too, also in between training steps."""

    @wraps(method)
    def run(self, *args, **kwargs):
        training = [module for module in self.modules() if module.training]
        self.eval()
        try:
            return method(self, *args, **kwargs)
        finally:
            for module in training:
                module.training = True

    return run


class BlockTokensLogitsProcessor(LogitsProcessor):
    """Let only valid block sequences be written.

    * The first token is a code: the first block of a clip is not empty. Later blocks may be empty.
    * `<EOB>` closes a block that has reached its limit, or that stands where the total limit is used up.
    * After the last `<EOB>` there is nothing but `<EOB>`.
    * Ids after `<EOB>` are never written.

    The processor is stateless: it reads from its ids where a row stands.

    Args:
        prompt_length: tokens before the sequence.
        eob_token_id: id of `<EOB>`; codes are the ids below it.
        block_limits: (prompts or 1, blocks) long, the codes that each block may hold. A prompt may have several rows, one
            after the other.
        total_limit: codes that a sequence may hold in all; `None`: no more than its blocks.
    """

    def __init__(self, prompt_length: int, eob_token_id: int, block_limits: torch.Tensor, total_limit: int | None = None):
        if block_limits.ndim != 2 or int(block_limits.min()) < 0 or int(block_limits[:, 0].min()) < 1:
            raise ValueError(f"block_limits must be (batch, blocks), 0 or more and 1 or more in the first: {block_limits}")
        if total_limit is not None and total_limit < 1:
            raise ValueError(f"total_limit must be at least 1, got {total_limit}")
        self.prompt_length, self.eob_token_id = prompt_length, eob_token_id
        self.block_limits, self.total_limit = block_limits, total_limit

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        eob = self.eob_token_id
        index = torch.arange(scores.shape[1], device=scores.device)
        if input_ids.shape[1] == self.prompt_length:
            return scores.masked_fill(index >= eob, -torch.inf)
        is_eob = input_ids[:, self.prompt_length :] == eob
        block = is_eob.sum(1)
        codes = is_eob.shape[1] - block
        current = is_eob.flip(1).int().argmax(1)  # codes since the last <EOB>
        current = torch.where(block > 0, current, codes)
        limits = self.block_limits.to(scores.device).repeat_interleave(len(scores) // len(self.block_limits), 0)
        limit = limits.gather(1, block.clamp(max=limits.shape[1] - 1)[:, None])[:, 0]
        closed = (current >= limit) | (block >= limits.shape[1])
        if self.total_limit is not None:
            closed |= codes >= self.total_limit
        closed = closed[:, None]
        scores = scores.masked_fill((index > eob) | (closed & (index < eob)), -torch.inf)
        return scores.masked_fill(closed & (index == eob), 0.0)  # even where an earlier processor has forbidden it


class ActiveRows(LogitsProcessor):
    """Choose the rows that the model computes, and guide them.

    Rows that have finished leave the model's batch once they are half of it. Under guidance each row stands in that batch
    twice, the second time without its class. Processors and stopping criteria never notice: they see the whole batch.

    As a processor, before all others, it is classifier-free guidance: `u + scale * (c - u)`, where `c` and `u` are the
    logits with and without the class.

    Args:
        guidance_interval: guidance stops after this token, counted from 0 after the first one.
        may_leave: `False` keeps finished rows in the model's batch.
    """

    def __init__(
        self, config: AdapTokARConfig, guidance_scale: float, guidance_interval: int | None = None, may_leave: bool = True
    ):
        self.config, self.scale, self.may_leave = config, guidance_scale, may_leave
        self.length = torch.inf if guidance_interval is None else config.prompt_length + guidance_interval + 2
        self.active, self.unconditional, self.guided = None, None, False

    def select(self, input_ids: torch.LongTensor, cache: Cache | None) -> torch.LongTensor:
        """Return the rows to compute, and drop the others from the cache."""
        self.update(input_ids, cache)
        ids = self.copies(input_ids)
        if self.guided:
            ids[len(self.active) :, 0] = self.config.null_class_token_id
        return ids

    def update(self, input_ids: torch.LongTensor, cache: Cache | None) -> None:
        """Choose the rows that continue `input_ids`, and drop the others from the cache."""
        was_guided, self.guided = self.guided, self.scale > 1 and input_ids.shape[1] < self.length
        if self.active is None:
            self.active, self.batch = torch.arange(len(input_ids), device=input_ids.device), len(input_ids)
            return
        number = len(self.active)
        staying = torch.arange(number, device=self.active.device)
        if self.may_leave:
            unfinished = (~is_finished(input_ids[self.active], self.config)).nonzero()[:, 0]
            staying = unfinished if 0 < 2 * len(unfinished) <= number else staying
        if len(staying) < number or self.guided < was_guided:
            if cache is not None:
                cache.reorder_cache(torch.cat([staying, staying + number]) if self.guided else staying)
            self.active = self.active[staying]

    def copies(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the active rows of the batch, under guidance twice."""
        rows = rows if len(self.active) == self.batch else rows[self.active]
        return torch.cat([rows, rows]) if self.guided else rows

    def restore(self, outputs: ModelOutput) -> None:
        """Make outputs of the whole batch of the model's."""
        outputs.logits = self.spread(outputs.logits[:, -1:].to(self.active.device))
        for name in ("hidden_states", "attentions"):
            if outputs.get(name) is not None:
                outputs[name] = tuple(layer[: self.batch] for layer in outputs[name])

    def spread(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the logits of the whole batch; rows that have left get zeros, which the rules close."""
        parts = logits.split(len(self.active))
        if len(self.active) < self.batch:
            parts = [part.new_zeros(self.batch, *part.shape[1:]).index_copy(0, self.active, part) for part in parts]
        self.unconditional = parts[1].flatten(1).float() if len(parts) > 1 else None
        return parts[0]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.unconditional is None:
            return scores
        return self.unconditional + self.scale * (scores - self.unconditional)


class SeededNoise(LogitsProcessor):
    """Make the largest score a sample of the softmax, as the last processor: the Gumbel-max trick.

    The noise is a function of (seed, position, id), see [`noise_bits`]: what a row gets does not depend on the rest of the
    batch, nor on how many tokens a pass of the model tries.

    Args:
        seeds: (batch,) long.
        prompt_length: tokens before the sequence.
        keeps_scores: remember the scores without noise in `scores`, by the length of the ids that they continue.
    """

    def __init__(self, seeds: torch.LongTensor, prompt_length: int, keeps_scores: bool = False):
        self.seeds, self.prompt_length = seeds, prompt_length
        self.scores: dict[int, torch.Tensor] | None = {} if keeps_scores else None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if self.scores is not None:
            self.scores[input_ids.shape[1]] = scores
        noise = gumbel_noise(self.seeds.to(scores.device), input_ids.shape[1] - self.prompt_length, scores.shape[1])
        return scores + noise.to(scores.dtype)


class ClipFinished(StoppingCriteria):
    """Finish a row after its last block.

    Args:
        start: tokens of the prompt that was given.
        noise: is taken off the scores before they are returned or another criterion sees them.
    """

    def __init__(self, config: AdapTokARConfig, start: int, noise: SeededNoise | None = None):
        self.config, self.start, self.noise = config, start, noise
        self.eos_token_id = config.filler_token_id  # transformers' loop pads finished rows where a criterion has this

    def __call__(self, input_ids: torch.LongTensor, scores: tuple | None, **kwargs) -> torch.BoolTensor:
        if scores and self.noise is not None:
            for length in [length for length in self.noise.scores if length - self.start < len(scores)]:
                scores[length - self.start].copy_(self.noise.scores.pop(length))
        return is_finished(input_ids, self.config)


def is_finished(sequences: torch.LongTensor, config: AdapTokARConfig) -> torch.BoolTensor:
    """Return which rows have all their blocks, (batch,)."""
    return count_blocks(config, sequences[:, config.prompt_length :]) >= config.num_generated_blocks


class CandidatesUntilStop(CandidateGenerator):
    """Cut candidates before the token that ends the sequence: only the model itself may write that, as the last one.

    Transformers' assisted decoding asks the stopping criteria once in a pass, where it may have accepted many tokens.
    """

    def __init__(self, candidates: CandidateGenerator, stopping_criteria: StoppingCriteriaList):
        self.candidates, self.stopping_criteria = candidates, stopping_criteria

    def get_candidates(self, input_ids: torch.LongTensor, **kwargs) -> tuple[torch.LongTensor, torch.Tensor | None]:
        ids, logits = self.candidates.get_candidates(input_ids, **kwargs)
        for length in range(input_ids.shape[1] + 1, ids.shape[1] + 1):
            if self.stopping_criteria(ids[:, :length], None).all():
                return ids[:, : length - 1], None if logits is None else logits[:, : length - 1 - input_ids.shape[1]]
        return ids, logits

    def update_candidate_strategy(self, input_ids: torch.LongTensor, scores: torch.Tensor, num_matches: int) -> None:
        self.candidates.update_candidate_strategy(input_ids, scores, num_matches)


class BlockGuesses(CandidateGenerator):
    """Guess the next tokens of one sequence (coupled Jacobi iteration).

    The guesses that the model would have written itself stand, and what it chooses after a wrong guess is the next guess
    there. The noise of a choice depends on its position only, so choices settle in sampling as in greedy search, and the
    sequence is that of one token at a time, up to float round-off. The first guess is the code at the same place of the
    previous block: where a video stands still, codes repeat.

    Args:
        lookahead: tokens of one pass, at least 2.
        max_length: of the sequence, prompt included.
    """

    def __init__(self, config: AdapTokARConfig, lookahead: int, max_length: int):
        self.config, self.lookahead, self.max_length = config, lookahead, max_length
        self.choices: list[int] = []

    def get_candidates(self, input_ids: torch.LongTensor, **kwargs) -> tuple[torch.LongTensor, None]:
        num_guesses = min(self.lookahead, self.max_length - input_ids.shape[1]) - 1
        written = input_ids[0, self.config.prompt_length :].tolist()
        guesses = _guess(written, self.choices[:num_guesses], num_guesses, self.config)
        return torch.cat([input_ids, input_ids.new_tensor([guesses], dtype=torch.long)], dim=1), None

    def update_candidate_strategy(self, input_ids: torch.LongTensor, scores: torch.Tensor, num_matches: int) -> None:
        self.choices = scores[0].argmax(-1).tolist()[num_matches + 1 :]


def check_number(name: str, value: Any, low: float, high: float, whole: bool = False) -> None:
    """Raise ValueError unless `value` is a number from `low` to `high`; NaN is none."""
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real) or not low <= value <= high:
        raise ValueError(f"{name} must be a {'whole ' * whole}number from {low:g} to {high:g}, got {value!r}")


def check_seeds(seeds: torch.Tensor | Sequence[int], batch_size: int) -> torch.LongTensor:
    """Return the seeds as a tensor of shape (batch,); raise ValueError if there is not one seed per sequence."""
    seeds = torch.as_tensor(seeds, dtype=torch.long)
    if seeds.shape != (batch_size,):
        raise ValueError(f"{seeds.numel()} seeds for {batch_size} sequences")
    return seeds


def token_limits(
    max_tokens: int | torch.Tensor | Sequence[int] | None, batch_size: int, num_blocks: int, latents_per_block: int
) -> tuple[torch.LongTensor, int | None]:
    """Return the most codes of each block, (batch, blocks), and of a whole sequence (`None`: no such limit).

    Raises:
        ValueError: for a cap of another shape or type, or one that no valid sequence keeps or exceeds.
    """
    full = torch.full((batch_size, num_blocks), latents_per_block)
    if max_tokens is None:
        return full, None
    limits = torch.as_tensor(max_tokens)
    if limits.is_floating_point() or limits.shape not in ((), (num_blocks,), full.shape):
        raise ValueError(
            f"max_tokens must be an integer, or integers of shape ({num_blocks},) or {tuple(full.shape)}, got "
            f"{limits.dtype} of shape {tuple(limits.shape)}"
        )
    if limits.ndim == 0:
        if not 1 <= int(limits) <= num_blocks * latents_per_block:
            raise ValueError(f"max_tokens must lie in 1..{num_blocks * latents_per_block}, got {int(limits)}")
        return full, int(limits)
    limits = limits.long().expand(batch_size, -1)
    if int(limits.min()) < 0 or int(limits.max()) > latents_per_block or int(limits[:, 0].min()) < 1:
        raise ValueError(
            f"max_tokens of a block must lie in 0..{latents_per_block}, of the first block in 1..{latents_per_block}, got "
            f"{max_tokens}"
        )
    return limits, None


def _guess(written: list[int], choices: list[int], num_guesses: int, config: AdapTokARConfig) -> list[int]:
    """Guess the tokens after `written`: the choices of the last pass, then the codes of the block before."""
    tokens = written + choices
    while len(tokens) < len(written) + num_guesses:
        starts = block_starts(config, tokens)
        previous = starts[-2] + len(tokens) - starts[-1] if len(starts) > 1 else None
        if previous is not None and previous < starts[-1]:
            tokens.append(tokens[previous])
        else:
            tokens.append(tokens[-1] if tokens and tokens[-1] < config.codebook_size else 0)
    return tokens[len(written) :]


_GOLDEN, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685  # as signed 64-bit numbers


def gumbel_noise(seeds: torch.Tensor, position: int, size: int) -> torch.Tensor:
    """Return `-log(-log(u))` of uniform numbers u, (batch, size) float32; arguments are those of `noise_bits`.

    No float64: Apple's devices have none. Near 1, where float32 is too coarse, 1 - u takes the place of u.
    """
    bits = noise_bits(seeds, position, size)
    is_low = bits < 2**51
    distance = torch.where(is_low, bits, 2**52 - 1 - bits).to(torch.float32).add(0.5).mul(2.0**-52)  # from 0 or from 1
    return -torch.log(-torch.where(is_low, torch.log(distance), torch.log1p(-distance)))


def noise_bits(seeds: torch.Tensor, position: int, size: int) -> torch.Tensor:
    """Return numbers that depend only on seed, position and index: a counter-based generator (SplitMix64).

    Args:
        seeds: (batch,) long.
        position: of the token in its sequence.
        size: numbers per row.

    Returns:
        (batch, size) long, from 0 to 2**52 - 1, the same on every device.
    """
    streams = _mix(_mix(seeds) + torch.full_like(seeds, position + 1) * _GOLDEN)
    # torch's compiler would fold the factor into a plain range, whose machine code writes past its memory (2.13, AVX-512)
    index = torch.arange(2, 2 * size + 2, 2, device=seeds.device) >> 1
    return _shift(_mix(streams[:, None] + index * _GOLDEN), 12)


def _mix(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shift(state, 30)) * _MIX_1
    state = (state ^ _shift(state, 27)) * _MIX_2
    return state ^ _shift(state, 31)


def _shift(state: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right and fill with zeros; torch's operator repeats the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


__all__ = [
    "ActiveRows",
    "BlockGuesses",
    "BlockTokensLogitsProcessor",
    "CandidatesUntilStop",
    "ClipFinished",
    "SeededNoise",
    "check_number",
    "check_seeds",
    "gumbel_noise",
    "in_eval_mode",
    "noise_bits",
    "token_limits",
]
