"""Makes the pictures of docs/adaptive_tokens.md: `python docs/images/make_adaptive_images.py`, the checkpoint `small`."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from PIL import Image

from adaptok_hf import AdapTokPipeline
from adaptok_hf.allocation import joint
from adaptok_hf.figures.plot_style import COLORS, figure_file
from adaptok_hf.models.attention_masks import dense_mask

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "examples" / "surfing.mp4"
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
BLUE, ORANGE = COLORS[:2]


def main() -> None:
    pipeline = AdapTokPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    draw_prefixes(pipeline)
    draw_attention()
    draw_scores(pipeline)
    draw_budget_over_time(pipeline)
    for path in HERE.glob("adaptive_*.png"):
        shrink(path)


@torch.no_grad()
def draw_prefixes(pipeline: AdapTokPipeline) -> None:
    """One clip, decoded from longer and longer prefixes of the same codes; one frame of each block."""
    config = pipeline.tokenizer.config
    clip = pipeline.video_processor.clips(EXAMPLE).pixel_values_videos[:1]
    codes = pipeline.tokenizer.encode(clip).codes
    shown = list(range(config.tubelet_size // 2, config.num_frames, config.tubelet_size))
    columns = [("original", clip)]
    for count in (max(1, round(config.latents_per_block * share)) for share in SHARES):
        counts = torch.full((1, config.num_blocks), count)
        columns.append((f"first {count}", pipeline.tokenizer.decode(codes, counts).pixel_values_videos))
    size = 1.2 * len(columns), 0.25 + 1.2 * len(shown), len(shown), len(columns)
    with figure_file(HERE / "adaptive_prefixes.png", *size) as (_, axes):
        for column, (name, video) in enumerate(columns):
            for row, frame in enumerate(shown):
                axes[row, column].imshow(video[0, frame].clamp(0, 1).permute(1, 2, 0))
                plain(axes[row, column])
                axes[row, 0].set_ylabel(f"block {row}")
            axes[0, column].set_title(name)


def draw_attention() -> None:
    """Who sees whom, by the rules that the models use; 3 blocks of 2 patches and 3 latents."""
    block = torch.arange(15) // 5
    is_patch = torch.arange(15) % 5 < 2
    dropped = torch.tensor([0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1]).bool()  # all, 1 and 2 latents are kept
    causal, decoder = (dense_mask(name, block, is_patch) for name in ("block_causal", "decoder"))
    everyone, latents = torch.arange(15), torch.arange(15)[~is_patch]
    panels = [
        ("encoder: patches p and latents z", causal, everyone, torch.zeros_like(dropped)),
        ("decoder: empty patches p and kept latents z", decoder, everyone, dropped),
        ("scorer: latents z", causal, latents, torch.zeros_like(dropped)),
    ]
    colors = {"its own block": BLUE, "an earlier block": "#9ecae1", "not seen": "#efefef", "dropped": "#fbe3d3"}
    with figure_file(HERE / "adaptive_attention.png", 10, 4.2, 1, 3, width_ratios=[15, 15, 9]) as (figure, axes):
        for axis, (title, mask, tokens, gone) in zip(axes[0], panels, strict=True):
            queries, keys = tokens[:, None], tokens[None, :]
            seen = mask[queries, keys]
            cells = torch.where(seen, (block[queries] != block[keys]).long(), 2)
            cells = torch.where(gone[queries] | gone[keys], 3, cells)
            axis.imshow(cells, cmap=ListedColormap(list(colors.values())), vmin=0, vmax=3)
            names = [f"{'p' if is_patch[i] else 'z'}{int(block[i])}" for i in tokens]
            axis.set_xticks(range(len(tokens)), names, fontsize=7)
            axis.set_yticks(range(len(tokens)), names, fontsize=7)
            axis.set_xticks(np.arange(len(tokens) + 1) - 0.5, minor=True)
            axis.set_yticks(np.arange(len(tokens) + 1) - 0.5, minor=True)
            axis.grid(False)
            axis.grid(which="minor", color="white", linewidth=1.5)
            axis.tick_params(which="both", length=0)
            axis.spines[:].set_visible(False)
            axis.set_title(title)
            axis.set_xlabel("... may be seen")
            axis.set_ylabel("this token sees ...")
        handles = [Patch(color=color, label=name) for name, color in colors.items()]
        figure.legend(handles=handles, loc="outside lower center", ncols=4)


@torch.no_grad()
def draw_scores(pipeline: AdapTokPipeline) -> None:
    """Predicted loss of the blocks of the first clip over tokens, and where `joint` stops at a quarter of them."""
    step = pipeline.scorer.config.score_step
    encoded = pipeline.tokenizer.encode(pipeline.video_processor.clips(EXAMPLE).pixel_values_videos[:1])
    scores = pipeline.scorer(encoded.latents, encoded.quantized).scores.double().numpy()
    tokens = step * np.arange(1, scores.shape[-1] + 1)
    budget = float(tokens[-1]) / 4
    counts = joint(scores, step=step, budget=budget, rounding="floor").token_counts
    with figure_file(HERE / "adaptive_scores.png", 6.4, 3.3) as (_, axes):
        axis = axes[0, 0]
        for block, (curve, count) in enumerate(zip(scores[0], counts[0], strict=True)):
            color = COLORS[block % len(COLORS)]
            axis.plot(tokens, curve, color=color, label=f"block {block}: {count} tokens")
            axis.plot(count, curve[count // step - 1], "o", color=color, markersize=9, markeredgecolor="white")
        axis.set_xlabel("tokens kept of the block")
        axis.set_ylabel("predicted loss (lower is better)")
        axis.set_xlim(0, tokens[-1] * 1.02)
        axis.legend(title=f"joint, {budget:.0f} per block")


def draw_budget_over_time(pipeline: AdapTokPipeline) -> None:
    """Tokens of each block of the example at the same budget, spent evenly and where they help; frames above."""
    output = pipeline.reconstruct(EXAMPLE, budget="25%")
    frames_per_block = pipeline.tokenizer.config.tubelet_size
    blocks_per_clip = pipeline.tokenizer.config.num_blocks
    counts = output.token_counts.flatten()[: -(-len(output.original[0]) // frames_per_block)].numpy()
    seconds = output.timestamps[::frames_per_block]
    width = np.diff(seconds).mean()
    with figure_file(HERE / "adaptive_over_time.png", 8, 3.4, 3, 1, height_ratios=[0.62, 0.62, 2]) as (_, axes):
        for axis, frames, name in ((axes[0, 0], output.original[0], "original"), (axes[1, 0], output.frames[0], "decoded")):
            strip = np.concatenate(frames[frames_per_block // 2 :: frames_per_block], axis=1)
            axis.imshow(strip, aspect="auto", extent=(seconds[0], seconds[-1] + width, 0, 1))
            axis.set_ylabel(name, rotation=0, ha="right", va="center")
            plain(axis)
        axis = axes[2, 0]
        axis.bar(seconds + width / 2, counts, width * 0.86, color=ORANGE, label="joint")
        axis.axhline(counts.mean(), color=BLUE, linestyle="--", label=f"fixed, the same {counts.sum()} tokens")
        for clip in range(0, len(counts), blocks_per_clip):
            axis.axvline(seconds[clip], color="#888888", linewidth=0.8, label="a clip begins" if clip == 0 else None)
        axis.set_xlim(seconds[0], seconds[-1] + width)
        axis.set_ylabel("tokens of the block")
        axis.set_xlabel("seconds")
        axis.set_ylim(0, counts.max() * 1.35)
        axis.legend(ncols=3, loc="upper right", frameon=True, framealpha=1, edgecolor="white")


def shrink(path: Path) -> None:
    """256 colors, which these pictures bear: a third of the bytes."""
    Image.open(path).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(path, optimize=True)


def plain(axis) -> None:
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(False)
    axis.spines[:].set_visible(False)


if __name__ == "__main__":
    main()
