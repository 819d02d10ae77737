#!/usr/bin/env python
"""Renders all cards of this folder again: after a new checkpoint, new results, or a change of the texts.

    python model_cards/render.py

One card alone, of any model: `adaptok card MODEL --results results.json`.
"""

import json
from pathlib import Path

from adaptok_hf import AdapTokARConfig, AdapTokConfig, AdapTokScorerConfig
from adaptok_hf.checkpoints import PACKAGED_CHECKPOINTS
from adaptok_hf.conversion.class_names import UCF101
from adaptok_hf.hub.card import read_configs, read_report, render_card
from adaptok_hf.hub.export import find_model, read_release

HERE = Path(__file__).parent
RECIPES = HERE.parent / "training_scripts" / "recipes"
PARTS = {"pipeline": ".", "tokenizer": "tokenizer", "scorer": "scorer", "ar": "ar_model", "fp": "fp_model"}


def original_configs() -> dict:
    """The original authors' released sizes, as `adaptok convert` makes them."""
    recipes = {kind: json.loads((RECIPES / f"{kind}_paper.json").read_text())["model"] for kind in ("ar", "fp")}
    return {
        "tokenizer": AdapTokConfig.base(),
        "scorer": AdapTokScorerConfig(score_mean=0.19749, score_std=0.07616),
        "ar": AdapTokARConfig(**recipes["ar"], id2label=dict(enumerate(UCF101))),
        "fp": AdapTokARConfig(**recipes["fp"]),
    }


def render_all() -> dict[str, str]:
    """File name -> card."""
    cards = {}
    for name in PACKAGED_CHECKPOINTS:
        folder, reports = find_model(name), _reports(name)
        release = read_release(name, folder)
        for kind in (kind for kind, part in PARTS.items() if (folder / part).is_dir()):
            cards[f"{name}_{kind}.md"] = render_card(
                *read_configs(folder / PARTS[kind]), repository=f"adaptok-{name}-{kind}", release=release, reports=reports
            )
    release = read_release("original", HERE)
    for kind, config in original_configs().items():
        cards[f"original_{kind}.md"] = render_card(
            kind, {kind: config}, repository=f"adaptok-{kind}", release=release, reports=_reports("original")
        )
    return {name: str(card) for name, card in cards.items()}


def _reports(release: str) -> list[dict]:
    return [read_report(path) for path in sorted((HERE / "results").glob(f"{release}_*.json"))]


if __name__ == "__main__":
    for name, text in render_all().items():
        (HERE / name).write_text(text, encoding="utf-8")
        print(f"wrote {HERE / name}")
