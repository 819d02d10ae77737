"""Draws the logs of runs of the tiny recipes, a figure for each, as `training_curves_<recipe>.png` next to this file.

    python docs/images/make_training_curves.py runs/tokenizer_tiny runs/scorer_tiny ...

A folder is a run's `output_dir`; its name is the figure's. What is plotted of a log follows from the names in it.
"""

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

HERE = Path(__file__).parent
# A panel is plotted if one of its entries is in the log: title, and entries (those of one stage have one scale).
PANELS = [
    ("loss", ("loss", "val_loss", "val_rmse")),
    ("reconstruction loss", ("l1", "perceptual")),
    ("codes used", ("codes_used",)),
    ("prior (nats per token)", ("prior",)),
    ("PSNR of validation clips (dB), by tokens kept", ("psnr_1/16", "psnr_1/4", "psnr_full")),
    ("rank correlation", ("rank_correlation_across_levels", "rank_correlation_across_clips")),
    ("accuracy", ("accuracy", "val_accuracy")),
]


def read_log(run: Path) -> dict[str, tuple[list[int], list[float]]]:
    """Steps and values of each entry of `metrics.jsonl`; of a step that was logged twice (a resumed run) the later."""
    entries: dict[str, dict[int, float]] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record.items():
            if name != "step" and isinstance(value, int | float):
                entries.setdefault(name, {})[record["step"]] = value
    return {name: tuple(zip(*sorted(points.items()), strict=True)) for name, points in entries.items()}


def draw(run: Path, output: Path) -> None:
    """Writes the figure of a run.

    Raises:
        ValueError: if the log has nothing to plot.
    """
    log = read_log(run)
    panels = [(title, [name for name in names if name in log]) for title, names in PANELS]
    panels = [(title, names) for title, names in panels if names]
    if not panels:
        raise ValueError(f"{run / 'metrics.jsonl'} has none of the entries to plot, but {sorted(log)}")
    figure, axes = pyplot.subplots(1, len(panels), figsize=(3 * len(panels), 2.2), layout="constrained", squeeze=False)
    for axis, (title, names) in zip(axes[0], panels, strict=True):
        for name in names:
            steps, values = log[name]
            axis.plot(steps, values, label=name, linewidth=1, marker="." if len(steps) < 15 else None)
        axis.set_title(title, fontsize=7)
        axis.set_xlabel("step", fontsize=7)
        axis.tick_params(labelsize=7)
        axis.grid(alpha=0.3)
        if len(names) > 1:
            axis.legend(fontsize=6)
    figure.savefig(output, dpi=80)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="folders with a metrics.jsonl")
    for run in parser.parse_args().runs:
        output = HERE / f"training_curves_{run.name}.png"
        draw(run, output)
        print(f"{output} ({output.stat().st_size / 1000:.0f} kB)")


if __name__ == "__main__":
    main()
