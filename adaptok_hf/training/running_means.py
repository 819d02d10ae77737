"""Means of what a training loop measures, from one log entry to the next."""

from collections.abc import Mapping

import torch
from accelerate import Accelerator


class RunningMeans:
    """Sums stay on their device, so that adding to them does not wait for it. A resumed run continues the sums."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: Mapping[str, torch.Tensor]) -> None:
        """Scalars by name; each has a mean over the calls that named it."""
        for name, value in values.items():
            value = value.detach().float()
            self.sums[name] = self.sums[name].to(value.device) + value if name in self.sums else value
            self.counts[name] = self.counts.get(name, 0) + 1

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means, also over processes, which must all call this with the same names; reset them."""
        names = list(self.sums)
        if not names:
            return {}
        means = torch.stack([(self.sums[name] / self.counts[name]).to(accelerator.device) for name in names])
        self.sums, self.counts = {}, {}
        return dict(zip(names, accelerator.reduce(means, "mean").tolist(), strict=True))

    def state_dict(self) -> dict:
        return {"sums": {name: value.cpu() for name, value in self.sums.items()}, "counts": dict(self.counts)}

    def load_state_dict(self, state: dict) -> None:
        self.sums, self.counts = dict(state["sums"]), dict(state["counts"])
