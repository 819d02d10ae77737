"""Line charts as SVG: sharp at any size, in the colours of the page, in light and dark."""

import html
import math
from dataclasses import dataclass, field

_WIDTH, _HEIGHT = 440, 270
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 12, 30, 42


@dataclass
class Line:
    """
    Args:
        name: for the legend.
        points: (x, y) with rising x.
        tone: a class of `style.css`: "adaptive", "fixed", or "shade-0" to "shade-7".
        tips: text of each point, shown when the pointer rests on it.
        dots: whether points are marked.
    """

    name: str
    points: list[tuple[float, float]]
    tone: str
    tips: list[str] = field(default_factory=list)
    dots: bool = True


def line_chart(
    lines: list[Line],
    x_label: str,
    y_label: str,
    description: str,
    x_ticks: list[tuple[float, str]],
    chosen: tuple[float, float, str] | None = None,
) -> str:
    """An SVG chart with a logarithmic x axis.

    Args:
        description: read out instead of the picture.
        x_ticks: (x, label).
        chosen: (x, y, label) of a point that is marked.
    """
    everything = [point for line in lines for point in line.points] + ([chosen[:2]] if chosen else [])
    xs, ys = [point[0] for point in everything], [point[1] for point in everything]
    y_ticks = _ticks(min(ys), max(ys))
    low, high = min(y_ticks[0], min(ys)), max(y_ticks[-1], max(ys))
    x_low, x_span = math.log(min(xs)), math.log(max(xs)) - math.log(min(xs)) or 1

    def at(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - x_low) / x_span
        return (
            round(_LEFT + 8 + across * (_WIDTH - _LEFT - _RIGHT - 16), 1),
            round(_HEIGHT - _BOTTOM - (y - low) / (high - low or 1) * (_HEIGHT - _TOP - _BOTTOM), 1),
        )

    parts = []
    digits = max(0, -math.floor(math.log10(y_ticks[1] - y_ticks[0] + 1e-12))) if len(y_ticks) > 1 else 1
    for tick in y_ticks:
        y = at(xs[0], tick)[1]
        parts.append(f'<line class="at-grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_LEFT - 7}" y="{y + 4}" text-anchor="end">{tick:.{digits}f}</text>')
    for x, label in x_ticks:
        parts.append(
            f'<text x="{at(x, low)[0]}" y="{_HEIGHT - _BOTTOM + 18}" text-anchor="middle">{html.escape(label)}</text>'
        )
    parts.append(
        f'<text class="at-axis" x="{_WIDTH - _RIGHT}" y="{_HEIGHT - 6}" text-anchor="end">{html.escape(x_label)}</text>'
    )
    parts.append(f'<text class="at-axis" x="4" y="14">{html.escape(y_label)}</text>')
    for line in lines:
        places = [at(*point) for point in line.points]
        parts.append(f'<polyline class="at-{line.tone}" points="{" ".join(f"{x},{y}" for x, y in places)}"/>')
        tips = line.tips or [""] * len(places)
        for (x, y), tip in zip(places if line.dots else [], tips, strict=False):
            parts.append(
                f'<circle class="at-{line.tone}" cx="{x}" cy="{y}" r="4"><title>{html.escape(tip)}</title></circle>'
            )
    if chosen:
        x, y = at(*chosen[:2])
        anchor, label_x = ("end", x - 9) if x > _LEFT + 100 else ("start", x)
        parts.append(f'<circle class="at-chosen" cx="{x}" cy="{y}" r="8"/>')
        label_y = max(y - 13, _TOP - 4)
        parts.append(
            f'<text class="at-chosen" x="{label_x}" y="{label_y}" text-anchor="{anchor}">{html.escape(chosen[2])}</text>'
        )
    legend = "".join(
        f'<span class="at-swatch at-{line.tone}">{html.escape(line.name)}</span>' for line in lines if line.name
    )
    return (
        f'<div class="at-chart"><p class="at-legend">{legend}</p><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(description)}">{"".join(parts)}</svg></div>'
    )


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers that reach from below `low` to above `high`."""
    span = high - low or abs(high) or 1
    unit = 10 ** math.floor(math.log10(span / count))
    step = next(unit * factor for factor in (1, 2, 5, 10) if span / (unit * factor) <= count)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 10) for index in range(first, last + 1)]
