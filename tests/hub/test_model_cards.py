"""Model cards: metadata, numbers, usage lines; and the files about citing and reporting."""

import copy
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from huggingface_hub import ModelCard

from adaptok_hf import AdapTokARConfig, AdapTokConfig
from adaptok_hf.cli.main import main
from adaptok_hf.hub.card import TEXTS, check_metadata, check_report, read_configs, read_report, render_card
from adaptok_hf.hub.export import PARTS, export_repository, find_model, read_release
from adaptok_hf.metrics import PROTOCOLS

ROOT = Path(__file__).parents[2]
CARDS = sorted(path.name for path in (ROOT / "model_cards").glob("*_*.md"))
PROTOCOL = PROTOCOLS["adaptok_wild_val"]


def entry(value, low=None, high=None, **more) -> dict:
    return {
        "value": value,
        "low": low,
        "high": high,
        "num_videos": 87,
        "protocol_hash": PROTOCOL.hash,
        "infinite": [],
    } | more


REPORT = {
    "task": "reconstruction",
    "protocols": {PROTOCOL.hash: {**vars(PROTOCOL)}},
    "notes": ["FVD was left out"],
    "results": [
        {
            "model": "small",
            "strategy": "fixed",
            "tokens_per_block": 16.0,
            "metrics": {"psnr": entry(16.0512, 15.2, 16.9), "lpips": entry(0.6194)},
        },
        {
            "model": "small",
            "strategy": "joint",
            "tokens_per_block": 15.96875,
            "metrics": {
                "psnr": entry(16.5478, 15.7, 17.4),
                "fvd": entry(812.345, 700, 900, floor=310.5, note="few videos"),
            },
        },
    ],
}


@pytest.fixture(scope="module")
def tokenizer_configs() -> dict:
    return {"tokenizer": AdapTokConfig(image_size=16, num_frames=12, latents_per_block=6, codebook_size=50)}


def rendered(card: ModelCard) -> tuple[dict, str]:
    return check_metadata(card), card.text


def test_cards_are_up_to_date(monkeypatch):
    """`python model_cards/render.py` writes what is there."""
    monkeypatch.syspath_prepend(str(ROOT / "model_cards"))
    import render

    cards = render.render_all()
    assert sorted(cards) == CARDS
    stale = [name for name, text in cards.items() if (ROOT / "model_cards" / name).read_text() != text]
    assert stale == [], "run: python model_cards/render.py"


@pytest.mark.parametrize("name", CARDS)
def test_card_is_complete(name):
    card = ModelCard.load(ROOT / "model_cards" / name)
    found = check_metadata(card)
    release, kind = name.removesuffix(".md").split("_")
    assert found["license"] == "unknown" if release == "original" else "mit"
    assert found["library_name"] == ("diffusers" if kind == "pipeline" else "transformers")
    assert {"adaptok", "arxiv:2505.17011"} <= set(found["tags"]) and found["pipeline_tag"]
    assert "datasets" not in found, "the Hub makes links of these, and ours are not on the Hub"
    assert ("base_model" in found) == (release == "original")
    heads = re.findall(r"^## (.*)", card.text, re.M)
    assert heads == ["Use", "Inputs and outputs", "Training", "Results", "Limits and biases", "Licenses", "Citation"]
    for what in ("**Code**", "**Weights**", "**Data**", "2505.17011"):
        assert what in card.text
    assert not re.search(r"\{[{%]|[%}]\}", card.text.replace("{2505", "")), "something was not filled in"
    usage = re.search(r"```python\n(.*?)```", card.text, re.S)[1]
    assert len(usage.strip().splitlines()) <= 8
    compile(usage, name, "exec")
    if release == "original":
        assert "The original authors' numbers; not measured by us." in card.text
        assert found["model-index"][0]["results"][0]["source"]["url"].startswith("https://arxiv.org")


