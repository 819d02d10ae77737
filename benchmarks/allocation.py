"""How long the exact allocation solvers, the search and a router take.

    OMP_NUM_THREADS=1 python benchmarks/allocation.py [--milp-variables 8192]
    OMP_NUM_THREADS=1 python benchmarks/allocation.py --recipe training_scripts/recipes/evaluation/table_e.json
    OMP_NUM_THREADS=1 python benchmarks/allocation.py --search examples/surfing.mp4

The first command prints a markdown table: milliseconds per program (N rows, one per block of a video, J levels),
microseconds per row, and how many times faster than `scipy.optimize.milp` the others were in the same run. Every program is
solved by all solvers, and the objectives are compared. `falling` tables look like perceptual loss over token count (convex
with noise), `non-convex` ones are random falling steps.

The second command prints the paper's Table E: milliseconds per clip of the strategy `ipal`, the solver alone, without the
scorer's passes (which `adaptok evaluate reconstruction` times), next to the paper's numbers.

The third prints decoded blocks and seconds per clip of the strategy `search` with the shipped checkpoint, and seconds per
clip of a router of the published size (random weights).
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import numpy as np
import scipy
import torch

from adaptok_hf import AdapTokPipeline, AdapTokRouterConfig, AdapTokRouterModel, AllocationRequest
from adaptok_hf.allocation import ipal, solve_program

SOLVERS = ("milp", "dynamic", "lagrangian")


def score_table(kind: str, num_rows: int, num_levels: int, rng: np.random.Generator) -> np.ndarray:
    """A random (num_rows, num_levels) score table, about 0.02 to 0.9 as LPIPS is."""
    if kind == "non-convex":
        return np.sort(rng.uniform(0.02, 0.9, (num_rows, num_levels)), axis=1)[:, ::-1].copy()
    level = np.arange(1, num_levels + 1) / num_levels
    height, rate, rest = (rng.uniform(*bounds, (num_rows, 1)) for bounds in [(0.05, 0.6), (1, 6), (0.02, 0.3)])
    return rest + height * np.exp(-rate * level) + rng.normal(0, 0.003, (num_rows, num_levels))


def measure(programs: list[tuple[np.ndarray, int]], solver: str, seconds: float) -> tuple[float, list[float]]:
    """Median milliseconds per program over rounds that together take about `seconds`, and the objectives."""
    times, objectives = [], []
    begin = time.process_time()
    while not times or time.process_time() - begin < seconds:
        objectives = []
        for scores, total in programs:
            start = time.process_time()
            objectives.append(solve_program(scores, total, solver).objective)
            times.append(1e3 * (time.process_time() - start))
    return statistics.median(times), objectives


def table_row(kind: str, num_rows: int, num_levels: int, arguments: argparse.Namespace) -> str:
    rng = np.random.default_rng([num_rows, num_levels])
    # An average of half the tokens, off the middle by a few levels so that tables of one size differ.
    totals = [num_rows * (num_levels - 1) // 2 - index for index in range(arguments.programs)]
    programs = [(score_table(kind, num_rows, num_levels, rng), max(total, 0)) for total in totals]
    solvers = [s for s in SOLVERS if s != "milp" or num_rows * num_levels <= arguments.milp_variables]
    milliseconds, objectives = {}, {}
    for solver in solvers:
        milliseconds[solver], objectives[solver] = measure(programs, solver, arguments.seconds)
        if not np.allclose(objectives[solver], objectives[solvers[0]], rtol=0, atol=1e-9):
            raise RuntimeError(f"{kind}, {num_rows} rows, {num_levels} levels: the objectives differ: {objectives}")
    cells = [kind, str(num_rows), str(num_levels)]
    for solver in SOLVERS:
        time_taken = milliseconds.get(solver)
        cells += ["", ""] if time_taken is None else [f"{time_taken:.2f}", f"{1e3 * time_taken / num_rows:.1f}"]
    for solver in SOLVERS[1:]:
        cells.append(f"{milliseconds['milp'] / milliseconds[solver]:.1f}x" if "milp" in milliseconds else "")
    return "| " + " | ".join(cells) + " |"


def time_ipal(recipe: dict, latents_per_block: int, step: int, repeats: int) -> None:
    """Print the table of a recipe: clips of `num_blocks` at half of all tokens, then clips of 4 blocks at `clip_budgets`.

    The paper prints average budgets up to 1024, more than a block has: they are taken as tokens of a clip.
    """
    cases = [("blocks", blocks, blocks * latents_per_block // 2, blocks) for blocks in recipe["num_blocks"]]
    cases += [("clip_budget", 4, budget, budget) for budget in recipe["clip_budgets"]]
    rng, batch = np.random.default_rng(0), recipe["allocation_batch"][0]
    print("| blocks | tokens per clip | ms per clip (solver) | ms per clip, paper |\n|---|---|---|---|")
    for key, blocks, budget, value in cases:
        scores = score_table("falling", batch * blocks, latents_per_block // step, rng).reshape(batch, blocks, -1)
        times = []
        for _ in range(repeats):
            start = time.process_time()
            ipal(scores, step=step, budget=budget / blocks, rounding="floor")
            times.append(1e3 * (time.process_time() - start) / batch)
        printed = next((line["milliseconds_per_clip"] for line in recipe["paper"] if line.get(key) == value), "")
        print(f"| {blocks} | {budget} | {statistics.median(times):.3f} | {printed} |", flush=True)
    print(f"\n{batch} clips share a budget; {latents_per_block // step} levels a block.")


def time_search(video: str, repeats: int) -> None:
    """Print what a router takes for one clip, and the table of `search` on the clips of a video."""
    router, times = AdapTokRouterModel(AdapTokRouterConfig()).eval(), []
    pixels = torch.rand(1, router.config.num_frames, 3, router.config.image_size, router.config.image_size)
    for _ in range(repeats):
        start = time.process_time()
        with torch.inference_mode():
            router(pixels)
        times.append(time.process_time() - start)
    print(f"router, {sum(p.numel() for p in router.parameters()) / 1e6:.1f}M parameters: ", end="")
    print(f"{statistics.median(times):.3f} s per clip\n")
    pipeline = AdapTokPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    encoded = pipeline.encode(video)
    clips = len(encoded.codes)
    pipeline.score(encoded, measured=True)  # the candidates of `search`, the same at every budget
    seconds = f"{encoded.seconds['measure'] / clips:.2f} s per clip"
    print(f"{clips} clips; measuring the table of `measured` first takes {seconds}\n")
    print("| budget | decoded blocks per clip | s per clip |\n|---|---|---|")
    for budget in ("6.25%", "12.5%", "25%", "50%"):
        before = encoded.seconds.get("search", 0.0)
        tokens = pipeline.allocate(encoded, AllocationRequest(budget=budget, strategy="search"))
        seconds = encoded.seconds["search"] - before
        blocks = tokens.allocation["decoded_blocks"] / clips
        print(f"| {budget} | {blocks:.0f} | {seconds / clips:.2f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time the exact allocation solvers, the search and a router.")
    parser.add_argument("--rows", type=int, nargs="+", default=[8, 64, 128, 512])
    parser.add_argument("--levels", type=int, nargs="+", default=[8, 16, 64])
    parser.add_argument("--programs", type=int, default=5, help="different tables per size (default 5)")
    parser.add_argument("--seconds", type=float, default=0.2, help="at least this long per solver and size")
    parser.add_argument(
        "--milp-variables", type=int, default=8192, help="leave milp out above this many rows x levels (default 8192)"
    )
    parser.add_argument("--recipe", type=Path, help="time the strategy ipal as in this file instead")
    parser.add_argument("--search", metavar="VIDEO", help="time the strategy search on a video, and a router, instead")
    parser.add_argument(
        "--repeats", type=int, default=20, help="runs of each case of a recipe, and of the router (default 20)"
    )
    arguments = parser.parse_args()

    if arguments.search:
        time_search(arguments.search, arguments.repeats)
        return
    if arguments.recipe:
        time_ipal(json.loads(arguments.recipe.read_text()), latents_per_block=512, step=8, repeats=arguments.repeats)
        return
    print(f"numpy {np.__version__}, scipy {scipy.__version__}, Python {platform.python_version()}; median times\n")
    names = [f"{solver} {unit}" for solver in SOLVERS for unit in ("ms", "us/row")]
    header = ["scores", "rows N", "levels J", *names, "dynamic vs milp", "lagrangian vs milp"]
    print("| " + " | ".join(header) + " |")
    print("|---" * len(header) + "|")
    for kind in ("falling", "non-convex"):
        for num_levels in arguments.levels:
            for num_rows in arguments.rows:
                print(table_row(kind, num_rows, num_levels, arguments), flush=True)


if __name__ == "__main__":
    main()
