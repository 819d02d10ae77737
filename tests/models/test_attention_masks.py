import pytest
import torch

from adaptok_hf.models.attention_masks import ATTENTION_TYPES, block_rule, check_token_counts, kept_rule, kept_tokens

# The pictures in the module's docstring: p0 p1 l0 l1, rows are queries.
EXPECTED = {
    "block_causal": ["x.x.", "xxxx", "x.x.", "xxxx"],
    "decoder": ["x.x.", ".xxx", "..x.", "..xx"],
    "block_diagonal": ["x...", ".x..", "x.x.", ".xxx"],
    "full": ["xxxx"] * 4,
}


def dense(rule, length, batch=1):
    index = torch.arange(length)
    b = torch.arange(batch)[:, None, None]
    return rule(b, torch.zeros_like(b), index[:, None], index[None, :]).expand(batch, length, length)


@pytest.mark.parametrize("attention_type", ATTENTION_TYPES)
def test_rule_is_the_picture_in_the_docstring(attention_type):
    rule = block_rule(attention_type, torch.tensor([[0, 1, 0, 1]]), torch.tensor([True, True, False, False]))
    expected = torch.tensor([[c == "x" for c in row] for row in EXPECTED[attention_type]])
    assert torch.equal(dense(rule, 4)[0], expected)


def test_dropped_tokens_see_and_are_seen_by_nobody_but_themselves():
    rule = block_rule("full", torch.zeros(1, 4, dtype=torch.long), torch.zeros(4, dtype=torch.bool))
    mask = dense(kept_rule(rule, torch.tensor([[True, False, True, True], [True] * 4])), 4, batch=2)
    assert mask[0].tolist() == [
        [True, False, True, True],
        [False, True, False, False],
        [True, False, True, True],
        [True, False, True, True],
    ]
    assert mask[1].all()


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
