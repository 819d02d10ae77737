"""The processes that share an evaluation."""

from collections.abc import Iterator

import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from .part_files import PartFiles


def process_state() -> PartialState:
    """Return accelerate's state.

    Without `cpu`, accelerate treats several processes on a machine without an accelerator as independent runs.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


def unfinished_parts(parts: PartFiles, name: str, count: int, state: PartialState) -> Iterator[int]:
    """Yield those of `count` files that this process has to write and that do not exist yet, with a progress bar."""
    share = range(state.process_index, count, state.num_processes)
    for index in tqdm(share, desc=name, disable=not state.is_main_process):
        if not parts.exists(name, f"{index:05d}"):
            yield index
