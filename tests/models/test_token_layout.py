import pytest
import torch
from torch.testing import assert_close

from adaptok_hf.models.token_layout import pack, pack_all, pack_with_lengths, unpack, unpack_all, unpack_with_lengths

EOB = 50


def random_clips(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and counts of any size; empty and full blocks are common."""
    generator = torch.Generator().manual_seed(seed)
    batch, num_blocks, per_block = (int(torch.randint(1, high, (), generator=generator)) for high in (6, 6, 9))
    codes = torch.randint(0, EOB, (batch, num_blocks, per_block), generator=generator)
    counts = torch.randint(-2, per_block + 3, (batch, num_blocks), generator=generator).clamp(0, per_block)
    counts[:, 0].clamp_(min=1)
    return codes, counts


def test_pack_by_hand():
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]])
    sequences, mask = pack(codes, torch.tensor([[2, 3], [1, 0]]), eob_token_id=EOB)
    assert sequences.tolist() == [[1, 2, EOB, 4, 5, 6, EOB], [7, EOB, EOB, 0, 0, 0, 0]]
    assert mask.tolist() == [[True] * 7, [True] * 3 + [False] * 4]


@pytest.mark.parametrize("seed", range(40))
def test_unpack_undoes_pack(seed):
    codes, counts = random_clips(seed)
    num_blocks, per_block = codes.shape[1:]
    sequences, mask = pack(codes, counts, EOB)
    assert sequences.shape == mask.shape == (len(codes), int(counts.sum(1).max()) + num_blocks)
    assert_close(mask.sum(1), counts.sum(1) + num_blocks)
    unpacked, unpacked_counts = unpack(sequences, num_blocks, per_block, EOB)
    assert_close(unpacked_counts, counts)
    kept = torch.arange(per_block) < counts[..., None]
    assert_close(unpacked, torch.where(kept, codes, codes[:, :1, :1]))


@pytest.mark.parametrize("seed", range(10))
def test_each_sequence_stands_alone(seed):
    codes, counts = random_clips(seed)
    sequences, mask = pack(codes, counts, EOB)
    for row in range(len(codes)):
        alone, _ = pack(codes[[row]], counts[[row]], EOB)
        assert sequences[row][mask[row]].tolist() == alone[0].tolist()


def test_what_follows_the_last_end_is_ignored():
    ends = torch.tensor([[1, 2, EOB, 3, EOB]])
    tail = torch.tensor([[9, EOB, 60, -1]])
    codes, counts = unpack(torch.cat([ends, tail], dim=1), 2, 3, EOB)
    assert codes.tolist() == [[[1, 2, 1], [3, 1, 1]]]
    assert counts.tolist() == [[2, 1]]


@pytest.mark.parametrize(
    "sequence, message",
    [
        ([1, 2, EOB, 3], "sequence 0 has 1 <EOB>, expected 2"),
        ([1, 51, EOB, 3, EOB], "0..50, got 51"),
        ([1, -3, EOB, 3, EOB], "0..50, got -3"),
        ([1, 2, 3, 4, EOB, EOB], "a block has 4 codes, at most 3 fit"),
        ([EOB, 1, EOB], "the first block of a sequence is empty"),
    ],
)
def test_unpack_refuses(sequence, message):
    with pytest.raises(ValueError, match=message):
        unpack(torch.tensor([sequence]), 2, 3, EOB)


@pytest.mark.parametrize(
    "counts, message",
    [
        (torch.tensor([[1, 4]]), "0..3, got values from 1 to 4"),
        (torch.tensor([[-1, 3]]), "0..3, got values from -1 to 3"),
        (torch.tensor([[1.0, 2.0]]), "must be integers"),
        (torch.tensor([[1, 2, 3]]), r"\(1, 3\), expected"),
    ],
)
def test_pack_refuses(counts, message):
    with pytest.raises(ValueError, match=message):
        pack(torch.ones(1, 2, 3, dtype=torch.long), counts, EOB)


# --- length tokens, and no separators ----------------------------------------------------------------------------


def test_pack_with_lengths_by_hand():
    codes = torch.tensor([[[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]])
    counts = torch.tensor([[2, 3], [1, 2]])
    sequences, mask = pack_with_lengths(codes, counts, [3, 1, 2], 50)
    assert sequences.tolist() == [[52, 1, 2, 50, 4, 5, 6], [51, 7, 52, 10, 11, 0, 0]]
    assert mask.tolist() == [[True] * 7, [True] * 5 + [False] * 2]


@pytest.mark.parametrize("seed", range(5))
def test_round_trip_with_lengths(seed):
    codes, counts = random_clips(seed)
    lengths = torch.randperm(codes.shape[2], generator=torch.Generator().manual_seed(seed)).add(1).tolist()
    counts = counts.clamp(min=1)
    sequences, mask = pack_with_lengths(codes, counts, lengths, EOB)
    tail = torch.full((len(codes), 2), 77)  # what follows the last block is ignored
    unpacked, unpacked_counts = unpack_with_lengths(torch.cat([sequences, tail], 1), *codes.shape[1:], lengths, EOB)
    assert torch.equal(unpacked_counts, counts)
    kept = torch.arange(codes.shape[2]) < counts[..., None]
    assert torch.equal(unpacked[kept], codes[kept])
    assert 0 <= unpacked.min() <= unpacked.max() < EOB  # others can be embedded
    assert sequences[mask].numel() == counts.sum() + counts.numel()
    whole = torch.full_like(counts, codes.shape[2])
    unpacked, unpacked_counts = unpack_all(pack_all(codes, whole)[0], *codes.shape[1:], EOB)
    assert torch.equal(unpacked, codes) and torch.equal(unpacked_counts, whole)


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ([1, 2, 3], "block 0 of sequence 0 begins with 1, .*50..51"),
        ([52, 2, 3], "block 0 of sequence 0 begins with 52"),
        ([50, 1, 3], "block 1 of sequence 0 begins with 3"),
        ([50, 1], "block 1 of sequence 0 begins with nothing"),
        ([50, 1, 51, 2], "block 1 of sequence 0 has 1 codes, expected 2"),
        ([51, 1, 50, 2], "block 0 of sequence 0 has 1 codes, expected 2.*0..49"),
    ],
)
def test_wrong_sequences_with_lengths(sequence, message):
    with pytest.raises(ValueError, match=message):
        unpack_with_lengths(torch.tensor([sequence]), 2, 3, [1, 2], EOB)


def test_wrong_sequences_without_separators():
    for sequence, message in (([1] * 5, "5 codes, expected 6"), ([1] * 5 + [50], "0..49, got 1..50")):
        with pytest.raises(ValueError, match=message):
            unpack_all(torch.tensor([sequence]), 2, 3, EOB)
