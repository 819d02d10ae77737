"""Files streamed through the shipped checkpoint: memory over time, latency of a block, real-time factor, clip borders.

    python benchmarks/streaming.py                      # 10 seconds, then 10 minutes, 25 frames per second
    python benchmarks/streaming.py --minutes 1 --videos DATA/wild/val
    python benchmarks/streaming.py --real-time examples/surfing.mp4     # only whether a file keeps up with 25 per second

The two inputs are made first: mp4 files (H.264) of a drifting picture with changing contrast and noise. Each is streamed in
a process of its own, so that neither inherits memory. Memory is the resident set as the kernel counts it, with the model,
the libraries and the decoder of the file: its peak from the first frame on (after a warm-up of eight blocks), and the peak
of the whole process, which is that of loading the model if that is higher. Latency is the wall clock from the arrival of a
block's last frame to its result. CPU milliseconds are those of the whole process per block, reading the file included; what
else the machine does has little influence on them. Needs Linux (/proc).

The seam: mean absolute difference of consecutive frames (0 to 255) where a clip begins, over the same inside clips, where a
block begins and between frames of a block; in the original and in the reconstruction.
"""

import argparse
import itertools
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from codec import machine, print_row, resident
from made_video import FPS, moving_picture
from timing import spread

from adaptok_hf import AdapTokPipeline, read_video, write_video


def run_stream(path: str, settings: dict, model: str | None) -> dict:
    """Stream one file in this process."""
    pipeline = AdapTokPipeline.from_pretrained(model)
    list(itertools.islice(pipeline.stream(path, **settings), 8))  # warms up: libraries, thread pools, allocator
    before = resident("VmHWM")
    Path("/proc/self/clear_refs").write_text("5")  # restarts VmHWM
    latencies, tokens, bits, frames = [], 0, 0.0, 0
    begin = time.process_time()
    for block in pipeline.stream(path, **settings):
        latencies.append(block.latency)
        tokens, bits, frames = tokens + block.token_count, bits + block.bits, frames + block.num_frames
    cpu, streaming = time.process_time() - begin, resident("VmHWM")
    latencies.sort()
    return {
        "frames": frames,
        "blocks": len(latencies),
        "cpu": cpu,
        "compute": sum(latencies),
        "median_ms": 1000 * statistics.median(latencies),
        "p95_ms": 1000 * latencies[int(0.95 * len(latencies))],
        "tokens_per_block": tokens / len(latencies),
        "bits_per_second": bits * FPS / frames,
        "streaming": streaming,
        "peak": max(before, streaming),
    }


def compare_lengths(minutes: float, settings: dict, model: str | None) -> None:
    """Make the short and the long file, stream each and print a row for it, then the ratios of their memory."""
    columns = (
        "stream, frames, blocks, tokens per block, bit/s, ms per block (median), 95%, CPU ms, times real time, "
        "peak MiB while streaming, peak MiB of the process"
    )
    print(f"| {columns.replace(', ', ' | ')} |\n" + "|---" * 11 + "|", flush=True)
    peaks = []
    with tempfile.TemporaryDirectory() as folder:
        for name, seconds in {"10 s": 10.0, f"{minutes:g} min": 60 * minutes}.items():
            path = Path(folder) / f"{seconds:g}.mp4"
            write_video(path, moving_picture(seconds), FPS)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                row = pool.apply(run_stream, (str(path), settings, model))
            peaks.append([row["streaming"], row["peak"]])
            print(
                f"| {name} | {row['frames']} | {row['blocks']} | {row['tokens_per_block']:.2f} | "
                f"{row['bits_per_second']:.0f} | {row['median_ms']:.0f} | {row['p95_ms']:.0f} | "
                f"{1000 * row['cpu'] / row['blocks']:.0f} | {row['frames'] / FPS / row['compute']:.2f} | "
                f"{row['streaming'] / 2**20:.1f} | {row['peak'] / 2**20:.1f} |",
                flush=True,
            )
    streaming, peak = (long / short for short, long in zip(*peaks, strict=True))
    print(
        f"\npeak memory of the long stream over the short one: {streaming:.4f} while streaming, {peak:.4f} of the process"
    )


