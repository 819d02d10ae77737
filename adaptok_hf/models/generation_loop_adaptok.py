"""The loop of `generate` for one token at a time on a CPU: transformers' `_sample` without what it does for other models.

It does the same operations in the same order, on a static cache; see [`takes_loop`] for when. With a `compile_config` the
step is compiled: the model, the rules, guidance and the samples.
"""

import time
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional
from transformers import (
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    MaxLengthCriteria,
    MinPLogitsWarper,
    PreTrainedModel,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache
from transformers.generation.streamers import BaseStreamer
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding
from transformers.utils import logging

from .generation_adaptok import ActiveRows, BlockTokensLogitsProcessor, ClipFinished, SeededNoise
from .generation_layouts_adaptok import CodesLogitsProcessor, LengthTokensLogitsProcessor
from .layers import LearnedPositions, SinCosPositions

logger = logging.get_logger(__name__)

_MODULES = {
    nn.Embedding, nn.Linear, nn.ModuleList, LlamaAttention, LlamaMLP, LlamaRMSNorm, LlamaRotaryEmbedding, LearnedPositions,
    SinCosPositions,
}  # fmt: skip
_KNOWN_RULES = {
    ActiveRows, BlockTokensLogitsProcessor, CodesLogitsProcessor, LengthTokensLogitsProcessor, SeededNoise,
    MinPLogitsWarper, SuppressTokensLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper,
}  # fmt: skip


class StaticDecoder:
    """A generator's forward pass of one token per row, in the weights of `model` and a cache of `length` tokens."""

    def __init__(self, model: PreTrainedModel, cache: Cache, length: int):
        base, self.config = model.model, model.config
        self.embedding, self.head, self.norm = base.embed_tokens.weight, model.lm_head.weight, base.norm.forward
        self.layers = [
            (layer.input_layernorm.forward, layer.self_attn, layer.post_attention_layernorm.forward, layer.mlp)
            for layer in base.layers
        ]
        positions = torch.arange(length)
        if base.positions is None:
            cosine, sine = base.rotary_emb(self.embedding[:1], positions[None])
            half = sine.shape[-1] // 2
            self.rotation = cosine[0], torch.cat([-sine[0, :, :half], sine[0, :, half:]], dim=-1)
            self.table = None
        else:
            table = base.positions()[0]
            self.table = table[positions.clamp(max=len(table) - 1)].to(self.embedding.dtype)
        filled = cache.get_seq_length()
        self.keys, self.values = ([] for _ in range(2))
        for layer in cache.layers:
            for kept, given in ((self.keys, layer.keys), (self.values, layer.values)):
                kept.append(given.new_empty(*given.shape[:2], length, given.shape[3]))
                kept[-1][:, :, :filled] = given[:, :, :filled]

    def reorder_cache(self, rows: torch.LongTensor) -> None:
        """Keep these rows of the cache."""
        self.keys, self.values = ([kept[rows] for kept in cache] for cache in (self.keys, self.values))

    def __call__(self, tokens: torch.LongTensor, position: int) -> torch.Tensor:
        """Return the logits after `tokens`, (batch,) at `position`: (batch, vocabulary)."""
        hidden = functional.embedding(tokens, self.embedding)[:, None]
        if self.table is not None:
            hidden = hidden + self.table.select(0, position)
        for (before, attention, between, mlp), keys, values in zip(self.layers, self.keys, self.values, strict=True):
            attended = self._attend(attention, before(hidden), keys, values, position)
            hidden = hidden + _linear(attention.o_proj, attended)
            inner = between(hidden)
            inner = mlp.act_fn(_linear(mlp.gate_proj, inner)) * _linear(mlp.up_proj, inner)
            hidden = hidden + _linear(mlp.down_proj, inner)
        return functional.linear(self.norm(hidden), self.head)[:, 0]

    def _attend(self, attention: LlamaAttention, hidden, keys, values, position: int) -> torch.Tensor:
        query, key, value = (
            _linear(layer, hidden).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
            for layer in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        if self.table is None:
            query, key = self._rotate(query, position), self._rotate(key, position)
        keys.select(2, position).copy_(key[:, :, 0])  # not by brackets: compiled, these would be for one position only
        values.select(2, position).copy_(value[:, :, 0])
        attended = functional.scaled_dot_product_attention(
            query,
            keys[:, :, : position + 1],
            values[:, :, : position + 1],
            scale=attention.scaling,
            enable_gqa=attention.num_key_value_groups > 1,
        )
        return attended.transpose(1, 2).flatten(2)

    def _rotate(self, states: torch.Tensor, position: int) -> torch.Tensor:
        cosine, sine = self.rotation
        return states * cosine.select(0, position) + states.roll(states.shape[-1] // 2, -1) * sine.select(0, position)


def _linear(layer: nn.Linear, states: torch.Tensor) -> torch.Tensor:
    return functional.linear(states, layer.weight, layer.bias)


def has_known_rules(rules: list[LogitsProcessor]) -> bool:
    """Return whether nobody but these looks at the scores in between."""
    return all(type(rule) in _KNOWN_RULES for rule in rules)


def takes_loop(
    model: PreTrainedModel,
    own_modules: set[type],
    settings: GenerationConfig,
    criteria: list[StoppingCriteria],
    cache: Cache | None,
    streamer: BaseStreamer | None,
    synced_gpus: bool,
) -> bool:
    """Return whether [`write_sequences`] does all that is asked for: the model is made of known modules, without adapters,
    hooks and the like, on a CPU, and nobody wants more than the sequences."""
    known = _MODULES | own_modules | {type(ACT2FN[model.config.hidden_act])}
    return (
        not (settings.return_dict_in_generate or settings.do_sample or settings.is_assistant or synced_gpus)
        and streamer is None
        and any(type(criterion) is ClipFinished for criterion in criteria)  # as in our `generate`
        and type(cache) in (DynamicCache, StaticCache)
        and settings.cache_implementation in (None, "dynamic", "static")
        and not getattr(cache, "_is_user_defined", False)
        and model.config._attn_implementation == "sdpa"
        and getattr(model.model.rotary_emb, "rope_type", "default") not in ("dynamic", "longrope")  # grow with the sequence
        and model.device.type == "cpu"
        and not torch.is_autocast_enabled("cpu")
        and not any(
            type(module) not in known
            or "forward" in vars(module)
            or module._forward_hooks
            or module._forward_pre_hooks
            or module._compiled_call_impl
            for module in model.modules()
        )
    )


def is_compiled(settings: GenerationConfig) -> bool:
    """Return whether a compiled loop is asked for."""
    return settings.compile_config is not None and not settings.disable_compile


def write_sequences(
    decoder: StaticDecoder,
    ids: torch.LongTensor,
    logits: torch.Tensor,
    processors: list[LogitsProcessor],
    criteria: StoppingCriteriaList,
    rows: ActiveRows | None,
    settings: GenerationConfig,
) -> torch.LongTensor:
    """Return the finished sequences.

    Args:
        decoder: has read all of `ids`.
        ids: (batch, length) long, the prompts.
        logits: (batch, vocabulary), those after `ids`.
        processors, criteria, rows, settings: those of `generate`.
    """
    length, last, filler = ids.shape[1], criteria.max_length, int(settings._pad_token_tensor)
    stops = [criterion for criterion in criteria if type(criterion) is not MaxLengthCriteria]
    sequences = ids.new_full((len(ids), last + 1), filler)  # a slice is never the whole: that would be compiled by itself
    sequences[:, :length] = ids
    unfinished = torch.ones(len(ids), dtype=torch.bool)
    if has_known_rules(processors):  # the rules of blocks forbid the ids of conditions anyway
        size = decoder.config.num_sequence_ids
        processors = [
            p for p in processors if type(p) is not SuppressTokensLogitsProcessor or p.suppress_tokens.min() < size
        ]
    choose = partial(choose_tokens, processors=processors, stops=stops, filler=filler)
    unfinished = choose(logits, sequences, length, unfinished)
    write, compiles = write_token, is_compiled(settings)
    while length + 1 < last and unfinished.any():
        length += 1
        if rows is not None:
            rows.update(sequences[:, :length], decoder)
        given = decoder, rows, choose, sequences, length, unfinished
        if compiles and length > ids.shape[1] + 1:  # the first step would be compiled for sequences of one token only
            (write, unfinished), compiles = first_compiled(settings, given), False
        else:
            unfinished = write(*given)
    return sequences[:, : length + 1]


def first_compiled(settings: GenerationConfig, given: tuple) -> tuple[Callable, torch.BoolTensor]:
    """Return [`write_token`], compiled, and its first result; as it is, with a warning, where that fails.

    Torch keeps the machine code in its cache on disk (`TORCHINDUCTOR_CACHE_DIR`).
    """
    from torch._dynamo.exc import BackendCompilerFailed  # importing torch's compiler takes a second

    step = torch.compile(write_token, **settings.compile_config.to_dict())
    start = time.perf_counter()
    try:
        with torch.compiler.config.patch(dynamic_sources="L['length']"):
            unfinished = step(*given)
    except BackendCompilerFailed as error:  # before anything has been computed
        logger.warning(f"tokens are written without compilation, which failed: {error}")
        return write_token, write_token(*given)
    logger.info(f"the first compiled step took {time.perf_counter() - start:.1f} seconds, compilation included")
    return step, unfinished


def write_token(
    decoder: StaticDecoder,
    rows: ActiveRows | None,
    choose: Callable,
    sequences: torch.LongTensor,
    length: int,
    unfinished: torch.BoolTensor,
) -> torch.BoolTensor:
    """Write the token at `length` of each sequence.

    A function, so that torch compiles it once for all decoders of a kind.
    """
    tokens = sequences.select(1, length - 1)  # not by brackets: compiled, these would be for one length only
    logits = decoder(tokens if rows is None else rows.copies(tokens), length - 1)
    return choose(logits if rows is None else rows.spread(logits), sequences, length, unfinished)


def choose_tokens(
    logits: torch.Tensor,
    sequences: torch.LongTensor,
    length: int,
    unfinished: torch.BoolTensor,
    *,
    processors: list[LogitsProcessor],
    stops: list[StoppingCriteria],
    filler: int,
) -> torch.BoolTensor:
    """Write the best token by the rules at `length` of the unfinished sequences; return which are unfinished now."""
    given, scores = sequences[:, :length], logits.float()
    for processor in processors:
        scores = processor(given, scores)
    sequences.select(1, length).copy_(scores.argmax(-1).where(unfinished, filler))
    for criterion in stops:
        unfinished = unfinished & ~criterion(sequences[:, : length + 1], None)
    return unfinished
