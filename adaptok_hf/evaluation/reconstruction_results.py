"""The results of an evaluation of reconstructions, made of its parts."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..metrics import Protocol
from .measuring import Networks
from .part_files import PartFiles
from .settings import BASELINES, Setting
from .summaries import summarize_difference, summarize_features, summarize_pairs


def summarize_reconstruction(
    parts: PartFiles,
    num_chunks: int,
    settings: Mapping[str, Sequence[Setting]],
    protocol: Protocol,
    networks: Networks,
) -> tuple[list[dict], list[dict]]:
    """Summarize the parts of all models and settings.

    Returns:
        The results (see docs/evaluation.md), and a row per clip and setting.

    Raises:
        ValueError: if no clip was measured.
    """
    real = None
    if networks.features is not None:
        real = _read_features(parts, (f"real-{networks.features_key}", "{:05d}"), num_chunks)
    results, all_rows = [], []
    for model, of_model in settings.items():
        baselines: dict[tuple, list[dict]] = {}
        for setting in of_model:
            rows, timing = _read(parts, model, setting, num_chunks)
            if not rows:
                raise ValueError("no video could be measured: all were too short or could not be read")
            used = dataclasses.replace(protocol, allocation_batch=setting.batch)
            metrics = summarize_pairs(rows, networks, used)
            features = _read_features(parts, (model, setting.name, f"{{:05d}}-{networks.features_key}"), num_chunks)
            if real is not None and features is not None:
                metrics |= summarize_features(real, features, networks.features, used, paired=True)
            result = _describe(parts, model, setting, rows, timing)
            result["metrics"] = metrics
            for baseline in BASELINES:
                if others := baselines.get((baseline, setting.budget)):
                    differences = {name: summarize_difference(rows, others, name) for name in metrics if name != "fvd"}
                    result[f"difference_from_{baseline}"] = {name: d for name, d in differences.items() if d is not None}
            if setting.strategy in BASELINES:
                baselines[setting.strategy, setting.budget] = rows
            results.append(result)
            all_rows += [{"model": model, "setting": setting.name, **row} for row in rows]
    return results, all_rows


def _read(parts: PartFiles, model: str, setting: Setting, num_chunks: int) -> tuple[list, dict]:
    """Return the rows of all clips, and (seconds, clips) of each stage."""
    rows, timing = [], {}
    for index in range(num_chunks):
        part, _ = parts.read(model, setting.name, f"{index:05d}")
        rows += part["clips"]
        for stage, (seconds, clips) in part["seconds"].items():
            before = timing.get(stage, (0.0, 0))
            timing[stage] = (before[0] + seconds, before[1] + clips)
    return rows, timing


def _read_features(parts: PartFiles, name: tuple[str, ...], num_chunks: int) -> torch.Tensor | None:
    """Return (clips, D) features, or `None` where they were not computed."""
    files = [tuple(part.format(index) for part in name) for index in range(num_chunks)]
    if not all(parts.exists(*file) for file in files):
        return None
    return torch.cat([parts.read(*file)[1]["features"] for file in files])


def _describe(parts: PartFiles, model: str, setting: Setting, rows: list[dict], timing: dict) -> dict[str, Any]:
    counted = rows[0]["tokens"] is not None
    tokens = [row["tokens"] for row in rows] if counted else []
    bits = [row["bits_per_second"] for row in rows if row["bits_per_second"] is not None]
    histogram = Counter(count for row in rows for count in row["token_counts"]) if counted else None
    learned = parts.read("schedules", model, setting.name)[0] if setting.strategy == "schedule" else {}
    searched = parts.read("searched", model, setting.name)[0] if setting.needs_search else {}
    return {
        "model": model,
        "setting": setting.name,
        "strategy": setting.strategy,
        "budget": setting.budget,
        "budgets_per_position": setting.budgets_per_position,
        "allocation_batch": setting.batch,
        "parameter": searched.get("parameter"),
        "schedule": learned.get("schedule"),
        "learned_on": learned.get("learned_on"),
        "tokens_per_block": sum(tokens) / sum(len(row["token_counts"]) for row in rows) if counted else None,
        "tokens_per_clip": sum(tokens) / len(rows) if counted else None,
        "blocks_with_tokens": None if histogram is None else [[count, histogram[count]] for count in sorted(histogram)],
        "bits_per_second": sum(bits) / len(bits) if bits else None,
        "milliseconds_per_clip": {stage: 1000 * seconds / clips for stage, (seconds, clips) in timing.items() if clips},
    }
