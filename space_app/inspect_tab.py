"""Inspect: what the first n tokens hold, where a latent token looks, and what the scorer foresees."""

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np
import torch
from charts import Line, line_chart
from encoding import psnr, spread, token_levels
from media import image_uri, mosaic
from player import note, waiting
from uploads import LIMITS, read_upload

from adaptok_hf import AdapTokPipeline, EncodedVideos, Video
from adaptok_hf.models.attention_masks import dense_mask

# Prefix lengths that are decoded for the slider.
_PREFIXES = 14
_LOOKS_WAITING = "The attention of one latent token over the patches appears here."
_AMBER = np.array([255, 168, 46], np.float32)


def inspect_clip(pipeline: AdapTokPipeline, path: str | None) -> tuple[str, str, Video]:
    """Looks at the first clip of a video.

    Args:
        path: a video file.

    Returns:
        HTML of the prefix slider, HTML of the scorer's curves, and the clip for `attention_map`.

    Raises:
        ValueError: for a bad upload.
    """
    config = pipeline.tokenizer.config
    upload = read_upload(pipeline, path, max_frames=config.num_frames)
    encoded = pipeline.encode(upload.video)
    return _prefixes(pipeline, encoded, upload.video.frames), _score_curves(pipeline, encoded), upload.video


def decode_prefix(pipeline: AdapTokPipeline, encoded: EncodedVideos, tokens_per_block: int) -> np.ndarray:
    """The clip from the first tokens of each block, uint8 (frames, height, width, 3)."""
    counts = encoded.valid_blocks.long() * tokens_per_block
    return pipeline.decode(replace(pipeline.allocate(encoded), token_counts=counts))


def _prefixes(pipeline: AdapTokPipeline, encoded: EncodedVideos, original: np.ndarray) -> str:
    """One picture with a row of frames per prefix length; the slider moves it behind a window."""
    config = pipeline.tokenizer.config
    shown = np.arange(0, len(original), config.tubelet_size) + config.tubelet_size // 2
    shown = np.unique(shown.clip(max=len(original) - 1))
    lengths = spread(list(range(1, config.latents_per_block + 1)), _PREFIXES)
    rows, levels = [], []
    for length in lengths:
        frames = decode_prefix(pipeline, encoded, length)
        rows.append(mosaic(frames[shown]))
        levels.append({"tokens": length, "quality": f"{psnr(frames, original):.2f} dB"})
    sprite = image_uri(np.concatenate(rows))
    start = len(lengths) * 3 // 4
    height, width = rows[0].shape[:2]
    data = json.dumps(levels).replace('"', "&quot;")
    window = f"--at-rows:{len(rows)};--at-row:{start};--at-shape:{width}/{height}"
    return (
        f'<div class="at-prefix" data-levels="{data}" style="{window}"><div class="at-pair">'
        f'<div><div class="at-glass"><img src="{image_uri(mosaic(original[shown]))}" alt="one frame of each block"></div>'
        '<p class="at-title">Original</p><p class="at-caption">one frame of each block</p></div>'
        f'<div class="at-adaptive"><div class="at-glass"><div class="at-window" role="img" '
        f'aria-label="reconstruction from the first tokens" style="background-image:url(\'{sprite}\')"></div></div>'
        '<p class="at-title">From the first <b class="at-prefix-count">'
        f'{levels[start]["tokens"]}</b> tokens</p><p class="at-caption"><span class="at-prefix-quality">'
        f"{levels[start]['quality']}</span> PSNR</p></div></div>"
        f'<label class="at-label">Tokens per block, 1 to {config.latents_per_block}'
        f'<input class="at-prefix-slider at-range" type="range" min="0" max="{len(rows) - 1}" step="1" value="{start}" '
        f'aria-valuetext="{levels[start]["tokens"]} tokens per block"></label></div>'
    )


def _score_curves(pipeline: AdapTokPipeline, encoded: EncodedVideos) -> str:
    if pipeline.scorer is None:
        return note("This model has no scorer.")
    levels = token_levels(pipeline)
    lines = [
        Line(f"block {block + 1}", list(zip(levels, scores.tolist(), strict=True)), f"shade-{block % 8}", dots=False)
        for block, scores in enumerate(pipeline.score(encoded)[0][encoded.valid_blocks[0].numpy()])
    ]
    ticks = [(budget, str(budget)) for budget in spread(levels, 5)]
    told = "; ".join(f"{line.name}: {line.points[0][1]:.3f} falling to {line.points[-1][1]:.3f}" for line in lines)
    return line_chart(lines, "tokens, log scale", "predicted loss", f"Predicted loss over tokens. {told}", ticks)


