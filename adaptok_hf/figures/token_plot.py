"""Tokens and quality of a video over time."""

from pathlib import Path
from typing import Any

import numpy as np


def plot_tokens(path: Path, report: dict[str, Any], block_times: np.ndarray) -> None:
    """A PNG with the tokens (bars) and the PSNR (line) of each block over the seconds of the video."""
    from matplotlib.figure import Figure

    counts, psnr = report["token_counts"], report["psnr_db_per_block"]
    ends = np.append(block_times[1:], max(report["seconds_of_video"], block_times[-1] + 1 / report["fps"]))
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.bar(block_times, counts, width=0.92 * (ends - block_times), align="edge", color="#5676a8")
    axes.axhline(report["tokens_per_block"], color="#5676a8", linestyle=":", linewidth=1)
    axes.set(xlabel="seconds", ylabel="tokens per block", ylim=(0, report["latents_per_block"] * 1.02))
    quality = axes.twinx()
    quality.plot((block_times + ends) / 2, psnr, color="#d9822b", marker="o", markersize=3, linewidth=1.4)
    quality.set_ylabel("PSNR (dB)", color="#d9822b")
    axes.set_title(
        f"{report['tokens_per_block']:.1f} tokens per block on average, {report['bits_per_second'] / 1000:.1f} kbit/s, "
        f"PSNR {report['psnr_db']:.2f} dB",
        fontsize=10,
    )
    figure.savefig(path, dpi=120)
