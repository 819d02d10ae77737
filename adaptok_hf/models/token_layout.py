"""How codes and token counts become one sequence, and back.

This is the only place that knows the layouts; a generator's configuration chooses one:

* the kept codes of block 0, `<EOB>`, the kept codes of block 1, `<EOB>`, ...: `pack`, `unpack` (AdapTok);
* the length token of block 0, its kept codes, the length token of block 1, ...: `pack_with_lengths`,
  `unpack_with_lengths` (EVATok);
* all codes, without separators: `pack_all`, `unpack_all` (LARP).
"""

from typing import TYPE_CHECKING

import torch

from .attention_masks import check_token_counts, kept_tokens

if TYPE_CHECKING:
    from .configuration_adaptok_ar import AdapTokARConfig


def pack(codes: torch.Tensor, token_counts: torch.Tensor, eob_token_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes at full width -> ragged sequences, padded on the right.

    Args:
        codes: (batch, blocks, latents_per_block) long.
        token_counts: (batch, blocks) long, 0..latents_per_block.
        eob_token_id: id written after each block.

    Returns:
        sequences: (batch, length) long, `length` being that of the longest, padding is 0;
        mask: (batch, length) bool, `True` for kept codes and `<EOB>`.
    """
    batch, num_blocks, per_block = codes.shape
    check_token_counts(token_counts, batch, num_blocks, per_block)
    slots = torch.nn.functional.pad(codes, (0, 1)).scatter(2, token_counts[..., None], eob_token_id)
    return _join(slots, token_counts + 1)


def unpack(
    sequences: torch.Tensor, num_blocks: int, latents_per_block: int, eob_token_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sequences -> codes at full width and counts; what follows a sequence's last `<EOB>` is ignored.

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


def pack_with_lengths(
    codes: torch.Tensor, token_counts: torch.Tensor, length_tokens: list[int], codebook_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `pack`, with a length token before each block and none after it.

    Args:
        token_counts: (batch, blocks) long, each one of `length_tokens`.
        length_tokens: the counts that a block can have; the id of the i-th is `codebook_size + i`.

    Raises:
        ValueError: for another count.
    """
    check_token_counts(token_counts, *codes.shape)
    is_length = token_counts[..., None] == torch.tensor(length_tokens, device=token_counts.device)
    if not (known := is_length.any(-1)).all():
        raise ValueError(f"token_counts has {int(token_counts[~known][0])}, expected one of length_tokens={length_tokens}")
    ids = codebook_size + is_length.long().argmax(-1, keepdim=True)
    return _join(torch.cat([ids, codes], dim=2), token_counts + 1)


def unpack_with_lengths(
    sequences: torch.Tensor, num_blocks: int, latents_per_block: int, length_tokens: list[int], codebook_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `unpack`, of sequences with a length token before each block.

    Raises:
        ValueError: if a block does not begin with a length token, or has fewer codes than that says.
    """
    levels = torch.tensor(length_tokens, device=sequences.device)
    slots = torch.arange(latents_per_block, device=sequences.device)
    start = sequences.new_zeros(len(sequences), dtype=torch.long)
    padded = torch.nn.functional.pad(sequences, (0, latents_per_block + 1), value=-1)  # so that every index exists
    codes, counts = [], []
    for block in range(num_blocks):
        index = padded.gather(1, start[:, None])[:, 0] - codebook_size
        wrong = (index < 0) | (index >= len(length_tokens))
        if wrong.any():
            row = int(wrong.nonzero()[0])
            found = int(index[row]) + codebook_size if int(start[row]) < sequences.shape[1] else "nothing"
            raise ValueError(
                f"block {block} of sequence {row} begins with {found}, expected a length token, "
                f"{codebook_size}..{codebook_size + len(length_tokens) - 1}"
            )
        count = levels[index]
        kept = slots < count[:, None]
        written = padded.gather(1, torch.where(kept, start[:, None] + 1 + slots, start[:, None] + 1))
        wrong = ((written < 0) | (written >= codebook_size)) & kept
        if wrong.any():
            row, place = wrong.nonzero()[0].tolist()
            raise ValueError(
                f"block {block} of sequence {row} has {place} codes, expected {int(count[row])}: codes are "
                f"0..{codebook_size - 1}"
            )
        codes.append(written)
        counts.append(count)
        start = start + count + 1
    return torch.stack(codes, dim=1), torch.stack(counts, dim=1)


def pack_all(codes: torch.Tensor, token_counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As `pack`, of blocks that keep all codes, without anything between them.

    Raises:
        ValueError: for a count that is not all of a block.
    """
    check_token_counts(token_counts, *codes.shape)
    if (token_counts != codes.shape[2]).any():
        raise ValueError(
            f"token_counts has {int(token_counts.min())}, but a layout without separators keeps all {codes.shape[2]}"
        )
    sequences = codes.flatten(1)
    return sequences, torch.ones_like(sequences, dtype=torch.bool)


def unpack_all(
    sequences: torch.Tensor, num_blocks: int, latents_per_block: int, codebook_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `unpack`, of sequences without separators.

    Raises:
        ValueError: if a sequence has too few codes, or other ids.
    """
    length = num_blocks * latents_per_block
    if sequences.shape[1] < length:
        raise ValueError(f"the sequences have {sequences.shape[1]} codes, expected {length}")
    codes = sequences[:, :length]
    if codes.numel() and not 0 <= int(codes.min()) <= int(codes.max()) < codebook_size:
        raise ValueError(f"codes must lie in 0..{codebook_size - 1}, got {int(codes.min())}..{int(codes.max())}")
    codes = codes.unflatten(1, (num_blocks, latents_per_block))
    return codes, torch.full(codes.shape[:2], latents_per_block, device=codes.device)


def pack_clips(
    config: "AdapTokARConfig", codes: torch.Tensor, token_counts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Pack in the layout of a generator."""
    if config.length_tokens:
        return pack_with_lengths(codes, token_counts, config.length_tokens, config.codebook_size)
    if config.block_separators:
        return pack(codes, token_counts, config.eob_token_id)
    return pack_all(codes, token_counts)


def unpack_clips(
    config: "AdapTokARConfig", sequences: torch.Tensor, given: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Unpack what a generator wrote.

    Args:
        sequences: (batch, length) long, without prompts.
        given: (batch, config.start_block, latents_per_block) long, the codes of the blocks before.
    """
    if config.eob_token_id is not None:
        if given is not None:
            given = torch.nn.functional.pad(given, (0, 1), value=config.eob_token_id).flatten(1)
            sequences = torch.cat([given, sequences], dim=1)
        return unpack(sequences, config.num_blocks, config.latents_per_block, config.eob_token_id)
    sizes = (config.num_generated_blocks, config.latents_per_block)
    if config.length_tokens:
        codes, counts = unpack_with_lengths(sequences, *sizes, config.length_tokens, config.codebook_size)
    else:
        codes, counts = unpack_all(sequences, *sizes, config.codebook_size)
    if given is None:
        return codes, counts
    kept = config.condition_counts or [config.latents_per_block] * config.start_block
    kept = counts.new_tensor(kept[: config.start_block]).expand(len(counts), -1)
    return torch.cat([given, codes], dim=1), torch.cat([kept, counts], dim=1)


def count_blocks(config: "AdapTokARConfig", sequences: torch.Tensor) -> torch.Tensor:
    """Return how many blocks of each sequence are complete, (batch,) long; `sequences` have no prompts."""
    if config.eob_token_id is not None:
        return (sequences == config.eob_token_id).sum(1)
    if not config.length_tokens:
        return sequences.new_full((len(sequences),), sequences.shape[1] // config.latents_per_block)
    begun, written, expected = blocks_begun(sequences, config.length_tokens, config.codebook_size)
    return begun - (written < expected).long()


def blocks_begun(
    sequences: torch.Tensor, length_tokens: list[int], codebook_size: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return where sequences with length tokens stand, each (batch,) long: how many blocks have begun, and of the last
    of them the codes that are written and those that its length token asks for."""
    is_length = sequences >= codebook_size
    begun, length = is_length.sum(1), sequences.shape[1]
    if length == 0:
        return begun, begun, begun
    written = torch.where(begun > 0, is_length.flip(1).int().argmax(1), length)
    last = sequences.gather(1, (length - 1 - written).clamp(min=0)[:, None])[:, 0]
    levels = torch.tensor(length_tokens, device=sequences.device)
    expected = levels[(last - codebook_size).clamp(0, len(length_tokens) - 1)]
    return begun, written, torch.where(begun > 0, expected, 0)


def block_starts(config: "AdapTokARConfig", sequence: list[int]) -> list[int]:
    """Return where the blocks of a sequence without prompt begin, the one that comes next included."""
    if config.eob_token_id is not None:
        return [0, *(place + 1 for place, token in enumerate(sequence) if token == config.eob_token_id)]
    if config.length_tokens:
        return [place for place, token in enumerate(sequence) if token >= config.codebook_size]
    return list(range(0, len(sequence) + 1, config.latents_per_block))


def fill_clips(config: "AdapTokARConfig", sequences: torch.Tensor) -> torch.Tensor:
    """Return sequences that were stopped early with all their blocks: `<EOB>` for the missing ones; in the other layouts
    code 0 for missing codes, and the shortest length.

    Args:
        sequences: (batch, length) long, without prompts.
    """
    if config.eob_token_id is not None:
        return torch.nn.functional.pad(sequences, (0, config.num_blocks), value=config.eob_token_id)
    missing = config.max_sequence_length - sequences.shape[1]
    if not config.length_tokens or bool((count_blocks(config, sequences) >= config.num_generated_blocks).all()):
        return torch.nn.functional.pad(sequences, (0, max(missing, 0)))
    shortest = config.codebook_size + config.length_tokens.index(min(config.length_tokens))
    rows = torch.nn.functional.pad(sequences, (0, max(missing, 0))).tolist()
    for row in rows:
        place = 0
        for _ in range(config.num_generated_blocks):
            row[place] = shortest if place >= sequences.shape[1] else row[place]
            place += 1 + config.length_tokens[row[place] - config.codebook_size]
    return sequences.new_tensor(rows)


def _join(slots: torch.Tensor, used_slots: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the first `used_slots` (batch, blocks) of each block in a row, padded with 0, and the mask of what is used."""
    used = kept_tokens(used_slots, slots.shape[2]).flatten(1)
    order = torch.argsort(~used, dim=1, stable=True)[:, : int(used.sum(1).max())]
    mask = used.gather(1, order)
    return slots.flatten(1).gather(1, order) * mask, mask