def report_real_time(path: str, budget: float, repeats: int, model: str | None) -> None:
    """Print latency and speed of `adaptok stream`, by precision, with all tokens and on a budget."""
    print_row(["precision", "tokens", "ms per block", "95%", "frames per second", "share of real time", "CPU, of a core"])
    print_row(["---"] * 7)
    for dtype in ("float32", "bfloat16"):
        pipeline = AdapTokPipeline.from_pretrained(model, dtype=dtype)
        for options in ({}, {"budget": budget}):
            columns = []
            list(pipeline.stream(path, output_type="uint8", **options))  # warms up
            for _ in range(repeats):
                wall, cpu = time.perf_counter(), time.process_time()
                blocks = list(pipeline.stream(path, output_type="uint8", **options))
                wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
                seconds = sum(block.num_frames for block in blocks) / FPS
                latencies = sorted(1000 * block.latency for block in blocks)
                slow = latencies[int(0.95 * len(latencies))]
                columns.append((statistics.median(latencies), slow, seconds * FPS / wall, wall / seconds, cpu / seconds))
            latency, slow, fps, *shares = zip(*columns, strict=True)
            cells = [spread(latency, "{:.0f}"), spread(slow, "{:.0f}"), spread(fps, "{:.1f}"), *map(spread, shares)]
            print_row([dtype, str(options.get("budget", "all")), *cells])


def jumps(frames: np.ndarray, tubelet: int, clip: int) -> dict[str, float]:
    """Mean absolute difference of consecutive frames, by what begins at the second one."""
    difference = np.abs(np.diff(frames.astype(np.int16), axis=0)).mean((1, 2, 3))
    number = np.arange(1, len(frames))
    return {
        "clip border": float(difference[number % clip == 0].mean()),
        "block border": float(difference[(number % clip != 0) & (number % tubelet == 0)].mean()),
        "inside a block": float(difference[number % tubelet != 0].mean()),
    }


def seam(pipeline: AdapTokPipeline, sources: list, settings: dict) -> dict[str, dict[str, float]]:
    """Return the mean `jumps` of the sources that are longer than a clip."""
    config, rows = pipeline.tokenizer.config, {"original": [], "reconstruction": []}
    for source in sources:
        blocks = list(pipeline.stream(source, output_type="uint8", **settings))
        if len(blocks) > config.num_blocks:
            for name, pictures in zip(rows, zip(*((b.original, b.frames) for b in blocks), strict=True), strict=True):
                rows[name].append(jumps(np.concatenate(pictures), config.tubelet_size, config.num_frames))
    return {name: {place: statistics.mean(row[place] for row in each) for place in each[0]} for name, each in rows.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10, help="length of the long stream (default: 10)")
    parser.add_argument("--budget", type=float, default=32, help="average tokens per block (default: 32)")
    parser.add_argument("--videos", nargs="+", default=[], help="files or folders on which the seam is measured as well")
    parser.add_argument("--real-time", metavar="FILE", help="only stream this file, and compare with 25 frames a second")
    parser.add_argument("--repeats", type=int, default=5, help="with --real-time (default: 5)")
    parser.add_argument("--model", help="pipeline folder (default: the checkpoint in the package)")
    arguments = parser.parse_args()
    settings = {"budget": arguments.budget}
    print(f"{arguments.model or 'shipped checkpoint'}, budget {arguments.budget:g} tokens per block\n{machine('cpu')}\n")
    if arguments.real_time:
        return report_real_time(arguments.real_time, arguments.budget, arguments.repeats, arguments.model)
    compare_lengths(arguments.minutes, settings, arguments.model)

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
        for options in ({}, settings):
            for kind, row in seam(pipeline, sources, options).items():
                numbers = " | ".join(f"{value:.2f}" for value in row.values())
                tokens = f"{arguments.budget:g}" if options else "all"
                print(f"| {name} | {tokens} | {kind} | {numbers} | {row['clip border'] / row['block border']:.2f} |")


if __name__ == "__main__":
    main()
