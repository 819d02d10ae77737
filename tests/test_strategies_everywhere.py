"""A strategy is one function and one row: all that reads the table knows it at once."""

from pathlib import Path

import numpy as np
import pytest
import reconstruct_tab

from adaptok_hf.allocation import STRATEGIES, AllocationRequest, Strategy, allocate
from adaptok_hf.cli.main import main
from adaptok_hf.evaluation import make_settings

ROOT = Path(__file__).parents[1]


@pytest.fixture
def thrifty(monkeypatch) -> str:
    def function(scores, *, step, budget, valid=None):
        return np.where(np.ones(scores.shape[:-1], dtype=bool) if valid is None else valid, step, 0)

    row = Strategy("thrifty", function, "budget", (), "none", "clip", False, "test", "one step for every block")
    monkeypatch.setitem(STRATEGIES, "thrifty", row)
    return "thrifty"


def test_a_new_row_is_known_everywhere(thrifty, tiny_pipeline, capsys):
    assert allocate(np.zeros((1, 2, 3)), strategy=thrifty, step=4, budget=8).tolist() == [[4, 4]]
    assert AllocationRequest(budget=8, strategy=thrifty).choose_strategy(False).name == thrifty
    video = np.zeros((5, 16, 16, 3), dtype=np.uint8)
    assert tiny_pipeline.tokenize(video, budget=4, allocation=thrifty).token_counts.tolist() == [[2, 2, 0]]
    *_, setting = make_settings([thrifty], [4], [1], 6)
    assert setting.request().strategy == thrifty and setting.batch is None
    assert thrifty in reconstruct_tab.strategies(tiny_pipeline)
    with pytest.raises(SystemExit):
        main(["reconstruct", "--help"])
    assert "one step for every block" in capsys.readouterr().out


def test_readme_and_guide_name_every_strategy():
    for page in ("README.md", "docs/allocation.md"):
        text = (ROOT / page).read_text()
        assert [name for name in STRATEGIES if f"`{name}`" not in text] == [], page
