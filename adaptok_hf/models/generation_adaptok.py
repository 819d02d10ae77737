"""The rules of block sequences for transformers' `generate()`: logits processors, a stopping criterion, and guesses.

Processors and criterion are stateless: where a row stands is read from its ids, so that one object serves any batch and any
restart.
"""

import torch
from transformers import LogitsProcessor, StoppingCriteria
from transformers.generation.candidate_generator import CandidateGenerator


class BlockTokensLogitsProcessor(LogitsProcessor):
    """Lets only valid block sequences be written.

    * The first token is a code: a clip's first block is not empty. Later blocks may be empty.
    * A block that has reached its limit, or that stands where the total limit is used up, is closed by `<EOB>`.
    * Behind the last `<EOB>` there is nothing but `<EOB>`.
    * Ids behind `<EOB>` are never written.

    Args:
        prompt_length: tokens in front of the sequence.
        eob_token_id: id of `<EOB>`; codes are the ids below it.
        block_limits: (batch or 1, blocks) long, the codes that each block may hold.
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
        allowed = torch.ones_like(scores, dtype=torch.bool)
        allowed[:, eob + 1 :] = False
        if input_ids.shape[1] == self.prompt_length:
            allowed[:, eob] = False
            return scores.masked_fill(~allowed, -torch.inf)
        is_eob = input_ids[:, self.prompt_length :] == eob
        block = is_eob.sum(1)
        codes = is_eob.shape[1] - block
        current = is_eob.flip(1).int().argmax(1)  # codes since the last <EOB>
        current = torch.where(block > 0, current, codes)
        limits = self.block_limits.to(scores.device).expand(len(scores), -1)
        limit = limits.gather(1, block.clamp(max=limits.shape[1] - 1)[:, None])[:, 0]
        closed = (current >= limit) | (block >= limits.shape[1])
        if self.total_limit is not None:
            closed |= codes >= self.total_limit
        allowed[closed, :eob] = False
        scores = scores.masked_fill(~allowed, -torch.inf)
        scores[closed, eob] = 0.0  # also where something before us had forbidden it
        return scores


class PairedGuidanceLogitsProcessor(LogitsProcessor):
    """Classifier-free guidance in one doubled batch: `u + scale * (c - u)`.

    The first half of the rows is conditioned, the second half is the same sequences with the null class. Both halves leave
    with the guided scores, so that both are continued by the same token.
    """

    def __init__(self, scale: float):
        self.scale = scale

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        conditional, unconditional = scores.chunk(2)
        guided = unconditional + self.scale * (conditional - unconditional)
        guided = guided.masked_fill(conditional == -torch.inf, -torch.inf)  # inf - inf would be nan
        return torch.cat([guided, guided])


class SeededSamplingLogitsProcessor(LogitsProcessor):
    """Turns greedy search into sampling that depends on each row's own seed only, whatever stands beside it in the batch.

    The noise of the Gumbel-max trick is added to the scores: the largest is then a draw from their softmax. It comes last,
    behind temperature, top-k and top-p. The noise is a function of (seed, position, id), see `uniform_noise`.

    Args:
        seeds: (batch,) long.
        prompt_length: tokens in front of the sequence.
    """

    def __init__(self, seeds: torch.Tensor, prompt_length: int):
        self.seeds, self.prompt_length = seeds, prompt_length

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        noise = uniform_noise(self.seeds.to(scores.device), input_ids.shape[1] - self.prompt_length, scores.shape[1])
        return scores - torch.log(-torch.log(noise)).to(scores.dtype)


class BlocksFinished(StoppingCriteria):
    """Stops when enough rows have closed their last block.

    Args:
        prompt_length: tokens in front of the sequence.
        num_blocks: blocks of a sequence.
        eob_token_id: id of `<EOB>`.
        rows: look at this many leading rows only (the others repeat them); default: all.
        share: stop when this share of the rows has finished.
        max_tokens: stop when this many tokens are written, finished or not.
    """

    def __init__(
        self,
        prompt_length: int,
        num_blocks: int,
        eob_token_id: int,
        rows: int | None = None,
        share: float = 1.0,
        max_tokens: int | None = None,
    ):
        self.prompt_length, self.num_blocks, self.eob_token_id = prompt_length, num_blocks, eob_token_id
        self.rows, self.share, self.max_tokens = rows, share, max_tokens

    def finished(self, input_ids: torch.LongTensor) -> torch.BoolTensor:
        """(rows,) bool."""
        return (input_ids[: self.rows, self.prompt_length :] == self.eob_token_id).sum(1) >= self.num_blocks

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        stop = self.finished(input_ids).float().mean() >= self.share
        if self.max_tokens is not None:
            stop = stop | (input_ids.shape[1] - self.prompt_length >= self.max_tokens)
        return stop.expand(len(input_ids))


class JacobiCandidates(CandidateGenerator):
    """Guesses for transformers' assisted generation: several tokens go through the model at once, and those that it would
    have written itself stand (coupled Jacobi iteration).

    What the model draws behind a wrong guess is the next guess there. Since the noise of a draw depends on its position
    only (`SeededSamplingLogitsProcessor`), draws settle as greedy choices do, and the sequence is that of one-by-one
    sampling. The first guess is the code at the same place of the block before: where a video stands still, codes repeat.

    Args:
        prompt_length: tokens in front of the sequence.
        eob_token_id: id of `<EOB>`.
        num_guesses: tokens guessed for each pass through the model.
    """

    def __init__(self, prompt_length: int, eob_token_id: int, num_guesses: int):
        self.prompt_length, self.eob_token_id, self.num_guesses = prompt_length, eob_token_id, num_guesses
        self._drawn: list[int] = []

    def get_candidates(self, input_ids: torch.LongTensor) -> tuple[torch.LongTensor, None]:
        written = input_ids[0, self.prompt_length :].tolist()
        length = len(written)
        written += self._drawn[: self.num_guesses]
        while len(written) < length + self.num_guesses:
            written.append(self._first_guess(written))
        guesses = input_ids.new_tensor(written[length:])[None]
        return torch.cat([input_ids, guesses], dim=1), None

    def update_candidate_strategy(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, num_matches: int) -> None:
        self._drawn = scores[0, int(num_matches) + 1 :].argmax(-1).tolist()

    def _first_guess(self, written: list[int]) -> int:
        ends = [i for i, token in enumerate(written) if token == self.eob_token_id]
        if ends:
            place, start = len(written) - ends[-1] - 1, ends[-2] + 1 if len(ends) > 1 else 0
            if start + place <= ends[-1]:
                return written[start + place]
        return written[-1] if written and written[-1] != self.eob_token_id else 0


_GOLDEN, _MIX_1, _MIX_2 = -7046029254386353131, -4658895280553007687, -7723592293110705685  # as signed 64-bit numbers


def uniform_noise(seeds: torch.Tensor, position: int, size: int) -> torch.Tensor:
    """Numbers in (0, 1) that depend on nothing but seed, position and index: a counter-based generator (SplitMix64).

    Args:
        seeds: (batch,) long.
        position: of the token in its sequence.
        size: numbers per row.

    Returns:
        (batch, size) float64, the same on every device.
    """
    streams = _mix(_mix(seeds) + torch.tensor(position + 1, device=seeds.device) * _GOLDEN)
    index = torch.arange(1, size + 1, device=seeds.device)
    bits = _mix(streams[:, None] + index * _GOLDEN)
    return (_shift(bits, 12).double() + 0.5) * 2.0**-52  # exact: 52 bits and a half are the 53 of a double


def _mix(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shift(state, 30)) * _MIX_1
    state = (state ^ _shift(state, 27)) * _MIX_2
    return state ^ _shift(state, 31)


def _shift(state: torch.Tensor, bits: int) -> torch.Tensor:
    """Logical shift to the right; torch's own repeats the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


__all__ = [
    "BlockTokensLogitsProcessor",
    "BlocksFinished",
    "JacobiCandidates",
    "PairedGuidanceLogitsProcessor",
    "SeededSamplingLogitsProcessor",
    "uniform_noise",
]
