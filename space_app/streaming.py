"""Watching a generator write: what it has written so far, while it writes."""

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from transformers import StoppingCriteria

MAX_SEED = 2**31 - 1


class Watcher(StoppingCriteria):
    """Never stops generation, but passes on the ids of the first row every few tokens.

    Args:
        every: tokens between two looks.
        eob_token_id: a look is taken after each of these, too; `None` where there are none.
    """

    def __init__(self, every: int, eob_token_id: int | None):
        self.every, self.eob_token_id = every, eob_token_id
        self.seen: queue.Queue = queue.Queue()
        self.cancelled = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        if input_ids.shape[1] % self.every == 0 or int(input_ids[0, -1]) == self.eob_token_id:
            self.seen.put(input_ids[0].cpu())
        return torch.full((len(input_ids),), self.cancelled, device=input_ids.device)


def check_seed(seed: float | None) -> int:
    """Return a visitor's seed; `ValueError` unless it is a whole number that torch takes."""
    if seed is None or not 0 <= seed <= MAX_SEED or seed != int(seed):
        raise ValueError(f"The seed must be a whole number from 0 to {MAX_SEED}.")
    return int(seed)


def watch(run: Callable[[Watcher], Any], watcher: Watcher) -> Iterator[torch.Tensor | Any]:
    """Run `run(watcher)` in a thread and yield the newest ids, (length,) long, then what `run` returned.

    Ids that nobody had time to look at are skipped. If the caller closes this generator, generation stops at its next
    token. Errors of `run` are raised here.
    """
    with ThreadPoolExecutor(1) as executor:
        outcome = executor.submit(run, watcher)
        outcome.add_done_callback(lambda _: watcher.seen.put(None))
        try:
            while (ids := watcher.seen.get()) is not None:
                if watcher.seen.empty():
                    yield ids
        finally:
            watcher.cancelled = True
    yield outcome.result()
