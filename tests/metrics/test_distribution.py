import numpy as np
import pytest
import scipy.linalg
import torch
from builders.metric_networks import Identity, PixelFeatures
from torchmetrics.image.fid import FrechetInceptionDistance
from transformers import VJEPA2Config, VJEPA2Model

from adaptok_hf.metrics import FeatureMMD, FrechetVideoDistance, VJEPA2Features, frechet_distance
from adaptok_hf.metrics.distribution import symmetric_root


@pytest.fixture
def videos():
    """20 real and 20 others, (4 frames, 3, 8, 8)."""
    generator = torch.Generator().manual_seed(0)
    real = torch.rand(20, 4, 3, 8, 8, generator=generator) * torch.rand(20, 1, 3, 1, 1, generator=generator)
    return real, real.roll(1, 2) * 0.8


def random_covariance(width, seed):
    matrix = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return matrix @ matrix.T / width


def test_frechet_distance_of_known_gaussians():
    """Commuting covariances: |m1 - m2|^2 + sum (s1 - s2)^2."""
    mean1, mean2 = torch.tensor([[1.0, 2.0, 3.0], [0.0, 4.0, 3.0]], dtype=torch.float64)
    sd1, sd2 = torch.tensor([[1.0, 2.0, 0.5], [3.0, 2.0, 0.0]], dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64))[0]
    covariances = [rotation @ torch.diag(sd**2) @ rotation.T for sd in (sd1, sd2)]
    value = frechet_distance(mean1, covariances[0], mean2, covariances[1])
    assert float(value) == pytest.approx(1 + 4 + (4 + 0 + 0.25))
    assert float(frechet_distance(mean1, covariances[0], mean1, covariances[0])) == pytest.approx(0, abs=1e-12)


def test_frechet_distance_against_scipy():
    """Covariances that do not commute, one of them singular."""
    width = 12
    a, b = random_covariance(width, 0), random_covariance(width, 1)
    b = b - torch.outer(v := torch.linalg.eigh(b)[1][:, -1], v) * torch.linalg.eigh(b)[0][-1]
    np.testing.assert_allclose(symmetric_root(a), scipy.linalg.sqrtm(a.numpy()), atol=1e-10)
    mean = torch.zeros(width, dtype=torch.float64)
    expected = a.trace() + b.trace() - 2 * np.trace(scipy.linalg.sqrtm((a @ b).numpy())).real
    assert float(frechet_distance(mean, a, mean, b)) == pytest.approx(float(expected), rel=1e-6)
    assert float(frechet_distance(mean, a, mean, b)) == pytest.approx(float(frechet_distance(mean, b, mean, a)), rel=1e-7)


def test_gaussian_samples_approach_the_closed_form():
    generator = torch.Generator().manual_seed(0)
    sd, shift = torch.tensor([1.0, 2.0, 0.5]), torch.tensor([0.5, 0.0, -1.0])
    metric = FrechetVideoDistance(Identity(3))
    metric.update(torch.randn(200_000, 3, generator=generator), real=True)
    metric.update(torch.randn(200_000, 3, generator=generator) * sd + shift, real=False)
    assert float(metric.compute()) == pytest.approx(1.25 + 1 + 0.25, abs=0.03)


def test_covariance_is_divided_by_n_or_as_torchmetrics_by_n_minus_1(videos):
    real, fake = videos
    values = {}
    for ddof in (0, 1):
        metric = FrechetVideoDistance(PixelFeatures(), ddof=ddof)
        metric.update(real, real=True)
        metric.update(fake, real=False)
        values[ddof] = float(metric.compute())
        sides = [PixelFeatures()(v).double().numpy() for v in (real, fake)]
        moments = [(x.mean(0), np.cov(x.T, ddof=ddof)) for x in sides]
        root = scipy.linalg.sqrtm(moments[0][1] @ moments[1][1]).real
        expected = ((moments[0][0] - moments[1][0]) ** 2).sum() + np.trace(moments[0][1] + moments[1][1] - 2 * root)
        assert values[ddof] == pytest.approx(expected, rel=1e-5)
    fid = FrechetInceptionDistance(feature=PixelFeatures())
    fid.update(real, real=True)
    fid.update(fake, real=False)
    assert values[1] == pytest.approx(float(fid.compute()), rel=1e-4)
    assert abs(values[0] - values[1]) > 1e-4 * values[1]
    with pytest.raises(ValueError, match="ddof must be 0 .* got 2"):
        FrechetVideoDistance(PixelFeatures(), ddof=2)


