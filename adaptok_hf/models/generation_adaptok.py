"""The rules of block sequences and the decoding loops that [`AdapTokARForCausalLM.generate`] runs.

A decoding loop is what transformers calls a custom generate function. Transformers prepares the cache, the logits
processors (those of sampling included) and the stopping criteria; the loop writes the tokens.
"""

import math
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import torch
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteriaList,
)
from transformers.cache_utils import Cache

# Options of transformers' `generate` that the decoding loops do not support.
_UNSUPPORTED_OPTIONS = (
    "assistant_model",
    "custom_generate",
    "negative_prompt_ids",
    "num_beams",
    "num_return_sequences",
    "output_attentions",
    "output_hidden_states",
    "output_logits",
    "output_scores",
    "prefill_chunk_size",
    "prompt_lookup_num_tokens",
    "return_dict_in_generate",
    "stop_strings",
    "streamer",
)


# Lower ones would overflow the logits; 0 stands for the likeliest token.
_LEAST_TEMPERATURE = 1e-6


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
        scores[closed, eob] = 0.0  # even where an earlier processor has forbidden it
        return scores


def check_generate_options(generation_config: GenerationConfig, options: dict[str, Any]) -> None:
    """Raise ValueError for options of transformers' `generate` that would have no effect or a wrong one.

    Args:
        options: the keyword arguments of `generate`; they take precedence over `generation_config`.
    """
    if "budget" in options:
        raise ValueError(
            f"budget={options['budget']!r} is not an option of generation: a cap is max_tokens, the most codes of a whole "
            "sequence (blocks x tokens per block) or of each block"
        )
    for name in _UNSUPPORTED_OPTIONS:
        value = options.get(name, getattr(generation_config, name, None))
        if value is not None and value is not False and not (name.startswith("num_") and value == 1):
            hint = "; repeat the prompt for more sequences of it" if name.startswith("num_") else ""
            raise ValueError(f"{name}={value!r} is not supported by the generation of block sequences{hint}")
    for name, value in (generation_config.to_dict() | options).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name} must be a finite number, got {value}")
    for name, low, high in (("top_p", 1e-6, 1.0), ("temperature", _LEAST_TEMPERATURE, 1e6)):
        value = options.get(name, getattr(generation_config, name))
        if value is not None and options.get("do_sample", generation_config.do_sample) is not False:
            check_number(name, value, low, high)


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


@torch.no_grad()
def write_tokens(
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    seeds: torch.LongTensor | None = None,
    guidance_scale: float = 1.0,
    guidance_interval: int | None = None,
    **model_kwargs,
) -> torch.LongTensor:
    """Write block sequences, one token of every row at a time.

    Rows that have finished leave the model's batch once they are half of it, and are filled with `<EOB>`. Processors and
    stopping criteria always see the whole batch, without the rows that guidance adds.

    Args:
        seeds: (batch,) a seed per row; default: sampled from torch's global generator.
        guidance_scale: `u + scale * (c - u)`, where `c` and `u` are the logits with and without the class.
        guidance_interval: guidance stops after this token, counted from 0 after the first one.
        model_kwargs: as transformers prepared them.

    Returns:
        (batch, length) long, prompts included.
    """
    sequences, (batch, start), config = input_ids, input_ids.shape, model.config
    cache, new = _take_cache(model_kwargs, start)
    compiles = model._valid_auto_compile_criteria({"past_key_values": cache}, generation_config)
    seeds = _seeds_on(seeds, input_ids) if generation_config.do_sample else None
    active, guided = torch.arange(batch, device=input_ids.device), guidance_scale > 1
    stopped = torch.zeros_like(active, dtype=torch.bool)
    forward = model
    while True:
        ids = sequences[active]
        if guided:
            without_class = ids.clone()
            without_class[:, 0] = config.null_class_token_id
            ids = torch.cat([ids, without_class])
        logits = _logits(model, forward, ids, new, cache, model_kwargs)[:, -1]
        if guided:
            conditional, unconditional = logits.chunk(2)
            logits = unconditional + guidance_scale * (conditional - unconditional)
        if len(active) < batch:  # the rules close the rows that have left
            logits = logits.new_zeros(batch, logits.shape[-1]).index_copy(0, active, logits)
        scores, tokens = logits_processor(sequences, logits), sequences.new_full((batch,), config.eob_token_id)
        tokens[active] = sample_tokens(scores[active], None if seeds is None else seeds[active], sequences.shape[1] - start)
        sequences = torch.cat([sequences, tokens[:, None]], dim=1)
        finished = _finished(sequences, config)
        stopped |= stopping_criteria(sequences, None)
        if (finished | stopped).all():
            return sequences
        forward, new = model.get_compiled_call(generation_config.compile_config) if compiles else model, 1
        staying = (~finished[active]).nonzero()[:, 0]
        if 2 * len(staying) > len(active):
            staying = torch.arange(len(active), device=active.device)
        kept_rows = torch.cat([staying, staying + len(active)]) if guided else staying
        if guided and guidance_interval is not None and sequences.shape[1] - start >= guidance_interval + 2:
            guided, kept_rows = False, staying
        if cache is not None and len(kept_rows) < len(ids):
            cache.reorder_cache(kept_rows)
        active = active[staying]


