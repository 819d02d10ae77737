import pytest
import torch

from adaptok_hf.models.attention_masks import (
    ATTENTION_TYPES,
    Span,
    check_token_counts,
    dense_mask,
    find_segments,
    kept_tokens,
)

# The pictures in the module's docstring: p0 p1 l0 l1, rows are queries.
EXPECTED = {
    "block_causal": ["x.x.", "xxxx", "x.x.", "xxxx"],
    "decoder": ["x.x.", ".xxx", "..x.", "..xx"],
    "block_diagonal": ["x...", ".x..", "x.x.", ".xxx"],
    "full": ["xxxx"] * 4,
}


@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
def test_table_is_the_picture_in_the_docstring(attention_type):
    mask = dense_mask(attention_type, torch.tensor([0, 1, 0, 1]), torch.tensor([True, True, False, False]))
    assert mask.tolist() == [[c == "x" for c in row] for row in EXPECTED[attention_type]]


@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
@pytest.mark.parametrize("first", [0, 1])
def test_segments_are_the_dense_mask(attention_type, first):
    """Queries from block `first` on; two latents and three patches a block, and a second clip that none of them sees."""
    spans, start = [], 0
    for clip, block, kind in ((clip, block, kind) for clip in (0, 1) for block in range(3) for kind in ("latent", "patch")):
        stop = start + (2 if kind == "latent" else 3)
        spans.append(Span(kind, block, slice(start, stop), clip))
        start = stop
    mask = torch.zeros(30, 30, dtype=torch.bool)
    for segment in find_segments(attention_type, [span for span in spans if span.block >= first], spans):
        for keys in segment.keys:
            mask[segment.queries, keys] = True
    index = torch.arange(15)
    expected = dense_mask(attention_type, index // 5, index % 5 >= 2) & (index // 5 >= first)[:, None]
    assert torch.equal(mask, torch.block_diag(expected, expected).bool())


def test_kept_tokens_are_the_leading_ones():
    assert kept_tokens(torch.tensor([[0, 2, 3]]), 3).tolist() == [[[False] * 3, [True, True, False], [True] * 3]]


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        (torch.tensor([[1, 2, 3]]), r"shape \(1, 3\), expected .* \(1, 2\)"),
        (torch.tensor([[1.0, 2.0]]), "integers"),
        (torch.tensor([[1, 9]]), "0..8, got values from 1 to 9"),
        (torch.tensor([[-1, 2]]), "0..8, got values from -1"),
    ],
)
def test_bad_token_counts_are_named(counts, message):
    with pytest.raises(ValueError, match=message):
        check_token_counts(counts, 1, 2, 8)
