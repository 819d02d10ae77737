"""A metric's value together with what it takes to believe it: interval, number of videos, protocol, weights, floor."""

import dataclasses
import math
import warnings

import torch

from .distribution import FrechetVideoDistance
from .protocols import Protocol
from .weight_formats import tensors_sha256


@dataclasses.dataclass(frozen=True)
class MetricResult:
    """A metric's value, and what it depends on.

    Args:
        metric: which one, with its network: `"VideoPSNR"`, `"VideoLPIPS (vgg)"`, `"FrechetVideoDistance (I3DNetwork)"`.
        value: the number. The PSNR of identical videos is infinite: `to_dict` then gives `None`, because JSON has no such
            number, and names the entry in `infinite`.
        low, high: 95% bootstrap interval over videos; `None` where one video gives none.
        num_videos: of the smaller side.
        protocol: how it was measured; saved with its hash.
        weights_sha256: of the network's tensors; `None` without a network.
        floor: the same distance between disjoint random sets of real videos; `None` for metrics per video. A value near it
            does not differ from perfect. (Reconstructions of the very videos they are compared with can lie below.)
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
        """Return plain values for JSON, the protocol's fields and hash included."""
        values = {**dataclasses.asdict(self), "protocol_hash": self.protocol.hash}
        infinite = [name for name, value in values.items() if isinstance(value, float) and math.isinf(value)]
        return values | dict.fromkeys(infinite) | {"infinite": infinite}


def summarize_distance(
    metric: FrechetVideoDistance, protocol: Protocol, *, paired: bool = False, resamples: int = 100, seed: int = 0
) -> MetricResult:
    """Return the result of an FVD. Call it in all processes: they are merged.

    Resampled sets hold videos twice and therefore have a higher distance than the sets themselves, so that the bootstrap
    gives the width of the interval only: its quantiles are moved by the difference of its mean from the value.

    Args:
        paired: fake video i is the reconstruction of real video i (added in the same order): both are resampled together.

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
    low, high = interval(values - values.mean() + value)

    n = min(len(real), len(fake))
    floor, floor_n = real_floor(metric, real, n, seed=seed)
    notes = _departures(protocol, len(real), len(fake))
    if n <= metric.network.num_features:
        notes.append(f"{n} videos for {metric.network.num_features} features: compare only at {n} videos, with the floor")
    name = f"{type(metric).__name__} ({type(metric.network).__name__})"
    weights = tensors_sha256(metric.network.state_dict())
    return MetricResult(name, value, low, high, n, protocol, weights, floor, floor_n, "; ".join(notes))


def real_floor(
    metric: FrechetVideoDistance, real: torch.Tensor, num_videos: int, splits: int = 5, seed: int = 0
) -> tuple[float | None, int | None]:
    """Return the mean distance between two disjoint random sets of real videos, over a few splits.

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


def interval(values: torch.Tensor) -> tuple[float, float]:
    """Return the 2.5% and 97.5% quantiles of (resamples,) values."""
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    # between infinite values there is nothing to interpolate
    how = "linear" if values.isfinite().all() else "nearest"
    low, high = values.double().quantile(ends, interpolation=how).tolist()
    return low, high


def _departures(protocol: Protocol, num_real: int, num_fake: int) -> list[str]:
    """Return what keeps a value from being the protocol's, and warn of it."""
    wrong = [
        f"{count} {side} videos where {protocol.name} has {expected}"
        for side, count, expected in (("real", num_real, protocol.num_real), ("fake", num_fake, protocol.num_fake))
        if expected is not None and count != expected
    ]
    if wrong:
        warnings.warn(" and ".join(wrong), stacklevel=3)
    return wrong
