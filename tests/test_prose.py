"""Stiff phrases that were replaced once do not return (the words of CONTRIBUTING.md)."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = "adaptok_hf", "benchmarks", "docs", "model_cards", "space_app", "tests", "training_scripts"
BANNED = (
    r"go(es|ing)? on (where|with|from|after)|behind|besides?|anew|mend(s|ed)?|(can|could) be had|(is|are) told|tells|"
    r"(is|are) refused|refuses|foresees?|colours?|licences?"
)


def test_stiff_phrases_do_not_return():
    texts = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.*") if path.suffix in (".py", ".md", ".toml")]
    found = []
    for path in {*texts, *ROOT.glob("*.md")} - {Path(__file__), ROOT / "CHANGELOG.md"}:
        for number, line in enumerate(path.read_text().splitlines(), 1):
            found += [f"{path}:{number}: {match[0]}" for match in re.finditer(rf"\b({BANNED})\b", line)]
    assert not found
