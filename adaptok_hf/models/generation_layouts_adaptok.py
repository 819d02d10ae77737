"""The rules of generated sequences, by the layout of the generator's sequences (see `token_layout`)."""

from collections.abc import Sequence

import torch
from transformers import LogitsProcessor

from .configuration_adaptok_ar import AdapTokARConfig
from .generation_adaptok import BlockTokensLogitsProcessor, token_limits
from .token_layout import blocks_begun

Caps = int | torch.Tensor | Sequence[int] | None
Lengths = Sequence[int] | Sequence[Sequence[int]] | None


class LengthTokensLogitsProcessor(LogitsProcessor):
    """Let only blocks be written that begin with a length token and have as many codes as that says.

    * The first token is a length token, and so is the one after a complete block.
    * After the last block there is nothing but code 0, which fills the row.
    * Ids after the length tokens are never written.

    The processor is stateless: it reads from its ids where a row stands.

    Args:
        prompt_length: tokens before the sequence.
        codebook_size: codes are the ids below it; the length tokens follow.
        length_tokens: the count of each length token.
        allowed: (prompts or 1, blocks, length tokens) bool, the lengths that each block may have. A prompt may have several
            rows, one after the other.
        total_limit: codes that a sequence may hold in all; `None`: no limit.

    Raises:
        ValueError: where a block has no length left.
    """

    def __init__(
        self,
        prompt_length: int,
        codebook_size: int,
        length_tokens: Sequence[int],
        allowed: torch.Tensor,
        total_limit: int | None = None,
    ):
        levels = torch.tensor(length_tokens)
        if allowed.ndim != 3 or allowed.shape[2] != len(levels):
            raise ValueError(f"allowed has shape {tuple(allowed.shape)}, expected (batch, blocks, {len(levels)} lengths)")
        if not allowed.any(-1).all():
            row, block = (~allowed.any(-1)).nonzero()[0].tolist()
            raise ValueError(f"block {block} of sequence {row} may have none of the lengths {list(length_tokens)}")
        least = levels.expand_as(allowed).masked_fill(~allowed, levels.max() + 1).amin(-1)
        if total_limit is not None and total_limit < int(most := least.sum(1).max()):
            raise ValueError(f"{total_limit} codes in all are too few for blocks that have at least {int(most)} together")
        self.prompt_length, self.codebook_size, self.length_tokens = prompt_length, codebook_size, list(length_tokens)
        self.allowed, self.levels, self.total_limit = allowed, levels, total_limit
        self.least_after = least.flip(1).cumsum(1).flip(1) - least  # what the blocks after each one need

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        written, size, device = input_ids[:, self.prompt_length :], self.codebook_size, scores.device
        begun, codes, expected = blocks_begun(written, self.length_tokens, size)
        copies = len(scores) // len(self.allowed)
        block = begun.clamp(max=self.allowed.shape[1] - 1)
        rows = torch.arange(len(scores), device=device)
        fits = self.allowed.to(device).repeat_interleave(copies, 0)[rows, block]
        levels = self.levels.to(device)
        if self.total_limit is not None:
            is_length = written >= size
            spent = (levels[(written - size).clamp(min=0)] * is_length).sum(1)
            least_after = self.least_after.to(device).repeat_interleave(copies, 0)[rows, block]
            fits = fits & (levels <= (self.total_limit - spent - least_after)[:, None])
        is_open, is_done = codes < expected, begun >= self.allowed.shape[1]
        allowed = torch.zeros_like(scores, dtype=torch.bool)
        allowed[:, :size] = is_open[:, None]
        allowed[:, size : size + len(levels)] = fits & ~(is_open | is_done)[:, None]
        allowed[:, 0] |= is_done
        scores = scores.masked_fill(~allowed, -torch.inf)
        blocked = ~(scores > -torch.inf).any(1, keepdim=True)  # an earlier processor has forbidden all that is left
        return scores.masked_fill(blocked & allowed, 0.0)


class CodesLogitsProcessor(LogitsProcessor):
    """Let only codes be written, the ids below `codebook_size`."""

    def __init__(self, codebook_size: int):
        self.codebook_size = codebook_size

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        is_code = torch.arange(scores.shape[1], device=scores.device) < self.codebook_size
        return scores.masked_fill(~is_code, -torch.inf)


def layout_rules(
    config: AdapTokARConfig, batch_size: int, max_tokens: Caps = None, allowed_lengths: Lengths = None
) -> LogitsProcessor:
    """Return the rules of a generator's layout.

    Args:
        max_tokens, allowed_lengths: as in [`AdapTokARForCausalLM.generate`].

    Raises:
        ValueError: for what the layout does not have, and where no sequence is left.
    """
    blocks, per_block = config.num_generated_blocks, config.latents_per_block
    if allowed_lengths is not None and not config.length_tokens:
        raise ValueError(f"allowed_lengths={allowed_lengths!r} needs a generator with length_tokens, this has none")
    if config.eob_token_id is None and not config.length_tokens:
        if max_tokens is not None:
            raise ValueError(f"max_tokens={max_tokens!r}: this generator always writes {blocks * per_block} codes")
        return CodesLogitsProcessor(config.codebook_size)
    limits, total = token_limits(max_tokens, batch_size, blocks, per_block)
    if not config.length_tokens:
        return BlockTokensLogitsProcessor(config.prompt_length, config.eob_token_id, limits, total)
    levels = torch.tensor(config.length_tokens)
    allowed = (levels <= limits[..., None]) & _allowed_lengths(config, allowed_lengths)
    for block, count in enumerate((config.condition_counts or [])[config.start_block :]):
        allowed[:, block] &= levels == count
    try:
        return LengthTokensLogitsProcessor(config.prompt_length, config.codebook_size, config.length_tokens, allowed, total)
    except ValueError as error:
        given = {"max_tokens": max_tokens, "allowed_lengths": allowed_lengths, "condition_counts": config.condition_counts}
        stated = ", ".join(f"{name}={value!r}" for name, value in given.items() if value is not None)
        raise ValueError(f"{stated}: {error}") from error


def _allowed_lengths(config: AdapTokARConfig, lengths: Lengths) -> torch.Tensor:
    """Return which length tokens each generated block may have, (blocks or 1, length tokens) bool."""
    if lengths is None:
        return torch.ones(1, len(config.length_tokens), dtype=torch.bool)
    lengths = lengths.tolist() if isinstance(lengths, torch.Tensor) else list(lengths)
    of_each_block = {isinstance(row, Sequence) for row in lengths}
    rows = lengths if True in of_each_block else [lengths]
    if True in of_each_block and (False in of_each_block or len(rows) != config.num_generated_blocks):
        raise ValueError(f"allowed_lengths={lengths}, expected a list for each of {config.num_generated_blocks} blocks")
    if unknown := sorted({length for row in rows for length in row} - set(config.length_tokens)):
        raise ValueError(f"allowed_lengths has {unknown}, but the generator's length tokens are {config.length_tokens}")
    return torch.tensor([[length in row for length in config.length_tokens] for row in rows])


__all__ = ["CodesLogitsProcessor", "LengthTokensLogitsProcessor", "layout_rules"]
