"""How long the integer programs of IPAL take (the paper's Table E): by blocks of a clip, and by budget."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..allocation import ipal
from .part_files import write_json, write_text
from .tables import to_csv

BLOCKS_OF_BUDGETS = 4


def time_allocation(
    output_dir: str | Path,
    num_blocks: Sequence[int],
    clip_budgets: Sequence[int],
    batch: int = 128,
    *,
    latents_per_block: int = 512,
    step: int = 8,
    repeats: int = 20,
    paper: Sequence[dict] = (),
    seed: int = 0,
) -> dict[str, Any]:
    """
    Milliseconds per clip of `allocation.ipal`, on score tables that look like perceptual loss; the solver alone, without
    the scorer's passes (which `evaluate_reconstruction` times). The median of `repeats` runs.

    Args:
        num_blocks: clips of so many blocks, at half of all tokens.
        clip_budgets: tokens per clip of 4 blocks. The paper prints averages up to 1024, more than a block has: they are
            taken as tokens of a clip.
        batch: clips that share a budget.
        paper: dicts of `blocks` or `clip_budget` and `milliseconds_per_clip`.

    Returns:
        What `results.json` holds; `results.csv` and `results.md` are written, too.
    """
    rng, output = np.random.default_rng(seed), Path(output_dir)
    cases = [{"blocks": blocks, "clip_budget": blocks * latents_per_block // 2} for blocks in num_blocks]
    cases += [{"blocks": BLOCKS_OF_BUDGETS, "clip_budget": budget} for budget in clip_budgets]
    results = []
    for index, case in enumerate(cases):
        levels = np.arange(1, latents_per_block // step + 1) / (latents_per_block // step)
        shape = (batch, case["blocks"], 1)
        height, rate = rng.uniform(0.05, 0.6, shape), rng.uniform(1, 6, shape)
        scores = height * np.exp(-rate * levels) + rng.normal(0, 0.003, (*shape[:2], len(levels)))
        times = []
        for _ in range(repeats):
            start = time.perf_counter()
            ipal(scores, step=step, budget=case["clip_budget"] / case["blocks"], rounding="floor")
            times.append(1000 * (time.perf_counter() - start) / batch)
        key = "blocks" if index < len(num_blocks) else "clip_budget"
        printed = next((line for line in paper if line.get(key) == case[key]), {})
        results.append(
            case | {"milliseconds_per_clip": float(np.median(times)), "paper": printed.get("milliseconds_per_clip")}
        )
    report = {"task": "allocation_time", "batch": batch, "levels": latents_per_block // step, "results": results}
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / "results.json", report)
    write_text(output / "results.csv", to_csv(results))
    table = "| blocks | tokens per clip | ms per clip (solver) | ms per clip, paper |\n|---|---|---|---|\n"
    for result in results:
        told = "" if result["paper"] is None else f"{result['paper']:g}"
        cells = (result["blocks"], result["clip_budget"], f"{result['milliseconds_per_clip']:.3f}", told)
        table += "| " + " | ".join(map(str, cells)) + " |\n"
    write_text(output / "results.md", f"{table}\n{batch} clips share a budget; {report['levels']} levels a block.\n")
    return report
