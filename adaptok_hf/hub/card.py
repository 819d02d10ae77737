"""Model cards: one template, filled from a model's configuration, its release's facts and measured results.

What differs from kind to kind of model is text in `card_texts/kinds`; what differs from release to release (who trained
it on what, licenses, the paper's numbers) in `card_texts/releases`. Numbers come from the reports of `adaptok evaluate`.
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
from ..models.configuration_adaptok_router import AdapTokRouterConfig
from ..models.configuration_adaptok_scorer import AdapTokScorerConfig
from ..models.configuration_evatok import EVATokConfig
from ..models.modeling_adaptok import AdapTokModel
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..models.modeling_adaptok_router import AdapTokRouterModel
from ..models.modeling_adaptok_scorer import AdapTokScorerModel
from ..models.modeling_evatok import EVATokModel

TEXTS = Path(__file__).parent / "card_texts"
PAPER = "https://arxiv.org/abs/2505.17011"
NOT_STATED = "not stated."
# metric of a report -> its column's head, digits after the point
METRICS = {
    "fvd": ("FVD", 1),
    "psnr": ("PSNR, dB", 2),
    "ssim": ("SSIM", 3),
    "lpips": ("LPIPS", 3),
    "class_accuracy": ("class accuracy", 3),
}
REQUIRED_METADATA = ("license", "library_name", "pipeline_tag", "tags")
# configuration -> kind of model (a generator has one of two), class
_MODELS = {
    AdapTokConfig: ("tokenizer", AdapTokModel),
    EVATokConfig: ("tokenizer", EVATokModel),
    AdapTokScorerConfig: ("scorer", AdapTokScorerModel),
    AdapTokARConfig: ("ar", AdapTokARForCausalLM),
    AdapTokRouterConfig: ("router", AdapTokRouterModel),
}
_FOLDERS = {"tokenizer": "tokenizer", "scorer": "scorer", "ar": "ar_model", "fp": "fp_model", "router": "router"}
_MOST_NAMES = 40


def read_configs(folder: str | os.PathLike) -> tuple[str, dict[str, PreTrainedConfig]]:
    """Return the kind and the configurations of what a folder holds, without looking at its weights.

    Returns:
        `"pipeline"`, `"tokenizer"`, `"scorer"`, `"router"`, `"ar"` (class-conditional generator) or `"fp"` (frame
        prediction); and the configurations by kind, of a pipeline those of its parts.

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
    """Return the model card of a model, a pipeline or a plain Llama.

    Args:
        kind, configs: see `read_configs`; `kind` may also be `"llama"`, for a generator's configuration.
        repository: Hub id or folder that the usage lines load.
        release: facts, as in the TOML files in `card_texts/releases`; without, the card says that they are not stated.
        reports: as `results.json` of `adaptok evaluate` (docs/evaluation.md), of any task; those that are not about this
            kind of model are left out. A report with `source` is labeled as somebody else's numbers; `command` may say
            how it was measured. Where there is no report of a task the card says "not measured".
        weights_license: the Hub's name of the weights' license, such as `"mit"`; default: the release's, or `"unknown"`.

    Raises:
        ValueError: for something that is no such report, and where the metadata would not be complete.
    """
    trained_as = kind if kind != "llama" else next(iter(configs))
    facts = _facts(configs, repository, (release or {}).get("base_model", {}).get(trained_as))
    texts = _fill(tomllib.loads((TEXTS / "kinds" / f"{kind}.toml").read_text(encoding="utf-8")), facts)
    release = _fill(release or {}, facts)
    release["base_model"] = release.get("base_model", {}).get(trained_as)
    tasks = [task for task in texts["tasks"] if task]
    reports = [check_report(report) for report in [*reports, *release.get("reports", ())]]
    reports = [report for report in reports if report["task"] in tasks]
    reported = {report["task"] for report in reports}
    license_id = weights_license or release.get("license") or "unknown"
    limits = [*texts["limits"], *release.get("biases", ["Biases: those of its training data."])]
    metadata = ModelCardData(
        license=license_id,
        library_name=texts["library_name"],
        pipeline_tag=texts["pipeline_tag"],
        tags=[*texts["tags"], "arxiv:2505.17011"],
        datasets=release.get("datasets"),
        base_model=release["base_model"],
        model_name=repository.rpartition("/")[2],
        eval_results=[result for report in reports for result in _eval_results(report, texts["pipeline_tag"])] or None,
    )
    card = ModelCard.from_template(
        metadata,
        template_path=str(TEXTS / "template.md"),
        name=f"{texts['title']}: {repository.rpartition('/')[2]}",
        provenance=release.get("provenance", "Who trained it: not stated."),
        training=release.get("training_of", {}).get(trained_as) or release.get("training", "Not stated."),
        limits=[line for line in limits if line],
        sizes=[[part, _size(config)] for part, config in configs.items()],
        licenses={
            "code": "MIT, see `LICENSE-CODE.txt`." if kind != "llama" else "this repository holds none.",
            "weights": f"{license_id}." if weights_license else release.get("weights", NOT_STATED),
            "data": release.get("data", NOT_STATED),
        },
        tables=[_table(report) for report in reports],
        unmeasured=[task.capitalize() for task in tasks if reported and task not in reported],
        **{key: texts[key] for key in ("summary", "usage", "usage_notes", "interface", "requires")},
    )
    check_metadata(card)
    return card


