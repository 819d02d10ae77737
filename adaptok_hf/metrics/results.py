"""A metric's value together with what it takes to believe it: interval, number of videos, protocol, weights, floor."""

import dataclasses
import json
import math
import os
import uuid
import warnings
from pathlib import Path

import torch

from .distribution import FeatureDistance
from .per_video import PerVideoMetric
from .protocols import Protocol
from .weight_formats import tensors_sha256


@dataclasses.dataclass(frozen=True)
class MetricResult:
    """
    Args:
        metric: which one, with its network: `"VideoPSNR"`, `"VideoLPIPS (vgg)"`, `"FrechetVideoDistance (I3DNetwork)"`.
        value: the number. The PSNR of identical videos is infinite: `to_dict` then gives `None`, because JSON has no such
            number, and names the entry in `infinite`.
        low, high: 95% bootstrap interval over videos; `None` where one video gives none.
        num_videos: of the smaller side.
        protocol: how it was measured; saved with its hash.
        weights_sha256: of the network's tensors; `None` without a network.
        floor: the same distance between disjoint random sets of real videos; `None` for metrics per video. A value near it
            cannot be told from perfect. (Reconstructions of the very videos they are compared with can lie below.)
        floor_num_videos: in each of those sets. The floor grows as this shrinks: it is too high where it is below
            `num_videos`, which happens when fewer than twice as many real videos are at hand.
        note: what a reader must know, such as that the number of videos is not the protocol's.
    """

    metric: str
    value: float
    low: float | None
    high: float | None
    num_videos: int
    protocol: Protocol
    weights_sha256: str | None = None
    floor: float | None = None
    floor_num_videos: int | None = None
    note: str = ""

    def to_dict(self) -> dict:
        """Plain values for JSON, the protocol's fields and hash included."""
        values = {**dataclasses.asdict(self), "protocol_hash": self.protocol.hash}
        infinite = [name for name, value in values.items() if isinstance(value, float) and math.isinf(value)]
        return values | dict.fromkeys(infinite) | {"infinite": infinite}

    def save(self, path: str | os.PathLike) -> None:
        """Writes JSON, beside the destination first, then renamed."""
        path = Path(path)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            partial.write_text(json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def summarize_per_video(metric: PerVideoMetric, protocol: Protocol, resamples: int = 1000, seed: int = 0) -> MetricResult:
    """
    The result of PSNR, SSIM, LPIPS or flicker. Call it in all processes: they are merged.

    The interval is the percentile bootstrap of the mean. Clips of one video count as independent, which they are not: the
    interval is then too narrow.

    Raises:
        ValueError: for fewer than 2 videos.
    """
    with metric.sync_context():
        values = metric.per_video().cpu()
    n = len(values)
    if n < 2:
        raise ValueError(f"a result needs at least 2 videos, got {n}")
    generator = torch.Generator().manual_seed(seed)
    means = torch.stack([values[torch.randint(n, (n,), generator=generator)].mean() for _ in range(resamples)])
    low, high = _interval(means)
    note = "; ".join(_departures(protocol, n, n))
    return MetricResult(_name(metric), values.mean().item(), low, high, n, protocol, _weights(metric), note=note)


def summarize_distance(
    metric: FeatureDistance,
    protocol: Protocol,
    *,
    paired: bool = False,
    more_real: torch.Tensor | None = None,
    resamples: int = 100,
    seed: int = 0,
) -> MetricResult:
    """
    The result of FVD or MMD that was constructed with `keep_features=True`. Call it in all processes: they are merged.

    Resampled sets hold videos twice and therefore have a higher distance than the sets themselves, so that the bootstrap
    gives the width of the interval only: its quantiles are moved by the difference of its mean from the value.

    Args:
        paired: fake video i is the reconstruction of real video i (given in the same order): both are resampled together.
        more_real: (videos, D) features of other real videos of the same protocol, for the floor.

    Raises:
        ValueError: for fewer than 2 videos on a side, unequal sides with `paired`.
    """
    value = metric.compute().item()
    with metric.sync_context():
        real, fake = (features.cpu() for features in metric.features())
    if paired and len(real) != len(fake):
        raise ValueError(f"paired sets must have equal size, got {len(real)} real and {len(fake)} fake videos")
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(resamples):
        chosen = torch.randint(len(real), (len(real),), generator=generator)
        other = chosen if paired else torch.randint(len(fake), (len(fake),), generator=generator)
        values.append(metric.distance_of(real[chosen], fake[other]).cpu())
    values = torch.stack(values)
    low, high = _interval(values - values.mean() + value)

    n = min(len(real), len(fake))
    floor, floor_n = real_floor(metric, real if more_real is None else torch.cat([real, more_real.cpu()]), n, seed=seed)
    notes = _departures(protocol, len(real), len(fake))
    if n <= metric.network.num_features:
        notes.append(f"{n} videos for {metric.network.num_features} features: compare only at {n} videos, with the floor")
    weights = _weights(metric)
    return MetricResult(_name(metric), value, low, high, n, protocol, weights, floor, floor_n, "; ".join(notes))


def real_floor(
    metric: FeatureDistance, real: torch.Tensor, num_videos: int, splits: int = 5, seed: int = 0
) -> tuple[float | None, int | None]:
    """
    The mean distance between two disjoint random sets of real videos, over a few draws.

    Args:
        real: (videos, D) features.
        num_videos: in each set; half of `real` where that is fewer.

    Returns:
        The floor and the size of its sets, or `None` twice for fewer than 4 videos.
    """
    n = min(num_videos, len(real) // 2)
    if n < 2:
        return None, None
    generator = torch.Generator().manual_seed(seed)
    orders = [torch.randperm(len(real), generator=generator) for _ in range(splits)]
    return torch.stack([metric.distance_of(real[o[:n]], real[o[n : 2 * n]]) for o in orders]).mean().item(), n


def _interval(values: torch.Tensor) -> tuple[float, float]:
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    # between infinite values there is nothing to interpolate
    how = "linear" if values.isfinite().all() else "nearest"
    low, high = values.double().quantile(ends, interpolation=how).tolist()
    return low, high


def _name(metric) -> str:
    network = getattr(metric, "network", None)
    if network is None:
        return type(metric).__name__
    return f"{type(metric).__name__} ({getattr(metric, 'net', type(network).__name__)})"


def _weights(metric) -> str | None:
    network = getattr(metric, "network", None)
    return None if network is None else tensors_sha256(network.state_dict())


def _departures(protocol: Protocol, num_real: int, num_fake: int) -> list[str]:
    """What keeps a value from being the protocol's, also told in a warning."""
    wrong = [
        f"{found} {side} videos where {protocol.name} has {wanted}"
        for side, found, wanted in (("real", num_real, protocol.num_real), ("fake", num_fake, protocol.num_fake))
        if wanted is not None and found != wanted
    ]
    if wrong:
        warnings.warn(" and ".join(wrong), stacklevel=3)
    return wrong
