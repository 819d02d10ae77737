"""Equality of EVATok's parts with the code that EVATok descends from."""

import pytest
import torch
from builders.parity_evatok import COMMITTED, FULL, SECTIONS, make_model, measure


@pytest.mark.parametrize("section", SECTIONS)
@pytest.mark.parametrize("root", [COMMITTED, FULL], ids=["committed", "full"])
def test_equals_the_original(root, section):
    if root is None:
        pytest.skip("ADAPTOK_LARP_PARITY_DIR does not name a folder with golden tensors")
    measured = list(measure(root, section))
    assert len(measured) > 1
    assert [comparison for comparison in measured if not comparison[1] <= comparison[2]] == []


def test_the_comparison_can_fail(monkeypatch):
    def make_wrong(root):
        model, weights = make_model(root)
        model.decoder.layers[0].cross_attention.k_proj.weight.data[0, 0] += 0.1
        return model, weights

    monkeypatch.setattr("builders.parity_evatok.make_model", make_wrong)
    with torch.no_grad():
        wrong = {name for name, difference, bound in measure(COMMITTED, "tokenizer") if difference > bound}
    assert {"decoder.out", "masked_decoder.out"} <= wrong and "encoder.out" not in wrong
