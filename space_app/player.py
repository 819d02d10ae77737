"""The HTML of what the tabs show. `player.js` keeps the videos of a player in step, `style.css` gives it its looks."""

import html
from dataclasses import dataclass

import numpy as np
from media import video_uri


@dataclass
class Panel:
    """
    Args:
        title: what the video is.
        frames: uint8 (frames, height, width, 3).
        caption: its numbers.
        tone: "plain", "adaptive" or "fixed", the color of its title.
    """

    title: str
    frames: np.ndarray
    caption: str = ""
    tone: str = "plain"


def player(panels: list[Panel], fps: float, bars: str = "", given_frames: int = 0) -> str:
    """Videos side by side that play in step, with one control and a bar chart whose mark moves with them.

    Args:
        bars: HTML of `token_bars`.
        given_frames: frames at the start that are marked as given.
    """
    seconds = len(panels[0].frames) / fps
    screens = "".join(
        f'<div class="at-screen at-{panel.tone}"><div class="at-glass">'
        f'<video src="{video_uri(panel.frames, fps)}" muted playsinline preload="auto" '
        f'aria-label="{html.escape(panel.title)}"></video><span class="at-badge">given</span></div>'
        f'<p class="at-title">{html.escape(panel.title)}</p><p class="at-caption">{html.escape(panel.caption)}</p></div>'
        for panel in panels
    )
    given = f' data-given="{given_frames / fps:.4f}"' if given_frames else ""
    return (
        f'<div class="at-player" data-seconds="{seconds:.4f}"{given}>'
        f'<div class="at-screens at-of-{min(len(panels), 4)}">{screens}</div>'
        '<div class="at-controls"><button type="button" class="at-play" aria-label="Play">'
        '<svg viewBox="0 0 16 16" aria-hidden="true"><path class="at-go" d="M4 2.5v11l9-5.5z"/>'
        '<path class="at-halt" d="M3.5 2.5h3v11h-3zM9.5 2.5h3v11h-3z"/></svg></button>'
        f'<input class="at-seek" type="range" min="0" max="{seconds:.4f}" step="0.01" value="0" '
        'aria-label="Position in seconds">'
        f'<span class="at-clock">0.0 / {seconds:.1f} s</span></div>{bars}</div>'
    )


def token_bars(
    counts: list[int],
    most: int,
    frames: list[int],
    reference: list[int] | None = None,
    legend: str = "tokens per block",
    reference_legend: str = "best constant schedule",
) -> str:
    """Return one bar per block over time, with its count below; dashed marks where `reference` would be.

    Args:
        counts: tokens of each block.
        most: tokens of a full bar.
        frames: frames of each block, its width.
        reference: tokens of each block to compare with.
    """
    few = len(counts) <= 24
    bars = "".join(
        f'<span class="at-bar" style="flex-grow:{width}" title="block {index + 1}: {count} tokens">'
        f'<span class="at-well"><i style="--h:{count / most:.4f}"></i>'
        + (f'<u style="--h:{reference[index] / most:.4f}"></u>' if reference else "")
        + f"</span>{f'<b>{count}</b>' if few else ''}</span>"
        for index, (count, width) in enumerate(zip(counts, frames, strict=True))
    )
    dashed = f'<span class="at-key at-key-line">{html.escape(reference_legend)}</span>' if reference else ""
    values = ", ".join(map(str, counts))
    return (
        f'<div class="at-bars" role="img" aria-label="Tokens of each block: {values}"><div class="at-plot">{bars}'
        f'<span class="at-head"></span></div><p class="at-legend"><span class="at-key">{html.escape(legend)}</span>{dashed}'
        f'<span class="at-most">full height: {most}</span></p></div>'
    )


def tiles(entries: list[tuple[str, str, str]]) -> str:
    """Numbers that can be read from afar.

    Args:
        entries: (label, value, remark).
    """
    cells = "".join(
        f"<div><dt>{html.escape(label)}</dt><dd>{html.escape(value)}</dd>"
        f'<dd class="at-remark">{html.escape(remark)}</dd></div>'
        for label, value, remark in entries
    )
    return f'<dl class="at-tiles">{cells}</dl>'


def note(text: str) -> str:
    """A line next to a result; "" for no text."""
    return f'<p class="at-note">{html.escape(text)}</p>' if text else ""


def waiting(text: str, share: float | None = None) -> str:
    """What stands in the place of a result until it is there."""
    bar = "" if share is None else f'<span class="at-progress"><i style="width:{100 * share:.0f}%"></i></span>'
    return f'<div class="at-empty" role="status"><p>{html.escape(text)}</p>{bar}</div>'