@torch.no_grad()
def attention_weights(pipeline: AdapTokPipeline, video: Video, layer: int, block: int, token: int) -> torch.Tensor:
    """What one latent token of the encoder attends to.

    Args:
        video: one clip, at the model's size.
        layer: of the encoder, from 0.
        block, token: the latent token, from 0.

    Returns:
        (heads, blocks, patches per block + latents_per_block) float32 that sum to 1 per head; 0 where it may not look.
    """
    tokenizer = pipeline.tokenizer
    config, caught = tokenizer.config, []
    attention = tokenizer.encoder.layers[layer].attention
    handle = attention.register_forward_pre_hook(lambda module, arguments: caught.append(arguments[0]))
    try:
        clips = pipeline.video_processor.clips(video)
        tokenizer.encode((clips.frames[:1].to(pipeline.device) / 255).to(tokenizer.dtype))
    finally:
        handle.remove()
    (hidden,) = caught  # (1, all tokens, width): block after block, latents before patches
    blocks, patches, latents = config.num_blocks, config.patches_per_block, config.latents_per_block
    query, key, _ = attention.qkv(hidden[0]).reshape(hidden.shape[1], 3, attention.num_heads, -1).unbind(1)
    index = torch.arange(hidden.shape[1], device=hidden.device)
    row = block * (latents + patches) + token
    is_patch = index % (latents + patches) >= latents
    allowed = dense_mask(config.encoder_attention_type, index // (latents + patches), is_patch)[row]
    logits = (torch.einsum("hd,nhd->hn", query[row], key) * attention.scaling).float()
    weights = logits.masked_fill(~allowed, -torch.inf).softmax(-1).cpu()
    return weights.unflatten(1, (blocks, latents + patches)).roll(patches, dims=2)  # patches first


def attention_map(pipeline: AdapTokPipeline, video: Video | None, layer: int, block: int, token: int) -> str:
    """HTML of where a latent token looks: one frame per block, bright where its attention is.

    Args:
        video: what `inspect_clip` returned.
        layer, block, token: counted from 1, as the sliders do. Where the clip ends before a block, its last one is taken.

    Raises:
        ValueError: for a layer, block or token that the model does not have.
    """
    if video is None:
        return waiting(_LOOKS_WAITING)
    config = pipeline.tokenizer.config
    limits = (
        ("layer", layer, config.num_encoder_layers),
        ("block", block, config.num_blocks),
        ("token", token, config.latents_per_block),
    )
    for name, value, most in limits:
        if not 1 <= value <= most:
            raise ValueError(f"The {name} must lie in 1..{most}, not {value}.")
    num_blocks = -(-len(video) // config.tubelet_size)
    block = min(block, num_blocks)
    weights = attention_weights(pipeline, video, int(layer) - 1, int(block) - 1, int(token) - 1).mean(0)
    to_patches = weights[:, : config.patches_per_block]
    brightest = float(to_patches.max()) or 1.0
    tiles = []
    for index in range(num_blocks):
        share = float(to_patches[index].sum())
        frame = video.frames[min(index * config.tubelet_size + config.tubelet_size // 2, len(video) - 1)]
        heat = to_patches[index].reshape(1, 1, config.grid_size, config.grid_size) / brightest
        heat = torch.nn.functional.interpolate(heat, frame.shape[:2], mode="bilinear").numpy()[0, 0, ..., None]
        heat = np.sqrt(heat)  # so that the weaker ones are seen too
        grey = frame.mean(axis=2, keepdims=True) * 0.5
        picture = (grey + heat * (0.45 * frame + 0.55 * _AMBER - grey)).clip(0, 255).astype(np.uint8)
        caption = f"{100 * share:.1f} %" if index < block else "later: unseen"
        tiles.append(
            f'<li{" class=at-own" if index == block - 1 else ""}><div class="at-glass"><img src="{image_uri(picture)}" '
            f'alt="attention on block {index + 1}"></div><p>Block {index + 1} · <b>{caption}</b></p></li>'
        )
    rest = 100 * float(weights[:, config.patches_per_block :].sum())
    return (
        f'<ol class="at-looks">{"".join(tiles)}</ol><p class="at-note">Share of the attention of token {int(token)} of '
        f"block {int(block)} in layer {int(layer)}, mean of the heads. The other {rest:.1f} % go to latent tokens.</p>"
    )


def build_tab(pipeline: AdapTokPipeline, video_input: Callable[[], gr.Video], model_event: Callable) -> None:
    """The tab's components and events, see `reconstruct_tab.build_tab`."""
    config = pipeline.tokenizer.config
    gr.Markdown(
        "**Early tokens hold the scene, late ones the detail.** Any leading part of a block can be decoded. Inspect looks "
        "at the first clip of a video.",
        elem_classes="at-intro",
    )
    clip: Any = gr.State(None, time_to_live=1800)
    with gr.Row(elem_classes="at-columns"):
        with gr.Column(scale=4, min_width=300, elem_classes="at-side"):
            video = video_input()
            button = gr.Button("Inspect", variant="primary", elem_id="inspect-run")
            gr.Markdown(f"{LIMITS} of the first {config.num_frames} frames.", elem_classes="at-small")
        with gr.Column(scale=8, min_width=320):
            gr.Markdown("### The first n tokens", elem_classes="at-section")
            prefixes = gr.HTML(waiting("The clip at every number of tokens appears here."))
            gr.Markdown("### Where a token looks", elem_classes="at-section")
            with gr.Row(elem_classes="at-sliders"):
                block = gr.Slider(1, config.num_blocks, value=config.num_blocks, step=1, label="Block", min_width=140)
                token = gr.Slider(1, config.latents_per_block, value=1, step=1, label="Token of the block", min_width=140)
                layer = gr.Slider(
                    1,
                    config.num_encoder_layers,
                    value=config.num_encoder_layers,
                    step=1,
                    label="Encoder layer",
                    min_width=140,
                )
            looks = gr.HTML(waiting(_LOOKS_WAITING))
            gr.Markdown("### What the scorer foresees", elem_classes="at-section")
            curves = gr.HTML(waiting("The predicted loss of each block at each number of tokens appears here."))
    choice = [clip, layer, block, token]
    done = model_event(button.click, inspect_clip, [video], [prefixes, curves, clip], api_name="inspect")
    model_event(done.success, attention_map, choice, [looks], api_visibility="private")
    for slider in (layer, block, token):
        model_event(
            slider.change, attention_map, choice, [looks], api_visibility="private", trigger_mode="always_last",
            show_progress="hidden",
        )  # fmt: skip