def test_numbers_are_those_of_the_report(tokenizer_configs):
    found, text = rendered(render_card("tokenizer", tokenizer_configs, repository="me/it", reports=[REPORT]))
    assert "| strategy | tokens per block | FVD | PSNR, dB | LPIPS |" in text
    assert "| fixed | 16 | not measured | 16.05 [15.20, 16.90] | 0.619 |" in text
    assert "| joint | 15.97 | 812.3 [700.0, 900.0], floor 310.5 | 16.55 [15.70, 17.40] | not measured |" in text
    for text_part in (PROTOCOL.hash, "25 videos, 87 clips", "* FVD was left out", "* few videos", "95% bootstrap interval"):
        assert text_part in text
    (entry,) = found["model-index"]
    assert entry["name"] == "it"
    values = [metric["value"] for result in entry["results"] for metric in result["metrics"]]
    assert sorted(values) == [16.5478, 812.345]  # of the default strategy
    alone = REPORT | {"results": REPORT["results"][:1]}
    found, _ = rendered(render_card("tokenizer", tokenizer_configs, repository="me/it", reports=[alone]))
    assert [metric["value"] for result in found["model-index"][0]["results"] for metric in result["metrics"]] == [
        16.0512,
        0.6194,
    ]
    arguments = entry["results"][0]["metrics"][0]["args"]
    assert arguments["protocol_hash"] == PROTOCOL.hash and arguments["num_clips"] == 87
    assert "source" not in entry["results"][0]


def test_paper_numbers_are_those_of_the_release():
    text = (ROOT / "model_cards" / "original_tokenizer.md").read_text()
    for report in read_release("original", ROOT)["reports"]:
        if report["task"] == "reconstruction":
            for result in report["results"]:
                row = next(
                    line for line in text.split("\n") if f"| {result['strategy']} | {result['tokens_per_block']} |" in line
                )
                assert all(f"| {metric['value']:g} |" in row for metric in result["metrics"].values())


def test_what_is_missing_is_told(tokenizer_configs):
    found, text = rendered(render_card("tokenizer", tokenizer_configs, repository="it"))
    assert "Not measured." in text and "model-index" not in found
    assert found["license"] == "unknown" and text.count("not stated") >= 3
    other = copy.deepcopy(REPORT) | {"task": "generation"}
    assert "Not measured." in render_card("tokenizer", tokenizer_configs, repository="it", reports=[other]).text
    configs = read_configs(find_model("figures"))[1]
    text = render_card("pipeline", configs, repository="it", reports=[REPORT]).text
    assert "Generation: not measured." in text and "Reconstruction: not measured." not in text


def test_infinite_and_missing_values():
    report = copy.deepcopy(REPORT)
    report["results"][1]["metrics"]["psnr"] = entry(None, infinite=["value"])
    configs = {"tokenizer": AdapTokConfig()}
    found, text = rendered(render_card("tokenizer", configs, repository="it", reports=[report]))
    assert "| infinite |" in text
    values = [metric["value"] for result in found["model-index"][0]["results"] for metric in result["metrics"]]
    assert values == [812.345]


def test_sizes_come_from_the_configuration(tokenizer_configs):
    text = render_card("tokenizer", tokenizer_configs, repository="it").text
    assert "torch.rand(1, 12, 3, 16, 16)" in text and "0 to 49" in text
    causal = {"tokenizer": AdapTokConfig(adaptive=False)}
    text = render_card("tokenizer", causal, repository="it").text
    assert "tokenizer.decode(codes).pixel_values_videos" in text and "CausalTok" in text
    many = {"ar": AdapTokARConfig(num_classes=60, id2label={i: f"class {i}" for i in range(60)})}
    assert "60, see `config.id2label`" in render_card("ar", many, repository="it").text


def test_bad_files(tmp_path, capsys):
    for content, match in (
        ("[]", "task"),
        ('{"task": "reconstruction", "results": [{"strategy": "fixed"}]}', "metrics"),
        ("{", "JSON"),
    ):
        (tmp_path / "results.json").write_text(content)
        with pytest.raises(ValueError, match=match):
            read_report(tmp_path / "results.json")
        assert main(["card", "small", "--part", "scorer", "--results", str(tmp_path / "results.json")]) == 2
        assert match in capsys.readouterr().err
    (tmp_path / "mine.toml").write_text("license = ")
    with pytest.raises(ValueError, match="mine.toml"):
        read_release(tmp_path / "mine.toml", tmp_path)
    with pytest.raises(ValueError, match="license, pipeline_tag"):
        check_metadata(ModelCard("---\nlibrary_name: x\ntags: [a]\n---\n"))
    with pytest.raises(ValueError, match="license_name"):
        check_metadata(ModelCard("---\nlibrary_name: x\ntags: [a]\npipeline_tag: p\nlicense: other\n---\n"))
    with pytest.raises(ValueError, match="task"):
        check_report(["reconstruction"])


