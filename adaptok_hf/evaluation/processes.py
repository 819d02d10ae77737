"""The processes that share an evaluation."""

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """accelerate's state. Without `cpu`, it takes several processes on a machine without an accelerator for one each."""
    return PartialState(cpu=not torch.accelerator.is_available())
