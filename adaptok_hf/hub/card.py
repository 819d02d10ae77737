"""Model cards: one template, filled from a model's configuration, its release's facts and measured results.

What differs from kind to kind of model is text in `card_texts/kinds`; what differs from release to release (who trained
it on what, licences, the paper's numbers) in `card_texts/releases`. Numbers come from the reports of `adaptok evaluate`.
"""

import dataclasses
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import torch
import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import PreTrainedConfig

from ..metrics import PROTOCOLS, Protocol
from ..models.configuration_adaptok import AdapTokConfig
from ..models.configuration_adaptok_ar import AdapTokARConfig
from ..models.configuration_adaptok_scorer import AdapTokScorerConfig
from ..models.modeling_adaptok import AdapTokModel
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..models.modeling_adaptok_scorer import AdapTokScorerModel

TEXTS = Path(__file__).parent / "card_texts"
PAPER = "https://arxiv.org/abs/2505.17011"
NOT_STATED = "not stated."
# metric of a report -> its column's head, digits behind the point
METRICS = {
    "fvd": ("FVD", 1),
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "lpips": ("LPIPS", 3),
    "class_accuracy": ("class accuracy", 3),
}
REQUIRED_METADATA = ("license", "library_name", "pipeline_tag", "tags")
_MODELS = {
    AdapTokConfig: AdapTokModel,
    AdapTokScorerConfig: AdapTokScorerModel,
    AdapTokARConfig: AdapTokARForCausalLM,
}
_FOLDERS = {"tokenizer": "tokenizer", "scorer": "scorer", "ar": "ar_model", "fp": "fp_model"}
_MOST_NAMES = 40


def read_configs(folder: str | os.PathLike) -> tuple[str, dict[str, PreTrainedConfig]]:
    """What a folder holds. Its weights are not looked at.

    Returns:
        `"pipeline"`, `"tokenizer"`, `"scorer"`, `"ar"` (class-conditional generator) or `"fp"` (frame prediction); and the
        configurations by kind, of a pipeline those of its parts.

    Raises:
        FileNotFoundError: if there is neither `model_index.json` nor `config.json`.
        ValueError: for a model of another kind, or a pipeline without tokenizer.
    """
    folder = Path(folder)
    if (folder / "model_index.json").is_file():
        index = _read_json(folder / "model_index.json")
        parts = {kind: folder / name for kind, name in _FOLDERS.items() if (index.get(name) or [None])[0] is not None}
        if "tokenizer" not in parts:
            raise ValueError(f"{folder / 'model_index.json'} is not that of an AdapTok pipeline: it names no tokenizer")
        return "pipeline", {kind: _read_config(place)[1] for kind, place in parts.items()}
    kind, config = _read_config(folder)
    return kind, {kind: config}


def render_card(
    kind: str,
    configs: Mapping[str, PreTrainedConfig],
    *,
    repository: str,
    release: Mapping[str, Any] | None = None,
    reports: Sequence[Mapping[str, Any]] = (),
    weights_license: str | None = None,
) -> ModelCard:
    """
    Args:
        kind, configs: see `read_configs`; `kind` may also be `"llama"`, for a generator's configuration.
        repository: Hub id or folder that the usage lines load.
        release: facts, as the TOML files in `card_texts/releases` hold them; without, the card says that they are not
            stated.
        reports: as `results.json` of `adaptok evaluate` (docs/evaluation.md), of any task; those that are not about this
            kind of model are left out. A report with `source` is labelled as somebody else's numbers; `command` may say
            how it was measured. Where there is no report of a task the card says "not measured".
        weights_license: the Hub's name of the weights' licence, such as `"mit"`; default: the release's, or `"unknown"`.

    Raises:
        ValueError: for something that is no such report, and where the metadata would not be complete.
    """
    release = dict(release or {})
    texts = tomllib.loads((TEXTS / "kinds" / f"{kind}.toml").read_text(encoding="utf-8"))
    config = next(iter(configs.values()))
    trained_as = kind if kind != "llama" else next(iter(configs))
    base_model = release.get("base_model", {}).get(trained_as)
    names = list((getattr(config, "id2label", None) or {}).values())
    facts = {
        "repository": repository,
        "config": config,
        "parts": dict.fromkeys(_FOLDERS) | dict(configs),
        "base_model": base_model,
        "class_list": ", ".join(map(str, names)) if len(names) <= _MOST_NAMES else f"{len(names)}, see `config.id2label`",
    }
    texts, release = _fill(texts, facts), _fill(release, facts)
    tasks = [task for task in texts["tasks"] if task]
    given = [check_report(report) for report in [*reports, *release.get("reports", ())]]
    given = [report for report in given if report["task"] in tasks]
    name = repository.rpartition("/")[2]
    license_id = weights_license or release.get("license") or "unknown"
    data = ModelCardData(
        license=license_id,
        library_name=texts["library_name"],
        pipeline_tag=texts["pipeline_tag"],
        tags=[*texts["tags"], "arxiv:2505.17011"],
        datasets=release.get("datasets_of", {}).get(trained_as) or release.get("datasets"),
        base_model=base_model,
        model_name=name,
        eval_results=[result for report in given for result in _eval_results(report, texts["pipeline_tag"])] or None,
    )
    stated = f"{license_id}." if weights_license else NOT_STATED
    card = ModelCard.from_template(
        data,
        template_path=str(TEXTS / "template.md"),
        name=f"{texts['title']}: {name}",
        provenance=release.get("provenance", "Who trained it: not stated."),
        training=release.get("training_of", {}).get(trained_as) or release.get("training", "Not stated."),
        limits=[
            line for line in [*texts["limits"], *release.get("biases", ["Biases: those of its training data."])] if line
        ],
        sizes=[row for part, each in configs.items() for row in _sizes(part, each)],
        licenses={
            "code": "MIT, see `LICENSE-CODE.txt`." if kind != "llama" else "this repository holds none.",
            "weights": stated if weights_license else release.get("weights", NOT_STATED),
            "data": release.get("data", NOT_STATED),
        },
        tables=[_table(report) for report in given],
        unmeasured=[task.capitalize() for task in tasks if given and task not in {report["task"] for report in given}],
        **{key: texts[key] for key in ("summary", "usage", "usage_notes", "interface", "requires")},
    )
    check_metadata(card)
    return card