@torch.no_grad()
def write_tokens_with_lookahead(
    model: PreTrainedModel,
    input_ids: torch.LongTensor,
    logits_processor: LogitsProcessorList,
    stopping_criteria: StoppingCriteriaList,
    generation_config: GenerationConfig,
    seeds: torch.LongTensor | None = None,
    lookahead: int = 2,
    **model_kwargs,
) -> torch.LongTensor:
    """Write one block sequence, with `lookahead` tokens in each pass of the model (coupled Jacobi iteration).

    All but the first of these are guesses. The guesses that the model would have written itself stand, and what it chooses
    after a wrong guess is the next guess there. The noise of a choice depends on its position only, so choices settle in
    sampling as in greedy search, and the sequence is that of [`write_tokens`], up to float round-off. The first guess is
    the code at the same place of the previous block: where a video stands still, codes repeat.

    Args:
        seeds, model_kwargs: as in [`write_tokens`].
        lookahead: tokens of one pass, at least 2.

    Raises:
        ValueError: for a cache other than a dynamic one.
    """
    sequence, start, config = input_ids, input_ids.shape[1], model.config
    cache, new = _take_cache(model_kwargs, start)
    if cache is not None and not isinstance(cache, DynamicCache):
        raise ValueError(f"lookahead={lookahead} needs a dynamic cache, got a {type(cache).__name__}")
    seeds = _seeds_on(seeds, input_ids) if generation_config.do_sample else None
    choices = []
    while True:
        length = sequence.shape[1]
        num_guesses = min(lookahead, generation_config.max_length - length) - 1
        written = sequence[0, start:].tolist()
        guesses = _guess(written, choices[:num_guesses], num_guesses, config.eob_token_id)
        ids = torch.cat([sequence, sequence.new_tensor([guesses], dtype=torch.long)], dim=1)
        logits = _logits(model, model, ids, new + num_guesses, cache, model_kwargs, num_guesses + 1)
        choices, matches = [], 0
        for place in range(num_guesses + 1):
            scores = logits_processor(ids[:, : length + place], logits[:, place])
            token = sample_tokens(scores, seeds, length + place - start)
            choices.append(int(token))
            if place == matches:  # all guesses so far were right
                sequence = torch.cat([sequence, token[:, None]], dim=1)
                if (_finished(sequence, config) | stopping_criteria(sequence, None)).all():
                    return sequence
                matches += place < num_guesses and choices[place] == guesses[place]
        choices, new = choices[matches + 1 :], 1
        if cache is not None:
            cache.crop(matches - num_guesses)


