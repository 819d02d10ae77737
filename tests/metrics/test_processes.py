"""Two processes give what one gives, also when one of them has fewer videos, or none."""

import json
from pathlib import Path

import pytest
import torch
from builders.metric_networks import PixelFeatures

from adaptok_hf.metrics import (
    PROTOCOLS,
    CodebookUsage,
    FrechetVideoDistance,
    TokenRate,
    VideoPSNR,
    summarize_distance,
)

# which videos the processes take: from, to, and to
ENDS = [(0, 5, 9), (0, 0, 9)]


def measure(start: int, stop: int) -> dict[str, float]:
    """All metrics over these of 9 videos."""
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(9, 4, 3, 8, 8, generator=generator)
    fake = (real + 0.1 * torch.rand(real.shape, generator=generator)).clamp(0, 1)
    codes = torch.randint(0, 50, (9, 2, 4), generator=generator)
    psnr, fvd = VideoPSNR(), FrechetVideoDistance(PixelFeatures())
    usage, rate = CodebookUsage(50), TokenRate(50, 4)
    for i in range(start, stop):
        psnr.update(fake[i : i + 1], real[i : i + 1])
        fvd.update(fake[i : i + 1], real=False)
        fvd.update(real[i : i + 1], real=True)
        usage.update(codes[i : i + 1])
        rate.update(torch.full((1, 2), i % 5), seconds=0.5)
    results = {"psnr": float(psnr.compute()), "fvd": float(fvd.compute())}
    for metric in (usage, rate):
        results |= {key: float(value) for key, value in metric.compute().items()}
    result = summarize_distance(fvd, PROTOCOLS["adaptok_wild_val"], paired=True, resamples=3)
    results |= {f"fvd_{key}": getattr(result, key) for key in ("value", "low", "high", "num_videos")}
    results["floor"] = summarize_distance(fvd, PROTOCOLS["adaptok_wild_val"], resamples=2).floor
    # computing merges for the moment only: each process keeps its state
    results["local"] = [sum(len(values) for values in psnr.values), len(fvd.features()[0])]
    return results


def run(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results = [measure(ends[rank], ends[rank + 1]) for ends in ENDS]
    Path(folder, f"{rank}.json").write_text(json.dumps(results))
    torch.distributed.destroy_process_group()


def test_two_processes_give_what_one_gives(tmp_path):
    # forks need not import anything; they use one thread each, because a thread pool does not survive a fork
    torch.multiprocessing.start_processes(run, (str(tmp_path),), nprocs=2, start_method="fork")
    expected = measure(0, 9)
    expected.pop("local")
    for rank in (0, 1):
        for ends, results in zip(ENDS, json.loads((tmp_path / f"{rank}.json").read_text()), strict=True):
            assert results.pop("local") == [ends[rank + 1] - ends[rank]] * 2
            assert results == pytest.approx(expected, rel=1e-9), (rank, ends)
