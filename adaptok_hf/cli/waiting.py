"""A line on the terminal while something runs that has no progress bar."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# Seconds before it appears, and between two updates.
DELAY, INTERVAL = 2.0, 1.0


def is_terminal() -> bool:
    """Return whether standard error is a terminal, where progress is shown."""
    return sys.stderr is not None and sys.stderr.isatty()


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show on a terminal what is being done and for how long, after two seconds; progress bars appear below it."""
    if not is_terminal():
        yield
        return
    from tqdm import tqdm

    done = threading.Event()

    def show(bar: tqdm) -> None:
        wait = DELAY
        while not done.wait(wait):
            bar.refresh()
            wait = INTERVAL

    with tqdm(desc=text, bar_format="{desc} {elapsed}", leave=False, delay=DELAY) as bar:
        thread = threading.Thread(target=show, args=(bar,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