def _facts(configs: Mapping[str, PreTrainedConfig], repository: str, base_model: str | None) -> dict[str, Any]:
    """Return what the texts may name."""
    config = next(iter(configs.values()))
    names = list((getattr(config, "id2label", None) or {}).values())
    return {
        "repository": repository,
        "config": config,
        "parts": dict.fromkeys(_FOLDERS) | dict(configs),
        "base_model": base_model,
        "class_list": ", ".join(map(str, names)) if len(names) <= _MOST_NAMES else f"{len(names)}, see `config.id2label`",
    }


def read_report(path: str | os.PathLike) -> dict[str, Any]:
    """Read a report of `adaptok evaluate`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it holds something else.
    """
    return check_report(_read_json(Path(path)), str(path))


def check_report(report: Any, name: str = "a report") -> dict[str, Any]:
    """Return the report itself.

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
    """Return the card's metadata, read from its text.

    Raises:
        ValueError: if it is not YAML, or lacks what the Hub needs to list a model.
    """
    text = str(card)
    try:
        metadata = yaml.safe_load(text.split("---", 2)[1])
    except (IndexError, yaml.YAMLError) as error:
        raise ValueError(f"the card's metadata are not YAML: {error}") from error
    if missing := [name for name in REQUIRED_METADATA if not metadata.get(name)]:
        raise ValueError(f"the card's metadata lack {', '.join(missing)}")
    if metadata["license"] == "other" and not metadata.get("license_name"):
        raise ValueError("license 'other' needs a license_name")
    for entry in metadata.get("model-index", []):
        if not entry.get("name") or not entry.get("results"):
            raise ValueError("model-index needs a name and results")
    return metadata


def _read_config(folder: Path) -> tuple[str, PreTrainedConfig]:
    file = folder / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds neither a model (config.json) nor a pipeline (model_index.json)")
    model_type = _read_json(file).get("model_type")
    config_class = next((each for each in _MODELS if each.model_type == model_type), None)
    if config_class is None:
        accepted = ", ".join(each.model_type for each in _MODELS)
        raise ValueError(f"{file} is of model_type {model_type!r}; accepted are {accepted}")
    config = config_class.from_pretrained(folder)
    kind = _MODELS[config_class][0]
    return "fp" if kind == "ar" and not config.is_class_conditional else kind, config


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _fill(texts: Any, facts: Mapping[str, Any]) -> Any:
    """Render every string in nested lists and tables."""
    if isinstance(texts, str):
        return jinja2.Template(texts, undefined=jinja2.StrictUndefined).render(facts).strip()
    if isinstance(texts, Mapping):
        return {key: _fill(value, facts) for key, value in texts.items()}
    if isinstance(texts, list):
        return [_fill(value, facts) for value in texts]
    return texts


def _size(config: PreTrainedConfig) -> str:
    with torch.device("meta"):
        parameters = _MODELS[type(config)][1](config).num_parameters()
    is_evatok = isinstance(config, EVATokConfig)
    width = f"{config.encoder_hidden_size} and {config.decoder_hidden_size}" if is_evatok else config.hidden_size
    size = f"{parameters / 1e6:.2f}M parameters, width {width}, "
    if isinstance(config, AdapTokConfig | EVATokConfig):
        size += f"{config.num_encoder_layers} + {config.num_decoder_layers} layers; codebook of {config.codebook_size}"
    else:
        size += f"{config.num_hidden_layers} layers"
    return size


def _protocols(report: Mapping[str, Any]) -> dict[str, Protocol]:
    """Return the protocols of a report by the names that its metrics use."""
    known = {field.name for field in dataclasses.fields(Protocol)}
    protocols = {
        name: Protocol(**{key: value for key, value in fields.items() if key in known})
        for name, fields in (report.get("protocols") or {}).items()
    }
    if report.get("protocol") in PROTOCOLS:
        protocols[report["protocol"]] = PROTOCOLS[report["protocol"]]
    return protocols


def _eval_results(report: Mapping[str, Any], task_type: str) -> list[EvalResult]:
    """Return the metadata's results: of many strategies only the default; the card's table has them all."""
    results, protocols = report["results"], _protocols(report)
    entries = []
    of_defaults = ([result for result in results if result.get("strategy") == name] for name in ("compared", "joint"))
    for result in next(filter(None, of_defaults), results):
        tokens = result.get("tokens_per_block")
        setting = result.get("strategy", "as is") + ("" if tokens is None else f", {tokens:.4g} tokens per block")
        for name, entry in result["metrics"].items():
            if entry.get("value") is None:
                continue
            protocol = protocols.get(entry.get("protocol_hash"), protocols.get(report.get("protocol")))
            data = protocol.data if protocol is not None else "not stated"
            about = {"protocol": getattr(protocol, "name", None), "protocol_hash": getattr(protocol, "hash", None)}
            about |= {"num_clips": entry.get("num_videos"), "low": entry.get("low"), "high": entry.get("high")}
            entries.append(
                EvalResult(
                    task_type=task_type,
                    task_name=report["task"],
                    dataset_type=data,
                    dataset_name=data,
                    metric_type=name,
                    metric_name=f"{METRICS.get(name, (name,))[0]} ({setting})",
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
    return entries


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
