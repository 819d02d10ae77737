"""Generate: a video of a class, shown block by block while the model writes its tokens."""

from collections.abc import Callable, Iterator
from typing import Any

import gradio as gr
import numpy as np
import torch
from media import image_uri, mosaic
from player import Panel, player, tiles, token_bars, waiting
from streaming import MAX_SEED, Watcher, check_seed, watch

from adaptok_hf import AdapTokPipeline

# How often an open block is shown before it is closed.
_LOOKS_PER_BLOCK = 6


def generate(
    pipeline: AdapTokPipeline,
    label: int | str | None,
    seed: float = 0,
    guidance: float = 1.5,
    temperature: float = 0.6,
    max_tokens: float | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the video so far, again and again, and at last the whole video.

    Args:
        label: class id or name.
        seed: 0 or more; the same seed gives the same video.
        guidance: classifier-free guidance, 1 is none.
        temperature: 0 takes the likeliest token.
        max_tokens: most tokens of the video; all that fit, or `None`, leaves their number to the model.

    Yields:
        HTML, and the numbers.

    Raises:
        ValueError: for an unknown class or impossible settings.
    """
    if label is None:
        raise ValueError("Choose a class first.")
    if not isinstance(label, int | str):
        raise ValueError(f"The class must be a name or an id, not {label!r}.")
    seed = check_seed(seed)
    config = pipeline.ar_model.config
    settings = {"guidance_scale": guidance, "temperature": temperature}
    if max_tokens is not None and max_tokens < config.num_blocks * config.latents_per_block:
        settings["max_tokens"] = int(max_tokens)
    watcher = Watcher(max(1, config.latents_per_block // _LOOKS_PER_BLOCK), config.eob_token_id)

    def run(watcher: Watcher):
        generator = torch.Generator().manual_seed(seed)
        return pipeline.generate(label, generator=generator, stopping_criteria=[watcher], output_type="uint8", **settings)

    blank = np.zeros((0, 0, 0, 3), np.uint8)
    yield _show(pipeline, blank, [], False), {"status": "writing"}
    for result in watch(run, watcher):
        if isinstance(result, torch.Tensor):
            frames, counts = _so_far(pipeline, result)
            yield _show(pipeline, frames, counts, False), {"status": "writing", "token_counts": counts}
            continue
        counts = result.token_counts.flatten().tolist()
        report = {
            "status": "done",
            "class": result.class_names[0],
            "seed": seed,
            "guidance": guidance,
            "temperature": temperature,
            "tokens": sum(counts),
            "token_counts": counts,
        }
        yield _show(pipeline, result.frames[0], counts, True, result.fps, report), report


def _so_far(pipeline: AdapTokPipeline, ids: torch.Tensor) -> tuple[np.ndarray, list[int]]:
    """Return the frames of the blocks that have a token, and the tokens of each block; the last block may still be open."""
    config = pipeline.ar_model.config
    closed = int(pipeline.ar_model.count_blocks(ids[None]))
    codes, counts = pipeline.ar_model.unpack_sequences(ids[None], fill=True)  # as if it ended here
    begun = closed + int(closed < config.num_blocks and counts[0, closed] > 0)
    if begun == 0:
        return np.zeros((0, 0, 0, 3), np.uint8), []
    codes, counts = codes[:, :begun].to(pipeline.device), counts[:, :begun].to(pipeline.device)
    frames = pipeline.decode_clips(codes, counts)[0].permute(0, 2, 3, 1).numpy()
    return frames, counts[0].tolist()


def _show(pipeline, frames, counts: list[int], done: bool, fps: float = 0, report: dict | None = None) -> str:
    config = pipeline.tokenizer.config
    cards = []
    for block in range(config.num_blocks):
        shown = frames[block * config.tubelet_size : (block + 1) * config.tubelet_size]
        count = counts[block] if block < len(counts) else 0
        if len(shown):
            state = "at-written" if done or block < len(counts) - 1 else "at-open"
            picture = f'<img src="{image_uri(mosaic(shown))}" alt="frames of block {block + 1}">'
        else:
            state, picture = "at-todo", "<span></span>"
        text = f"<b>{count}</b> tokens" if len(shown) else "not written yet"
        cards.append(
            f'<li class="{state}"><div class="at-glass">{picture}</div><p>Block {block + 1} · {text}</p>'
            f'<span class="at-progress"><i style="width:{100 * count / config.latents_per_block:.1f}%"></i></span></li>'
        )
    blocks = f'<ol class="at-blocks" aria-label="The blocks of the video">{"".join(cards)}</ol>'
    if done:
        widths = [config.tubelet_size] * config.num_blocks
        title = report["class"].replace("_", " ")
        bars = token_bars(counts, config.latents_per_block, widths)
        stage = player([Panel(title, frames, f"seed {report['seed']}", "adaptive")], fps, bars)
        whole = config.latents_per_block * config.num_blocks
        share = f"of {whole}, {100 * sum(counts) / whole:.0f} %"
        spread = f"{min(counts)}, {max(counts)}"
        head = tiles([("Tokens", str(sum(counts)), share), ("Fewest, most", spread, "in a block, as the model chose")])
    else:
        picture = f'<img src="{image_uri(frames[-1])}" alt="the newest frame">' if len(frames) else "<span></span>"
        text = f"Writing block {max(1, len(counts))} of {config.num_blocks}: {sum(counts)} tokens so far"
        stage = f'<div class="at-glass at-stage">{picture}</div>'
        head = f'<p class="at-status" role="status">{text}</p>'
    return f'{head}<div class="at-writing"><div>{stage}</div>{blocks}</div>'


def build_tab(pipeline: AdapTokPipeline, model_event: Callable) -> None:
    """Build the components of the tab; `model_event` connects their events."""
    config = pipeline.tokenizer.config
    most = config.num_blocks * config.latents_per_block
    choices = [name.replace("_", " ") for name in pipeline.class_names]
    gr.Markdown(
        "**A language model writes a video, one block after the other,** and decides when a block has enough "
        "tokens. Each block is decoded from whatever is there: watch it sharpen.",
        elem_classes="at-intro",
    )
    with gr.Row(elem_classes="at-columns"):
        with gr.Column(scale=4, min_width=300, elem_classes="at-side"):
            # a name in any spelling, or an id: the pipeline says what is wrong with others
            label = gr.Dropdown(choices, value=choices[0], label="Class", filterable=True, allow_custom_value=True)
            with gr.Row(elem_classes="at-tight"):
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=MAX_SEED, min_width=120)
                dice = gr.Button("New seed", min_width=110, elem_classes="at-dice")
            guidance = gr.Slider(1, 4, value=1.5, step=0.1, label="Guidance: how much it insists on the class")
            temperature = gr.Slider(0, 1.5, value=0.6, step=0.05, label="Temperature: 0 takes the likeliest token")
            max_tokens = gr.Slider(1, most, value=most, step=1, label="Most tokens of the video")
            button = gr.Button("Generate", variant="primary", elem_id="generate-run")
        with gr.Column(scale=8, min_width=320):
            result = gr.HTML(waiting("The video appears here, block by block."))
            with gr.Accordion("Numbers", open=False):
                report = gr.JSON(show_label=False)
    dice.click(None, None, seed, js=f"() => Math.floor(Math.random() * {MAX_SEED})", api_visibility="private")
    inputs = [label, seed, guidance, temperature, max_tokens]
    model_event(button.click, generate, inputs, [result, report], report, api_name="generate", show_progress="hidden")
