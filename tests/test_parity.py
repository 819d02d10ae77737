"""Equality with the original code, within the differences that another order of the same sums makes."""

import pytest
from builders.parity_table import COMMITTED, FULL, SECTIONS, Parity, measure

PARTIAL = ("prior_tiny/prior",)  # holds the prior's loss too


@pytest.fixture(scope="module", params=["committed", "full"])
def parity(request, tmp_path_factory) -> Parity:
    if request.param == "full" and FULL is None:
        pytest.skip("ADAPTOK_PARITY_DIR does not name the folder with all golden tensors")
    return Parity(FULL if request.param == "full" else COMMITTED, tmp_path_factory.mktemp("parity"))


@pytest.mark.parametrize("section", SECTIONS)
def test_equals_the_original(parity, section):
    if section == "prior" and not (parity.root / "prior_tiny").exists():
        pytest.skip("the weights of the prior are only in the folder that ADAPTOK_PARITY_DIR names")
    measured = list(measure(parity, section))
    assert measured
    assert [comparison for comparison in measured if not comparison[1] <= comparison[2]] == []


def test_every_golden_tensor_was_compared(parity):
    """Runs after the sections."""
    for section in SECTIONS:
        if section != "prior" and section not in parity.measured:
            list(measure(parity, section))
    assert {name: file.unread for name, file in parity.files.items() if file.unread and name not in PARTIAL} == {}


def test_committed_videos():
    """What the sections compare only if it is there must be there."""
    committed = Parity(COMMITTED, COMMITTED)
    videos = {"nomask.video", "ragged.with_drop", "uneven.with_drop", "zeros.with_drop", "zeros.with_mask"}
    assert videos <= set(committed.golden("tokenizer_tiny/decode"))
    assert "avg_8_8_8_8.decoded" in committed.golden("tokenizer_tiny/scorer")


def test_the_comparison_can_fail(parity):
    """A wrong weight shows."""
    layer = parity.tokenizer.decoder.layers[0].mlp.fc1
    layer.weight.data[0, 0] += 0.1
    try:
        measured = list(measure(parity, "decode"))
    finally:
        layer.weight.data[0, 0] -= 0.1
    assert any(difference > bound for name, difference, bound in measured if name == "nomask.video")
