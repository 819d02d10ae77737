"""Watching a generator write: what it has written so far, while it writes."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers import StoppingCriteria


class Watcher(StoppingCriteria):
    """Never stops generation by itself, but hands on the ids of the first row every few tokens.

    Args:
        every: tokens between two looks.
        eob_token_id: a look is taken behind each of these, too.
    """

    def __init__(self, every: int, eob_token_id: int):
        self.every, self.eob_token_id = every, eob_token_id
        self.seen: queue.Queue = queue.Queue()
        self.cancelled = False

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        if input_ids.shape[1] % self.every == 0 or int(input_ids[0, -1]) == self.eob_token_id:
            self.seen.put(input_ids[0].cpu())
        return torch.full((len(input_ids),), self.cancelled, device=input_ids.device)


def watch(run: Callable[[Watcher], Any], watcher: Watcher) -> Iterator[torch.Tensor | Any]:
    """Runs `run(watcher)` in a thread and yields the newest ids, (length,) long, then what `run` returned.

    Ids that nobody had time to look at are skipped. If the caller closes this generator, generation stops at its next
    token. Errors of `run` are raised here.
    """
    finished = object()
    outcome: dict[str, Any] = {}

    def work() -> None:
        try:
            outcome["result"] = run(watcher)
        except BaseException as error:
            outcome["error"] = error
        finally:
            watcher.seen.put(finished)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while (ids := watcher.seen.get()) is not finished:
            while not watcher.seen.empty() and ids is not finished:
                ids = watcher.seen.get()
            if ids is finished:
                break
            yield ids
    finally:
        watcher.cancelled = True
        thread.join()
    if "error" in outcome:
        raise outcome["error"]
    yield outcome["result"]
