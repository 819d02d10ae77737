"""A stream through the shipped checkpoint: memory over time, latency of a block, real-time factor, jumps at clip borders.

    python benchmarks/streaming.py                      # 10 seconds, then 10 minutes, 25 frames per second
    python benchmarks/streaming.py --minutes 1 --videos DATA/wild/val

Frames are generated on the fly (a drifting picture with changing contrast and noise), so that the source has no memory of
its own. Each length runs in a process of its own. Memory is measured three ways: the highest resident size of the process,
asked after every block; its peak as the kernel has it, which is that of loading the model; and what Python and numpy held
at most (tracemalloc, in runs of at most a minute, since it slows Python down). Latency is the wall clock from the arrival
of a block's last frame to its result. CPU milliseconds are those of the whole process per block, making the frames
included; what else the machine does has little influence on them.

The seam: mean absolute difference of consecutive frames (0 to 255) where a clip begins, over the same inside clips, where a
block begins and between frames of a block; in the original and in the reconstruction.
"""

import argparse
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

FPS = 25


def moving_picture(seconds: float, size: int = 128) -> Iterator[np.ndarray]:
    """uint8 (size, size, 3) frames at 25 per second; motion, contrast and noise change over time."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    for number in range(round(seconds * FPS)):
        t = number / FPS
        phase = np.stack([x + 0.3 * t, y - 0.2 * t, x * y + 0.1 * t], axis=-1)
        picture = 0.5 + (0.15 + 0.3 * np.sin(t / 7) ** 2) * np.sin(2 * np.pi * (2 + np.sin(t / 11)) * phase)
        picture = picture + rng.normal(0, 0.05 * np.cos(t / 5) ** 2, picture.shape)
        yield (picture.clip(0, 1) * 255).astype(np.uint8)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def run_stream(seconds: float, settings: dict, model: str | None, trace: bool) -> dict:
    """One stream of this length in this process."""
    from adaptok_hf import AdapTokPipeline

    pipeline = AdapTokPipeline.from_pretrained(model)
    list(pipeline.stream(moving_picture(2), **settings))  # warms up: libraries, thread pools, allocator
    highest, latencies, counts, bits = 0, [], [], 0.0
    if trace:
        import tracemalloc

        tracemalloc.start()
    begin = time.process_time()
    for block in pipeline.stream(moving_picture(seconds), fps=FPS, **settings):
        latencies.append(block.latency)
        counts.append(block.token_count)
        bits += block.bits
        highest = max(highest, resident_bytes())
    latencies.sort()
    result = {
        "blocks": len(latencies),
        "cpu": time.process_time() - begin,
        "compute": sum(latencies),
        "median_ms": 1000 * statistics.median(latencies),
        "p95_ms": 1000 * latencies[int(0.95 * len(latencies))],
        "tokens_per_block": sum(counts) / len(counts),
        "bits_per_second": bits / seconds,
        "resident_highest": highest,
        "peak": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }
    if trace:
        result["traced"] = tracemalloc.get_traced_memory()[1]
    return result


def in_own_process(seconds: float, settings: dict, model: str | None, trace: bool = False) -> dict:
    task = json.dumps({"seconds": seconds, "settings": settings, "model": model, "trace": trace})
    done = subprocess.run([sys.executable, __file__, "--task", task], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return json.loads(done.stdout.splitlines()[-1])


def jumps(frames: np.ndarray, tubelet: int, clip: int) -> dict[str, float]:
    """Mean absolute difference of consecutive frames, by what begins at the second one."""
    difference = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3))
    number = np.arange(1, len(frames))
    return {
        "clip border": float(difference[number % clip == 0].mean()),
        "block border": float(difference[(number % clip != 0) & (number % tubelet == 0)].mean()),
        "inside a block": float(difference[number % tubelet != 0].mean()),
    }


def seam(pipeline, sources: list, settings: dict) -> dict[str, dict[str, float]]:
    config, found = pipeline.tokenizer.config, {"original": [], "reconstruction": []}
    for source in sources:
        blocks = list(pipeline.stream(source, **settings))
        if len(blocks) <= config.num_blocks:
            continue
        for name, pictures in (("original", [b.original for b in blocks]), ("reconstruction", [b.frames for b in blocks])):
            found[name].append(jumps(np.concatenate(pictures), config.tubelet_size, config.num_frames))
    return {
        name: {place: statistics.mean(row[place] for row in rows) for place in rows[0]}
        for name, rows in found.items()
        if rows
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="length of the long stream (default: 10)")
    parser.add_argument("--budget", type=float, default=32, help="average tokens per block (default: 32)")
    parser.add_argument("--videos", nargs="+", default=[], help="files or folders on which the seam is measured as well")
    parser.add_argument("--model", help="pipeline folder (default: the checkpoint in the package)")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.task:
        print(json.dumps(run_stream(**json.loads(arguments.task))))
        return
    settings = {"budget": arguments.budget}
    lengths = {"10 s": 10.0, f"{arguments.minutes:g} min": 60 * arguments.minutes}
    print(f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"shipped checkpoint, budget {arguments.budget:g} tokens per block\n" if not arguments.model else "")
    columns = (
        "stream, blocks, tokens per block, bit/s, ms per block (median), 95%, CPU ms, times real time, MiB, peak MiB, "
        "traced MiB"
    )
    print(f"| {columns.replace(', ', ' | ')} |\n" + "|---" * 11 + "|", flush=True)
    peaks = []
    for name, seconds in lengths.items():
        plain = in_own_process(seconds, settings, arguments.model)
        traced = in_own_process(min(seconds, 60), settings, arguments.model, trace=True)
        peaks.append([plain["resident_highest"], plain["peak"]])
        print(
            f"| {name} | {plain['blocks']} | {plain['tokens_per_block']:.2f} | {plain['bits_per_second']:.0f} | "
            f"{plain['median_ms']:.0f} | {plain['p95_ms']:.0f} | "
            f"{1000 * plain['cpu'] / plain['blocks']:.0f} | {seconds / plain['compute']:.2f} | "
            f"{plain['resident_highest'] / 2**20:.1f} | {plain['peak'] / 2**20:.1f} | {traced['traced'] / 2**20:.2f} |",
            flush=True,
        )
    while_streaming, peak = (long / short for short, long in zip(*peaks, strict=True))
    print(f"\nlong stream over short one: {while_streaming:.4f} while streaming, {peak:.4f} at the peak")

    from adaptok_hf import AdapTokPipeline, read_video

    pipeline = AdapTokPipeline.from_pretrained(arguments.model)
    files = []
    for path in map(Path, arguments.videos):
        files += sorted(path.rglob("*.mp4")) if path.is_dir() else [path]
    cases = {"generated, 6 clips": [list(itertools.islice(moving_picture(10), 96))]}
    if files:
        cases[f"{len(files)} files, up to 6 clips each"] = [read_video(path, max_frames=96) for path in files]
    print("\n| video | tokens | frames | clip border | block border | inside a block | clip border / block border |")
    print("|---" * 7 + "|")
    for name, sources in cases.items():
        for given in ({}, settings):
            for kind, row in seam(pipeline, sources, given).items():
                numbers = " | ".join(f"{value:.2f}" for value in row.values())
                tokens = f"{arguments.budget:g}" if given else "all"
                print(f"| {name} | {tokens} | {kind} | {numbers} | {row['clip border'] / row['block border']:.2f} |")


if __name__ == "__main__":
    main()
