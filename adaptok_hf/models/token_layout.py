"""How codes and token counts become one sequence with `<EOB>` after each block, and back.

This is the only place that knows the layout: kept codes of block 0, `<EOB>`, kept codes of block 1, `<EOB>`, ...
"""

import torch

from .attention_masks import check_token_counts, kept_tokens


def pack(codes: torch.Tensor, token_counts: torch.Tensor, eob_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes at full width -> ragged sequences, padded on the right.

    Args:
        codes: (batch, blocks, latents_per_block) long.
        token_counts: (batch, blocks) long, 0..latents_per_block.
        eob_token_id: id written behind each block.

    Returns:
        sequences: (batch, length) long, `length` being that of the longest, padding is 0;
        mask: (batch, length) bool, `True` for kept codes and `<EOB>`.
    """
    batch, num_blocks, per_block = codes.shape
    check_token_counts(token_counts, batch, num_blocks, per_block)
    slots = torch.nn.functional.pad(codes, (0, 1)).scatter(2, token_counts[..., None], eob_token_id)
    used = kept_tokens(token_counts + 1, per_block + 1).flatten(1)
    order = torch.argsort(~used, dim=1, stable=True)[:, : int(used.sum(1).max())]
    mask = used.gather(1, order)
    return slots.flatten(1).gather(1, order) * mask, mask


def unpack(
    sequences: torch.Tensor, num_blocks: int, latents_per_block: int, eob_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences -> codes at full width and counts; what stands behind a sequence's last `<EOB>` is ignored.

    Args:
        sequences: (batch, length) long.

    Returns:
        codes: (batch, num_blocks, latents_per_block) long; unused positions repeat the sequence's first id;
        token_counts: (batch, num_blocks) long.

    Raises:
        ValueError: if a sequence has fewer than `num_blocks` `<EOB>`, a block of more than `latents_per_block` codes, an
            id above `<EOB>` before its end, or an empty first block.
    """
    is_eob = sequences == eob_token_id
    block = is_eob.cumsum(1) - is_eob.long()  # block of each position; <EOB> counts to the block it closes
    live = block < num_blocks
    short = is_eob.sum(1) < num_blocks
    if short.any():
        row = int(short.nonzero()[0])
        raise ValueError(f"sequence {row} has {int(is_eob[row].sum())} <EOB>, expected {num_blocks}")
    wrong = live & ((sequences > eob_token_id) | (sequences < 0))
    if wrong.any():
        raise ValueError(f"ids of a sequence must lie in 0..{eob_token_id}, got {int(sequences[wrong][0])}")
    is_code = live & ~is_eob
    counts = torch.zeros(len(sequences), num_blocks, dtype=torch.long, device=sequences.device)
    counts.scatter_add_(1, block.clamp(max=num_blocks - 1), is_code.long())
    if (counts > latents_per_block).any():
        raise ValueError(f"a block has {int(counts.max())} codes, at most {latents_per_block} fit")
    if (counts[:, 0] < 1).any():
        raise ValueError("the first block of a sequence is empty, it must hold at least 1 code")
    start = counts.cumsum(1) - counts + torch.arange(num_blocks, device=counts.device)  # of each block's codes
    index = start[..., None] + torch.arange(latents_per_block, device=counts.device)
    kept = kept_tokens(counts, latents_per_block)
    index = torch.where(kept, index, 0).flatten(1)
    return sequences.gather(1, index).unflatten(1, (num_blocks, latents_per_block)), counts
