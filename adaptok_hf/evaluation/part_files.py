"""The working folder of an evaluation: small files of finished work, so that a killed run goes on where it was."""

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


def write_text(path: Path, text: str) -> None:
    """Written beside, then renamed."""
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        partial.write_text(text)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """`ValueError` for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


class PartFiles:
    """
    Args:
        folder: where parts are; made if it does not exist.
        configuration: all that the parts depend on, plain values.
        is_main_process: writes the configuration.

    Raises:
        ValueError: if the folder holds parts of another configuration.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any], is_main_process: bool = True):
        self.folder = folder
        text = json.dumps(configuration, sort_keys=True)
        self.hash = hashlib.sha256(text.encode()).hexdigest()[:12]
        described = folder / "configuration.json"
        if described.exists():
            found = json.loads(described.read_text())
            if found["hash"] != self.hash:
                theirs = found["configuration"]
                keys = sorted(key for key in theirs.keys() | configuration.keys() if not _same(theirs, configuration, key))
                raise ValueError(
                    f"{folder.parent} holds results of another configuration (hash {found['hash']}, this one is "
                    f"{self.hash}; they differ in {', '.join(keys)}); give another output folder"
                )
        elif is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(described, {"hash": self.hash, "configuration": configuration})

    def path(self, *name: str) -> Path:
        return self.folder.joinpath(*name[:-1], f"{name[-1]}.safetensors")

    def exists(self, *name: str) -> bool:
        return self.path(*name).exists()

    def write(self, *name: str, rows: Any, tensors: dict[str, torch.Tensor] | None = None) -> None:
        """Plain rows and tensors as one file."""
        path = self.path(*name)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
        tensors = {key: value.detach().cpu().contiguous() for key, value in (tensors or {}).items()}
        try:
            # infinite PSNR is allowed here: only this module reads it
            save_file(tensors, partial, {"rows": json.dumps(rows)})
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)

    def read(self, *name: str) -> tuple[Any, dict[str, torch.Tensor]]:
        with safe_open(self.path(*name), "pt") as file:
            return json.loads(file.metadata()["rows"]), {key: file.get_tensor(key) for key in file.keys()}


def _same(left: dict, right: dict, key: str) -> bool:
    return json.dumps(left.get(key), sort_keys=True) == json.dumps(right.get(key), sort_keys=True)
