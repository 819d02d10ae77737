"""What the scripts that write shards have in common: a plan, a report with each shard, and a limit of skipped videos."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..atomic_files import atomic_file, write_json
from ..data.clip_stream import check_skipped


@dataclass(kw_only=True)
class SkipArguments:
    """How many videos may be skipped."""

    max_skipped: int = field(default=10, metadata={"help": "A process stops when more videos cannot be used ..."})
    max_skipped_share: float = field(default=0.05, metadata={"help": "... and more than this share of those it tried."})

    def check_skipped(self, tried: int, skipped: dict[str, str]) -> None:
        """Raise `TooManySkippedVideos` beyond the limits, for `tried` videos and key -> reason of those skipped."""
        check_skipped(tried, len(skipped), skipped, self.max_skipped, self.max_skipped_share)


def write_plan(path: Path, plan: dict[str, Any]) -> None:
    """Write down what a folder's shards are made of; raise `ValueError` if it holds those of other videos or settings."""
    if path.exists():
        earlier = json.loads(path.read_text())
        if changed := {name: (earlier.get(name), value) for name, value in plan.items() if earlier.get(name) != value}:
            raise ValueError(f"{path} is that of another run: (then, now) = {changed}; use an empty folder")
    else:
        write_json(path, plan)


@contextmanager
def shard_with_report(path: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield a temporary path for a shard, and a dictionary for its report, which is written too.

    The shard gets its name last, so that one with a name is complete.
    """
    report: dict[str, Any] = {}
    with atomic_file(path) as partial:
        yield partial, report
        write_json(path.with_suffix(".json"), report)


def read_report(path: Path) -> dict[str, Any]:
    """Return the report of a complete shard."""
    return json.loads(path.with_suffix(".json").read_text())
