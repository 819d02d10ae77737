"""Distances between the features of real and of generated (or reconstructed) videos: Frechet distance and MMD."""

import warnings

import torch
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from .i3d_network import I3DNetwork
from .video_checks import check_videos


class FeatureDistance(Metric):
    """
    Streams features of two sets of videos into float64 sums; a subclass turns their moments into a distance.

    Args:
        network: (N, T, 3, H, W) floats in [0, 1] -> (N, D) features; D is its attribute `num_features`.
        keep_features: also keep each video's features (4 D bytes a video): a confidence interval and the real-vs-real
            floor need them.
    """

    full_state_update = False
    higher_is_better = False

    def __init__(self, network: torch.nn.Module, keep_features: bool = False, **kwargs):
        super().__init__(**kwargs)
        if not isinstance(getattr(network, "num_features", None), int):
            raise ValueError(f"{type(network).__name__} must have an int attribute num_features, the width of its output")
        self.network, self.keep_features = network, keep_features
        width = network.num_features
        for side in ("real", "fake"):
            self.add_state(f"{side}_sum", torch.zeros(width, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_products", torch.zeros(width, width, dtype=torch.float64), dist_reduce_fx="sum")
            self.add_state(f"{side}_count", torch.tensor(0), dist_reduce_fx="sum")
            self.add_state(f"{side}_features", [], dist_reduce_fx="cat")  # flat: an empty one merges with any other

    def prepare(self, features: torch.Tensor) -> torch.Tensor:
        """(N, D) features as the distance wants them."""
        return features

    def update(self, videos: torch.Tensor, real: bool) -> None:
        """
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
        features = self.prepare(features)
        side, wide = "real" if real else "fake", features.double()
        setattr(self, f"{side}_sum", getattr(self, f"{side}_sum") + wide.sum(0))
        setattr(self, f"{side}_products", getattr(self, f"{side}_products") + wide.T @ wide)
        setattr(self, f"{side}_count", getattr(self, f"{side}_count") + len(wide))
        if self.keep_features:
            getattr(self, f"{side}_features").append(features.float().flatten())

    def compute(self) -> torch.Tensor:
        """The distance, float64. `ValueError` for fewer than 2 videos on a side."""
        sides = []
        for side in ("real", "fake"):
            n = int(getattr(self, f"{side}_count"))
            if n < 2:
                raise ValueError(f"{type(self).__name__} needs at least 2 {side} videos, got {n}")
            sides.append((getattr(self, f"{side}_sum") / n, getattr(self, f"{side}_products") / n, n))
        return self.distance(*sides)

    def features(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Real and fake features, (videos, D) each, of this process before `compute`; needs `keep_features`."""
        if not self.keep_features:
            raise ValueError("features were not kept; construct the metric with keep_features=True")
        kept = []
        for values in (self.real_features, self.fake_features):
            kept.append((dim_zero_cat(values) if len(values) else torch.zeros(0)).view(-1, self.network.num_features))
        return kept[0], kept[1]

    def distance_of(self, real: torch.Tensor, fake: torch.Tensor) -> torch.Tensor:
        """The distance of two sets of features, (N, D) each; leaves what was streamed alone."""
        sides = []
        for features in (self.prepare(real).double(), self.prepare(fake).double()):
            if len(features) < 2:
                raise ValueError(f"{type(self).__name__} needs at least 2 videos on each side, got {len(features)}")
            sides.append((features.mean(0), features.T @ features / len(features), len(features)))
        return self.distance(*sides)

    def distance(self, real: tuple, fake: tuple) -> torch.Tensor:
        """From (mean (D,), mean product (D, D), number of videos) of either side."""
        raise NotImplementedError


class FrechetVideoDistance(FeatureDistance):
    """
    FVD (Unterthiner et al., arXiv 1812.01717): the Frechet distance of Gaussians fitted to I3D features; lower is better.

    Covariances are divided by N, as StyleGAN-V and the paper do (torchmetrics' FID and the TensorFlow original divide by
    N - 1: `ddof=1`). The root of the product is the symmetric (A^1/2 B A^1/2)^1/2, in float64. The value depends on clip
    length, size, and the number of videos, from which it has an upward bias of about 1/N: compare it only under one
    protocol, and look at the real-vs-real floor (`results`).

    Args:
        network: features; by default I3D with its true weights (found or downloaded, see `network_weights`).
    """

    def __init__(self, network: torch.nn.Module | None = None, ddof: int = 0, keep_features: bool = False, **kwargs):
        super().__init__(I3DNetwork.from_pretrained() if network is None else network, keep_features, **kwargs)
        if ddof not in (0, 1):
            raise ValueError(f"ddof must be 0 (divide by N) or 1 (by N - 1), got {ddof!r}")
        self.ddof = ddof

    def compute(self) -> torch.Tensor:
        width, n = self.network.num_features, min(int(self.real_count), int(self.fake_count))
        if 2 <= n <= width:
            warnings.warn(
                f"FVD of {n} videos with {width} features: the covariance has rank below {n}, so that the value is mostly "
                f"the error of its estimate. Compare it only with values at {n} videos and with the real-vs-real floor",
                stacklevel=2,
            )
        return super().compute()

    def distance(self, real, fake):
        moments = []
        for mean, products, n in (real, fake):
            moments += [mean, (products - torch.outer(mean, mean)) * (n / (n - self.ddof))]
        return frechet_distance(*moments)


class FeatureMMD(FeatureDistance):
    """
    Maximum mean discrepancy with the kernel (x y)^2, unbiased: 0 on average for equal distributions, so that it can be
    negative; lower is better. After JEDi (Luo et al., arXiv 2410.05203), which finds that it sees motion better than FVD
    when the features are V-JEPA's, and needs fewer videos. JEDi takes the features of a probe that was trained on V-JEPA 1
    and another scale: its numbers are not these.

    Args:
        network: features, such as `VJEPA2Features`. Each video's are scaled to unit length first, so that the kernel is a
            squared cosine and values lie in [-1, 2] for any network.
    """

    def prepare(self, features):
        # float64, because squared cosines close to 1 are subtracted
        return torch.nn.functional.normalize(features.double(), dim=1)

    def distance(self, real, fake):
        # the mean of the kernel over pairs is the product of second moments; a video paired with itself has kernel 1
        same = [(products.square().sum() * n - 1) / (n - 1) for _, products, n in (real, fake)]
        return same[0] + same[1] - 2 * (real[1] * fake[1]).sum()


class VJEPA2Features(torch.nn.Module):
    """
    Features of transformers' V-JEPA 2 encoder, averaged over its patches.

    Args:
        model: a `VJEPA2Model`, or the name or folder of one, such as `"facebook/vjepa2-vitl-fpc64-256"`.
    """

    def __init__(self, model):
        super().__init__()
        if isinstance(model, str):
            from transformers import VJEPA2Model

            model = VJEPA2Model.from_pretrained(model)
        self.model, self.num_features = model.requires_grad_(False), model.config.hidden_size
        self.eval()

    def forward(self, videos: torch.Tensor) -> torch.Tensor:
        """(N, T, 3, H, W) in [0, 1] -> (N, D)."""
        size = self.model.config.crop_size
        n, t = videos.shape[:2]
        frames = torch.nn.functional.interpolate(videos.flatten(0, 1), size=(size, size), mode="bilinear", antialias=True)
        mean, std = frames.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
        frames = ((frames - mean) / std).view(n, t, 3, size, size)
        return self.model(frames, skip_predictor=True).last_hidden_state.mean(dim=1)


def frechet_distance(
    mean1: torch.Tensor, covariance1: torch.Tensor, mean2: torch.Tensor, covariance2: torch.Tensor
) -> torch.Tensor:
    """|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^1/2) for means (D,) and covariances (D, D), float64."""
    root = symmetric_root(covariance1)
    # C1 C2 has the eigenvalues of the symmetric C1^1/2 C2 C1^1/2, for which the solver is exact and real
    eigenvalues = torch.linalg.eigvalsh(root @ covariance2 @ root).clamp_min(0)
    traces = covariance1.trace() + covariance2.trace()
    return (mean1 - mean2).square().sum() + traces - 2 * eigenvalues.sqrt().sum()


def symmetric_root(matrix: torch.Tensor) -> torch.Tensor:
    """The positive semi-definite square root of such a (D, D) matrix; eigenvalues below 0 by rounding count as 0."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.T
