"""What the benchmarks of training and of GPUs share: times, in turns, and the speed of the machine itself.

On a CPU times are CPU time of this process, which other work on the machine hardly changes; on a GPU the wall clock up to
the end of its queue.
"""

import statistics
import time
from collections.abc import Callable, Iterable

import torch


def seconds(run: Callable[[], object], device: str = "cpu") -> float:
    """Return what one run takes."""
    if device != "cuda":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def repeat(run: Callable[[], object], device: str, repeats: int, limit: float = float("inf")) -> list[float]:
    """Return the seconds of `repeats` runs, or of fewer where these take more than `limit` together (one at least)."""
    times, end = [], time.perf_counter() + limit
    while not times or (len(times) < repeats and time.perf_counter() < end):
        times.append(seconds(run, device))
    return times


def spread(values: Iterable[float], form: str = "{:.2f}", middle: Callable = statistics.median) -> str:
    """Return the middle of the values, with the lowest and the highest."""
    return f"{form} ({form} to {form})".format(middle(values), min(values), max(values))


def ratios(base: list[float], times: list[float]) -> str:
    """Return how many times faster than `base`: the median of all turns, and the lowest and the highest."""
    return spread([before / now for before, now in zip(base, times, strict=True)], "{:.2f}x")


def matrix_rate(device: str, size: int = 2048, dtype: torch.dtype = torch.bfloat16, repeats: int = 5) -> float:
    """Return the operations per second of a square matrix product, the best of some runs after two to warm up."""
    left, right = torch.randn(2, size, size, device=device).to(dtype)
    times = repeat(lambda: left @ right, device, repeats + 2)
    return 2 * size**3 / min(times[2:])


def copy_rate(device: str, size: int, repeats: int = 5) -> float:
    """Return the bytes per second of a copy of `size` bytes, read and written, the best of some runs after two."""
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    times = repeat(lambda: target.copy_(source), device, repeats + 2)
    return 2 * source.nbytes / min(times[2:])
