import os
import subprocess
import sys
import textwrap
import zipfile

import pytest
import torch
import torch.nn.functional as F

from adaptok_hf.metrics import FrechetVideoDistance, I3DNetwork, LPIPSNetwork, VideoLPIPS, network_weights
from adaptok_hf.metrics.i3d_network import ConvUnit, _max_pool, pad_same


@pytest.fixture(scope="module")
def i3d():
    torch.manual_seed(0)
    return I3DNetwork().requires_grad_(False).eval()


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "before", "after"),
    [
        (8, 3, 2, 0, 1),
        (7, 3, 2, 1, 1),
        (224, 7, 2, 2, 3),
        (16, 3, 1, 1, 1),
        (5, 2, 2, 0, 1),
        (4, 2, 2, 0, 0),
        (9, 1, 1, 0, 0),
    ],
)
def test_padding_is_tensorflows(size, kernel, stride, before, after):
    x = torch.ones(1, 1, 2, 3, size)
    padded = pad_same(x, (1, 1, kernel), (1, 1, stride), 7.0)
    assert padded[0, 0, 0, 0].tolist() == [7.0] * before + [1.0] * size + [7.0] * after
    padded = pad_same(x.transpose(2, 4), (kernel, 1, 1), (stride, 1, 1), 7.0)
    assert padded[0, 0, :, 0, 0].tolist() == [7.0] * before + [1.0] * size + [7.0] * after


def test_pooling_does_not_see_its_padding():
    assert _max_pool(torch.full((1, 1, 3, 4, 4), -5.0), (3, 3, 3), (2, 2, 2)).eq(-5).all()


def test_batch_norm_has_no_scale_and_eps_of_one_thousandth():
    unit = ConvUnit(3, 2, 1)
    unit.mean.copy_(torch.tensor([1.0, 2.0]))
    unit.variance.copy_(torch.tensor([0.0, 4.0]))
    unit.shift.data.copy_(torch.tensor([0.5, -0.25]))
    x = torch.randn(1, 3, 2, 4, 4)
    h = unit.conv(x)
    expected = torch.stack([(h[:, 0] - 1) / 0.001**0.5 + 0.5, (h[:, 1] - 2) / 4.001**0.5 - 0.25], dim=1).relu()
    torch.testing.assert_close(unit.train()(x), expected)  # training mode changes nothing
    assert set(unit.state_dict()) == {"conv.weight", "shift", "mean", "variance"}


def test_i3d_size():
    with torch.device("meta"):
        network = I3DNetwork()
    shifts = sum(value.numel() for name, value in network.named_parameters() if name.endswith("shift"))
    # the published 12,697,264 count a scale with each shift
    assert sum(value.numel() for value in network.parameters()) + shifts == 12_697_264
    assert len(network.state_dict()) == 57 * 4 + 2


@pytest.mark.slow
def test_i3d_resizes_and_averages_over_time(i3d):
    torch.manual_seed(1)
    videos = torch.rand(1, 9, 3, 20, 30)
    features = i3d(videos)
    assert features.shape == (1, 400) and features.std() > 0
    resized = F.interpolate(videos[0], size=(224, 224), mode="bilinear", align_corners=False)[None]
    torch.testing.assert_close(i3d(resized), features)
    torch.testing.assert_close(i3d.classify(2 * resized.transpose(1, 2) - 1), features)
    torch.testing.assert_close(i3d((255 * videos).round().to(torch.uint8)), i3d((255 * videos).round() / 255))


def test_i3d_needs_nine_frames(i3d):
    with pytest.raises(ValueError, match="9 frames.*8"):
        i3d(torch.rand(1, 8, 3, 20, 20))


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_properties(net):
    torch.manual_seed(0)
    network = LPIPSNetwork(net)
    size = network.min_size
    x, y = torch.rand(2, 2, 3, size, size + 1)
    distance = network(x, y)
    assert distance.shape == (2,) and (distance > 0).all()
    torch.testing.assert_close(network(y, x), distance)
    torch.testing.assert_close(network(x[:1], y[:1]), distance[:1], rtol=1e-4, atol=1e-6)
    assert network(x, x).eq(0).all()
    # also where all features are 0 there is a gradient, and no NaN
    x = torch.zeros(1, 3, size, size, requires_grad=True)
    network.features[0].bias.data.fill_(-100)
    network(x, y[:1, :, :, :size]).sum().backward()
    assert x.grad.isfinite().all()


def test_lpips_gradient_reaches_both():
    torch.manual_seed(0)
    network = LPIPSNetwork("alex").requires_grad_(False)
    x, y = (torch.rand(1, 3, 40, 40, requires_grad=True) for _ in range(2))
    network(x, y).sum().backward()
    assert x.grad.abs().sum() > 0 and y.grad.abs().sum() > 0


