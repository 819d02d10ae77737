"""A clip one block at a time: the keys and values of earlier blocks, and how a block's tokens go behind them."""

from collections.abc import Sequence

import torch
from torch import nn
from transformers.cache_utils import DynamicCache
from transformers.masking_utils import create_bidirectional_mask

from .attention_masks import IndexRule, Segment

NOTHING = slice(0)


class BlockCache(DynamicCache):
    """Keys and values of the blocks of a clip that one model has seen. A new clip begins with a new cache.

    A `DynamicCache` that also knows what its tokens are. Nothing is masked inside it: a token that later blocks may not
    see leaves the cache when its own block is done, and what is left is seen by all later tokens. Only where the rows of
    a batch keep different numbers of tokens are the shorter ones padded.

    Attributes:
        num_blocks (`int`): blocks that have gone in, which is the position of the next one.
        visible (`torch.Tensor` or `None`): (batch, length) bool, `False` for padding; `None` if there is none.
        open_tokens (`int`): tokens of the last block that may still be taken back, see `AdapTokScorerModel.keep_tokens`.
    """

    def __init__(self):
        super().__init__()
        self.num_blocks = 0
        self.visible: torch.Tensor | None = None
        self.open_tokens = 0

    @property
    def num_bytes(self) -> int:
        """Memory of keys and values."""
        tensors = [t for layer in self.layers if layer.is_initialized for t in (layer.keys, layer.values)]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def check_next(self, attention_type: str, batch: int, num_blocks: int, clip_blocks: int) -> None:
        """Raises `ValueError` unless `num_blocks` blocks of `batch` rows can go behind what is in the cache."""
        if attention_type == "full":
            raise ValueError("a model with attention type 'full' is not causal: it takes whole clips only, and no cache")
        if self.num_blocks + num_blocks > clip_blocks:
            raise ValueError(
                f"{num_blocks} more blocks do not fit behind the {self.num_blocks} in the cache: a clip has {clip_blocks} "
                "blocks, begin the next one with a new BlockCache"
            )
        if self.num_blocks and self.layers and self.layers[0].keys.shape[0] != batch:
            raise ValueError(f"the cache holds a batch of {self.layers[0].keys.shape[0]}, got {batch}")

    def run(
        self,
        config,
        layers: Sequence[nn.Module],
        hidden_states: torch.Tensor,
        kept: torch.Tensor | None = None,
        rule: IndexRule | None = None,
        read: slice = slice(None),
    ) -> torch.Tensor:
        """Tokens through `layers`: they see all tokens of the cache and each other, and are in the cache afterwards.

        Args:
            hidden_states: (batch, tokens, width).
            kept: (batch, tokens) bool, `False` for padding; `None` if there is none.
            rule: who may see whom beside that, for the indices of `hidden_states` as queries and of the cache with
                `hidden_states` behind it as keys.
            read: the tokens whose outputs are wanted; the last layer computes no others.

        Returns:
            (batch, tokens that are read, width).
        """
        before = self.get_seq_length()
        if kept is not None or self.visible is not None:
            batch, length, device = *hidden_states.shape[:2], hidden_states.device
            past = torch.ones(batch, before, dtype=torch.bool, device=device) if self.visible is None else self.visible
            own = torch.ones(batch, length, dtype=torch.bool, device=device) if kept is None else kept
            self.visible = torch.cat([past, own], dim=1)
        keys = self.visible
        if keys is None and rule is not None:
            keys = torch.ones(hidden_states.shape[0], before + hidden_states.shape[1], dtype=torch.bool)
        mask = None
        if keys is not None:
            # a row without any token must not give NaN, which would spoil even what is multiplied by 0 later
            keys = keys | ~keys.any(1, keepdim=True)
            mask = create_bidirectional_mask(config, hidden_states, attention_mask=keys, and_mask_function=rule)
        for layer in layers[:-1]:
            hidden_states = layer(hidden_states, mask, past_key_values=self)
        if read == slice(None) or not (mask is None or isinstance(mask, torch.Tensor)):  # flex has no rows to take
            return layers[-1](hidden_states, mask, past_key_values=self)[:, read]
        segments = [Segment(read, mask=None if mask is None else mask[:, :, read])] if read != NOTHING else []
        return layers[-1](hidden_states, past_key_values=self, segments=segments)

    def forget(self, num_tokens: int) -> None:
        """Takes back the last tokens."""
        self.crop(-num_tokens)
        if self.visible is not None and num_tokens:
            self.visible = self.visible[:, :-num_tokens]

    def forget_block(self, num_tokens: int) -> None:
        """Takes back the last block, of which the cache holds `num_tokens` tokens."""
        self.forget(num_tokens)
        self.num_blocks -= 1
        self.open_tokens = 0


def run_block(
    config,
    attention_type: str,
    layers: Sequence[nn.Module],
    latents: torch.Tensor,
    patches: torch.Tensor,
    cache: BlockCache,
    kept: torch.Tensor | None = None,
    read_patches: bool = False,
) -> torch.Tensor:
    """The next block's latents and patches through `layers`, as `attention_masks.block_rule` has it for whole clips.

    Args:
        latents: (batch, latents, width), the kept ones.
        patches: (batch, patches, width).
        kept: (batch, latents) bool, `False` for padding of rows that keep fewer; `None` if there is none.
        read_patches: whether the patches are wanted, and not the latents.

    Returns:
        Latents or patches behind the last layer.
    """
    num_latents, num_patches = latents.shape[1], patches.shape[1]
    cache.num_blocks += 1
    if attention_type == "decoder":  # latents do not see patches, and patches are seen in their own block only
        if num_latents:
            latents = cache.run(config, layers, latents, kept, read=NOTHING if read_patches else slice(None))
        if not read_patches:
            return latents
        patches = cache.run(config, layers, patches)
        cache.forget(num_patches)
        return patches
    rule = None
    if attention_type == "block_diagonal":  # patches see those of their own block only
        first_patch = cache.get_seq_length() + num_latents

        def rule(b, h, q, kv):
            return (q < num_latents) | (kv >= first_patch)

    both = torch.cat([latents, patches], dim=1)
    kept = None if kept is None else nn.functional.pad(kept, (0, num_patches), value=True)
    read = slice(num_latents, None) if read_patches else slice(num_latents)
    output = cache.run(config, layers, both, kept, rule, read)
    if attention_type == "block_diagonal":
        cache.forget(num_patches)
    return output
