"""A clip a few blocks at a time: the keys and values of the blocks before."""

from collections.abc import Iterable

import torch
from transformers.cache_utils import DynamicCache

from .attention_masks import Span, take


class BlockCache(DynamicCache):
    """Keys and values of the blocks of a clip that one model has seen. A new clip starts with a new cache.

    A `DynamicCache` that knows the kind and block of its tokens. It holds only tokens that later blocks see. Where the
    rows of a batch keep different numbers of tokens, the shorter ones are padded.

    Attributes:
        num_blocks (`int`): blocks that the model has seen, which is the position of the next one.
        spans (`list[Span]`): the tokens, in order.
        kept (`torch.Tensor` or `None`): (batch, length) bool, `False` for padding; `None` if there is none.
        key_blocks (`dict[str, torch.Tensor]`): of an [`EVATokModel`], instead of `spans` and `kept`: the block of each key,
            (batch or 1, length) long, of attention to "queries" and to "references".
    """

    def __init__(self):
        super().__init__()
        self.num_blocks = 0
        self.spans: list[Span] = []
        self.kept: torch.Tensor | None = None
        self.key_blocks: dict[str, torch.Tensor] = {}

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        tensors = [t for layer in self.layers if layer.is_initialized for t in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def repeat(self, times: int) -> "BlockCache":
        """Return a copy in which each row stands `times` times in a row; this one stays as it is."""
        repeated = BlockCache()
        repeated.num_blocks, repeated.spans = self.num_blocks, list(self.spans)
        repeated.kept = None if self.kept is None else self.kept.repeat_interleave(times, dim=0)
        repeated.key_blocks = {
            name: blocks.repeat_interleave(times if len(blocks) > 1 else 1, dim=0)
            for name, blocks in self.key_blocks.items()
        }
        for index, layer in enumerate(self.layers):
            if layer.is_initialized:
                repeated.update(layer.keys.repeat_interleave(times, 0), layer.values.repeat_interleave(times, 0), index)
        return repeated

    def check_next(self, attention_type: str, batch: int, num_blocks: int, clip_blocks: int) -> None:
        """Raise `ValueError` unless `num_blocks` blocks of `batch` rows can follow what is in the cache."""
        if attention_type == "full":
            raise ValueError("a model with attention type 'full' is not causal: it takes whole clips only, and no cache")
        if self.num_blocks + num_blocks > clip_blocks:
            raise ValueError(
                f"{num_blocks} more blocks do not fit after the {self.num_blocks} in the cache: a clip has {clip_blocks} "
                "blocks, start the next one with a new BlockCache"
            )
        if self.num_blocks and self.layers and self.layers[0].keys.shape[0] != batch:
            raise ValueError(f"the cache holds a batch of {self.layers[0].keys.shape[0]}, got {batch}")

    def crop_block(self) -> None:
        """Remove the last block; `NotImplementedError` for a cache of an [`EVATokModel`]."""
        if self.key_blocks:
            raise NotImplementedError("crop_block: a cache of an EVATokModel keeps its blocks; take a copy with repeat(1)")
        self.num_blocks -= 1
        self.keep_spans(span for span in self.spans if span.block < self.num_blocks)

    def keep_spans(self, spans: Iterable[Span]) -> None:
        """Remove all tokens but those of `spans`."""
        spans = list(spans)
        slices = [span.tokens for span in spans]
        for layer in self.layers:
            layer.keys, layer.values = take(layer.keys, slices, 2), take(layer.values, slices, 2)
        if self.kept is not None:
            self.kept = take(self.kept, slices, 1)
        self.spans, start = [], 0
        for span in spans:
            stop = start + span.tokens.stop - span.tokens.start
            self.spans.append(span._replace(tokens=slice(start, stop)))
            start = stop
