"""The latents and patches of blocks as one sequence through transformer layers: the only way through our models.

A clip lies block after block, each block's latents before its patches. Linear maps work on all tokens at once. Attention
is one product for all queries that see the same keys, over exactly these keys. A whole clip and a stream run the same
function: in a stream the keys of earlier blocks come from a cache.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import nn

from .attention_masks import ATTENTION_TYPES, Segment, Span, find_segments, kept_tokens, take
from .block_cache import BlockCache

CLIPS_OF_A_GROUP = 8  # from so many on, one attention product for each group of equal clips is faster than padding


class BlockTokens(NamedTuple):
    """Tokens of one kind that belong to one block.

    Args:
        kind: "latent" or "patch".
        block: the block's position in its clip.
        hidden_states: (batch, tokens, width).
        kept: (batch, tokens) bool, `False` for dropped tokens; `None` if there are none.
        clip: 0, unless a sequence holds several clips.
    """

    kind: str
    block: int
    hidden_states: torch.Tensor
    kept: torch.Tensor | None = None
    clip: int = 0


def lay_out(
    latents: torch.Tensor,
    patches: torch.Tensor,
    token_counts: torch.Tensor | None = None,
    past_key_values: BlockCache | None = None,
    pack: bool = True,
) -> list[BlockTokens]:
    """Return the tokens of blocks in the order of the sequence, without the latents that no clip of the batch keeps.

    Clips with different counts are padded block by block. Where the counts repeat, as in training, each repetition forms
    one sequence instead, without padding. So do all clips on a CPU, where small products cost no more than large ones.
    Compiled or exported code must not depend on the counts' values: it
    works on all latents.

    Args:
        latents: (batch, blocks, latents, width).
        patches: (batch, blocks, patches, width).
        token_counts: (batch, blocks) long, the leading latents that are kept; `None` keeps all.
        past_key_values: holds the blocks before these.
        pack: whether several clips may form one sequence; else the first dimension stays the batch's.
    """
    first = past_key_values.num_blocks if past_key_values is not None else 0
    batch, num_blocks, width = latents.shape[:3]
    counts, kept = [[width] * num_blocks], None
    if token_counts is not None and torch.compiler.is_compiling():
        kept = kept_tokens(token_counts, width)
    elif token_counts is not None:
        counts = token_counts.tolist()
        period = next(n for n in range(1, batch + 1) if batch % n == 0 and counts == counts[:n] * (batch // n))
        enough = latents.device.type == "cpu" or batch >= CLIPS_OF_A_GROUP * period
        packed = pack and past_key_values is None and enough
        if period == 1 or packed:
            counts = counts[:period]
        else:
            counts, kept = [token_counts.amax(0).tolist()], kept_tokens(token_counts, width).to(latents.device)
    if kept is not None:
        latents = latents * kept[..., None]
    sequence = []
    for clip, row in enumerate(counts):
        own = slice(clip, None, len(counts))
        for block, count in enumerate(row):
            block_kept = None if kept is None else kept[:, block, :count]
            sequence.append(BlockTokens("latent", first + block, latents[own, block, :count], block_kept, clip))
            sequence.append(BlockTokens("patch", first + block, patches[own, block], None, clip))
    return sequence


def run_blocks(
    layers: Sequence[nn.Module],
    attention_type: str,
    sequence: Sequence[BlockTokens],
    read: str | None,
    step: int = 1,
    past_key_values: BlockCache | None = None,
    output_hidden_states: bool = False,
    output_attentions: bool = False,
) -> torch.Tensor:
    """Run the tokens of blocks through layers, and return the outputs that are read; the last layer computes no others.

    Dropped tokens are seen by no token but themselves, and see no other.

    Args:
        layers: the `AdapTokLayer`s.
        attention_type: one of `ATTENTION_TYPES`.
        sequence: whole blocks; with a cache, the blocks that follow those in it.
        read: "latent" or "patch"; `None` only fills the cache.
        step: of how many tokens of a block the last is read: `step` - 1, 2 `step` - 1, ...
        past_key_values: the keys and values of earlier blocks, to which those of this sequence are added.
        output_hidden_states: whether the layers' outputs are recorded; so the last layer computes all of them.
        output_attentions: the same, of the attention's weights.

    Returns:
        (batch, tokens that are read, width).
    """
    cache = past_key_values
    start = past = 0 if cache is None else cache.get_seq_length()
    keys = [] if cache is None else list(cache.spans)
    queries, answers = [], []
    for tokens in sequence:
        stop = start + tokens.hidden_states.shape[1]
        if stop == start:
            continue
        span = Span(tokens.kind, tokens.block, slice(start, stop), tokens.clip)
        keys.append(span)
        queries.append(span._replace(tokens=slice(start - past, stop - past)))
        if tokens.kind == read:
            answers.append(span._replace(tokens=slice(start - past + step - 1, stop - past, step)))
        start = stop
    kept = None if cache is None else cache.kept
    if kept is not None or any(tokens.kept is not None for tokens in sequence):
        own = [
            t.hidden_states.new_ones(t.hidden_states.shape[:2], dtype=torch.bool) if t.kept is None else t.kept
            for t in sequence
        ]
        if kept is None:
            kept = own[0].new_ones(own[0].shape[0], past)
        kept = torch.cat([kept, *own], dim=1)
    segments, answers = (mask_dropped(find_segments(attention_type, q, keys), kept, past) for q in (queries, answers))
    hidden_states = torch.cat([tokens.hidden_states for tokens in sequence], dim=1)
    recorded = output_hidden_states or output_attentions
    for layer in layers[:-1]:
        hidden_states = layer(hidden_states, segments, past_key_values=cache, output_attentions=output_attentions)
    hidden_states = layers[-1](
        hidden_states,
        segments if recorded else answers,
        past_key_values=cache,
        output_attentions=output_attentions,
    )
    if recorded:
        hidden_states = take(hidden_states, [segment.queries for segment in answers], 1)
    if cache is not None:
        cache.num_blocks = 1 + sequence[-1].block
        cache.kept = kept
        rows = ATTENTION_TYPES[attention_type].values()
        cache.keep_spans(span for span in keys if any(row[span.kind] == "own and earlier" for row in rows))
    return hidden_states


def mask_dropped(segments: list[Segment], kept: torch.Tensor | None, past: int) -> list[Segment]:
    """Return `segments` with masks that hide dropped tokens; a dropped token sees itself, so that no softmax is empty.

    Args:
        kept: (batch, keys) bool; `None` if nothing is dropped.
        past: keys before the first query.
    """
    if kept is None:
        return segments
    index, masked = torch.arange(kept.shape[1], device=kept.device), []
    for segment in segments:
        key_index, key_kept = take(index, segment.keys, 0), take(kept, segment.keys, 1)
        query_index, query_kept = index[past:][segment.queries], kept[:, past:][:, segment.queries]
        mask = (query_kept[:, :, None] & key_kept[:, None]) | (query_index[:, None] == key_index)
        masked.append(segment._replace(mask=mask[:, None]))
    return masked
