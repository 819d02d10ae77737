"""Reports of evaluations, written as `results.json`, `results.csv`, `results.md`, and rows per clip as csv."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Sequence
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
_FIRST_COLUMNS = {"model", "strategy", "budget", "tokens per block"}
# entries of the paper's lines that are times -> our columns
_TIMES = {"milliseconds": "ms per clip", "allocation_milliseconds": "ms per clip for scorer and allocation"}


def write_report(
    folder: str | Path,
    rows: Sequence[dict],
    *,
    protocols: Iterable[Protocol],
    results: Sequence[dict],
    paper: Sequence[dict],
    **others: Any,
) -> dict[str, Any]:
    """Write a report and its rows into a folder, and return the report.

    Args:
        rows: one per clip and result, with `video`.
        protocols: of the results, by which these are compared.
        results: lines of the table.
        paper: the paper's numbers.
        others: plain values: `task`, `configuration_hash`, `notes`, and more.
    """
    report = others | {
        "protocols": {protocol.hash: dataclasses.asdict(protocol) for protocol in protocols},
        "num_clips": len(rows) // len(results),
        "num_videos": len({row["video"] for row in rows}),
        "results": list(results),
        "paper": list(paper),
    }
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", report)
    lines = ({key: value for key, value in result.items() if key != "blocks_with_tokens"} for result in results)
    write_text(folder / "results.csv", to_csv(flatten(line) for line in lines))
    write_text(folder / "results.md", markdown(report))
    write_text(folder / "per_video.csv", to_csv(rows))
    return report


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
    unused, pairs = list(report.get("paper") or []), []
    for result in report["results"]:
        printed = next((line for line in unused if _is_same(line, result)), {})
        unused = [line for line in unused if line is not printed]
        pairs.append((result, printed))
    # systems that the paper reports and this run did not measure
    named = ("model", "strategy", "budget")
    pairs += [({"metrics": {}} | {key: line[key] for key in named if key in line}, line) for line in unused]
    rows = [_cells(result, printed) for result, printed in pairs]
    # left out are columns that no line has anything for, and times that the paper does not have
    filled = _FIRST_COLUMNS | {name for row in rows for name, cell in row.items() if cell}
    filled -= {title for title in _TIMES.values() if f"{title}, paper" not in filled}
    columns = [name for name in rows[0] if name in filled]
    networks = [result["metrics"]["lpips"]["metric"] for result in report["results"] if "lpips" in result["metrics"]]
    lpips = f"LPIPS {networks[0].partition(' ')[2]} ↓" if networks else ""
    text = "| " + " | ".join(columns).replace(_METRICS["lpips"][0], lpips) + " |\n" + "|---" * len(columns) + "|\n"
    text += "".join("| " + " | ".join(row[name] for name in columns) + " |\n" for row in rows)
    return text + "\n" + _caption(report)


def _cells(result: dict, printed: dict) -> dict[str, str]:
    """Return the cells of a line by column: a result, and the paper's line about it."""
    batch, metrics = result.get("allocation_batch"), result["metrics"]
    schedule = " ".join(map(str, result.get("schedule") or ()))
    cells = {
        "model": result.get("model", ""),
        "strategy": result.get("strategy", "")
        + (f" ({batch} videos)" if batch else "")
        + (f" ({schedule})" if schedule else ""),
        "budget": _number(result.get("budget"), 1),
        "tokens per block": _number(result.get("tokens_per_block"), 1),
        "tokens per block, paper": _number(printed.get("tokens_per_block"), 1),
    }
    for name, (title, digits) in _METRICS.items():
        cells[title] = _with_interval(metrics.get(name), digits)
        cells[f"{title[:-2].removesuffix(' (dB)')}, paper"] = _number(printed.get(name), 3)
    fvd = metrics.get("fvd") or {}
    floor = _number(fvd.get("floor"), 1)
    cells["FVD floor"] = f"{floor} (N={fvd['floor_num_videos']})" if floor else ""
    for baseline in ("fixed", "schedule"):
        difference = (result.get(f"difference_from_{baseline}") or {}).get("psnr")
        cells[f"PSNR minus {baseline}'s"] = _with_interval(difference, 2, sign="+")
    stages = result.get("milliseconds_per_clip") or {}
    allocation = [stages[stage] for stage in ("score", "allocate") if stage in stages]
    for (key, title), times in zip(_TIMES.items(), (stages.values(), allocation), strict=True):
        cells[title] = _number(sum(times), 1) if stages else ""
        cells[f"{title}, paper"] = _number(printed.get(key), 1)
    return cells


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
    metrics = [metric for result in report["results"] for metric in result["metrics"].values()]
    weights = {m["metric"]: m["weights_sha256"][:12] for m in metrics if m["weights_sha256"]}
    if weights:
        text += "Weights: " + ", ".join(map(" ".join, weights.items())) + ".\n"
    notes = dict.fromkeys(metric["note"] for metric in metrics if metric["note"])
    for note in [*report.get("notes", []), *notes]:
        text += f"Note: {note}.\n"
    if report.get("paper"):
        text += f"Columns named `paper` are printed numbers ({first['source'].partition(';')[0]}), not measured here.\n"
    return text


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
