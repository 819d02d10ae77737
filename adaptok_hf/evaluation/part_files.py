"""The working folder of an evaluation: small files of finished work, so that a killed run resumes."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import safe_open
from safetensors.torch import save_file
from tqdm.auto import tqdm

from ..atomic_files import atomic_file, write_json


def process_state() -> PartialState:
    """Return accelerate's state.

    Without `cpu`, accelerate treats several processes on a machine without an accelerator as independent runs.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


class PartFiles:
    """Files of finished work, all of one configuration, which the processes of an evaluation write together.

    Args:
        folder: where the files are; made if it does not exist.
        configuration: all that the files depend on, plain values.

    Raises:
        ValueError: if the folder holds files of another configuration.
    """

    def __init__(self, folder: Path, configuration: dict[str, Any]):
        self.folder, self.state = folder, process_state()
        text = json.dumps(configuration, sort_keys=True)
        self.hash = hashlib.sha256(text.encode()).hexdigest()[:12]
        path = folder / "configuration.json"
        if path.exists():
            previous = json.loads(path.read_text())
            if previous["hash"] != self.hash:
                before, now = previous["configuration"], json.loads(text)
                keys = sorted(key for key in before.keys() | now.keys() if before.get(key) != now.get(key))
                raise ValueError(
                    f"{folder.parent} holds results of another configuration (hash {previous['hash']}, this one is "
                    f"{self.hash}; they differ in {', '.join(keys)}); give another output folder"
                )
        elif self.state.is_main_process:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(path, {"hash": self.hash, "configuration": configuration})
        self.state.wait_for_everyone()

    def unfinished(self, name: str, count: int) -> Iterator[int]:
        """Yield those of `count` files that this process has to write and that do not exist yet, with a progress bar."""
        share = range(self.state.process_index, count, self.state.num_processes)
        for index in tqdm(share, desc=name, disable=not self.state.is_main_process):
            if not self.exists(name, f"{index:05d}"):
                yield index

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
