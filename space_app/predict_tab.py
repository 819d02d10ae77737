"""Predict: a few frames in, what could come next out."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np
import torch
from player import Panel, note, player, tiles, token_bars, waiting
from streaming import MAX_SEED, Watcher, check_seed, watch
from uploads import LIMITS, read_upload

from adaptok_hf import AdapTokPipeline

MAX_ROLLOUTS = 4
MAX_VIDEOS = 3
DEFAULT_CONDITION = 5


def predict(
    pipeline: AdapTokPipeline,
    path: str | None,
    num_condition_frames: int = DEFAULT_CONDITION,
    num_rollouts: int = 1,
    num_videos: int = 2,
    temperature: float = 0.6,
    seed: float = 0,
    keep_details: bool = True,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the progress, then the continuations next to what really followed.

    Args:
        path: a video file; the frames after the given ones are only shown for comparison.
        num_condition_frames: frames that the model is given.
        num_rollouts: clips that are predicted one after the other.
        num_videos: different continuations.
        temperature: 0 takes the likeliest token.
        seed: 0 or more; the same seed gives the same videos.
        keep_details: show the given frames as they are, and what does not change as sharp as them.

    Yields:
        HTML, and the numbers.

    Raises:
        ValueError: for a bad upload or impossible settings.
    """
    seed = check_seed(seed)
    num_condition_frames, num_rollouts, num_videos = int(num_condition_frames), int(num_rollouts), int(num_videos)
    config, most = pipeline.fp_model.config, pipeline.tokenizer.config.num_frames
    total = most + (num_rollouts - 1) * (most - num_condition_frames)
    upload = read_upload(pipeline, path, max_frames=max(total, 1))
    video = upload.video
    watcher = Watcher(max(1, config.latents_per_block // 4), config.eob_token_id)

    def run(watcher: Watcher):
        return pipeline.predict(
            video,
            num_condition_frames=num_condition_frames,
            num_rollouts=num_rollouts,
            num_videos=num_videos,
            keep_details=keep_details,
            temperature=temperature,
            generator=torch.Generator().manual_seed(seed),
            stopping_criteria=[watcher],
            output_type="uint8",
        )

    blocks, rollout, before = config.num_generated_blocks, 0, 0
    yield waiting("Encoding the given frames …", 0.0), {"status": "encoding"}
    for result in watch(run, watcher):
        if isinstance(result, torch.Tensor):
            written = result[config.prompt_length :]
            rollout += len(written) < before  # a shorter sequence is a new one
            before = len(written)
            closed = min(int(pipeline.fp_model.count_blocks(result[None])), blocks - 1)
            share = min(1.0, (rollout + closed / blocks) / num_rollouts)
            block = config.start_block + closed + 1
            text = f"Clip {rollout + 1} of {num_rollouts}: writing block {block} of {config.num_blocks}"
            yield waiting(text, share), {"status": "writing"}
            continue
        report = {
            "status": "done",
            "video": upload.name,
            "num_condition_frames": num_condition_frames,
            "frames": result.frames.shape[1],
            "seed": seed,
            "temperature": temperature,
            "token_counts": result.token_counts.tolist(),
        }
        yield _show(pipeline, result, video.frames, report), report


def _show(pipeline: AdapTokPipeline, output, truth: np.ndarray, report: dict) -> str:
    config = pipeline.tokenizer.config
    num_given, total = report["num_condition_frames"], report["frames"]
    panels = [
        Panel(f"Continuation {index + 1}", frames, f"{int(counts.sum())} tokens", "adaptive")
        for index, (frames, counts) in enumerate(zip(output.frames, output.token_counts, strict=True))
    ]
    left_out = ""
    if len(truth) >= total:
        panels.insert(0, Panel("What really followed", truth[:total], "the upload itself"))
    else:
        left_out = f"The upload has {len(truth)} frames, the prediction {total}: there is nothing to compare it with."
    counts, widths = [], []
    for clip, clip_counts in enumerate(output.token_counts[0].tolist()):
        skipped = 0 if clip == 0 else num_given  # frames of a later clip that repeat the previous one
        for block, count in enumerate(clip_counts):
            width = min(config.tubelet_size, (block + 1) * config.tubelet_size - skipped)
            if width > 0:
                counts.append(count)
                widths.append(width)
    bars = token_bars(counts, config.latents_per_block, widths, legend="tokens per block of continuation 1")
    head = tiles(
        [
            ("Given", f"{num_given} frames", f"{num_given / output.fps:.2f} s, marked in the video"),
            ("Predicted", f"{total - num_given} frames", f"{(total - num_given) / output.fps:.2f} s"),
            (
                "Tokens",
                str(int(output.token_counts.sum())),
                f"in {len(output.frames)} continuation{'s' * (len(output.frames) > 1)}",
            ),
        ]
    )
    return head + player(panels, output.fps, bars, num_given) + note(left_out)


def build_tab(pipeline: AdapTokPipeline, video_input: Callable[[], gr.Video], model_event: Callable) -> None:
    """Build the components of the tab, see `reconstruct_tab.build_tab`."""
    most = pipeline.tokenizer.config.num_frames
    gr.Markdown(
        "**Give it the first frames of a video; it continues them.** Every continuation is a different sample. A roll-out "
        "continues from the last frames that the model made.",
        elem_classes="at-intro",
    )
    with gr.Row(elem_classes="at-columns"):
        with gr.Column(scale=4, min_width=300, elem_classes="at-side"):
            video = video_input()
            condition = gr.Slider(
                1, most - 1, value=min(DEFAULT_CONDITION, most - 1), step=1, label="Frames that are given"
            )
            rollouts = gr.Slider(1, MAX_ROLLOUTS, value=1, step=1, label="Clips to predict, one after the other")
            videos = gr.Slider(1, MAX_VIDEOS, value=2, step=1, label="Different continuations")
            details = gr.Checkbox(True, label="Keep the details of the given frames")
            temperature = gr.Slider(0, 1.5, value=0.6, step=0.05, label="Temperature: 0 takes the likeliest token")
            seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED)
            button = gr.Button("Predict", variant="primary", elem_id="predict-run")
            gr.Markdown(f"{LIMITS} of the first frames.", elem_classes="at-small")
        with gr.Column(scale=8, min_width=320):
            result = gr.HTML(waiting("The continuations appear here, next to what really followed."))
            with gr.Accordion("Numbers", open=False):
                report = gr.JSON(show_label=False)
    inputs = [video, condition, rollouts, videos, temperature, seed, details]
    model_event(button.click, predict, inputs, [result, report], report, api_name="predict", show_progress="hidden")
