"""Who may attend to whom: index rules over blocks, patches, latents and kept tokens.

Convention, everywhere: a rule answers "may this query see this key?" for the indices `(batch, head, query, key)`;
`True` means that it may. A rule is handed to transformers' mask functions, which turn it into a boolean mask (sdpa), a
float mask (eager) or a block mask (flex). With two blocks of one patch (`p`) and two latents (`l`), rows are queries:

```
    block_causal      decoder         block_diagonal        full
     p0p1l0l1         p0p1l0l1           p0p1l0l1         p0p1l0l1
  p0  x . x .      p0  x . x .        p0  x . . .      p0  x x x x
  p1  x x x x      p1  . x x x        p1  . x . .      p1  x x x x
  l0  x . x .      l0  . . x .        l0  x . x .      l0  x x x x
  l1  x x x x      l1  . . x x        l1  . x x x      l1  x x x x
```
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from transformers.masking_utils import create_bidirectional_mask

ATTENTION_TYPES = ("block_causal", "decoder", "block_diagonal", "full")

IndexRule = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass
class Segment:
    """Some queries of a sequence and the keys that they see: attention without a mask over all pairs.

    Args:
        queries: positions in the sequence.
        keys: positions in the sequence, with those of a cache in front.
        mask: for these queries and keys, as the attention function wants it.
    """

    queries: slice
    keys: tuple[slice, ...] = (slice(None),)
    mask: torch.Tensor | None = None


def block_segments(
    attention_type: str, counts: Sequence[int], num_patches: int, start: int = 0
) -> tuple[list[Segment], list[Segment], list[Segment]]:
    """The rule of a causal attention type for a clip that lies block after block, a block's latents before its patches.

    Args:
        attention_type: one of `ATTENTION_TYPES` but `"full"`.
        counts: latents of each block, as far as they are kept.
        num_patches: patches of a block.
        start: position of the clip in the sequence.

    Returns:
        Segments that answer all tokens, the latents, the patches, in the order of the sequence.
    """
    everyone, latents, patches = [], [], []
    seen: list[slice] = []  # latents up to this block
    position = start
    for count in counts:
        own_latents = slice(position, position + count)
        own_patches = slice(own_latents.stop, own_latents.stop + num_patches)
        position = own_patches.stop
        if count:
            seen.append(own_latents)
        if attention_type == "block_causal":
            latent_keys = patch_keys = (slice(start, position),)
        elif attention_type == "decoder":
            latent_keys, patch_keys = tuple(seen), (*seen, own_patches)
        else:  # block_diagonal
            latent_keys, patch_keys = (*seen, own_patches), (own_patches,)
        latent_part = [Segment(own_latents, latent_keys)] if count else []
        patch_part = [Segment(own_patches, patch_keys)] if num_patches else []
        latents, patches = latents + latent_part, patches + patch_part
        if latent_keys == patch_keys:
            everyone.append(Segment(slice(own_latents.start, position), latent_keys))
        else:
            everyone += latent_part + patch_part
    return everyone, latents, patches


def takes_segments(config, attention_type: str) -> bool:
    """Whether whole clips run without a mask: under `torch.inference_mode()`, where nobody asks for gradients later.

    Not with flex attention, which skips by itself what a mask hides, and compiles for each size.
    """
    causal = attention_type != "full"
    return causal and config._attn_implementation != "flex_attention" and torch.is_inference_mode_enabled()


def block_rule(attention_type: str, block: torch.Tensor, is_patch: torch.Tensor) -> IndexRule:
    """The rule of an attention type.

    Args:
        attention_type: one of `ATTENTION_TYPES`.
        block: (batch or 1, sequence) long, the temporal block of each token.
        is_patch: (sequence,) bool, `True` for patch tokens and patch queries, `False` for latents.
    """
    shared = block.shape[0] == 1  # one row of indices serves the whole batch

    def rule(b, h, q, kv):
        b = b * 0 if shared else b
        query_block, key_block = block[b, q], block[b, kv]
        earlier_or_same, same = key_block <= query_block, key_block == query_block
        if attention_type == "block_causal":
            return earlier_or_same
        if attention_type == "decoder":
            return torch.where(is_patch[kv], is_patch[q] & same, earlier_or_same)
        if attention_type == "block_diagonal":
            return torch.where(is_patch[kv], same, ~is_patch[q] & earlier_or_same)
        return key_block == key_block  # full

    return rule


def kept_rule(rule: IndexRule, kept: torch.Tensor) -> IndexRule:
    """`rule` without the tokens that are not kept: they are seen by nobody and see nobody but themselves.

    Args:
        kept: (batch, sequence) bool. The diagonal always stays open, so that no softmax row is empty.
    """

    def with_drops(b, h, q, kv):
        return (rule(b, h, q, kv) & kept[b, q] & kept[b, kv]) | (q == kv)

    return with_drops


def build_attention_mask(config, hidden_states: torch.Tensor, rule: IndexRule, per_sample: bool):
    """The mask that `config._attn_implementation` wants for a sequence (batch, sequence, width).

    `per_sample=False` makes one mask that broadcasts over the batch.
    """
    return create_bidirectional_mask(
        config, hidden_states if per_sample else hidden_states[:1], attention_mask=None, and_mask_function=rule
    )


def kept_tokens(token_counts: torch.Tensor, latents_per_block: int) -> torch.Tensor:
    """(batch, blocks) counts -> (batch, blocks, latents_per_block) bool: the leading `count` latents of a block."""
    return torch.arange(latents_per_block, device=token_counts.device) < token_counts[..., None]


def check_token_counts(token_counts: torch.Tensor, batch: int, num_blocks: int, latents_per_block: int) -> None:
    """Raises `ValueError` unless `token_counts` is an integer (batch, blocks) tensor with values 0..latents_per_block."""
    if tuple(token_counts.shape) != (batch, num_blocks):
        raise ValueError(
            f"token_counts has shape {tuple(token_counts.shape)}, expected (batch, blocks) = {(batch, num_blocks)}"
        )
    if token_counts.is_floating_point() or token_counts.dtype == torch.bool:
        raise ValueError(f"token_counts must be integers, got {token_counts.dtype}")
    if torch.compiler.is_compiling():
        return
    low, high = int(token_counts.min()), int(token_counts.max())
    if low < 0 or high > latents_per_block:
        raise ValueError(f"token_counts must lie in 0..{latents_per_block}, got values from {low} to {high}")
