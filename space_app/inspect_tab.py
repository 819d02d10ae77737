"""Inspect: what the first n tokens hold, where a latent token looks, and what the scorer predicts."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import gradio as gr
import numpy as np
import pandas as pd
import torch
from encoding import psnr, spread, token_levels
from media import image_uri, mosaic
from player import waiting
from uploads import LIMITS, read_upload

from adaptok_hf import AdapTokPipeline, EncodedVideos, Video
from adaptok_hf.evaluation.attention_maps import attention_weights

# Prefix lengths that are decoded.
_PREFIXES = 11
_LOOKS_WAITING = "The attention of one latent token over the patches appears here."
_AMBER = np.array([255, 168, 46], np.float32)


def inspect_clip(
    pipeline: AdapTokPipeline, path: str | None, layer: int = 1, block: int = 1, token: int = 1
) -> tuple[str, str, pd.DataFrame | None, Video]:
    """Look at the first clip of a video.

    Args:
        path: a video file.
        layer, block, token: see `attention_map`.

    Returns:
        HTML of the clip at several prefix lengths, HTML of the attention of a token, the scorer's predictions (`None`
        without scorer), and the clip for `attention_map`.

    Raises:
        ValueError: for a bad upload.
    """
    video = read_upload(pipeline, path, max_frames=pipeline.tokenizer.config.num_frames).video
    encoded = pipeline.encode(video)
    looks = attention_map(pipeline, video, layer, block, token)
    return _show_prefixes(pipeline, encoded, video.frames), looks, _score_table(pipeline, encoded), video


def decode_prefix(pipeline: AdapTokPipeline, encoded: EncodedVideos, tokens_per_block: int) -> np.ndarray:
    """Return the clip from the first tokens of each block, uint8 (frames, height, width, 3)."""
    counts = encoded.valid_blocks.long() * tokens_per_block
    return pipeline.decode(replace(pipeline.allocate(encoded), token_counts=counts))


def _picture(image: np.ndarray, description: str, caption: str, state: str = "") -> str:
    return (
        f'<li class="{state}"><div class="at-glass"><img src="{image_uri(image)}" alt="{description}"></div>'
        f"<p>{caption}</p></li>"
    )


def _show_prefixes(pipeline: AdapTokPipeline, encoded: EncodedVideos, original: np.ndarray) -> str:
    """One frame of each block, from ever more tokens, then of the original."""
    config = pipeline.tokenizer.config
    shown = np.arange(0, len(original), config.tubelet_size) + config.tubelet_size // 2
    shown = np.unique(shown.clip(max=len(original) - 1))
    pictures = []
    for length in spread(list(range(1, config.latents_per_block + 1)), _PREFIXES):
        frames = decode_prefix(pipeline, encoded, length)
        caption = f"<b>{length}</b> tokens<br>{psnr(frames, original):.2f} dB"
        pictures.append(_picture(mosaic(frames[shown]), f"from the first {length} tokens", caption))
    pictures.append(_picture(mosaic(original[shown]), "one frame of each block", "<b>Original</b>", "at-own"))
    return f'<ol class="at-looks">{"".join(pictures)}</ol>'


def _score_table(pipeline: AdapTokPipeline, encoded: EncodedVideos) -> pd.DataFrame | None:
    if pipeline.scorer is None:
        return None
    rows = [
        (tokens, float(score), f"block {block + 1}")
        for block, scores in enumerate(pipeline.score(encoded)[0][encoded.valid_blocks[0].numpy()])
        for tokens, score in zip(token_levels(pipeline), scores, strict=True)
    ]
    return pd.DataFrame(rows, columns=["tokens", "predicted loss", "block"])


def attention_map(pipeline: AdapTokPipeline, video: Video | None, layer: int, block: int, token: int) -> str:
    """Return HTML of where a latent token looks: one frame per block, bright where its attention is.

    Args:
        video: what `inspect_clip` returned.
        layer, block, token: counted from 1, as the sliders do. The sliders keep them in range. Where the clip ends before a
            block, its last one is taken.
    """
    if video is None:
        return waiting(_LOOKS_WAITING)
    config = pipeline.tokenizer.config
    num_blocks = -(-len(video) // config.tubelet_size)
    layer, block, token = int(layer), min(int(block), num_blocks), int(token)
    clip = pipeline.video_processor.clips(video).pixel_values_videos[0]
    weights = attention_weights(pipeline.tokenizer, clip, layer - 1)[block - 1, token - 1].cpu()
    to_patches = weights[:, config.latents_per_block :]
    brightest = float(to_patches.max()) or 1.0
    pictures = []
    for index in range(num_blocks):
        frame = video.frames[min(index * config.tubelet_size + config.tubelet_size // 2, len(video) - 1)]
        heat = to_patches[index].reshape(1, 1, config.grid_size, config.grid_size) / brightest
        heat = torch.nn.functional.interpolate(heat, frame.shape[:2], mode="bilinear").numpy()[0, 0, ..., None]
        heat = np.sqrt(heat)  # so that the weaker ones are seen too
        grey = frame.mean(axis=2, keepdims=True) * 0.5
        picture = (grey + heat * (0.45 * frame + 0.55 * _AMBER - grey)).clip(0, 255).astype(np.uint8)
        share = f"{100 * float(to_patches[index].sum()):.1f} %" if index < block else "later: unseen"
        caption, state = f"Block {index + 1} · <b>{share}</b>", "at-own" if index == block - 1 else ""
        pictures.append(_picture(picture, f"attention on block {index + 1}", caption, state))
    return (
        f'<ol class="at-looks">{"".join(pictures)}</ol><p class="at-note">Share of the attention of token {token} of '
        f"block {block} in layer {layer}, mean of the heads. The other {100 * (1 - float(to_patches.sum())):.1f} % go to "
        "latent tokens.</p>"
    )


def build_tab(pipeline: AdapTokPipeline, video_input: Callable[[], gr.Video], model_event: Callable) -> None:
    """Build the components of the tab, see `reconstruct_tab.build_tab`."""
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
                token = gr.Slider(1, config.latents_per_block, value=1, step=1, label="Token", min_width=140)
                most = config.num_encoder_layers
                layer = gr.Slider(1, most, value=most, step=1, label="Encoder layer", min_width=140)
            looks = gr.HTML(waiting(_LOOKS_WAITING))
            gr.Markdown("### What the scorer predicts", elem_classes="at-section")
            visible = pipeline.scorer is not None
            curves = gr.LinePlot(x="tokens", y="predicted loss", color="block", height=330, visible=visible)
    choice, outputs = [layer, block, token], [prefixes, looks, curves, clip]
    model_event(button.click, inspect_clip, [video, *choice], outputs, clip, api_name="inspect")
    for slider in choice:
        model_event(
            slider.change, attention_map, [clip, *choice], [looks], api_visibility="private", trigger_mode="always_last",
            show_progress="hidden",
        )  # fmt: skip
