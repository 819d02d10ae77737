import numpy as np
import pytest
import scipy.linalg
import torch
from builders.metric_networks import Identity, PixelFeatures
from torchmetrics.image.fid import FrechetInceptionDistance

from adaptok_hf.metrics import FrechetVideoDistance, frechet_distance


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
    with pytest.raises(ValueError, match="ddof.*2"):
        FrechetVideoDistance(PixelFeatures(), ddof=2)


def test_batches_and_order_do_not_matter(videos):
    real, fake = videos
    whole, parts = FrechetVideoDistance(PixelFeatures()), FrechetVideoDistance(PixelFeatures())
    whole.update(real, real=True)
    whole.update(fake, real=False)
    for a, b in ((13, 20), (0, 1), (1, 13)):
        parts.update(fake[a:b], real=False)
        parts.update(real[a:b], real=True)
    torch.testing.assert_close(parts.compute(), whole.compute(), rtol=1e-6, atol=1e-9)
    eight = FrechetVideoDistance(PixelFeatures())
    eight.update((255 * real).round().to(torch.uint8), real=True)
    eight.update((255 * fake).round().to(torch.uint8), real=False)
    torch.testing.assert_close(eight.compute(), whole.compute(), rtol=0.02, atol=1e-5)


def test_few_videos():
    metric = FrechetVideoDistance(Identity(4))
    metric.update(torch.randn(5, 4), real=True)
    metric.update(torch.randn(1, 4), real=False)
    with pytest.raises(ValueError, match="2 fake .*1"):
        metric.compute()
    metric.update(torch.randn(2, 4), real=False)
    with pytest.warns(UserWarning, match="3 videos with 4 features"):
        metric.compute()
    metric.update(torch.randn(2, 4), real=False)
    assert torch.isfinite(metric.compute())


def test_bad_features():
    metric = FrechetVideoDistance(Identity(4))
    with pytest.raises(ValueError, match=r"\(3, 5\)"):
        metric.update(torch.randn(3, 5), real=True)
    with pytest.raises(ValueError, match="NaN"):
        metric.update(torch.full((3, 4), torch.nan), real=True)
    with pytest.raises(ValueError, match="Linear.*num_features"):
        FrechetVideoDistance(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"videos must .*\[0, 1\]"):
        FrechetVideoDistance(PixelFeatures()).update(torch.rand(2, 4, 3, 8, 8) * 2, real=True)
