"""Reports of evaluations, written as `results.json`, `results.csv`, `results.md`, and rows per clip as csv."""

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..atomic_files import write_json, write_text
from ..metrics import Protocol

# title with its direction, digits after the point
_METRICS = {
    "psnr": ("PSNR (dB) ↑", 2),
    "ssim": ("SSIM ↑", 3),
    "lpips": ("LPIPS ↓", 3),
    "fvd": ("FVD ↓", 1),
    "class_accuracy": ("class accuracy ↑", 3),
}
# entries of the paper's lines that are times -> our columns
_TIMES = {"milliseconds": "ms per clip", "allocation_milliseconds": "ms per clip for scorer and allocation"}


def make_report(
    task: str,
    configuration_hash: str,
    protocols: Iterable[Protocol],
    num_clips: int,
    num_videos: int,
    notes: Sequence[str],
    results: Sequence[dict],
    paper: Sequence[dict],
) -> dict[str, Any]:
    """Return what every evaluation reports, plain values."""
    return {
        "task": task,
        "configuration_hash": configuration_hash,
        "protocols": {protocol.hash: dataclasses.asdict(protocol) for protocol in protocols},
        "num_clips": num_clips,
        "num_videos": num_videos,
        "notes": list(notes),
        "results": list(results),
        "paper": list(paper),
    }


def write_results(folder: str | Path, report: dict[str, Any], rows: Sequence[dict] = ()) -> None:
    """Write a report and its rows into a folder.

    Args:
        report: what an evaluation returns; `results` are its lines.
        rows: one per clip.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", report)
    lines = ({key: value for key, value in result.items() if key != "blocks_with_tokens"} for result in report["results"])
    write_text(folder / "results.csv", to_csv(flatten(line) for line in lines))
    write_text(folder / "results.md", markdown(report))
    if rows:
        write_text(folder / "per_video.csv", to_csv(rows))


def flatten(result: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested entries as `outer.inner` columns."""
    flat = {}
    for name, value in result.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def to_csv(rows: Iterable[dict[str, Any]]) -> str:
    """Return rows as csv: columns in the order in which they first appear, lists joined by spaces."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({n: " ".join(map(str, v)) if isinstance(v, list | tuple) else v for n, v in row.items()})
    return text.getvalue()


def markdown(report: dict[str, Any]) -> str:
    """Return the table of a report with its protocol below, and the paper's numbers next to ours where it has them."""
    results, unused = report["results"], list(report.get("paper") or [])
    columns = _columns(results, unused)
    lines = []
    for result in results:
        printed = next((line for line in unused if _is_same(line, result)), {})
        unused = [line for line in unused if line is not printed]
        lines.append([cell(result, printed) for cell in columns.values()])
    # systems that the paper reports and this run did not measure
    lines += [[cell({"metrics": {}} | _named(line), line) for cell in columns.values()] for line in unused]
    text = "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|\n"
    text += "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
    return text + "\n" + _caption(report)


def _columns(results: Sequence[dict], paper: Sequence[dict]) -> dict[str, Callable[[dict, dict], str]]:
    """Return the columns of a table: title -> the cell of a result and the paper's line about it."""
    columns: dict[str, Callable[[dict, dict], str]] = {
        "model": lambda result, _: result.get("model", ""),
        "strategy": lambda result, _: _strategy(result),
        "budget": lambda result, _: _number(result.get("budget"), 1),
        "tokens per block": lambda result, _: _number(result.get("tokens_per_block"), 1),
    }
    for name, (arrow, digits) in _METRICS.items():
        printed = any(name in line for line in paper)
        if printed or any(name in result["metrics"] for result in results):
            columns[_title(name, results)] = partial(_metric_cell, name, digits)
        if printed:
            columns[f"{arrow.split()[0]}, paper"] = lambda _, line, name=name: _number(line.get(name), 3)
    if any((result["metrics"].get("fvd") or {}).get("floor") is not None for result in results):
        columns["FVD floor"] = lambda result, _: _floor(result["metrics"].get("fvd") or {})
    if any(result.get("difference_from_fixed") for result in results):
        columns["PSNR minus fixed's"] = lambda result, _: _with_interval(
            (result.get("difference_from_fixed") or {}).get("psnr"), 2, sign="+"
        )
    for key, title in _TIMES.items():
        if any(key in line for line in paper):
            columns[title] = lambda result, _, key=key: _number(_milliseconds(result, key), 1)
            columns[f"{title}, paper"] = lambda _, line, key=key: _number(line.get(key), 1)
    return columns


