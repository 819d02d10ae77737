"""Share: several videos on one budget, and how many tokens each block of each gets."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from encoding import baseline, counts_over_time, default_budget, psnr, token_levels
from player import Panel, note, player, tiles, token_bars, waiting
from reconstruct_tab import strategies
from uploads import LIMITS, MAX_CLIPS, read_upload

from adaptok_hf import AdapTokPipeline, AllocationRequest
from adaptok_hf.allocation import STRATEGIES

NUM_VIDEOS = 3
# What is read of each video.
_CLIPS = MAX_CLIPS // 2


def sharing_strategies(pipeline: AdapTokPipeline) -> list[str]:
    """Those of `strategies(pipeline)` that take a budget."""
    return [name for name in strategies(pipeline) if STRATEGIES[name].needs == "budget"]


def share(
    pipeline: AdapTokPipeline,
    first: str | None,
    second: str | None,
    third: str | None = None,
    budget: float | None = None,
    strategy: str | None = None,
) -> tuple[str, dict[str, Any]]:
    """Reconstruct up to three videos that share one budget.

    Args:
        first, second, third: video files; one of them may be missing.
        budget: tokens per block, on average over the blocks of all videos.
        strategy: one of `sharing_strategies(pipeline)`; default: the first.

    Returns:
        HTML of the result, and the numbers.

    Raises:
        ValueError: for bad uploads, fewer than two, or a budget that cannot be met.
    """
    names = sharing_strategies(pipeline)
    strategy, budget = strategy or names[0], default_budget(pipeline, 8) if budget is None else budget
    if strategy not in names:
        raise ValueError(f"The allocation must be one of {', '.join(names)}, not {strategy!r}.")
    paths = [path for path in (first, second, third) if path]
    if len(paths) < 2:
        raise ValueError(f"Choose at least two videos, not {len(paths)}.")
    uploads = [read_upload(pipeline, path, _CLIPS * pipeline.tokenizer.config.num_frames) for path in paths]
    encoded = pipeline.encode([upload.video for upload in uploads])
    tokens = pipeline.allocate(encoded, AllocationRequest(budget=budget, strategy=strategy))
    counts = [counts_over_time(pipeline, video) for video in tokens]
    name, request = baseline(pipeline, encoded, np.mean(np.concatenate(counts)))
    constant = pipeline.allocate(encoded, request)
    frames, constant_frames = ([pipeline.decode(video) for video in videos] for videos in (tokens, constant))
    original = [upload.video.frames for upload in uploads]
    report = {
        "strategy": strategy,
        "budget": budget,
        "tokens": sum(video.num_tokens for video in tokens),
        "psnr_db": round(psnr(np.concatenate(frames), np.concatenate(original)), 3),
        "videos": [
            {
                "video": upload.name,
                "tokens": video.num_tokens,
                "tokens_per_block": round(float(np.mean(of_video)), 3),
                "token_counts": of_video,
                "psnr_db": round(psnr(decoded, upload.video.frames), 3),
            }
            for upload, video, of_video, decoded in zip(uploads, tokens, counts, frames, strict=True)
        ],
        "baseline": {
            "strategy": name,
            "tokens": sum(video.num_tokens for video in constant),
            "token_counts": [counts_over_time(pipeline, video) for video in constant],
            "psnr_db": round(psnr(np.concatenate(constant_frames), np.concatenate(original)), 3),
        },
    }
    return _show(pipeline, report, uploads, frames), report


def _show(pipeline: AdapTokPipeline, report: dict, uploads: list, frames: list[np.ndarray]) -> str:
    size, constant = pipeline.tokenizer.config.tubelet_size, report["baseline"]
    most = max(map(max, [row["token_counts"] for row in report["videos"]] + constant["token_counts"]))
    name = "best constant schedule" if constant["strategy"] == "schedule" else "same number everywhere"
    gain = report["psnr_db"] - constant["psnr_db"]
    entries = [("All", f"{report['tokens']} tokens", f"{report['psnr_db']:.2f} dB, {gain:+.2f} over {name}")]
    players = []
    for upload, decoded, row, reference in zip(uploads, frames, report["videos"], constant["token_counts"], strict=True):
        total, title = len(upload.video.frames), Path(upload.name).stem.replace("_", " ")
        widths = [min(size, total - start) for start in range(0, total, size)]
        share = f"{100 * row['tokens'] / report['tokens']:.0f} % of all, {row['psnr_db']:.2f} dB"
        entries.append((title, f"{row['tokens_per_block']:.1f} per block", share))
        bars = token_bars(row["token_counts"], most, widths, reference, reference_legend=name)
        panels = [Panel(title, upload.video.frames), Panel(f"{row['tokens']} tokens", decoded, tone="adaptive")]
        players.append(player(panels, upload.video.fps, bars) + note(upload.note))
    return tiles(entries) + f'<div class="at-share">{"".join(players)}</div>'


def build_tab(pipeline: AdapTokPipeline, examples: list[Path], model_event: Callable) -> None:
    """Build the components of the tab; `model_event` connects their events."""
    step, most = token_levels(pipeline)[0], pipeline.tokenizer.config.latents_per_block
    names = sharing_strategies(pipeline)
    gr.Markdown(
        "**Videos share one budget; those that need more tokens get more.** The dashed marks are where the best constant "
        "schedule would spend as many, the same for every clip.",
        elem_classes="at-intro",
    )
    with gr.Row(elem_classes="at-columns"):
        with gr.Column(scale=4, min_width=300, elem_classes="at-side"):
            files = [str(path) for path in examples[:NUM_VIDEOS]] + [None] * NUM_VIDEOS
            videos = [
                gr.Video(files[index], label=f"Video {index + 1}", sources=["upload"], height=150, buttons=[])
                for index in range(NUM_VIDEOS)
            ]
            budget = gr.Slider(
                step, most, value=default_budget(pipeline, 8), step=1, label="Budget: tokens per block, on average"
            )
            strategy = gr.Dropdown(names, value=names[0], label="Allocation")
            button = gr.Button("Share", variant="primary", elem_id="share-run")
            frames = _CLIPS * pipeline.tokenizer.config.num_frames
            gr.Markdown(f"{LIMITS} of the first {frames} frames.", elem_classes="at-small")
        with gr.Column(scale=8, min_width=320):
            result = gr.HTML(waiting("The videos and the tokens of each of their blocks appear here."))
            with gr.Accordion("Numbers", open=False):
                report = gr.JSON(show_label=False)
    inputs = [*videos, budget, strategy]
    model_event(button.click, share, inputs, [result, report], report, api_name="share", show_progress_on=result)
