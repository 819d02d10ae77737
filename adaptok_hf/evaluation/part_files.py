"""The working folder of an evaluation: small files of finished work, so that a killed run resumes."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ..atomic_files import atomic_file, write_json


class PartFiles:
    """Files of finished work, all of one configuration.

    Args:
        folder: where the files are; made if it does not exist.
        configuration: all that the files depend on, plain values.
        is_main_process: whether to write the configuration.

    Raises:
        ValueError: if the folder holds files of another configuration.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any], is_main_process: bool = True):
        self.folder = folder
        text = json.dumps(configuration, sort_keys=True)
        self.hash = hashlib.sha256(text.encode()).hexdigest()[:12]
        path = folder / "configuration.json"
        if path.exists():
            previous = json.loads(path.read_text())
            if previous["hash"] != self.hash:
                before = previous["configuration"]
                keys = sorted(key for key in before.keys() | configuration.keys() if not _same(before, configuration, key))
                raise ValueError(
                    f"{folder.parent} holds results of another configuration (hash {previous['hash']}, this one is "
                    f"{self.hash}; they differ in {', '.join(keys)}); give another output folder"
                )
        elif is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, {"hash": self.hash, "configuration": configuration})

    def path(self, *name: str) -> Path:
        return self.folder.joinpath(*name[:-1], f"{name[-1]}.safetensors")

    def exists(self, *name: str) -> bool:
        return self.path(*name).exists()

    def write(self, *name: str, rows: Any, tensors: dict[str, torch.Tensor] | None = None) -> None:
        """Write plain rows and tensors as one file."""
        path = self.path(*name)
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors = {key: value.detach().cpu().contiguous() for key, value in (tensors or {}).items()}
        with atomic_file(path) as partial:
            # infinite PSNR is allowed here: only this module reads it
            save_file(tensors, partial, {"rows": json.dumps(rows)})

    def read(self, *name: str) -> tuple[Any, dict[str, torch.Tensor]]:
        """Return the rows and tensors of one file."""
        with safe_open(self.path(*name), "pt") as file:
            return json.loads(file.metadata()["rows"]), {key: file.get_tensor(key) for key in file.keys()}

    def read_all(self, name: str, count: int) -> tuple[list, list[dict[str, torch.Tensor]]]:
        """Return the rows of the files 0 to `count - 1` in one list, and the tensors of each file."""
        files = [self.read(name, f"{index:05d}") for index in range(count)]
        return [row for rows, _ in files for row in rows], [tensors for _, tensors in files]


def _same(left: dict, right: dict, key: str) -> bool:
    return json.dumps(left.get(key), sort_keys=True) == json.dumps(right.get(key), sort_keys=True)
