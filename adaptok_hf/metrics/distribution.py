"""The Frechet distance between the features of real and of generated (or reconstructed) videos."""

import warnings

import torch
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from .i3d_network import I3DNetwork
from .video_checks import check_videos

# Mean (D,), mean product (D, D) and number of videos.
Moments = tuple[torch.Tensor, torch.Tensor, int]


class FrechetVideoDistance(Metric):
    """FVD (Unterthiner et al., arXiv 1812.01717): the Frechet distance of Gaussians fitted to I3D features.

    Lower is better. Features are streamed into float64 sums. Covariances are divided by N, as StyleGAN-V and the paper do
    (torchmetrics' FID and the TensorFlow original divide by N - 1: `ddof=1`). The root of the product is the symmetric
    (A^1/2 B A^1/2)^1/2, in float64. The value depends on clip length, size, and the number of videos, from which it has an
    upward bias of about 1/N: compare it only under one protocol, and look at the real-vs-real floor (`results`).

    Args:
        network: (N, T, 3, H, W) floats in [0, 1] -> (N, D) features, with D as its attribute `num_features`; by default I3D
            with its true weights (cached or downloaded, see `network_weights`).
        ddof: covariances are divided by N - ddof.
        keep_features: also keep each video's features (4 D bytes a video): a confidence interval and the real-vs-real
            floor need them.

    Raises:
        ValueError: for a network without `num_features`, or another `ddof` than 0 and 1.
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, network: torch.nn.Module | None = None, ddof: int = 0, keep_features: bool = False, **kwargs):
        super().__init__(**kwargs)
        network = I3DNetwork.from_pretrained() if network is None else network
        if not isinstance(getattr(network, "num_features", None), int):
            raise ValueError(f"{type(network).__name__} must have an int attribute num_features, the width of its output")
        if ddof not in (0, 1):
            raise ValueError(f"ddof must be 0 (divide by N) or 1 (by N - 1), got {ddof!r}")
        self.network, self.ddof, self.keep_features = network, ddof, keep_features
        width = network.num_features
        for side in ("real", "fake"):
            self.add_state(f"{side}_sum", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_products", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_count", torch.tensor(0), dist_reduce_fx="sum")
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
        side, wide = "real" if real else "fake", features.double()
        setattr(self, f"{side}_sum", getattr(self, f"{side}_sum") + wide.sum(0))
        setattr(self, f"{side}_products", getattr(self, f"{side}_products") + wide.T @ wide)
        setattr(self, f"{side}_count", getattr(self, f"{side}_count") + len(wide))
        if self.keep_features:
            getattr(self, f"{side}_features").append(features.float().flatten())

    def compute(self) -> torch.Tensor:
        """Return the distance, float64; `ValueError` for fewer than 2 videos on a side."""
        counts = {"real": int(self.real_count), "fake": int(self.fake_count)}
        for side, n in counts.items():
            if n < 2:
                raise ValueError(f"{type(self).__name__} needs at least 2 {side} videos, got {n}")
        if (n := min(counts.values())) <= self.network.num_features:
            warnings.warn(
                f"FVD of {n} videos with {self.network.num_features} features: the covariance has rank below {n}, so the "
                f"value is mostly the error of its estimate; compare it only at {n} videos and with the floor",
                stacklevel=2,
            )
        real = (self.real_sum / counts["real"], self.real_products / counts["real"], counts["real"])
        fake = (self.fake_sum / counts["fake"], self.fake_products / counts["fake"], counts["fake"])
        return self._distance(real, fake)

    def features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return real and fake features, (videos, D) each, of this process before `compute`; needs `keep_features`."""
        if not self.keep_features:
            raise ValueError("features were not kept; construct the metric with keep_features=True")
        real, fake = (
            (dim_zero_cat(values) if len(values) else torch.zeros(0)).view(-1, self.network.num_features)
            for values in (self.real_features, self.fake_features)
        )
        return real, fake

    def distance_of(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """Return the distance of two sets of features, (N, D) each; leaves what was streamed alone."""
        sides = []
        for features in (real.double(), fake.double()):
            if len(features) < 2:
                raise ValueError(f"{type(self).__name__} needs at least 2 videos on each side, got {len(features)}")
            sides.append((features.mean(0), features.T @ features / len(features), len(features)))
        return self._distance(*sides)

    def _distance(self, real: Moments, fake: Moments) -> torch.Tensor:
        moments = []
        for mean, products, n in (real, fake):
            moments += [mean, (products - torch.outer(mean, mean)) * (n / (n - self.ddof))]
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
