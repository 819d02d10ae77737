"""Reconstruct: a video on a token budget, next to the best constant schedule of as many tokens."""

import html
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
from encoding import baseline, counts_over_time, default_budget, psnr, spread, ssim, token_levels
from media import tokens_uri
from player import Panel, note, player, tiles, token_bars, waiting
from uploads import LIMITS, MAX_CLIPS, read_upload

from adaptok_hf import AdapTokPipeline, AllocationRequest, EncodedVideos, TokenizedVideo
from adaptok_hf.allocation import STRATEGIES

# Budgets of the curve.
_CURVE_POINTS = 5
_CURVE_COLUMNS = ["tokens per block", "PSNR, dB", "allocation"]


def strategies(pipeline: AdapTokPipeline) -> list[str]:
    """The strategies that this pipeline can run while somebody waits, its default first."""
    available = pipeline.scorer is not None, pipeline.router is not None, pipeline.has_schedules
    usable = [name for name, row in STRATEGIES.items() if name != "search" and row.is_usable(*available)]
    default = AllocationRequest(budget=1).choose_strategy(*available).name
    return sorted(usable, key=lambda name: name != default)


def reconstruct(
    pipeline: AdapTokPipeline,
    path: str | None,
    strategy: str | None = None,
    budget: float | None = None,
    price: float | None = None,
    threshold: float | None = None,
) -> Iterator[tuple[str, pd.DataFrame | None, dict[str, Any]]]:
    """Yield the players first, then the same with the rate-distortion curve of this clip.

    Args:
        path: a video file.
        strategy: one of `strategies(pipeline)`; default: the first.
        budget: tokens per block, on average, rounded down to what the blocks can spend; not for `quality` and `threshold`.
        price: predicted loss that 1000 tokens must save, for `quality`.
        threshold: predicted loss, for `threshold`.

    Yields:
        HTML of the result, the points of the curve (first `None`), and the numbers.

    Raises:
        ValueError: for a bad upload or a budget that cannot be met.
    """
    strategy = strategy or strategies(pipeline)[0]
    upload = read_upload(pipeline, path)
    encoded = pipeline.encode(upload.video)
    tokens = pipeline.allocate(encoded, _request(pipeline, strategy, budget, price, threshold))
    counts = counts_over_time(pipeline, tokens)
    mean = sum(counts) / len(counts)
    name, request = baseline(pipeline, encoded, mean)
    constant_tokens = pipeline.allocate(encoded, request)
    constant_counts = counts_over_time(pipeline, constant_tokens)

    original = upload.video.frames
    frames = pipeline.decode(tokens)
    same = constant_tokens.token_counts.equal(tokens.token_counts)
    constant_frames = frames if same else pipeline.decode(constant_tokens)
    report = {
        "video": upload.name,
        "frames": tokens.num_frames,
        "fps": round(tokens.fps, 3),
        "strategy": strategy,
        "tokens": tokens.num_tokens,
        "budget": tokens.allocation.get("budget"),
        "tokens_per_block": round(mean, 3),
        "token_counts": counts,
        "bits_per_second": round(tokens.bits_per_second, 1),
        "psnr_db": round(psnr(frames, original), 3),
        "ssim": round(ssim(frames, original), 4),
        "baseline": {
            "strategy": name,
            "tokens_per_block": round(sum(constant_counts) / len(constant_counts), 3),
            "token_counts": constant_counts,
            "psnr_db": round(psnr(constant_frames, original), 3),
        },
    }
    result = _show(pipeline, tokens, report, original, frames, constant_frames, upload.note)
    yield result, None, report

    known = {
        tuple(counts): report["psnr_db"],
        tuple(constant_counts): report["baseline"]["psnr_db"],
    }
    report["curve"] = _measure_curve(pipeline, encoded, original, known)
    yield result, _curve_table(report), report