@pytest.mark.parametrize(("net", "smallest"), [("vgg", 16), ("alex", 31)])
def test_lpips_errors(net, smallest):
    network = LPIPSNetwork(net)
    ok = torch.rand(1, 3, smallest, smallest)
    assert network(ok, ok).shape == (1,)
    with pytest.raises(ValueError, match=f"at least {smallest} pixels, got .{smallest}, {smallest - 1}"):
        network(ok[..., 1:], ok[..., 1:])
    with pytest.raises(ValueError, match=r"\(1, 3, .*\(3,"):
        network(ok, ok[0])
    with pytest.raises(ValueError, match="torch.uint8"):
        network(ok.to(torch.uint8), ok.to(torch.uint8))
    with pytest.raises(ValueError, match="'squeeze'"):
        LPIPSNetwork("squeeze")


# With the true weights ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lpips_folder(tmp_path_factory):
    """The `lpips` package, unpacked but not installed."""
    folder = tmp_path_factory.mktemp("lpips")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", folder, "lpips==0.1.4"]
    subprocess.run(command, check=True)
    (wheel,) = folder.glob("lpips-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_heads_are_those_of_the_package(net, lpips_folder):
    network = LPIPSNetwork.from_pretrained(net)
    assert network.weights.verified and not network.training and not any(p.requires_grad for p in network.parameters())
    package = torch.load(lpips_folder / "lpips" / "weights" / "v0.1" / f"{net}.pth", map_location="cpu", weights_only=True)
    assert len(package) == 5
    for i, head in enumerate(network.heads):
        assert torch.equal(head.weight, package[f"lin{i}.model.1.weight"]) and (head.weight >= 0).all()


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_lpips_is_that_of_the_package(net, lpips_folder, tmp_path):
    """Its own code runs in a process that stands in for torchvision's trunk with ours, the same backbone."""
    torch.manual_seed(0)
    x = torch.rand(3, 3, 64, 72)
    y = (x + torch.tensor([0.02, 0.1, 0.5]).view(3, 1, 1, 1) * torch.randn(x.shape)).clamp(0, 1)
    network = LPIPSNetwork.from_pretrained(net)
    torch.save({"x": x, "y": y, "features": network.features.state_dict()}, tmp_path / "in.pt")
    code = f"""
        import sys, types, torch
        from adaptok_hf.metrics import LPIPSNetwork
        torchvision, models = types.ModuleType("torchvision"), types.ModuleType("torchvision.models")
        data = torch.load({str(tmp_path / "in.pt")!r}, weights_only=True)
        def make(*args, **kwargs):
            trunk = LPIPSNetwork({net!r}).features
            trunk.load_state_dict(data["features"])
            trunk.append(torch.nn.MaxPool2d(2))
            return types.SimpleNamespace(features=trunk)
        models.vgg16 = models.alexnet = make
        torchvision.models = models
        sys.modules |= {{"torchvision": torchvision, "torchvision.models": models}}
        sys.path.insert(0, {str(lpips_folder)!r})
        import lpips
        model = lpips.LPIPS(net={net!r}, verbose=False).eval()
        torch.save(model(data["x"], data["y"], normalize=True).flatten().detach(), {str(tmp_path / "out.pt")!r})
    """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)
    torch.testing.assert_close(network(x, y), torch.load(tmp_path / "out.pt", weights_only=True), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.network
def test_the_order_of_corruptions_is_seen():
    """Noise is worse than blur, blur than frames in wrong order, and that than nothing, on drifting textures."""
    torch.manual_seed(0)
    metric = FrechetVideoDistance()
    texture = F.interpolate(torch.rand(10, 3, 12, 12), size=(64, 64), mode="bicubic").clamp(0, 1)
    clips = torch.stack([torch.stack([t.roll((2 * i, 3 * i), (1, 2)) for i in range(10)]) for t in texture])
    clean = metric.network(clips)
    blurred = F.avg_pool2d(clips.flatten(0, 1), 9, stride=1, padding=4, count_include_pad=False).view(clips.shape)
    noisy = (clips + 0.4 * torch.randn(clips.shape)).clamp(0, 1)
    shuffled = clips[:, [0, 7, 2, 5, 9, 1, 8, 3, 6, 4]]
    values = [float(metric.distance_of(clean, metric.network(v))) for v in (noisy, blurred, shuffled, clips)]
    assert values == sorted(values, reverse=True) and values[-1] == pytest.approx(0, abs=1e-6 * values[0])


@pytest.mark.slow
@pytest.mark.network
def test_metrics_load_true_weights_by_default():
    assert VideoLPIPS("alex").network.weights.sha256 == network_weights._ORIGINS["lpips_alex"].tensors_sha256
    assert FrechetVideoDistance().network.weights.verified