@pytest.mark.parametrize("kind", [FrechetVideoDistance, FeatureMMD])
def test_batches_and_order_do_not_matter(kind, videos):
    real, fake = videos
    whole, parts = kind(PixelFeatures()), kind(PixelFeatures())
    whole.update(real, real=True)
    whole.update(fake, real=False)
    for a, b in ((13, 20), (0, 1), (1, 13)):
        parts.update(fake[a:b], real=False)
        parts.update(real[a:b], real=True)
    torch.testing.assert_close(parts.compute(), whole.compute(), rtol=1e-6, atol=1e-9)
    eight = kind(PixelFeatures())
    eight.update((255 * real).round().to(torch.uint8), real=True)
    eight.update((255 * fake).round().to(torch.uint8), real=False)
    torch.testing.assert_close(eight.compute(), whole.compute(), rtol=0.02, atol=1e-5)


def test_mmd_is_the_mean_of_kernels_over_pairs():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(7, 5, generator=generator) + 1, torch.randn(9, 5, generator=generator)
    metric = FeatureMMD(Identity(5))
    metric.update(x[:3], real=True)
    metric.update(x[3:], real=True)
    metric.update(y, real=False)
    cos = lambda a, b: torch.nn.functional.cosine_similarity(a[:, None].double(), b[None].double(), dim=2) ** 2  # noqa: E731
    off = lambda k: (k.sum() - k.diag().sum()) / (len(k) * (len(k) - 1))  # noqa: E731
    expected = off(cos(x, x)) + off(cos(y, y)) - 2 * cos(x, y).mean()
    assert float(metric.compute()) == pytest.approx(float(expected), rel=1e-6)
    torch.testing.assert_close(metric.distance_of(x, y), metric.compute())


def test_mmd_is_unbiased():
    """Equal distributions give 0 on average, and not always a positive number."""
    generator = torch.Generator().manual_seed(0)
    metric = FeatureMMD(Identity(8))
    values = [metric.distance_of(*torch.randn(2, 6, 8, generator=generator)) for _ in range(400)]
    mean, error = torch.stack(values).mean(), torch.stack(values).std() / 20
    assert abs(float(mean)) < 3 * float(error) and min(values) < 0


def test_few_videos():
    metric = FrechetVideoDistance(Identity(4))
    metric.update(torch.randn(5, 4), real=True)
    metric.update(torch.randn(1, 4), real=False)
    with pytest.raises(ValueError, match="at least 2 fake videos, got 1"):
        metric.compute()
    metric.update(torch.randn(2, 4), real=False)
    with pytest.warns(UserWarning, match="FVD of 3 videos with 4 features.*Compare it only with values at 3 videos"):
        metric.compute()
    metric.update(torch.randn(2, 4), real=False)
    assert torch.isfinite(metric.compute())


def test_bad_features_are_refused():
    metric = FrechetVideoDistance(Identity(4))
    with pytest.raises(ValueError, match=r"shape \(videos, 4\), got \(3, 5\)"):
        metric.update(torch.randn(3, 5), real=True)
    with pytest.raises(ValueError, match="NaN"):
        metric.update(torch.full((3, 4), torch.nan), real=True)
    with pytest.raises(ValueError, match="Linear must have an int attribute num_features"):
        FrechetVideoDistance(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match="features were not kept"):
        metric.features()
    with pytest.raises(ValueError, match=r"videos must .*\[0, 1\]"):
        FrechetVideoDistance(PixelFeatures()).update(torch.rand(2, 4, 3, 8, 8) * 2, real=True)


def test_vjepa2_features():
    torch.manual_seed(0)
    config = VJEPA2Config(
        patch_size=8, crop_size=16, frames_per_clip=4, tubelet_size=2, hidden_size=24, num_attention_heads=2,
        num_hidden_layers=1, pred_hidden_size=24, pred_num_attention_heads=2, pred_num_hidden_layers=1,
    )  # fmt: skip
    network = VJEPA2Features(VJEPA2Model(config))
    videos = torch.rand(3, 4, 3, 20, 20)
    features = network(videos)
    assert features.shape == (3, 24) and network.num_features == 24 and not network.training
    metric = FeatureMMD(network)
    metric.update(videos, real=True)
    metric.update(1 - videos, real=False)
    assert torch.isfinite(metric.compute())
    assert not torch.allclose(network(videos.flip(1)), features, atol=1e-5)  # it sees the order of frames
