"""What an evaluation writes: `results.json`, `results.csv`, `results.md`, and rows per clip as csv."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from .part_files import write_json, write_text

_ARROWS = {
    "psnr": "PSNR (dB) ↑",
    "ssim": "SSIM ↑",
    "lpips": "LPIPS ↓",
    "fvd": "FVD ↓",
    "class_accuracy": "class accuracy ↑",
}
# entries of the paper's lines that are times -> our columns
_TIMES = {"milliseconds": "ms per clip", "allocation_milliseconds": "ms per clip for scorer and allocation"}
_DIGITS = {"psnr": 2, "ssim": 3, "lpips": 3, "fvd": 1, "class_accuracy": 3}


def write_results(folder: Path, report: dict[str, Any], rows: Sequence[dict] = ()) -> None:
    """
    Args:
        report: what an evaluation returns; `results` are its lines.
        rows: one per clip.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", report)
    lines = ({key: value for key, value in result.items() if key != "blocks_with_tokens"} for result in report["results"])
    write_text(folder / "results.csv", to_csv(flatten(line) for line in lines))
    write_text(folder / "results.md", markdown(report))
    if rows:
        write_text(folder / "per_video.csv", to_csv(rows))


def flatten(result: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested entries as `outer.inner` columns."""
    flat = {}
    for name, value in result.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def to_csv(rows: Iterable[dict[str, Any]]) -> str:
    """Columns are those of all rows, in the order in which they first appear; lists are joined by spaces."""
    rows = list(rows)
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({n: " ".join(map(str, v)) if isinstance(v, list | tuple) else v for n, v in row.items()})
    return text.getvalue()


def markdown(report: dict[str, Any]) -> str:
    """The table of a report, its protocol below. Where the report has the paper's numbers they stand beside ours."""
    results, paper = report["results"], report.get("paper") or []
    metrics = [name for name in _ARROWS if any(name in r["metrics"] for r in results) or any(name in p for p in paper)]
    floors = any((r["metrics"].get("fvd") or {}).get("floor") is not None for r in results)
    differences = any(r.get("difference_from_fixed") for r in results)
    columns = ["model", "strategy", "budget", "tokens per block"]
    for name in metrics:
        columns.append(_title(name, results))
        if any(name in line for line in paper):
            columns.append(f"{_ARROWS[name].split()[0]}, paper")
    if floors:
        columns.append("FVD floor")
    if differences:
        columns.append("PSNR minus fixed's")
    times = {key: name for key, name in _TIMES.items() if any(key in line for line in paper)}
    for name in times.values():
        columns += [name, f"{name}, paper"]
    unused, lines = list(paper), []
    for result in results:
        printed = next((line for line in unused if _is_same(line, result)), {})
        unused = [line for line in unused if line is not printed]
        cells = [result["model"], _strategy(result), _number(result["budget"], 1), _number(result["tokens_per_block"], 1)]
        for name in metrics:
            cells.append(_with_interval(result["metrics"].get(name), _DIGITS[name]))
            if any(name in line for line in paper):
                cells.append(_number(printed.get(name), 3))
        if floors:
            fvd = result["metrics"].get("fvd") or {}
            floor = _number(fvd.get("floor"), _DIGITS["fvd"])
            cells.append(f"{floor} (N={fvd['floor_num_videos']})" if floor else "")
        if differences:
            cells.append(_with_interval((result.get("difference_from_fixed") or {}).get("psnr"), 2, sign="+"))
        for key in times:
            cells += [_number(_milliseconds(result, key), 1), _number(printed.get(key), 1)]
        lines.append(cells)
    for line in unused:  # systems that the paper reports and this run did not measure
        cells = [line.get("model", ""), line.get("strategy", ""), _number(line.get("budget"), 1), ""]
        for name in metrics:
            cells += [""] + ([_number(line.get(name), 3)] if any(name in other for other in paper) else [])
        cells += [""] * (len(columns) - len(cells) - 2 * len(times))
        for key in times:
            cells += ["", _number(line.get(key), 1)]
        lines.append(cells)
    text = "| " + " | ".join(columns) + " |\n" + "|---" * len(columns) + "|\n"
    text += "".join("| " + " | ".join(cells) + " |\n" for cells in lines)
    return text + "\n" + _caption(report)


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
    """LPIPS with its network."""
    found = next((r["metrics"][name]["metric"] for r in results if name in r["metrics"]), "")
    return _ARROWS[name].replace("LPIPS", f"LPIPS {found.partition(' ')[2]}".strip())


def _strategy(result: dict) -> str:
    batch = result.get("allocation_batch")
    return result["strategy"] + (f" ({batch} videos)" if batch else "")


def _is_same(line: dict, result: dict) -> bool:
    """Whether a line of the paper is about this result; it may leave entries out."""
    keys = ("model", "strategy", "budget", "allocation_batch")
    given = [key for key in keys if key in line]
    return bool(given) and all(line[key] == result.get(key) for key in given)


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
