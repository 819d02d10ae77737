import math

import pytest
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from adaptok_hf.metrics import VideoLPIPS, VideoPSNR, VideoSSIM, per_video
from adaptok_hf.metrics.video_checks import check_pairs, check_videos


@pytest.fixture(autouse=True)
def few_frames_at_once(monkeypatch):
    monkeypatch.setattr(per_video, "FRAMES_AT_ONCE", 3)


@pytest.fixture
def videos():
    """Five pairs of (4 frames, 3, 16, 18), each with its own amount of noise."""
    torch.manual_seed(0)
    target = torch.rand(5, 4, 3, 16, 18)
    noise = torch.randn(target.shape) * torch.linspace(0.02, 0.2, 5).view(5, 1, 1, 1, 1)
    return (target + noise).clamp(0, 1), target


class TinyLPIPS(torch.nn.Module):
    """Stands in for `LPIPSNetwork`."""

    net = "tiny"

    def forward(self, x, y):
        assert len(x) <= 3 and x.dtype == torch.float32
        return (x - y).square().mean(dim=(1, 2, 3)).sqrt()


def tiny_lpips():
    return VideoLPIPS(network=TinyLPIPS())


ALL = [VideoPSNR, lambda: VideoPSNR(per_frame=True), VideoSSIM, tiny_lpips]


def test_psnr_is_taken_per_video_then_averaged(videos):
    x, y = videos
    metric = VideoPSNR()
    metric.update(x, y)
    expected = [10 * math.log10(1 / float((a - b).double().pow(2).mean())) for a, b in zip(x, y, strict=True)]
    assert metric.compute().dtype == torch.float64
    assert float(metric.compute()) == pytest.approx(sum(expected) / 5, abs=1e-4)
    # another number than the PSNR of the mean error, which would be dominated by the worst video
    assert float(metric.compute()) - 10 * math.log10(1 / float((x - y).pow(2).mean())) > 1
    metric.reset()
    metric.update(y, y)
    assert float(metric.compute()) == math.inf


def test_psnr_per_frame():
    target = torch.full((1, 2, 3, 4, 4), 0.5)
    video = target.clone()
    video[:, 0] += 0.1  # 20 dB
    video[:, 1] += 0.01  # 40 dB
    per_frame, per_video = VideoPSNR(per_frame=True), VideoPSNR()
    per_frame.update(video, target)
    per_video.update(video, target)
    assert float(per_frame.compute()) == pytest.approx(30, abs=1e-4)
    assert float(per_video.compute()) == pytest.approx(10 * math.log10(2 / (0.01 + 0.0001)), abs=1e-4)


def test_ssim_is_that_of_all_frames(videos):
    x, y = videos
    metric = VideoSSIM()
    metric.update(x, y)
    expected = structural_similarity_index_measure(x.flatten(0, 1), y.flatten(0, 1), data_range=1.0)
    assert float(metric.compute()) == pytest.approx(float(expected), abs=1e-6)
    with pytest.raises(ValueError, match=r"11.*\(10, 18\)"):
        metric.update(x[..., :10, :], y[..., :10, :])


def test_lpips_is_the_mean_over_frames(videos):
    x, y = videos
    metric = tiny_lpips()
    metric.update(x, y)
    expected = (x - y).square().mean(dim=(2, 3, 4)).sqrt().mean(dim=1)
    torch.testing.assert_close(metric.per_video().float(), expected, rtol=1e-5, atol=1e-6)
    assert metric.net == "tiny" and not metric.compute().requires_grad


@pytest.mark.parametrize("make", ALL)
def test_batches_do_not_matter(make, videos):
    x, y = videos
    whole, parts = make(), make()
    whole.update(x, y)
    for a, b in ((0, 1), (1, 3), (3, 5)):
        parts.update(x[a:b], y[a:b])
    torch.testing.assert_close(parts.compute(), whole.compute(), rtol=1e-6, atol=0)
    assert len(parts.per_video()) == 5 and parts.per_video().dtype == torch.float64
    other = make()
    other.update(x[:2], y[:2])
    rest = make()
    rest.update(x[2:], y[2:])
    other.merge_state(rest)
    torch.testing.assert_close(other.compute(), whole.compute(), rtol=1e-6, atol=0)


@pytest.mark.parametrize("make", ALL)
def test_eight_bit_videos_are_divided_by_255(make, videos):
    x, y = [(255 * v).round().to(torch.uint8) for v in videos]
    eight, float_ = make(), make()
    eight.update(x, y)
    float_.update(x.float() / 255, y.float() / 255)
    assert torch.equal(eight.compute(), float_.compute())


@pytest.mark.parametrize("make", ALL)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(make, dtype, videos):
    x, y = [v.to(dtype) for v in videos]
    metric, reference = make(), make()
    metric.update(x, y)
    reference.update(x.float(), y.float())
    torch.testing.assert_close(metric.compute(), reference.compute(), rtol=1e-4, atol=1e-6)
    assert metric.compute().dtype == torch.float64


@pytest.mark.parametrize("make", ALL)
def test_nothing_gives_no_number(make):
    with pytest.raises(ValueError, match="no videos"):
        make().compute()


good = torch.full((2, 3, 3, 16, 16), 0.5)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (good * 3, "1.5 to 1.5"),
        (good - 0.6, "-0.1 to -0.1"),
        (torch.where(torch.arange(16) == 3, torch.nan, good), "nan to nan"),
        (torch.where(torch.arange(16) == 3, torch.inf, good), "0.5 to inf"),
        (good.long(), "torch.int64"),
        (good.bool(), "torch.bool"),
        (good[:, :1].expand(2, 3, 3, 16, 16).transpose(1, 2)[:, :, :2], r"\(2, 3, "),
        (good.permute(0, 1, 3, 4, 2), r"16, 16, 3\)"),
        (good[0], r"\(3, 3, 16, 16\)"),
        (good[:, :0], r"\(2, 0, 3, 16, 16\)"),
        (good.numpy(), "ndarray"),
    ],
)
def test_bad_videos(bad, message):
    with pytest.raises(ValueError, match="videos.*" + message):
        check_videos(bad)
    with pytest.raises(ValueError, match="target.*" + message):
        VideoPSNR().update(good, bad)


def test_pairs_must_agree():
    with pytest.raises(ValueError, match="3 and 2 frames"):
        check_pairs(good, good[:, :2])
    with pytest.raises(ValueError, match="2 and 1 videos"):
        check_pairs(good, good[:1])
    with pytest.raises(ValueError, match="16 and 8 columns"):
        check_pairs(good, good[..., :8])
