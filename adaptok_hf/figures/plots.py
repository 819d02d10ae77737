"""Pictures of an evaluation. Every function takes plain data and writes one PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from .plot_style import COLORS, MARKERS, figure_file


def plot_rate_distortion(path: str | Path, curves: Mapping[str, Sequence[tuple]], ylabel: str, maximum: int) -> Path:
    """Draw a metric over tokens, one line per strategy, with bands.

    Args:
        curves: name -> points (tokens per block, value, low, high); low and high may be `None`.
        maximum: tokens of a full block.
    """
    with figure_file(path, 4.6, 3.3) as (_, axes):
        ax = axes[0, 0]
        ticks = set()
        for index, (name, points) in enumerate(curves.items()):
            points = sorted(points)
            tokens, values = [point[0] for point in points], [point[1] for point in points]
            ticks |= set(tokens) if index == 0 else set()
            color = COLORS[index % len(COLORS)]
            ax.plot(tokens, values, color=color, marker=MARKERS[index % len(MARKERS)], label=name, alpha=0.9)
            band = [point for point in points if point[2] is not None]
            if len(band) > 1:
                ax.fill_between(
                    [p[0] for p in band], [p[2] for p in band], [p[3] for p in band], color=color, alpha=0.05, linewidth=0
                )
        ax.set_xscale("log", base=2)
        shown = sorted(ticks) or [1, maximum]
        ax.set_xticks(shown, [f"{tick:g}" for tick in shown])
        ax.minorticks_off()
        ax.set(xlabel=f"tokens per block (of {maximum})", ylabel=ylabel)
        ax.legend(ncols=2)
    return Path(path)


def plot_differences(path: str | Path, rows: Mapping[str, Sequence[tuple]], ylabel: str) -> Path:
    """Draw what strategies gain over `fixed` on the same clips, with intervals.

    Args:
        rows: strategy -> points (budget, difference, low, high).
    """
    budgets = sorted({point[0] for points in rows.values() for point in points})
    with figure_file(path, 5.0, 3.0) as (_, axes):
        ax = axes[0, 0]
        for index, (name, points) in enumerate(rows.items()):
            shift = (index - (len(rows) - 1) / 2) * 0.8 / max(1, len(rows))
            x = [budgets.index(point[0]) + shift for point in points]
            values = np.array([point[1] for point in points])
            errors = np.abs(np.array([[p[1] - p[2], p[3] - p[1]] for p in points]).T)
            ax.errorbar(
                x, values, yerr=errors, fmt=MARKERS[index % len(MARKERS)], color=COLORS[(index + 1) % len(COLORS)],
                label=name, capsize=2, linewidth=1,
            )  # fmt: skip
        ax.axhline(0, color="#444444", linewidth=0.8)
        ax.set_xticks(range(len(budgets)), [f"{budget:g}" for budget in budgets])
        ax.grid(axis="x", visible=False)
        ax.set(xlabel="budget (tokens per block)", ylabel=ylabel)
        ax.legend(ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.16))
    return Path(path)


def plot_score_curves(
    path: str | Path, predicted: ArrayLike, measured: ArrayLike, levels: Sequence[int], names: Sequence[str], loss: str
) -> Path:
    """Draw predicted and measured loss over tokens (the paper's Fig. J): a row per clip, a column per block.

    Args:
        predicted, measured: (clips, blocks, levels).
        levels: tokens at each level.
        names: of the clips.
        loss: what is measured, for the axis.
    """
    clips, blocks, _ = predicted.shape
    with figure_file(path, 1.75 * blocks + 0.5, 1.5 * clips + 0.7, clips, blocks, sharex=True, sharey="row") as (fig, axes):
        for clip in range(clips):
            for block in range(blocks):
                ax = axes[clip, block]
                ax.plot(levels, measured[clip, block], color=COLORS[0], label="measured")
                ax.plot(levels, predicted[clip, block], color=COLORS[1], linestyle="--", label="predicted")
                if clip == 0:
                    ax.set_title(f"block {block + 1}")
            axes[clip, 0].set_ylabel(names[clip])
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, ncols=2, loc="outside upper center")
        fig.supxlabel("tokens of the block", fontsize=9)
        fig.supylabel(loss, fontsize=9)
    return Path(path)


def plot_tokens_over_time(
    path: str | Path,
    frames: np.ndarray,
    token_counts: Sequence[int],
    frames_per_block: int,
    fps: float,
    cuts: Sequence[int],
    maximum: int,
    title: str = "",
) -> Path:
    """Draw the tokens of each block over a video, its frames above, scene cuts as lines (the paper's Figs. E and F).

    Args:
        frames: uint8 (frames, height, width, 3).
        token_counts: of each block, in order.
        cuts: index of each first frame after a cut.
    """
    seconds = len(frames) / fps
    starts = np.arange(len(token_counts)) * frames_per_block / fps
    widths = np.diff([*starts, seconds])  # the last block may be cut short
    shown = 10
    with figure_file(path, 7.0, 2.9, 2, 1, gridspec_kw={"height_ratios": [1, 2.1]}) as (_, axes):
        strip, ax = axes[0, 0], axes[1, 0]
        picked = ((np.arange(shown) + 0.5) * len(frames) / shown).astype(int)
        strip.imshow(np.concatenate(list(frames[picked]), axis=1), extent=(0, seconds, 0, seconds / shown), aspect="auto")
        strip.set_axis_off()
        strip.set_title(title)
        ax.bar(starts, token_counts, width=0.92 * widths, align="edge", color=COLORS[0])
        for index, cut in enumerate(cuts):
            label = "scene cut" if index == 0 else None
            ax.axvline(cut / fps, color=COLORS[1], linestyle="--", linewidth=1.1, label=label)
        ax.axhline(float(np.mean(token_counts)), color="#444444", linestyle=":", linewidth=1, label="mean")
        ax.set(xlabel="seconds", ylabel="tokens of the block", xlim=(0, seconds), ylim=(0, maximum * 1.03))
        ax.grid(axis="x", visible=False)
        ax.legend(ncols=2, loc="upper right", bbox_to_anchor=(1, 1.17))
    return Path(path)


def plot_tokens(path: str | Path, report: dict[str, Any], block_times: np.ndarray) -> Path:
    """Draw the tokens of each block over the seconds of the video, and below, on an axis from zero, its PSNR.

    Args:
        report: of `adaptok reconstruct`.
        block_times: (blocks,) seconds at which blocks begin.
    """
    ends = np.append(block_times[1:], max(report["seconds_of_video"], block_times[-1] + 1 / report["fps"]))
    panels = (  # values, axis, mean, least top of the axis, legend
        ("token_counts", "tokens of the block", report["tokens_per_block"], report["latents_per_block"], "mean: {:.1f}"),
        ("psnr_db_per_block", "PSNR (dB)", report["psnr_db"], 40, "whole video: {:.2f} dB"),
    )
    with figure_file(path, 7.0, 4.0, 2, 1, sharex=True) as (_, axes):
        for ax, color, (key, label, mean, most, text) in zip(axes[:, 0], COLORS, panels, strict=False):
            ax.bar(block_times, report[key], width=0.92 * (ends - block_times), align="edge", color=color)
            ax.axhline(mean, color="#444444", linestyle=":", linewidth=1, label=text.format(mean))
            ax.set(ylabel=label, xlim=(block_times[0], ends[-1]), ylim=(0, 1.02 * max(most, *report[key])))
            ax.grid(axis="x", visible=False)
            ax.legend(loc="lower right", bbox_to_anchor=(1, 0.98), borderaxespad=0)
        axes[0, 0].set_title(f"{report['tokens']} tokens, {report['tokens_per_second']:.0f} per second", loc="left")
        axes[1, 0].set_xlabel("seconds")
    return Path(path)


def plot_attention(path: str | Path, frames: np.ndarray, maps: np.ndarray, tokens: Sequence[int], layer: int) -> Path:
    """Draw attention maps (the paper's Fig. I): a row per token, a column per block, over the block's first frame.

    Args:
        frames: uint8 (blocks, height, width, 3).
        maps: (tokens, blocks, grid, grid), attention of each to the patches of its own block.
        tokens: index of each token within its block.
        layer: of the encoder, for the caption.
    """
    blocks, (height, width) = len(frames), frames.shape[1:3]
    gray = np.repeat(frames.mean(axis=3, keepdims=True) / 255, 3, axis=3)
    with figure_file(path, 1.25 * blocks + 0.5, 1.3 * (len(tokens) + 1), len(tokens) + 1, blocks) as (figure, axes):
        for block in range(blocks):
            axes[0, block].imshow(frames[block])
            axes[0, block].set_title(f"block {block + 1}")
            for row in range(len(tokens)):
                ax, weights = axes[row + 1, block], maps[row, block]
                ax.imshow(0.3 + 0.7 * gray[block])
                extent = (-0.5, width - 0.5, height - 0.5, -0.5)
                ax.imshow(weights, extent=extent, cmap="magma", alpha=0.6, vmin=0, interpolation="bilinear")
                ax.text(0.04, 0.06, f"{weights.sum():.0%}", color="white", fontsize=7, transform=ax.transAxes)
        for row, ax in enumerate(axes[:, 0]):
            ax.set_ylabel("input" if row == 0 else f"token {tokens[row - 1] + 1}")
        for ax in axes.flat:
            ax.set(xticks=[], yticks=[])
            ax.grid(False)
            for spine in ax.spines.values():
                spine.set_visible(False)
        text = f"encoder layer {layer + 1}; each map has its own scale; number: attention spent on the block's patches"
        figure.supxlabel(text, fontsize=7)
    return Path(path)