def sample_tokens(scores: torch.FloatTensor, seeds: torch.LongTensor | None, position: int) -> torch.LongTensor:
    """Choose a token for each row, (batch,): the likeliest one, or with seeds a sample of the softmax of the scores.

    The largest score is a sample of their softmax once the noise of the Gumbel-max trick is added to them. The noise is a
    function of (seed, position, id), see [`noise_bits`]: what a row gets does not depend on the rest of the batch.

    Args:
        scores: (batch, ids), after all processors.
        seeds: (batch,) long, or `None` for greedy search.
        position: of the token in its sequence.
    """
    if seeds is not None:
        scores = scores + gumbel_noise(seeds, position, scores.shape[1]).to(scores.dtype)
    return scores.argmax(dim=-1)


def _take_cache(model_kwargs: dict[str, Any], prompt_length: int) -> tuple[Cache | None, int]:
    """Take the cache out of `model_kwargs`; return it, and how many tokens of the prompt it does not hold yet."""
    model_kwargs.pop("position_ids", None)  # these are of the prompt only
    cache = model_kwargs.pop("past_key_values", None)
    return cache, prompt_length - (0 if cache is None else int(cache.get_seq_length()))


def _seeds_on(seeds: torch.LongTensor | None, input_ids: torch.LongTensor) -> torch.LongTensor:
    return (torch.randint(2**63 - 1, (len(input_ids),)) if seeds is None else seeds).to(input_ids.device)


def _finished(sequences: torch.LongTensor, config) -> torch.BoolTensor:
    return (sequences[:, config.prompt_length :] == config.eob_token_id).sum(1) >= config.num_generated_blocks


def _logits(
    model: PreTrainedModel,
    forward: Callable,
    ids: torch.LongTensor,
    new: int,
    cache: Cache | None,
    model_kwargs: dict[str, Any],
    keep: int = 1,
) -> torch.FloatTensor:
    """Return the logits of the last `keep` of `ids`, of which the last `new` are not in the cache yet."""
    mask = model_kwargs.get("attention_mask")
    settings = {
        "attention_mask": None if mask is None else torch.ones_like(ids),  # transformers keeps a mask where it needs one
        "position_ids": torch.arange(ids.shape[1], device=ids.device)[None],
        "logits_to_keep": keep,
    }
    inputs = model.prepare_inputs_for_generation(
        ids, ids.shape[1] if cache is None else new, cache, **model_kwargs | settings
    )
    logits = forward(**inputs, return_dict=True).logits
    return logits[:, -keep:].to(copy=True, dtype=torch.float32, device=ids.device)


def _guess(written: list[int], choices: list[int], num_guesses: int, eob_token_id: int) -> list[int]:
    """Guess the tokens after `written`: the choices of the last pass, then the codes of the block before."""
    tokens = written + choices
    while len(tokens) < len(written) + num_guesses:
        ends = [i for i, token in enumerate(tokens) if token == eob_token_id]
        previous = (ends[-2] + 1 if len(ends) > 1 else 0) + len(tokens) - ends[-1] - 1 if ends else None
        if ends and previous <= ends[-1]:
            tokens.append(tokens[previous])
        else:
            tokens.append(tokens[-1] if tokens and tokens[-1] != eob_token_id else 0)
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
    streams = _mix(_mix(seeds) + torch.tensor(position + 1, device=seeds.device) * _GOLDEN)
    index = torch.arange(1, size + 1, device=seeds.device)
    return _shift(_mix(streams[:, None] + index * _GOLDEN), 12)


def _mix(state: torch.Tensor) -> torch.Tensor:
    state = (state ^ _shift(state, 30)) * _MIX_1
    state = (state ^ _shift(state, 27)) * _MIX_2
    return state ^ _shift(state, 31)


def _shift(state: torch.Tensor, bits: int) -> torch.Tensor:
    """Shift right and fill with zeros; torch's operator repeats the sign."""
    return (state >> bits) & ((1 << (64 - bits)) - 1)


__all__ = [
    "BlockTokensLogitsProcessor",
    "check_generate_options",
    "check_number",
    "check_seeds",
    "gumbel_noise",
    "noise_bits",
    "sample_tokens",
    "token_limits",
    "write_tokens",
    "write_tokens_with_lookahead",
]
