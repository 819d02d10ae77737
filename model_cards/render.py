#!/usr/bin/env python
"""Renders all cards of this folder again: after a new checkpoint, new results, or a change of the texts.

    python model_cards/render.py

One card alone, of any model: `adaptok card MODEL --results results.json`.
"""

import json
from pathlib import Path

from adaptok_hf import AdapTokARConfig, AdapTokConfig, AdapTokScorerConfig
from adaptok_hf.conversion.class_names import UCF101
from adaptok_hf.hub.card import read_configs, read_report, render_card
from adaptok_hf.hub.export import find_model, read_release

HERE = Path(__file__).parent
RECIPES = HERE.parent / "training_scripts" / "recipes"
SMALL_PARTS = {"pipeline": None, "tokenizer": "tokenizer", "scorer": "scorer", "ar": "ar_model", "fp": "fp_model"}


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
    for kind, part in SMALL_PARTS.items():
        folder = find_model("small", part)
        release = read_release("small", folder)
        cards[f"small_{kind}.md"] = render_card(
            *read_configs(folder), repository=f"adaptok-small-{kind}", release=release, reports=_reports("small")
        )
    folder = find_model("detailed")
    cards["detailed_pipeline.md"] = render_card(
        *read_configs(folder),
        repository="adaptok-detailed",
        release=read_release("detailed", folder),
        reports=_reports("detailed"),
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
