"""On Spaces with ZeroGPU a function asks for the GPU by a decorator; elsewhere the decorator does nothing."""

from collections.abc import Callable

try:
    import spaces
except ImportError:
    spaces = None

# Seconds of GPU that a visitor's click may take.
_SECONDS = 90


def on_gpu(function: Callable) -> Callable:
    return function if spaces is None else spaces.GPU(duration=_SECONDS)(function)