def read_report(path: str | os.PathLike) -> dict[str, Any]:
    """A report of `adaptok evaluate`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    return check_report(_read_json(Path(path)), str(path))


def check_report(report: Any, name: str = "a report") -> dict[str, Any]:
    """The report itself.

    Raises:
        ValueError: if it is not of the form that docs/evaluation.md describes.
    """
    if not isinstance(report, Mapping) or not isinstance(report.get("task"), str):
        raise ValueError(f"{name} is not a results.json of `adaptok evaluate`: it has no task")
    results = report.get("results")
    if not isinstance(results, Sequence) or not all(
        isinstance(result, Mapping) and isinstance(result.get("metrics"), Mapping) for result in results
    ):
        raise ValueError(f"{name} is not a results.json of `adaptok evaluate`: its results have no metrics")
    return dict(report)


def check_metadata(card: ModelCard) -> dict[str, Any]:
    """The card's metadata, read again from its text.

    Raises:
        ValueError: if it is not YAML, or lacks what the Hub needs to list a model.
    """
    text = str(card)
    try:
        found = yaml.safe_load(text.split("---", 2)[1])
    except (IndexError, yaml.YAMLError) as error:
        raise ValueError(f"the card's metadata are not YAML: {error}") from error
    if missing := [name for name in REQUIRED_METADATA if not found.get(name)]:
        raise ValueError(f"the card's metadata lack {', '.join(missing)}")
    if found["license"] == "other" and not found.get("license_name"):
        raise ValueError("license 'other' needs a license_name")
    for entry in found.get("model-index", []):
        if not entry.get("name") or not entry.get("results"):
            raise ValueError("model-index needs a name and results")
    return found


def _read_config(folder: Path) -> tuple[str, PreTrainedConfig]:
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds neither a model (config.json) nor a pipeline (model_index.json)")
    found = _read_json(file).get("model_type")
    config_class = next((each for each in _MODELS if each.model_type == found), None)
    if config_class is None:
        accepted = ", ".join(each.model_type for each in _MODELS)
        raise ValueError(f"{file} is of model_type {found!r}; accepted are {accepted}")
    config = config_class.from_pretrained(folder)
    if config_class is AdapTokARConfig:
        return "ar" if config.is_class_conditional else "fp", config
    return "tokenizer" if config_class is AdapTokConfig else "scorer", config


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _fill(texts: Any, facts: Mapping[str, Any]) -> Any:
    """Renders every string in nested lists and tables."""
    if isinstance(texts, str):
        return jinja2.Template(texts, undefined=jinja2.StrictUndefined).render(facts).strip()
    if isinstance(texts, Mapping):
        return {key: _fill(value, facts) for key, value in texts.items()}
    if isinstance(texts, list):
        return [_fill(value, facts) for value in texts]
    return texts


def _sizes(part: str, config: PreTrainedConfig) -> list[list[str]]:
    with torch.device("meta"):
        parameters = _MODELS[type(config)](config).num_parameters()
    size = f"{parameters / 1e6:.2f}M parameters, width {config.hidden_size}, "
    if isinstance(config, AdapTokConfig):
        size += f"{config.num_encoder_layers} + {config.num_decoder_layers} layers; codebook of {config.codebook_size}"
    else:
        size += f"{config.num_hidden_layers} layers"
    return [[part, size]]


def _protocols(report: Mapping[str, Any]) -> dict[str, Protocol]:
    """The protocols of a report by what its metrics call them."""
    known = {field.name for field in dataclasses.fields(Protocol)}
    found = {
        name: Protocol(**{key: value for key, value in fields.items() if key in known})
        for name, fields in (report.get("protocols") or {}).items()
    }
    if report.get("protocol") in PROTOCOLS:
        found[report["protocol"]] = PROTOCOLS[report["protocol"]]
    return found


def _protocol_of(report: Mapping[str, Any], entry: Mapping[str, Any]) -> Protocol | None:
    found = _protocols(report)
    return found.get(entry.get("protocol_hash"), found.get(report.get("protocol")))


def _setting(result: Mapping[str, Any]) -> str:
    tokens = result.get("tokens_per_block")
    counted = "" if tokens is None else f", {tokens:.4g} tokens per block"
    return f"{result.get('strategy', 'as is')}{counted}"


def _eval_results(report: Mapping[str, Any], task_type: str) -> list[EvalResult]:
    """For the metadata: of many strategies only `joint`, which is the default; the card's table has them all."""
    results = report["results"]
    found = []
    for result in [result for result in results if result.get("strategy") == "joint"] or results:
        for name, entry in result["metrics"].items():
            if entry.get("value") is None:
                continue
            protocol = _protocol_of(report, entry)
            data = protocol.data if protocol is not None else "not stated"
            about = {"protocol": getattr(protocol, "name", None), "protocol_hash": getattr(protocol, "hash", None)}
            about |= {"num_clips": entry.get("num_videos"), "low": entry.get("low"), "high": entry.get("high")}
            found.append(
                EvalResult(
                    task_type=task_type,
                    task_name=report["task"],
                    dataset_type=data,
                    dataset_name=data,
                    metric_type=name,
                    metric_name=f"{METRICS.get(name, (name,))[0]} ({_setting(result)})",
                    metric_value=round(entry["value"], 4),
                    metric_args={
                        key: round(value, 4) if isinstance(value, float) else value
                        for key, value in about.items()
                        if value is not None
                    },
                    source_name=report.get("source"),
                    source_url=PAPER if report.get("source") else None,
                )
            )
    return found


