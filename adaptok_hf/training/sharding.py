"""Sharding (FSDP) for models whose weights, gradients and optimizer states do not fit into one accelerator's memory.

torch's `fully_shard` is used as it is, since accelerate's own FSDP needs GPUs and takes one model only: here the same code
runs on two processes of a CPU, where it is tested. Each transformer layer is gathered when it is needed.

    shard(model, accelerator, args.shard_over)             # instead of accelerator.prepare(model)
    optimizer = torch.optim.AdamW(model.parameters())      # built after it, and not prepared
    average = ShardedAverage(model, args.ema_decay)        # instead of `average_of_weights`
    save_shards_with_checkpoints(accelerator, model, [optimizer], average)
    run.save(whole_copy(model), step, whole_copy(model, average.weights))
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import distributed, nn
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
    """The exponential moving average of a sharded model's weights: each process averages its part.

    It takes the steps of `trainer.average_of_weights`.
    """

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
    """From now on `accelerator.save_state` also writes `shard_<process>.pt`, which `load_state` reads.

    A run is resumed with as many processes, and the same `shard_over`; loading raises `ValueError` otherwise.
    """
    mesh = next(weight.device_mesh for weight in module.parameters())
    layout = {"processes": accelerator.num_processes, "mesh": list(mesh.shape)}

    def save(models: list[nn.Module], weights: list[dict[str, Any]], folder: str) -> None:
        state = {
            "layout": layout,
            "module": {name: _local(weight) for name, weight in module.state_dict().items()},
            "optimizers": [_local_state(optimizer) for optimizer in optimizers],
        }
        if average is not None:
            state["average"] = {name: _local(weight) for name, weight in average.weights.items()}
            state["num_updates"] = average.num_updates
        torch.save(state, Path(folder) / f"shard_{accelerator.process_index}.pt")

    @torch.no_grad()
    def load(models: list[nn.Module], folder: str) -> None:
        path = Path(folder) / f"shard_{accelerator.process_index}.pt"
        if not path.exists():
            raise ValueError(f"{path} is not there: the checkpoint is not of a sharded run of {layout}")
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["layout"] != layout:
            raise ValueError(f"the checkpoint is of {state['layout']}, this run has {layout}: processes must be the same")
        for name, weight in module.state_dict().items():
            _local(weight).copy_(state["module"][name])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            _load_local_state(optimizer, saved)
        if average is not None:
            for name, weight in average.weights.items():
                _local(weight).copy_(state["average"][name])
            average.num_updates.copy_(state["num_updates"])
        distributed.barrier()

    accelerator.register_save_state_pre_hook(save)
    accelerator.register_load_state_pre_hook(load)


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _local_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    state = optimizer.state_dict()
    parts = {i: {name: _local(value) for name, value in entries.items()} for i, entries in state["state"].items()}
    return state | {"state": parts}


def _load_local_state(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Averages of gradients are cut as their parameters are; step counters are not."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for i, entries in saved["state"].items():
        like, local = parameters[i], _local(parameters[i])
        for name, value in entries.items():
            if value.shape == local.shape and value.ndim:
                cut = {"shape": like.shape, "stride": like.stride(), "run_check": False}
                entries[name] = DTensor.from_local(value.to(local.device), like.device_mesh, like.placements, **cut)
    optimizer.load_state_dict(saved)
