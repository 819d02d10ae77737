"""`build_demo(pipeline)`: the tabs around one pipeline."""

import html
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import generate_tab
import gradio as gr
import inspect_tab
import predict_tab
import reconstruct_tab
import share_tab
from example_clips import find_examples
from uploads import check_values, guarded
from zero_gpu import on_gpu

from adaptok_hf import AdapTokPipeline

# Uploads are deleted when they are this old; looked for every few minutes.
_CLEANING_SECONDS, _UPLOAD_LIFETIME = 300, 1800
# Visitors who may wait; the next one reads that the queue is full.
QUEUE_LENGTH = 16

# Four blocks with as many tokens as each needs, and the line where all would have the same number.
_BARS = ((2, 44), (18, 16), (34, 32), (50, 10))
_LOGO = (
    '<svg viewBox="0 0 64 64" aria-hidden="true">'
    + "".join(
        f'<rect x="{x}" y="4" width="12" height="56" rx="3" fill="var(--at-well)"/>'
        f'<rect x="{x}" y="{60 - height}" width="12" height="{height}" rx="3" fill="var(--at-adaptive)"/>'
        for x, height in _BARS
    )
    + '<path d="M0 36h64" stroke="var(--at-fixed)" stroke-width="3" stroke-dasharray="5 4" fill="none"/></svg>'
)


def build_demo(
    pipeline: AdapTokPipeline,
    model_name: str = "the checkpoints in the package",
    generators: AdapTokPipeline | None = None,
) -> gr.Blocks:
    """The whole Space. Launch it with `theme.page_options()`; nothing of it depends on the size of the model.

    Tabs whose model the pipeline lacks are left out.

    Args:
        pipeline: whose tokenizer must be adaptive.
        model_name: shown in the head of the page.
        generators: the pipeline of the tabs Generate and Predict (default: the other tabs').

    Raises:
        ValueError: for a tokenizer that keeps all tokens (CausalTok): there is nothing to show.
    """
    if not pipeline.tokenizer.config.adaptive:
        raise ValueError("this tokenizer is not adaptive (CausalTok): the demo shows token budgets, which it does not take")
    generators = generators or pipeline
    for each in (pipeline, generators):
        each.set_progress_bar_config(disable=True)
    examples = find_examples()
    video_input = partial(_video_input, examples)
    with gr.Blocks(
        title="AdapTok: adaptive video tokens",
        analytics_enabled=False,
        delete_cache=(_CLEANING_SECONDS, _UPLOAD_LIFETIME),
    ) as demo:
        gr.HTML(_head([pipeline, generators], model_name))
        with gr.Tabs():
            with gr.Tab("Reconstruct", id="reconstruct"):
                reconstruct_tab.build_tab(pipeline, video_input, partial(_connect, pipeline, demo.load))
            with gr.Tab("Share", id="share") as tab:
                share_tab.build_tab(pipeline, examples, partial(_connect, pipeline, tab.select))
            if generators.ar_model is not None:
                with gr.Tab("Generate", id="generate") as tab:
                    generate_tab.build_tab(generators, partial(_connect, generators, tab.select))
            if generators.fp_model is not None:
                with gr.Tab("Predict", id="predict") as tab:
                    predict_tab.build_tab(generators, video_input, partial(_connect, generators, tab.select))
            with gr.Tab("Inspect", id="inspect") as tab:
                inspect_tab.build_tab(pipeline, video_input, partial(_connect, pipeline, tab.select))
            with gr.Tab("About", id="about"):
                gr.Markdown((Path(__file__).parent / "about.md").read_text(), elem_classes="at-about")
    return demo.queue(max_size=QUEUE_LENGTH, default_concurrency_limit=1)


def _head(pipelines: list[AdapTokPipeline], model_name: str) -> str:
    """What the page is about, and the geometry of its models; two numbers where they differ."""
    configs = [pipeline.tokenizer.config for pipeline in pipelines]
    facts = {
        "model": [model_name],
        "clip": [f"{config.num_frames} frames, {config.image_size}×{config.image_size}" for config in configs],
        "blocks": [f"{config.num_blocks} of {config.tubelet_size} frames" for config in configs],
        "tokens per block": [f"up to {config.latents_per_block}" for config in configs],
        "codebook": [str(config.codebook_size) for config in configs],
    }
    values = ((label, " / ".join(dict.fromkeys(of_models))) for label, of_models in facts.items())
    shown = "".join(f"<span>{label} <b>{html.escape(value)}</b></span>" for label, value in values)
    return (
        f'<header class="at-hero">{_LOGO}<div><h1>AdapTok</h1><p>Videos as short rows of tokens for models that read and '
        "write them: as many tokens as each moment needs.</p></div></header>"
        f'<p class="at-facts">{shown}</p>'
    )


def _video_input(examples: list[Path]) -> gr.Video:
    files = [str(path) for path in examples]
    video = gr.Video(files[0] if files else None, label="Video", sources=["upload"], height=236, buttons=[])
    if files:
        gr.Examples([[file] for file in files], [video], label="or try one of these")
    return video


def _connect(
    pipeline: AdapTokPipeline,
    opened: Callable,
    event: Callable,
    function: Callable,
    inputs: list,
    outputs: list,
    shown: gr.components.Component | None = None,
    **options,
):
    """Run `function(pipeline, *inputs)` on an event: one visitor at a time, with errors as messages.

    Args:
        opened: the event of a visitor opening the tab.
        shown: an output that is `None` until there is a result. With it, a visitor who opens the tab gets what the
            components' initial values give: computed for the first visitor, and kept for the others.
    """
    for component in inputs:
        check_values(component)
    if shown is not None and all(component.value for component in inputs if isinstance(component, gr.Video)):
        values = [each.value["path"] if isinstance(each, gr.Video) else each.value for each in inputs]
        first = run_once(on_gpu(guarded(partial(function, pipeline, *values))))

        def fill(shown):
            yield from [gr.skip()] if shown is not None else first()

        own = {"concurrency_limit": 1, "concurrency_id": "first results", "api_visibility": "private"}
        show = {name: value for name, value in options.items() if name.startswith("show_")}
        options["cancels"] = opened(guarded(fill), shown, outputs, **own, **show)
    run = on_gpu(guarded(partial(function, pipeline)))
    if options.get("api_name"):
        options["api_description"] = function.__doc__.split("\n")[0]
    return event(run, inputs, outputs, concurrency_limit=1, concurrency_id="model", **options)


def run_once(function: Callable[[], Iterator]) -> Callable[[], Iterator]:
    """Return a generator function as one that runs once to its end; later calls yield only what it yielded last."""
    kept = []

    def run():
        for result in kept or function():
            yield result
        kept[:] = [result]

    return run