def test_command(tmp_path, capsys):
    (tmp_path / "results.json").write_text(json.dumps(REPORT))
    (tmp_path / "mine.toml").write_text(
        'provenance = "By me."\ntraining = "On cats."\ndatasets = ["cats"]\ndata = "All mine."'
    )
    options = ["--part", "tokenizer", "--results", str(tmp_path / "results.json"), "--release", str(tmp_path / "mine.toml")]
    command = [
        "card",
        "small",
        *options,
        "--license",
        "apache-2.0",
        "--repository",
        "me/cats",
        "-o",
        str(tmp_path / "README.md"),
    ]
    assert main(command) == 0
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.license == "apache-2.0" and card.data.datasets == ["cats"]
    for text_part in ("By me.", "On cats.", "**Weights**: apache-2.0.", "**Data**: All mine.", '"me/cats"', "16.05"):
        assert text_part in card.text
    capsys.readouterr()
    assert main(["card", "small", "--part", "scorer"]) == 0
    assert capsys.readouterr().out.startswith("---\n")


@pytest.mark.slow
@pytest.mark.parametrize("part", [None, *sorted(PARTS.keys() - {"router"})])  # no router ships
def test_usage_of_the_shipped_checkpoint(part, tmp_path):
    """As a newcomer does it: export, then paste the card's lines."""
    export_repository("figures", tmp_path / "repository", part=part)
    shutil.copy(ROOT / "examples" / "surfing.mp4", tmp_path / "video.mp4")
    usage = re.search(r"```python\n(.*?)```", (tmp_path / "repository" / "README.md").read_text(), re.S)[1]
    code = f"import sys\nsys.modules['adaptok_hf'] = None\n{usage}"
    done = subprocess.run([sys.executable, "-P", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def test_code_license_is_the_repositorys():
    assert (TEXTS / "LICENSE-CODE.txt").read_text() == (ROOT / "LICENSE").read_text()


def test_citation_file():
    found = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= found.keys() and found["cff-version"] == "1.2.0"
    assert found["license"] == "MIT" and found["type"] == "software"
    paper = found["preferred-citation"]
    assert {"type", "title", "authors"} <= paper.keys() and len(paper["authors"]) == 10 and paper["year"] == 2025
    import adaptok_hf

    assert str(found["version"]) == adaptok_hf.__version__


def test_issue_templates():
    forms = [path for path in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml") if path.stem != "config"]
    assert sorted(path.stem for path in forms) == ["bug", "checkpoint", "question"]
    for path in forms:
        form = yaml.safe_load(path.read_text())
        assert {"name", "description", "body"} <= form.keys()
        identifiers = [field["id"] for field in form["body"]]
        assert len(identifiers) == len(set(identifiers))
        assert all(
            field["type"] in ("textarea", "input", "dropdown") and field["attributes"]["label"] for field in form["body"]
        )


def test_contributing_names_what_there_is():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for head in ("allocation strategy", "source of data", "metric"):
        assert re.search(rf"^## Adding an? {head}", text, re.M)
    named = re.findall(r"`((?:adaptok_hf|tests|docs|model_cards|training_scripts)/[\w./-]*)`", text)
    assert len(named) > 10 and [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("layout", [{"length_tokens": [2, 4]}, {"block_separators": False}])
def test_cards_follow_the_layout(layout):
    """No `<EOB>` where there is none, and code that compiles."""
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "codebook_size": 50,
        "latents_per_block": 4,
    }
    by_class = AdapTokARConfig(num_classes=3, **sizes, **layout)
    given = {"condition_counts": [4, 2]} if "length_tokens" in layout else {"num_condition_codes": 16}
    by_frames = AdapTokARConfig(num_classes=0, **given, **sizes, **layout)
    for kind, config in (("ar", by_class), ("llama", by_class), ("fp", by_frames), ("llama", by_frames)):
        part = "ar" if config.is_class_conditional else "fp"
        text = render_card(kind, {part: config}, repository="it").text
        assert "EOB" not in text and "None" not in text, (kind, part)
        assert ("length token" in text) == ("length_tokens" in layout)
        for code in re.findall(r"```python\n(.*?)```", text, re.S):
            compile(code, kind, "exec")
