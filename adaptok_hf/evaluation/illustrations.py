"""The pictures of evaluations: of results, and of a few videos."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..atomic_files import atomic_file, write_json
from ..data import VideoFiles, VideoItem
from ..figures import plots
from ..figures.contact_sheets import contact_sheet
from ..metrics import Protocol
from ..training.scorer.targets import BlockLoss
from ..training.scorer.validation import rank_correlations
from ..video.video_io import read_video
from .attention_maps import attention_maps
from .clip_chunks import ClipChunks
from .scene_cuts import find_cuts
from .scorer_check import score_curves

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline

logger = logging.getLogger(__name__)

NUM_CLIPS = 3  # of scorer curves, spread over the videos

_LABELS = {"psnr": "PSNR (dB)", "ssim": "SSIM", "lpips": "LPIPS", "fvd": "FVD"}


def draw_reconstruction(
    folder: str | Path,
    report: dict[str, Any],
    pipeline: "AdapTokPipeline",
    source: VideoFiles,
    protocol: Protocol,
    lpips: torch.nn.Module | None = None,
    scorer_loss: str | None = None,
) -> list[Path]:
    """Draw all pictures of an evaluation into its folder.

    These are curves of its results, and at the middle of its budgets attention maps, scorer curves, and tokens over time of
    the videos with most cuts and most blocks.

    Args:
        report: of `evaluate_reconstruction`, with these videos and this protocol.
        pipeline: one of the models.
        lpips: network for scorer curves in LPIPS.
        scorer_loss: what the scorer was trained to predict, a target of `BlockLoss`. Default: its configuration's, unless
            that needs `lpips` and there is none; then `"rmse"`.

    Returns:
        The files written.
    """
    folder = Path(folder)
    paths = draw_results(folder, report, pipeline.tokenizer.config.latents_per_block)
    budgets = sorted({result["budget"] for result in report["results"] if result["budget"] is not None})
    if budgets:
        if scorer_loss is None and pipeline.scorer is not None:
            scorer_loss = pipeline.scorer.config.target or "rmse"
            scorer_loss = "rmse" if scorer_loss == "perceptual" and lpips is None else scorer_loss
        paths += _draw_examples(folder, pipeline, source, protocol, budgets[len(budgets) // 2], scorer_loss, lpips)
    return paths


def draw_results(folder: Path, report: dict[str, Any], maximum: int) -> list[Path]:
    """Draw rate-distortion curves and gains over `fixed` for each model, and return the files written.

    Args:
        report: of `evaluate_reconstruction`.
        maximum: tokens of a full block.
    """
    paths = []
    models = list(dict.fromkeys(result["model"] for result in report["results"]))
    for model in models:
        results = [r for r in report["results"] if r["model"] == model and r["tokens_per_block"] is not None]
        suffix = f"_{model}" if len(models) > 1 else ""
        # a line for each strategy, and batch if there are several
        many = len({result["allocation_batch"] for result in results} - {None}) > 1
        lines: dict[str, list[dict]] = {}
        for result in results:
            batch = result["allocation_batch"] if many else None
            lines.setdefault(result["strategy"] + (f" ({batch})" if batch else ""), []).append(result)
        for name, label in _LABELS.items():
            curves = {line: _points(of_line, name) for line, of_line in lines.items()}
            curves = {line: points for line, points in curves.items() if len(points) > 1}
            if curves:
                if name == "lpips":
                    label = next(r["metrics"]["lpips"]["metric"] for r in results).removeprefix("Video")
                paths.append(plots.plot_rate_distortion(folder / f"rate_{name}{suffix}.png", curves, label, maximum))
        gains = {line: _gains(of_line) for line, of_line in lines.items()}
        gains = {line: points for line, points in gains.items() if points}
        if gains:
            paths.append(plots.plot_differences(folder / f"gain_psnr{suffix}.png", gains, "PSNR minus fixed's (dB)"))
    return paths


def _points(results: list[dict], name: str) -> list[tuple]:
    """Return (tokens per block, value, low, high) of a metric."""
    metrics = [(result["tokens_per_block"], result["metrics"].get(name)) for result in results]
    return [(tokens, m["value"], m["low"], m["high"]) for tokens, m in metrics if m and m["value"] is not None]


def _gains(results: list[dict]) -> list[tuple]:
    """Return (budget, PSNR minus that of `fixed`, low, high) where there is a difference."""
    differences = [(result["budget"], (result.get("difference_from_fixed") or {}).get("psnr")) for result in results]
    return [(budget, d["value"], d["low"], d["high"]) for budget, d in differences if d and (d["low"], d["high"]) != (0, 0)]


def _draw_examples(
    folder: Path,
    pipeline: "AdapTokPipeline",
    source: VideoFiles,
    protocol: Protocol,
    budget: float,
    scorer_loss: str | None,
    lpips: torch.nn.Module | None,
) -> list[Path]:
    indices = np.linspace(0, len(source.items) - 1, min(NUM_CLIPS, len(source.items))).astype(int)
    clips = [ClipChunks(VideoFiles([source.items[int(index)]]), protocol, 1).read(0) for index in indices]
    first = {of_video.keys[0]: of_video.videos[0] for of_video in clips if len(of_video)}
    paths = []
    if first:
        paths.append(_draw_attention(folder / "attention.png", pipeline, next(iter(first.values()))))
        if scorer_loss is not None and pipeline.scorer is not None:
            paths.append(_draw_scorer(folder, pipeline, first, BlockLoss(scorer_loss, lpips)))
    for index, item in enumerate(_most_interesting(source)):
        path = folder / f"tokens_over_time_{index + 1}.png"
        try:
            _draw_tokens_over_time(path, pipeline, item, budget)
        except (ValueError, OSError) as error:
            logger.warning("no picture: %s", error)
        else:
            paths.append(path)
    return paths


def _draw_attention(path: Path, pipeline: "AdapTokPipeline", video: torch.Tensor) -> Path:
    config = pipeline.tokenizer.config
    last = config.latents_per_block - 1
    tokens = sorted({0, 1, last // 4, last})
    maps = [attention_maps(pipeline.tokenizer, video / 255, tokens, layer) for layer in range(config.num_encoder_layers)]
    layer = max(range(len(maps)), key=lambda index: maps[index].sum())  # in some layers latents hardly look at patches
    frames = video[:: config.tubelet_size].permute(0, 2, 3, 1).numpy()
    return plots.plot_attention(path, frames, maps[layer], tokens, layer)


def _draw_scorer(folder: Path, pipeline: "AdapTokPipeline", videos: dict[str, torch.Tensor], block_loss: BlockLoss) -> Path:
    predicted, measured, levels = score_curves(pipeline, torch.stack(list(videos.values())), block_loss)
    write_json(
        folder / "scorer.json",
        {
            "loss": block_loss.target,
            "levels": levels,
            "videos": list(videos),
            "predicted": predicted.tolist(),
            "measured": measured.tolist(),
            "rank_correlation_across_levels": rank_correlations(predicted, measured).get("rank_correlation_across_levels"),
        },
    )
    names = [f"clip {index + 1}" for index in range(len(videos))]
    return plots.plot_score_curves(folder / "scorer.png", predicted, measured, levels, names, block_loss.target)


def _draw_tokens_over_time(path: Path, pipeline: "AdapTokPipeline", item: VideoItem, budget: float) -> None:
    config = pipeline.tokenizer.config
    output = pipeline.tokenize(item.video, budget=budget, allocation="joint" if pipeline.scorer else "fixed")
    clips = pipeline.video_processor.clips(item.video)
    frames = clips.frames.flatten(0, 1)[: clips.num_frames].permute(0, 2, 3, 1).numpy()
    blocks = -(-clips.num_frames // config.tubelet_size)
    counts = output.token_counts.flatten().tolist()[:blocks]
    cuts = find_cuts(frames)
    title = f"{Path(item.key).stem}: {sum(counts) / blocks:.1f} tokens per block, {len(cuts)} cut{'s' * (len(cuts) != 1)}"
    plots.plot_tokens_over_time(path, frames, counts, config.tubelet_size, clips.fps, cuts, config.latents_per_block, title)


def _most_interesting(source: VideoFiles, count: int = 2, num_candidates: int = 64) -> list[VideoItem]:
    """Return that with most cuts of the first videos, and then the longest."""
    candidates = []
    for item in source.items[:num_candidates]:
        try:
            frames = read_video(item.video, max_frames=512).frames
        except (ValueError, OSError):
            continue
        candidates.append((len(find_cuts(frames)), len(frames), item))
    by_length = sorted(candidates, key=lambda entry: -entry[1])
    by_cuts = sorted(by_length, key=lambda entry: -entry[0])
    return [entry[2] for entry in by_cuts[:1] + [entry for entry in by_length if entry is not by_cuts[0]]][:count]


def draw_samples(path: Path, videos: torch.Tensor, rows: Sequence[dict], num_condition_frames: int = 0) -> None:
    """Draw a contact sheet of generated videos.

    Args:
        videos: uint8 (videos, frames, 3, height, width).
        rows: of the videos and maybe more, with `token_counts`, and `class` or `video`.
    """
    captions = [f"{row.get('class', row['video'])}, {sum(row['token_counts'])} tokens" for row in rows[: len(videos)]]
    with atomic_file(path) as partial:
        contact_sheet(videos.permute(0, 1, 3, 4, 2).numpy(), captions, num_condition_frames).save(partial)
