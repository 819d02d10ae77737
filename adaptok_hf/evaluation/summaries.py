"""From measured clips to results: means with intervals that know which clips belong to one video."""

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from ..metrics import FrechetVideoDistance, MetricResult, Protocol, interval, summarize_distance
from .measuring import Networks

PAIR_METRICS = {"psnr": "VideoPSNR", "ssim": "VideoSSIM", "lpips": "VideoLPIPS"}


def summarize_pairs(rows: Sequence[dict], networks: Networks, protocol: Protocol) -> dict[str, dict]:
    """Return the entries of a report for the metrics of `measure_clips`.

    Args:
        rows: one per clip, with `video` and the numbers.

    Returns:
        `psnr`, `ssim` and `lpips`, those that the rows have.
    """
    videos, results = [row["video"] for row in rows], {}
    for name, label in PAIR_METRICS.items():
        if rows and name in rows[0]:
            weights = None
            if name == "lpips":
                label, weights = f"{label} ({networks.lpips_name})", networks.lpips_sha256
            results[name] = metric_entry(summarize_clips(label, [row[name] for row in rows], videos, protocol, weights))
    return results


def metric_entry(result: MetricResult) -> dict[str, Any]:
    """Return a result as it stands in a report: the protocol by name and hash."""
    return result.to_dict() | {"protocol": result.protocol.name}


def summarize_clips(
    metric: str,
    values: Sequence[float],
    videos: Sequence[str],
    protocol: Protocol,
    weights_sha256: str | None = None,
) -> MetricResult:
    """Return the mean over clips with its 95% bootstrap interval.

    Whole videos are sampled with all their clips: clips of one video resemble each other, and an interval that takes them
    as independent is too narrow.

    Args:
        values: one per clip; may be infinite.
        videos: the video of each clip.

    Raises:
        ValueError: without clips.
    """
    n = len(values)
    if n == 0:
        raise ValueError(f"no clips to take the mean {metric} of")
    names = sorted(set(videos))
    values = torch.tensor(values, dtype=torch.float64)
    low, high = interval(bootstrap_means(values, videos)) if len(names) > 1 else (None, None)
    notes = ["one video gives no interval"] if len(names) == 1 else []
    if 1 < len(names) < n:
        notes.append(f"interval over {len(names)} videos")
    if protocol.num_fake is not None and n != protocol.num_fake:
        notes.append(f"{n} clips where {protocol.name} has {protocol.num_fake}")
    value, note = values.mean().item(), "; ".join(notes)
    return MetricResult(metric, value, low, high, n, protocol, weights_sha256=weights_sha256, note=note)


def bootstrap_means(values: torch.Tensor, videos: Sequence[str], resamples: int = 1000, seed: int = 0) -> torch.Tensor:
    """Return means over clips of resampled sets of videos.

    Args:
        values: (clips,) or (clips, columns) float64.
        videos: the video of each clip.

    Returns:
        (resamples,) or (resamples, columns). The same seed samples the same videos: differences of two calls are paired.
    """
    names = {name: index for index, name in enumerate(sorted(set(videos)))}
    index = torch.tensor([names[video] for video in videos])
    counts = torch.bincount(index, minlength=len(names)).double()
    sums = torch.zeros(len(names), *values.shape[1:], dtype=torch.float64).index_add(0, index, values)
    sampled = torch.randint(len(names), (resamples, len(names)), generator=torch.Generator().manual_seed(seed))
    total = counts[sampled].sum(1)
    return sums[sampled].sum(1) / total.view(-1, *[1] * (values.ndim - 1))


def summarize_difference(rows: Sequence[dict], others: Sequence[dict], name: str) -> dict | None:
    """Return a metric's mean difference from other rows of the same clips, with its interval.

    `None` for clips of one video, or infinite values.
    """
    ours, theirs = (torch.tensor([row[name] for row in side], dtype=torch.float64) for side in (rows, others))
    videos, difference = [row["video"] for row in rows], ours - theirs
    if len(set(videos)) < 2 or not difference.isfinite().all():
        return None
    low, high = interval(bootstrap_means(difference, videos))
    return {"value": difference.mean().item(), "low": low, "high": high}


def summarize_features(
    real: torch.Tensor, fake: torch.Tensor, network: torch.nn.Module, protocol: Protocol, paired: bool
) -> dict[str, dict]:
    """Return `fvd` of (clips, D) features with interval and floor; nothing for fewer than 2 clips on a side.

    Call it in one process.
    """
    if min(len(real), len(fake)) < 2:
        return {}
    metric = FrechetVideoDistance(network, ddof=protocol.ddof, distributed_available_fn=lambda: False)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the result's note says the same
        return {"fvd": metric_entry(summarize_distance(metric, protocol, paired=paired))}
