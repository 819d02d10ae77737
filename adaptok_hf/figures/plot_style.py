"""The style of all plots: small, plain, safe for color-blind readers, and without a display."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..atomic_files import atomic_file

# Okabe and Ito's palette; markers differ too, for print without colors.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

_STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "lines.linewidth": 1.4,
    "lines.markersize": 4.5,
    "legend.frameon": False,
    "figure.dpi": 150,
}


@contextmanager
def figure_file(path: str | Path, width: float, height: float, rows: int = 1, columns: int = 1, **subplots) -> Iterator:
    """Yield a figure and its axes (rows, columns); the PNG is written on leaving.

    Args:
        width, height: inches.
    """
    import matplotlib
    from matplotlib.figure import Figure  # rendered by Agg, without pyplot and its global state

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False, **subplots)
        yield figure, axes
        with atomic_file(path) as partial:
            figure.savefig(partial, format="png")