def _request(
    pipeline: AdapTokPipeline, strategy: str, budget: float | None, price: float | None, threshold: float | None
) -> AllocationRequest:
    if strategy not in strategies(pipeline):
        raise ValueError(f"The allocation must be one of {', '.join(strategies(pipeline))}, not {strategy!r}.")
    values = {"budget": budget, "price": None if price is None else price / 1000, "threshold": threshold}
    needed = STRATEGIES[strategy].needs
    value = values[needed]
    if value is None and needed == "budget":
        value = default_budget(pipeline)
    elif value is None:
        value = default_price(pipeline) / 1000 if needed == "price" else pipeline.scorer.config.score_mean
    return AllocationRequest(**{needed: value}, strategy=strategy)


def _describe(strategy: str) -> gr.Dropdown:
    return gr.Dropdown(info=STRATEGIES[strategy].summary)


def default_price(pipeline: AdapTokPipeline) -> float:
    """Loss per 1000 tokens: about what the middle tokens of a block save, by the scorer's spread of losses."""
    return round(500 * pipeline.scorer.config.score_std / pipeline.tokenizer.config.latents_per_block, 4)


def _measure_curve(
    pipeline: AdapTokPipeline, encoded: EncodedVideos, original: np.ndarray, known: dict[tuple[int, ...], float]
) -> dict[str, list[dict[str, float]]]:
    """PSNR at a few budgets. `known` has that of counts that were decoded before."""
    curve: dict[str, list[dict[str, float]]] = {}
    default = strategies(pipeline)[0]
    for budget in spread(token_levels(pipeline), _CURVE_POINTS):
        requests = dict([baseline(pipeline, encoded, budget)])
        if pipeline.scorer is not None:
            requests = {default: AllocationRequest(budget=budget, strategy=default)} | requests
        for strategy, request in requests.items():
            tokens = pipeline.allocate(encoded, request)
            key = tuple(counts_over_time(pipeline, tokens))
            if key not in known:
                known[key] = psnr(pipeline.decode(tokens), original)
            curve.setdefault(strategy, []).append(
                {
                    "tokens_per_block": round(sum(key) / len(key), 3),
                    "psnr_db": round(known[key], 3),
                }
            )
    return curve


def _show(pipeline, tokens: TokenizedVideo, report: dict, original, frames, constant_frames, left_out: str) -> str:
    config = pipeline.tokenizer.config
    counts, constant = report["token_counts"], report["baseline"]
    mean, most = report["tokens_per_block"], config.latents_per_block
    adaptive = report["strategy"] != "fixed"
    panels = [Panel("Original", original, f"{config.image_size} × {config.image_size}")]
    asked = "" if report["budget"] in (None, mean) else f" of {report['budget']:g}"
    label = f"{mean:g}{asked} tokens per block · {report['psnr_db']:.2f} dB"
    panels.append(Panel(f"Adaptive ({report['strategy']})" if adaptive else "Fixed", frames, label, "adaptive"))
    scheduled = constant["strategy"] == "schedule"
    name = "best constant schedule" if scheduled else "same number everywhere"
    if adaptive:
        of_clip = ", ".join(map(str, constant["token_counts"][: config.num_blocks]))
        label = of_clip if scheduled else f"{constant['tokens_per_block']:g} in every block"
        panels.append(Panel(name.capitalize(), constant_frames, f"{label} · {constant['psnr_db']:.2f} dB", "fixed"))
    widths = [min(config.tubelet_size, len(original) - start) for start in range(0, len(original), config.tubelet_size)]
    bars = token_bars(counts, most, widths, constant["token_counts"] if adaptive else None, reference_legend=name)
    gain = report["psnr_db"] - constant["psnr_db"]
    entries = [
        ("Tokens", f"{report['tokens']}", f"of {most * len(counts)}, {100 * mean / most:.0f} %"),
        ("Tokens per second", f"{tokens.tokens_per_second:.0f}", f"{tokens.bits_per_second / 1000:.2f} kbit/s"),
        ("PSNR", f"{report['psnr_db']:.2f} dB", f"{gain:+.2f} dB over {name}" if adaptive else "higher is better"),
        ("SSIM", f"{report['ssim']:.3f}", "1 is identical"),
    ]
    return tiles(entries) + player(panels, tokens.fps, bars) + _show_tokens(tokens, report["video"]) + note(left_out)


