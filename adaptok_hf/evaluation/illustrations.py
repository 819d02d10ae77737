"""The pictures of an evaluation of reconstructions: what is drawn, from results and from a few videos."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..data import VideoFiles
from ..figures import plots
from ..metrics import Protocol
from ..video.video_io import read_video
from .attention_maps import attention_maps
from .clip_chunks import ClipChunks
from .part_files import write_json
from .scene_cuts import find_cuts
from .scorer_check import score_curves

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline

logger = logging.getLogger(__name__)

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
    """
    All pictures of an evaluation, in its folder: `draw_results`, and `draw_examples` at the middle one of its budgets.

    Args:
        report: of `evaluate_reconstruction`, with these videos and this protocol.
        pipeline: one of the models.
        lpips, scorer_loss: see `score_curves`.
    """
    config = pipeline.tokenizer.config
    step = pipeline.scorer.config.score_step if pipeline.scorer is not None else 1
    drawn = draw_results(Path(folder), report, step, config.latents_per_block)
    budgets = sorted({result["budget"] for result in report["results"] if result["budget"] is not None})
    if budgets:
        budget = budgets[len(budgets) // 2]
        drawn += draw_examples(Path(folder), pipeline, source, protocol, budget, scorer_loss, lpips)
    return drawn


def draw_results(folder: Path, report: dict[str, Any], step: int, maximum: int) -> list[Path]:
    """
    Rate-distortion curves, gains over `fixed`, and histograms of tokens, for each model.

    Args:
        report: of `evaluate_reconstruction`.
        step, maximum: the levels of a block.
    """
    drawn = []
    for model in dict.fromkeys(result["model"] for result in report["results"]):
        results = [r for r in report["results"] if r["model"] == model and r["tokens_per_block"] is not None]
        many = len({result["model"] for result in report["results"]}) > 1
        suffix = f"_{model}" if many else ""
        batches = len({result["allocation_batch"] for result in results} - {None}) > 1
        for name, label in _LABELS.items():
            curves: dict[str, list] = {}
            for result in results:
                metric = result["metrics"].get(name)
                if metric and metric["value"] is not None:
                    point = (result["tokens_per_block"], metric["value"], metric["low"], metric["high"])
                    curves.setdefault(_line(result, batches), []).append(point)
            curves = {line: points for line, points in curves.items() if len(points) > 1}
            if curves:
                if name == "lpips":
                    label = next(r["metrics"]["lpips"]["metric"] for r in results).removeprefix("Video")
                drawn.append(plots.plot_rate_distortion(folder / f"rate_{name}{suffix}.png", curves, label, maximum))
        gains: dict[str, list] = {}
        for result in results:
            found = (result.get("difference_from_fixed") or {}).get("psnr")
            if found and (found["low"], found["high"]) != (0, 0):
                point = (result["budget"], found["value"], found["low"], found["high"])
                gains.setdefault(_line(result, batches), []).append(point)
        if gains:
            path = folder / f"gain_psnr{suffix}.png"
            drawn.append(plots.plot_differences(path, gains, "PSNR minus fixed's (dB)"))
        for budget in sorted({result["budget"] for result in results if step < result["budget"] < maximum}):
            counts = {}
            for result in results:
                if result["budget"] == budget:
                    counts[_line(result, batches)] = [
                        count for count, blocks in result["blocks_with_tokens"] for _ in range(blocks)
                    ]
            if len(counts) > 1:
                path = folder / f"allocation_{budget:g}{suffix}.png"
                drawn.append(plots.plot_allocation(path, counts, budget, step, maximum))
    return drawn


def _loss_of(target: str | None, lpips: torch.nn.Module | None) -> str:
    if target == "perceptual" and lpips is not None:
        return "lpips"
    return "l1" if target == "l1" else "rmse"


def _line(result: dict, many_batches: bool) -> str:
    batch = result["allocation_batch"]
    return result["strategy"] + (f" ({batch})" if batch and many_batches else "")


def draw_examples(
    folder: Path,
    pipeline: "AdapTokPipeline",
    source: VideoFiles,
    protocol: Protocol,
    budget: float,
    scorer_loss: str | None = None,
    lpips: torch.nn.Module | None = None,
    num_clips: int = 3,
) -> list[Path]:
    """
    Scorer curves (with their data and rank correlation in `scorer.json`), attention maps, and tokens over time of the
    videos with most cuts and most blocks.

    Args:
        budget: average tokens per block, for the tokens over time (strategy `joint`).
        scorer_loss: see `score_curves`; default: the scorer's `target` if it is LPIPS (and `lpips` is given) or L1, else
            `"rmse"`.
        num_clips: for the scorer curves, spread over the videos.
    """
    items = source.items
    spread = [items[int(i)] for i in np.linspace(0, len(items) - 1, min(num_clips, len(items)))]
    first = [ClipChunks(VideoFiles([item]), protocol, 1).read(0) for item in spread]
    first = [clips for clips in first if len(clips)]
    drawn = []
    config = pipeline.tokenizer.config
    if first:
        videos = torch.stack([clips.videos[0] for clips in first])
        last = config.latents_per_block - 1
        tokens = sorted({0, 1, last // 4, last})
        layers = range(config.num_encoder_layers)
        found = [attention_maps(pipeline.tokenizer, videos[0] / 255, tokens, layer) for layer in layers]
        layer = max(layers, key=lambda index: found[index].sum())  # in some layers latents hardly look at patches
        frames = videos[0, :: config.tubelet_size].permute(0, 2, 3, 1).numpy()
        drawn.append(plots.plot_attention(folder / "attention.png", frames, found[layer], tokens, layer))
        if pipeline.scorer is not None:
            scorer_loss = scorer_loss or _loss_of(pipeline.scorer.config.target, lpips)
            predicted, measured, levels = score_curves(pipeline, videos, scorer_loss, lpips)
            names = [f"clip {index + 1}" for index in range(len(videos))]
            path = folder / "scorer.png"
            drawn.append(plots.plot_score_curves(path, predicted, measured, levels, names, _loss_label(scorer_loss)))
            write_json(
                folder / "scorer.json",
                {
                    "loss": scorer_loss,
                    "levels": levels,
                    "videos": [clips.keys[0] for clips in first],
                    "predicted": predicted.tolist(),
                    "measured": measured.tolist(),
                    "rank_correlation_across_levels": _rank_correlation(predicted, measured),
                },
            )
    for index, item in enumerate(_most_interesting(source)):
        try:
            output = pipeline.tokenize(item.video, budget=budget, allocation="joint" if pipeline.scorer else "fixed")
            clips = pipeline.video_processor.clips(item.video)
        except (ValueError, OSError) as error:
            logger.warning("not drawn: %s", error)
            continue
        frames = clips.frames.flatten(0, 1)[: clips.num_frames].permute(0, 2, 3, 1).numpy()
        blocks = -(-clips.num_frames // config.tubelet_size)
        counts = output.token_counts.flatten().tolist()[:blocks]
        cuts = find_cuts(frames)
        title = (
            f"{Path(item.key).stem}: {sum(counts) / blocks:.1f} tokens per block, {len(cuts)} cut{'s' * (len(cuts) != 1)}"
        )
        path = folder / f"tokens_over_time_{index + 1}.png"
        drawn.append(
            plots.plot_tokens_over_time(
                path, frames, counts, config.tubelet_size, clips.fps, cuts, config.latents_per_block, title
            )
        )
    return drawn


def _most_interesting(source: VideoFiles, count: int = 2, looked_at: int = 64) -> list:
    """Of the first videos, that with most cuts and then the longest."""
    found = []
    for item in source.items[:looked_at]:
        try:
            frames = read_video(item.video, max_frames=512).frames
        except (ValueError, OSError):
            continue
        found.append((len(find_cuts(frames)), len(frames), item))
    by_cuts = sorted(found, key=lambda entry: (-entry[0], -entry[1]))
    by_length = sorted(found, key=lambda entry: -entry[1])
    chosen = []
    for entry in [*by_cuts[:1], *by_length]:
        if entry[2] not in chosen:
            chosen.append(entry[2])
    return chosen[:count]


def _loss_label(loss: str) -> str:
    return {"rmse": "root mean squared error", "l1": "mean absolute error", "lpips": "LPIPS"}[loss]


def _rank_correlation(predicted: np.ndarray, measured: np.ndarray) -> float | None:
    """Spearman's, across the levels of a block, mean over blocks; `None` where it is not defined."""
    from scipy.stats import spearmanr

    if predicted.shape[-1] < 3:
        return None
    pairs = zip(predicted.reshape(-1, predicted.shape[-1]), measured.reshape(-1, measured.shape[-1]), strict=True)
    values = [spearmanr(left, right).statistic for left, right in pairs if np.ptp(left) and np.ptp(right)]
    return float(np.mean(values)) if values else None
