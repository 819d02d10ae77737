"""Tar shards of resized videos, which `write_shards.py` writes."""

import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import tarfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from ..atomic_files import claim_folder, write_text
from ..data import VideoFiles, VideoItem, kinetics, video_folder
from ..video.frames import resize_short_side
from ..video.video_io import read_video
from ..video.video_writing import write_video
from .arguments import check_positive
from .shards import SkipArguments, read_report, shard_with_report, write_plan


@dataclass(kw_only=True)
class Arguments(SkipArguments):
    folder: str = field(metadata={"help": "searched recursively; the first sub-folder of a video is its class"})
    output_folder: str = field(metadata={"help": "made if it does not exist"})
    kinetics_csv: str | None = field(default=None, metadata={"help": "take videos and labels from this Kinetics list"})
    class_names: str | None = field(default=None, metadata={"help": "file with a class a line, in the order of the labels"})
    short_side: int = field(default=128, metadata={"help": "pixels; the aspect ratio is kept"})
    videos_per_shard: int = 500
    seed: int = field(default=0, metadata={"help": "of the order of the videos"})
    num_processes: int = 1

    def __post_init__(self):
        check_positive(self, "short_side", "videos_per_shard", "num_processes")


def write_video_shards(args: Arguments) -> dict[str, Any]:
    """Write the shards that are missing.

    Returns:
        `videos` and `shards` (how many there are), `skipped` (key -> reason).

    Raises:
        ValueError, OSError, TooManySkippedVideos: for missing or unreadable videos, and an output folder that holds other
            shards or that another run writes into.
    """
    names = Path(args.class_names).read_text().splitlines() if args.class_names else None
    source = kinetics(args.kinetics_csv, args.folder, names) if args.kinetics_csv else video_folder(args.folder, names)
    output = Path(args.output_folder)
    output.mkdir(parents=True, exist_ok=True)
    with claim_folder(output):
        return _write_missing(args, source, output)


def _write_missing(args: Arguments, source: VideoFiles, output: Path) -> dict[str, Any]:
    order = np.random.default_rng(args.seed).permutation(len(source.items))
    items = [source.items[index] for index in order]
    names = ("short_side", "videos_per_shard", "seed")
    plan = {name: value for name, value in asdict(args).items() if name in names} | {
        "num_videos": len(items),
        "videos_sha256": hashlib.sha256(json.dumps([(item.key, item.label) for item in items]).encode()).hexdigest(),
        "num_classes": len(source.class_names),
    }
    if not (output / "plan.json").exists() and (present := sorted(output.glob("*.tar"))):
        raise ValueError(f"{output} holds tar files that this script did not write, such as {present[0].name}")
    write_plan(output / "plan.json", plan)
    write_text(output / "class_names.txt", "".join(f"{name}\n" for name in source.class_names))
    chunks = [items[start : start + args.videos_per_shard] for start in range(0, len(items), args.videos_per_shard)]
    tasks = []
    for index, chunk in enumerate(chunks):
        path = output / f"shard-{index:05d}.tar"
        write = partial(write_shard, path, chunk, source.class_names, args.short_side)
        tasks.append(partial(read_report, path) if path.exists() else write)

    tried, skipped = 0, {}
    with tqdm(total=len(items), unit="video") as progress, closing(run_tasks(tasks, args.num_processes)) as reports:
        for report in reports:
            number = report["videos"] + len(report["skipped"])
            tried += number
            skipped |= report["skipped"]
            progress.update(number)
            progress.set_postfix(skipped=len(skipped))
            args.check_skipped(tried, skipped)
    return {"videos": len(items) - len(skipped), "shards": len(chunks), "skipped": skipped}


def run_tasks(tasks: list[Callable[[], dict]], num_processes: int) -> Iterator[dict]:
    """Yield the results, in the order in which they are ready."""
    if num_processes == 1:
        yield from (task() for task in tasks)
        return
    # forking next to the threads of the pool and of the progress bar can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, initializer=exit_with_parent) as executor:
        jobs = [executor.submit(task) for task in tasks]
        try:
            yield from (job.result() for job in as_completed(jobs))
        finally:
            executor.shutdown(cancel_futures=True)


def exit_with_parent() -> None:
    """End the processes of a pool when their parent is killed; they would wait for work for ever."""

    def watch():
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def write_shard(path: Path, items: list[VideoItem], class_names: list[str], short_side: int) -> dict:
    """Write a shard and its report; return the report: `videos` (how many there are) and `skipped` (key -> reason)."""
    skipped: dict[str, str] = {}
    with ExitStack() as stack:
        partial_path, report = stack.enter_context(shard_with_report(path))
        mp4 = partial_path.with_suffix(".mp4")
        stack.callback(mp4.unlink, missing_ok=True)
        tar = stack.enter_context(tarfile.open(partial_path, "w"))
        for index, item in enumerate(items):
            try:
                video = read_video(item.video, transform=partial(resize_short_side, size=short_side))
            except (OSError, ValueError) as error:
                skipped[item.key] = " ".join(str(error).split())
                continue
            # an even rate is written as such, which is exact; anything else by its timestamps
            even = np.abs(video.timestamps - np.arange(len(video)) / video.fps).max() < 0.002
            write_video(mp4, video.frames, video.fps, None if even else video.timestamps)
            facts = {
                "key": item.key,
                "label": item.label,
                "class_name": class_names[item.label] if item.label >= 0 else None,
                "fps": video.fps,
                "num_frames": len(video),
            }
            for suffix, data in (("json", json.dumps(facts).encode()), ("mp4", mp4.read_bytes())):
                info = tarfile.TarInfo(f"{index:06d}.{suffix}")  # no owner and no time: equal inputs give equal shards
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        report |= {"videos": len(items) - len(skipped), "skipped": skipped}
    return report
