"""Who attends to whom: one table of attention types, and what follows from it.

A row of the table gives, for queries and keys of either kind, the blocks whose keys a query sees. The masks of two blocks
of one patch (`p`) and one latent (`l`) each; a row is a query:

```
    block_causal      decoder         block_diagonal        full
     p0p1l0l1         p0p1l0l1           p0p1l0l1         p0p1l0l1
  p0  x . x .      p0  x . x .        p0  x . . .      p0  x x x x
  p1  x x x x      p1  . x x x        p1  . x . .      p1  x x x x
  l0  x . x .      l0  . . x .        l0  x . x .      l0  x x x x
  l1  x x x x      l1  . . x x        l1  . x x x      l1  x x x x
```
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch

KINDS = ("latent", "patch")

# attention type -> kind of the query -> kind of the key -> blocks
ATTENTION_TYPES = {
    "block_causal": {
        "latent": {"latent": "own and earlier", "patch": "own and earlier"},
        "patch": {"latent": "own and earlier", "patch": "own and earlier"},
    },
    "decoder": {
        "latent": {"latent": "own and earlier", "patch": "none"},
        "patch": {"latent": "own and earlier", "patch": "own"},
    },
    "block_diagonal": {
        "latent": {"latent": "own and earlier", "patch": "own"},
        "patch": {"latent": "none", "patch": "own"},
    },
    "full": {
        "latent": {"latent": "all", "patch": "all"},
        "patch": {"latent": "all", "patch": "all"},
    },
}


def reaches(blocks: str, query_block, key_block):
    """Return whether queries of a block see keys of a block, for an entry of the table; takes integers or tensors."""
    if blocks == "own":
        return key_block == query_block
    if blocks == "own and earlier":
        return key_block <= query_block
    return key_block == key_block if blocks == "all" else key_block != key_block


def dense_mask(attention_type: str, block: torch.Tensor, is_patch: torch.Tensor) -> torch.Tensor:
    """Return the mask of a sequence, (queries, keys) bool, `True` where the query sees the key.

    Args:
        attention_type: one of `ATTENTION_TYPES`.
        block: (sequence,) long, the block of each token.
        is_patch: (sequence,) bool, `True` for patches, `False` for latents.
    """
    mask = torch.zeros(len(block), len(block), dtype=torch.bool, device=block.device)
    kinds = {"latent": ~is_patch, "patch": is_patch}
    for query_kind, row in ATTENTION_TYPES[attention_type].items():
        for key_kind, blocks in row.items():
            pairs = kinds[query_kind][:, None] & kinds[key_kind]
            mask |= pairs & reaches(blocks, block[:, None], block)
    return mask


class Span(NamedTuple):
    """Adjacent tokens of one kind that belong to one block of one clip.

    Args:
        kind: one of `KINDS`.
        block: the block's position in its clip.
        tokens: positions in the sequence.
        clip: 0, unless a sequence holds the tokens of several clips.
    """

    kind: str
    block: int
    tokens: slice
    clip: int = 0


class Segment(NamedTuple):
    """Queries of a sequence that see the same keys: one attention product.

    Args:
        queries: positions in the sequence.
        keys: positions in the sequence, where those of a cache come first.
        mask: (batch, 1, queries, keys) bool, `True` where the query sees the key; `None` where each sees all.
    """

    queries: slice = slice(None)
    keys: tuple[slice, ...] = (slice(None),)
    mask: torch.Tensor | None = None


def find_segments(attention_type: str, queries: Iterable[Span], keys: Sequence[Span]) -> list[Segment]:
    """Return the attention products that answer `queries`, in their order; together they are `dense_mask`."""
    segments: list[Segment] = []
    for query in queries:
        row, visible = ATTENTION_TYPES[attention_type][query.kind], []
        for key in keys:
            if key.clip != query.clip or not reaches(row[key.kind], query.block, key.block):
                continue
            if visible and visible[-1].stop == key.tokens.start:
                visible[-1] = slice(visible[-1].start, key.tokens.stop)
            else:
                visible.append(key.tokens)
        last = segments[-1] if segments else None
        if last is not None and last.keys == tuple(visible) and last.queries.stop == query.tokens.start:
            segments[-1] = Segment(slice(last.queries.start, query.tokens.stop), last.keys)
        else:
            segments.append(Segment(query.tokens, tuple(visible)))
    return segments


def take(tokens: torch.Tensor, slices: Sequence[slice], dim: int) -> torch.Tensor:
    """Return the slices of `tokens` along `dim`, concatenated."""
    index = (slice(None),) * dim
    taken = [tokens[(*index, positions)] for positions in slices or [slice(0)]]
    return taken[0] if len(taken) == 1 else torch.cat(taken, dim=dim)


def cut(tokens: torch.Tensor, groups: Sequence[Sequence[slice]], dim: int) -> Iterator[torch.Tensor]:
    """Yield what `take` returns for each group of slices, with cheaper gradients.

    The gradient of a slice is as long as all of `tokens`. So these are split once, at the ends of all slices; only a run of
    several pieces stays a slice, which saves a copy.
    """
    length = tokens.shape[dim]
    bounds = [[positions.indices(length) for positions in group] for group in groups]
    starts = sorted({0, length, *(end for group in bounds for positions in group for end in positions[:2])})
    pieces = tokens.split([stop - start for start, stop in pairwise(starts)], dim)
    for group, slices in zip(bounds, groups, strict=True):
        runs = [pieces[starts.index(start) : starts.index(stop)] for start, stop, step in group if step == 1]
        if len(runs) < len(group) or (len(runs) == 1 and len(runs[0]) > 1):
            yield take(tokens, slices, dim)
        else:
            taken = [piece for run in runs for piece in run]
            yield taken[0] if len(taken) == 1 else torch.cat(taken, dim)


def kept_tokens(token_counts: torch.Tensor, latents_per_block: int) -> torch.Tensor:
    """Return (batch, blocks, latents_per_block) bool, `True` for the leading `count` latents of a block.

    Args:
        token_counts: (batch, blocks) long.
    """
    return torch.arange(latents_per_block, device=token_counts.device) < token_counts[..., None]


def check_token_counts(token_counts: torch.Tensor, batch: int, num_blocks: int, latents_per_block: int) -> None:
    """Raise `ValueError` unless `token_counts` is an integer (batch, blocks) tensor with values 0..latents_per_block."""
    if tuple(token_counts.shape) != (batch, num_blocks):
        raise ValueError(
            f"token_counts has shape {tuple(token_counts.shape)}, expected (batch, blocks) = {(batch, num_blocks)}"
        )
    if token_counts.is_floating_point() or token_counts.dtype == torch.bool:
        raise ValueError(f"token_counts must be integers, got {token_counts.dtype}")
    if torch.compiler.is_compiling() or not token_counts.numel():
        return
    low, high = int(token_counts.min()), int(token_counts.max())
    if low < 0 or high > latents_per_block:
        raise ValueError(f"token_counts must lie in 0..{latents_per_block}, got values from {low} to {high}")