def _show_tokens(tokens: TokenizedVideo, video: str) -> str:
    """The first tokens, and all of them as a file."""
    first = " ".join(map(str, tokens.codes[0, 0, : min(6, int(tokens.token_counts[0, 0]))].tolist()))
    name = html.escape(f"{Path(video).stem}.safetensors")
    return (
        f'<p class="at-tokens">The tokens begin <code>{first} …</code> '
        f'<a href="{tokens_uri(tokens)}" download="{name}">Download all {tokens.num_tokens}</a></p>'
    )


def _curve_table(report: dict) -> pd.DataFrame:
    rows = [
        (point["tokens_per_block"], point["psnr_db"], strategy)
        for strategy, points in report["curve"].items()
        for point in points
    ]
    return pd.DataFrame(rows, columns=_CURVE_COLUMNS)


def build_tab(pipeline: AdapTokPipeline, video_input: Callable[[], gr.Video], model_event: Callable) -> None:
    """Build the components of the tab; `video_input` makes the upload, `model_event` connects their events."""
    step, most = token_levels(pipeline)[0], pipeline.tokenizer.config.latents_per_block
    names, frames = strategies(pipeline), pipeline.tokenizer.config.num_frames
    gr.Markdown(
        "**A video becomes a row of tokens that a model can read, and a video again.** A budget of tokens goes where the "
        "video needs them; next to it are as many by the best constant schedule, the same for every clip. Tokens are for "
        "models that learn from video, no replacement for a video codec.",
        elem_classes="at-intro",
    )
    with gr.Row(elem_classes="at-columns"):
        with gr.Column(scale=4, min_width=300, elem_classes="at-side"):
            video = video_input()
            budget = gr.Slider(
                step, most, value=default_budget(pipeline), step=1, label="Budget: tokens per block, on average"
            )
            strategy = gr.Dropdown(names, value=names[0], label="Allocation", info=STRATEGIES[names[0]].summary)
            strategy.change(_describe, strategy, strategy, api_visibility="private", queue=False, show_progress="hidden")
            price = threshold = gr.State(None)
            if pipeline.scorer is not None:
                mean, deviation = pipeline.scorer.config.score_mean, pipeline.scorer.config.score_std
                middle = default_price(pipeline)
                low, high = round(max(mean - 2 * deviation, 0), 3), round(mean + 2 * deviation, 3)
                label = "Price: loss that 1000 tokens must save"
                price = gr.Slider(0, 8 * middle, value=middle, step=middle / 20, label=label, visible=False)
                label = "Threshold: highest predicted loss"
                threshold = gr.Slider(low, high, value=round(mean, 3), step=0.001, label=label, visible=False)
                strategy.change(
                    lambda name: [
                        gr.update(visible=STRATEGIES[name].needs == need) for need in ("budget", "price", "threshold")
                    ],
                    strategy,
                    [budget, price, threshold],
                    queue=False,
                    show_progress="hidden",
                    api_visibility="private",
                )
            button = gr.Button("Reconstruct", variant="primary", elem_id="reconstruct-run")
            gr.Markdown(f"{LIMITS} of the first {MAX_CLIPS * frames} frames.", elem_classes="at-small")
        with gr.Column(scale=8, min_width=320):
            result = gr.HTML(waiting("Original, reconstruction and the tokens of each block appear here."))
            gr.Markdown("### Tokens and quality of this video", elem_classes="at-section")
            x, y, color = _CURVE_COLUMNS
            colors = {names[0]: "#cf7a12"} | {"schedule": "#5676a8", "fixed": "#5676a8"}
            curve = gr.LinePlot(x=x, y=y, color=color, color_map=colors, height=330)
            with gr.Accordion("Numbers", open=False):
                report = gr.JSON(show_label=False)
    inputs, outputs = [video, strategy, budget, price, threshold], [result, curve, report]
    model_event(button.click, reconstruct, inputs, outputs, report, api_name="reconstruct", show_progress_on=result)
