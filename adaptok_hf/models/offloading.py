"""Offloaded models: accelerate moves weights in the hooks of `forward` only, and ours have other methods that compute."""

import functools
from collections.abc import Callable

import torch


def run_hooks(method: Callable) -> Callable:
    """Decorate a method of a model, so that it runs the hook that accelerate runs before `forward`, if there is one."""

    @functools.wraps(method)
    def run(self, *args, **kwargs):
        if hasattr(self, "_hf_hook"):
            args, kwargs = self._hf_hook.pre_forward(self, *args, **kwargs)
        return method(self, *args, **kwargs)

    return run


def execution_device(model: torch.nn.Module) -> torch.device | None:
    """Return where the hooks of an offloaded model compute; `None` for a model without."""
    if hasattr(model, "_hf_hook"):
        for module in model.modules():
            device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
            if device is not None:
                return torch.device(device)
    return None
