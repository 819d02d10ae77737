"""The Frechet distance between the features of real and of generated (or reconstructed) videos."""

import warnings

import torch
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from .i3d_network import I3DNetwork
from .video_checks import check_videos


class FrechetVideoDistance(Metric):
    """FVD (Unterthiner et al., arXiv 1812.01717): the Frechet distance of Gaussians fitted to I3D features.

    Lower is better. The features of all videos are kept. Covariances are divided by N, as StyleGAN-V and the paper do
    (torchmetrics' FID and the TensorFlow original divide by N - 1: `ddof=1`). The root of the product is the symmetric
    (A^1/2 B A^1/2)^1/2, in float64. The value depends on clip length, size, and the number of videos, from which it has an
    upward bias of about 1/N: compare it only under one protocol, and look at the real-vs-real floor (`results`).

    Args:
        network: (N, T, 3, H, W) floats in [0, 1] -> (N, D) features, with D as its attribute `num_features`; by default I3D
            with its true weights (cached or downloaded, see `network_weights`).
        ddof: covariances are divided by N - ddof.

    Raises:
        ValueError: for a network without `num_features`, or another `ddof` than 0 and 1.
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, network: torch.nn.Module | None = None, ddof: int = 0, **kwargs):
        super().__init__(**kwargs)
        # before a network is attached: a process without videos contributes an empty state of this dtype
        self.set_dtype(torch.float64)
        network = I3DNetwork.from_pretrained() if network is None else network
        if not isinstance(getattr(network, "num_features", None), int):
            raise ValueError(f"{type(network).__name__} must have an int attribute num_features, the width of its output")
        if ddof not in (0, 1):
            raise ValueError(f"ddof must be 0 (divide by N) or 1 (by N - 1), got {ddof!r}")
        self.network, self.ddof = network, ddof
        for side in ("real", "fake"):
            self.add_state(f"{side}_features", [], dist_reduce_fx="cat")  # flat: an empty one merges with any other

    def update(self, videos: torch.Tensor, real: bool) -> None:
        """Add videos.

        Args:
            videos: (N, T, 3, H, W) in [0, 1] or uint8; or (N, D), their features, where they were computed before.
            real: whether they are real ones.

        Raises:
            ValueError: see `check_videos`; for features of another width, or NaN.
        """
        if isinstance(videos, torch.Tensor) and videos.ndim == 2:
            features = videos
        else:
            with torch.no_grad():
                features = self.network(check_videos(videos))
        width = self.network.num_features
        if features.ndim != 2 or features.shape[1] != width:
            raise ValueError(f"expected features of shape (videos, {width}), got {tuple(features.shape)}")
        if not features.isfinite().all():
            raise ValueError("features have NaN or infinite values")
        (self.real_features if real else self.fake_features).append(features.double().flatten())

    def compute(self) -> torch.Tensor:
        """Return the distance, float64; `ValueError` for fewer than 2 videos on a side."""
        real, fake = self.features()
        for side, features in (("real", real), ("fake", fake)):
            if len(features) < 2:
                raise ValueError(f"{type(self).__name__} needs at least 2 {side} videos, got {len(features)}")
        if (n := min(len(real), len(fake))) <= self.network.num_features:
            warnings.warn(
                f"FVD of {n} videos with {self.network.num_features} features: the covariance has rank below {n}, so the "
                f"value is mostly the error of its estimate; compare it only at {n} videos and with the floor",
                stacklevel=2,
            )
        return self.distance_of(real, fake)

    def features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return real and fake features, (videos, D) each, float64, of this process before `compute`."""
        real, fake = (
            (dim_zero_cat(values) if len(values) else torch.zeros(0)).view(-1, self.network.num_features)
            for values in (self.real_features, self.fake_features)
        )
        return real, fake

    def distance_of(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """Return the distance of two sets of features, (N, D) each; leaves the metric's own alone."""
        moments = []
        for features in (real.double(), fake.double()):
            moments += [features.mean(0), features.T.cov(correction=self.ddof)]
        return frechet_distance(*moments)


def frechet_distance(
    mean1: torch.Tensor, covariance1: torch.Tensor, mean2: torch.Tensor, covariance2: torch.Tensor
) -> torch.Tensor:
    """Return |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) for means (D,) and covariances (D, D), float64."""
    values, vectors = torch.linalg.eigh(covariance1)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T  # eigenvalues below 0 are rounding errors
    # C1 C2 has the eigenvalues of the symmetric C1^1/2 C2 C1^1/2, for which the solver is exact and real
    eigenvalues = torch.linalg.eigvalsh(root @ covariance2 @ root).clamp_min(0)
    traces = covariance1.trace() + covariance2.trace()
    return (mean1 - mean2).square().sum() + traces - 2 * eigenvalues.sqrt().sum()