def _metric_cell(name: str, digits: int, result: dict, _: dict) -> str:
    return _with_interval(result["metrics"].get(name), digits)


def _floor(fvd: dict) -> str:
    floor = _number(fvd.get("floor"), _METRICS["fvd"][1])
    return f"{floor} (N={fvd['floor_num_videos']})" if floor else ""


def _named(line: dict) -> dict:
    return {key: line[key] for key in ("model", "strategy", "budget") if key in line}


def _caption(report: dict[str, Any]) -> str:
    protocols = report["protocols"]
    first = next(iter(protocols.values()))
    text = (
        f"{report['num_clips']} clips of {report['num_videos']} videos; in brackets 95% bootstrap intervals over videos. "
        f"Protocol {first['name']}: {first['data']}, window {first['window']}, {first['num_frames']} frames of "
        f"{first['image_size']} x {first['image_size']}, {first['precision']}; "
    )
    text += ", ".join(
        f"hash {key}" + (f" (budget shared by {p['allocation_batch']} videos)" if p["allocation_batch"] else "")
        for key, p in protocols.items()
    )
    text += ".\n"
    weights = {}
    for result in report["results"]:
        for metric in result["metrics"].values():
            if metric["weights_sha256"]:
                weights[metric["metric"]] = metric["weights_sha256"][:12]
    if weights:
        text += "Weights: " + ", ".join(f"{name} {sha}" for name, sha in weights.items()) + ".\n"
    notes = dict.fromkeys(m["note"] for r in report["results"] for m in r["metrics"].values() if m["note"])
    for note in [*report.get("notes", []), *notes]:
        text += f"Note: {note}.\n"
    if report.get("paper"):
        text += "Columns named `paper` are the paper's printed numbers (arXiv 2505.17011), not measured here.\n"
    return text


def _milliseconds(result: dict, key: str) -> float | None:
    stages = result.get("milliseconds_per_clip") or {}
    wanted = stages if key == "milliseconds" else [stage for stage in ("score", "allocate") if stage in stages]
    return sum(stages[stage] for stage in wanted) if stages else None


def _title(name: str, results: Sequence[dict]) -> str:
    """Return a metric's title, LPIPS with its network."""
    metric = next((r["metrics"][name]["metric"] for r in results if name in r["metrics"]), "")
    return _METRICS[name][0].replace("LPIPS", f"LPIPS {metric.partition(' ')[2]}".strip())


def _strategy(result: dict) -> str:
    batch = result.get("allocation_batch")
    return result.get("strategy", "") + (f" ({batch} videos)" if batch else "")


def _is_same(line: dict, result: dict) -> bool:
    """Return whether a line of the paper is about this result; it may leave entries out."""
    keys = [key for key in ("model", "strategy", "budget", "allocation_batch") if key in line]
    return bool(keys) and all(line[key] == result.get(key) for key in keys)


def _number(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{value:.{digits}f}".rstrip("0").rstrip(".") if digits and value == round(value) else f"{value:.{digits}f}"


def _with_interval(metric: dict | None, digits: int, sign: str = "") -> str:
    if metric is None:
        return ""
    if metric["value"] is None:
        return "∞"
    text = f"{metric['value']:{sign}.{digits}f}"
    if metric["low"] is None or metric["high"] is None:
        return text
    return f"{text} [{metric['low']:{sign}.{digits}f}, {metric['high']:{sign}.{digits}f}]"