def _table(report: Mapping[str, Any]) -> dict[str, Any]:
    results = report["results"]
    columns = [name for name in METRICS if any(name in result["metrics"] for result in results)]
    several = len({result.get("model") for result in results}) > 1
    rows = []
    for result in results:
        tokens = result.get("tokens_per_block")
        row = [result.get("strategy", "as is"), "" if tokens is None else f"{tokens:.4g}"]
        row += [_cell(name, result["metrics"].get(name), bool(report.get("source"))) for name in columns]
        rows.append([str(result.get("model")), *row] if several else row)
    head = ["strategy", "tokens per block", *(METRICS[name][0] for name in columns)]
    entries = [entry for result in results for entry in result["metrics"].values()]
    notes = [_describe(protocol) for protocol in _protocols(report).values()]
    notes += list(report.get("notes", ()))
    notes += sorted({entry["note"] for entry in entries if entry.get("note")})
    if any(entry.get("low") is not None for entry in entries):
        notes.append("In brackets: 95% bootstrap interval over videos.")
    return {
        "task": report["task"],
        "source": report.get("source"),
        "command": report.get("command"),
        "head": ["model", *head] if several else head,
        "rows": rows,
        "notes": notes,
    }


def _cell(name: str, entry: Mapping[str, Any] | None, printed: bool) -> str:
    if entry is None or (entry.get("value") is None and not entry.get("infinite")):
        return "not printed" if printed else "not measured"
    if entry.get("value") is None:
        return "infinite"
    if printed:
        return f"{entry['value']:g}"
    digits = METRICS[name][1]
    text = f"{entry['value']:.{digits}f}"
    if entry.get("low") is not None and entry.get("high") is not None:
        text += f" [{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"
    if entry.get("floor") is not None:
        text += f", floor {entry['floor']:.{digits}f}"
    return text


def _describe(protocol: Protocol) -> str:
    clips = "" if protocol.num_fake is None else f"{protocol.num_fake} clips, "
    return (
        f"Protocol `{protocol.name}` ({protocol.hash}): {protocol.data}; {clips}{protocol.window} window of "
        f"{protocol.num_frames} frames, {protocol.image_size}x{protocol.image_size}, {protocol.precision}."
    )


__all__ = ["check_metadata", "check_report", "read_configs", "read_report", "render_card"]
