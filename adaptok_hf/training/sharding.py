"""Sharding (FSDP) for models whose weights, gradients and optimizer states do not fit into one accelerator's memory.

torch's `fully_shard` is used as it is, since accelerate's own FSDP needs GPUs and takes one model only: here the same code
runs on two processes of a CPU, where it is tested. Each transformer layer is gathered when it is needed.

    shard(model, accelerator, args.shard_over)             # instead of accelerator.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters())      # built after it, and not prepared
    average = ShardedAverage(model, args.ema_decay)        # instead of `AveragedModel`
    save_shards_with_checkpoints(accelerator, model, [optimizer], average)
    run.save(whole_copy(model), step, whole_copy(model, average.weights))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed import checkpoint
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


def shard(module: nn.Module, accelerator: Accelerator, shard_over: int) -> None:
    """Moves a module to the processes' devices, each of which keeps one part in `shard_over` of every parameter.

    Gradients are averaged over all processes, as with DDP. Every process must have built the module with the same weights.

    Args:
        module: the one whose forward is called; its transformer layers are gathered one at a time, the rest with it.
        shard_over: all processes, or a part of them, such as those of one machine: then each group holds the whole, and
            only gradients travel between groups.

    Raises:
        ValueError: if the processes cannot be grouped so, or for float16, which needs a gradient scaler.
    """
    num_processes = accelerator.num_processes
    if shard_over < 2 or num_processes % shard_over:
        raise ValueError(
            f"shard_over must be at least 2 and divide the number of processes, {num_processes}; got {shard_over}"
        )
    if accelerator.mixed_precision == "fp16":
        raise ValueError("sharded training has no gradient scaler: mixed precision must be 'bf16' or 'no', got 'fp16'")
    shape, names = (num_processes // shard_over, shard_over), ("replicate", "shard")
    if shard_over == num_processes:
        shape, names = shape[1:], names[1:]
    mesh = init_device_mesh(accelerator.device.type, shape, mesh_dim_names=names)
    for part in module.modules():
        if isinstance(part, GradientCheckpointingLayer):  # the transformer layers of all our models are
            fully_shard(part, mesh=mesh)
    fully_shard(module, mesh=mesh)


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """A sharded tensor gathered from all processes, which must all call this; others as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def whole_copy(model: PreTrainedModel, weights: dict[str, torch.Tensor] | None = None) -> PreTrainedModel:
    """The model gathered into an ordinary one on the same device, to be saved or measured; every process must call this.

    Args:
        weights: sharded, by the names of the model's state dictionary; default: the model's own.
    """
    weights = model.state_dict() if weights is None else weights
    device = model.device
    kind = next(c for c in type(model).__mro__ if not issubclass(c, FSDPModule))  # `fully_shard` changes the class
    with torch.random.fork_rng([device] if device.type == "cuda" else []), device:
        whole = kind(model.config)
    whole.load_state_dict({name: whole_tensor(weight) for name, weight in weights.items()})
    return whole.train(model.training)


class ShardedAverage:
    """The exponential moving average of a sharded model's weights: each process averages its part, as `AveragedModel`."""

    def __init__(self, model: nn.Module, decay: float):
        self.weights = {name: weight.detach().clone() for name, weight in model.state_dict().items()}
        self.num_updates = torch.zeros((), dtype=torch.long)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        ours = [_local(weight) for weight in self.weights.values()]
        theirs = [_local(weight) for weight in model.state_dict().values()]
        if self.num_updates == 0:
            torch._foreach_copy_(ours, theirs)
        else:
            self._average(ours, theirs, self.num_updates)
        self.num_updates += 1


def save_shards_with_checkpoints(
    accelerator: Accelerator,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    average: ShardedAverage | None = None,
) -> None:
    """From now on `accelerator.save_state` also writes `shards/`, which `load_state` reads."""

    def current_state() -> dict[str, Any]:
        weights, states = get_state_dict(module, optimizers)
        averaged = {} if average is None else {"average": average.weights, "num_updates": average.num_updates}
        return {"module": weights, "optimizers": states} | averaged

    def save(models: list[nn.Module], weights: list[dict[str, Any]], folder: str) -> None:
        checkpoint.save(current_state(), checkpoint_id=Path(folder) / "shards")

    def load(models: list[nn.Module], folder: str) -> None:
        path = Path(folder) / "shards"
        if not path.exists():
            raise ValueError(f"{path} is not there: the checkpoint is not of a sharded run")
        state = current_state()
        checkpoint.load(state, checkpoint_id=path)  # in place, also into the average
        set_state_dict(module, optimizers, model_state_dict=state["module"], optim_state_dict=state["optimizers"])

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
