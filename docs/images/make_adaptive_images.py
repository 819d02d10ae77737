"""Makes the pictures of docs/adaptive_tokens.md: `python docs/images/make_adaptive_images.py`, the checkpoint `small`."""

from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import ListedColormap
from matplotlib.patches import Patch
from PIL import Image

from adaptok_hf import AdapTokPipeline, AllocationRequest, read_video
from adaptok_hf.allocation import joint
from adaptok_hf.figures.plot_style import COLORS, figure_file
from adaptok_hf.models.attention_masks import dense_mask

HERE = Path(__file__).parent
EXAMPLES = [HERE.parents[1] / "examples" / f"{name}.mp4" for name in ("surfing", "turning_a_cup", "yoga")]
SHARES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1)
SHARED_BUDGETS = (32, 128)
BLUE, ORANGE = COLORS[:2]


def main() -> None:
    pipeline = AdapTokPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    draw_prefixes(pipeline)
    draw_attention()
    draw_scores(pipeline)
    draw_shared_budget(pipeline)
    for path in HERE.glob("adaptive_*.png"):
        shrink(path)


@torch.no_grad()
def draw_prefixes(pipeline: AdapTokPipeline) -> None:
    """Decode two clips from longer and longer prefixes of the same codes; a frame of the first and of the last block."""
    config = pipeline.tokenizer.config
    shown = [config.tubelet_size // 2, config.num_frames - config.tubelet_size // 2]
    counts = [max(1, round(config.latents_per_block * share)) for share in SHARES]
    with figure_file(HERE / "adaptive_prefixes.png", 8.4, 5.1, 4, 7) as (_, axes):
        for clip, path in enumerate(EXAMPLES[:2]):
            video = pipeline.video_processor.clips(path).pixel_values_videos[:1]
            codes = pipeline.tokenizer.encode(video).codes
            prefixes = [torch.full((1, config.num_blocks), count) for count in counts]
            decoded = [pipeline.tokenizer.decode(codes, kept).pixel_values_videos for kept in prefixes]
            for block, frame in enumerate(shown):
                row = axes[2 * clip + block]
                for axis, picture in zip(row, [video, *decoded], strict=True):
                    axis.imshow(picture[0, frame].clamp(0, 1).permute(1, 2, 0))
                    plain(axis)
                row[0].set_ylabel(f"block {frame // config.tubelet_size}")
        for axis, name in zip(axes[0], ["original", *(f"first {count}" for count in counts)], strict=True):
            axis.set_title(name)


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
    encoded = pipeline.tokenizer.encode(pipeline.video_processor.clips(EXAMPLES[0]).pixel_values_videos[:1])
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


def draw_shared_budget(pipeline: AdapTokPipeline) -> None:
    """Draw the tokens of each block of three videos that share a budget, at two budgets (as the paper's Figure 1)."""
    size, per_clip = pipeline.tokenizer.config.tubelet_size, pipeline.tokenizer.config.num_blocks
    videos = [read_video(path, max_frames=3 * size * per_clip) for path in EXAMPLES]
    encoded = pipeline.encode(videos)
    shape = 2 * len(videos), len(SHARED_BUDGETS)
    with figure_file(HERE / "adaptive_shared.png", 10, 7, *shape, height_ratios=[0.9, 1] * len(videos)) as (figure, axes):
        for column, budget in zip(axes.T, SHARED_BUDGETS, strict=True):
            column[0].set_title(f"{budget} tokens per block for all three", fontweight="bold")
            allocated = pipeline.allocate(encoded, AllocationRequest(budget=budget))
            counts = [tokens.token_counts.flatten().numpy() for tokens in allocated]
            blocks, most = np.arange(len(counts[0])), np.max(counts)
            constant = np.resize(pipeline.find_schedule(budget, encoded.valid_blocks), len(blocks))
            for strip, bars, path, video, tokens in zip(
                column[::2], column[1::2], EXAMPLES, videos, allocated, strict=True
            ):
                pair = video.frames, pipeline.decode(tokens)
                strip.imshow(
                    np.concatenate([np.concatenate(rows[size // 2 :: size], axis=1) for rows in pair]), aspect="auto"
                )
                plain(strip)
                of_video = tokens.token_counts.flatten().numpy()
                bars.set_title(f"{path.stem.replace('_', ' ')}: {of_video.mean():.1f} per block", loc="left")
                bars.bar(blocks, of_video, 0.86, color=ORANGE, label="tokens of a block")
                bars.hlines(constant, blocks - 0.43, blocks + 0.43, BLUE, linestyles="--", label="best constant schedule")
                bars.set(xlim=(-0.5, len(blocks) - 0.5), ylim=(0, 1.05 * most))
                starts = blocks[::per_clip]
                bars.set_xticks(starts - 0.5, [f"clip {number + 1}" for number in range(len(starts))], ha="left")
                bars.grid(False, axis="x")
        for strip, bars in axes[:, 0].reshape(-1, 2):
            strip.set_ylabel("original\n\n\ndecoded", rotation=0, ha="right", va="center")
            bars.set_ylabel("tokens")
        figure.legend(*axes[1, 0].get_legend_handles_labels(), loc="outside lower center", ncols=2)


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
