"""Write the videos of a folder as WebDataset tar shards, resized: what training then reads fast, with few files.

    python training_scripts/write_shards.py --folder videos/train --output_folder shards/train
    python training_scripts/write_shards.py --folder k600/train --kinetics_csv k600/train.csv --output_folder shards/train
    python training_scripts/write_shards.py --folder k600/val --kinetics_csv k600/val.csv --output_folder shards/val \\
        --class_names shards/train/class_names.txt

Run it again after an interruption: finished shards are kept. Every shard holds `<number>.mp4` (no sound) and
`<number>.json` (key, label, class_name, fps, num_frames); videos are shuffled over the shards. `shard-<n>.json` beside a
shard names the videos that were skipped. Read with `adaptok_hf.data.TarShards`, `webdataset`, or `datasets`.
"""

import hashlib
import io
import json
import multiprocessing
import multiprocessing.connection
import os
import sys
import tarfile
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from adaptok_hf.data import VideoItem, kinetics, video_folder
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.video.frames import resize_short_side
from adaptok_hf.video.video_io import read_video
from adaptok_hf.video.video_writing import write_video


@dataclass
class ShardArguments:
    folder: str = field(metadata={"help": "searched recursively; the first sub-folder of a video is its class"})
    output_folder: str = field(metadata={"help": "made if it does not exist"})
    kinetics_csv: str | None = field(default=None, metadata={"help": "take videos and labels from this Kinetics list"})
    class_names: str | None = field(default=None, metadata={"help": "file with a class a line, in the order of the labels"})
    short_side: int = field(default=128, metadata={"help": "pixels; the aspect ratio is kept"})
    videos_per_shard: int = 500
    seed: int = field(default=0, metadata={"help": "of the order of the videos"})
    num_processes: int = 1
    max_skipped: int = field(default=10, metadata={"help": "stop when more videos cannot be read ..."})
    max_skipped_share: float = field(default=0.05, metadata={"help": "... and more than this share of those tried"})


def main() -> None:
    args = parse_arguments(ShardArguments)
    for name in ("short_side", "videos_per_shard", "num_processes"):
        if getattr(args, name) < 1:
            raise ValueError(f"{name} must be at least 1, got {getattr(args, name)}")
    names = Path(args.class_names).read_text().splitlines() if args.class_names else None
    source = kinetics(args.kinetics_csv, args.folder, names) if args.kinetics_csv else video_folder(args.folder, names)
    output = Path(args.output_folder)
    output.mkdir(parents=True, exist_ok=True)

    order = np.random.default_rng(args.seed).permutation(len(source.items))
    items = [source.items[index] for index in order]
    check_plan(output, args, items, source.class_names)
    chunks = [items[start : start + args.videos_per_shard] for start in range(0, len(items), args.videos_per_shard)]
    paths = [output / f"shard-{index:05d}.tar" for index in range(len(chunks))]

    tasks = [
        partial(read_report, path)
        if path.exists()
        else partial(write_shard, path, chunk, source.class_names, args.short_side)
        for path, chunk in zip(paths, chunks, strict=True)
    ]

    tried, skipped = 0, {}
    with tqdm(total=len(items), unit="video") as progress, closing(run_tasks(tasks, args.num_processes)) as reports:
        for report in reports:
            number = report["videos"] + len(report["skipped"])
            tried += number
            skipped |= report["skipped"]
            progress.update(number)
            progress.set_postfix(skipped=len(skipped))
            if len(skipped) > args.max_skipped and len(skipped) > args.max_skipped_share * tried:
                raise ValueError(
                    f"{len(skipped)} of {tried} videos cannot be read (max_skipped {args.max_skipped}, "
                    f"max_skipped_share {args.max_skipped_share}), such as {list(skipped.items())[-3:]}"
                )
    for key, reason in sorted(skipped.items()):
        print(f"skipped {key}: {reason}", file=sys.stderr)
    print(f"{len(items) - len(skipped)} videos in {len(paths)} shards in {output}; {len(skipped)} skipped")


def run_tasks(tasks: list[Callable[[], dict]], num_processes: int) -> Iterator[dict]:
    """The results, in the order in which they are ready."""
    if num_processes == 1:
        yield from (task() for task in tasks)
        return
    # forking beside the threads of the pool and of the progress bar can hang
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, initializer=exit_with_parent) as executor:
        jobs = [executor.submit(task) for task in tasks]
        try:
            yield from (job.result() for job in as_completed(jobs))
        finally:
            executor.shutdown(cancel_futures=True)


def exit_with_parent() -> None:
    """The processes of a pool would otherwise wait for work for ever after their parent was killed."""

    def watch():
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_plan(output: Path, args: ShardArguments, items: list[VideoItem], class_names: list[str]) -> None:
    """Writes down what the folder's shards are made of, and refuses to mix them with others.

    Raises:
        ValueError: if the folder holds shards of other videos, labels or settings.
    """
    listing = json.dumps([(item.key, item.label) for item in items]).encode()
    plan = {
        "short_side": args.short_side,
        "videos_per_shard": args.videos_per_shard,
        "seed": args.seed,
        "num_videos": len(items),
        "videos_sha256": hashlib.sha256(listing).hexdigest(),
        "num_classes": len(class_names),
    }
    path = output / "plan.json"
    if path.exists():
        earlier = json.loads(path.read_text())
        if changed := {name: (earlier.get(name), value) for name, value in plan.items() if earlier.get(name) != value}:
            raise ValueError(f"{output} holds shards of another run: (then, now) = {changed}; use an empty folder")
        return
    if present := sorted(output.glob("*.tar")):
        raise ValueError(f"{output} holds tar files that this script did not write, such as {present[0].name}")
    write_text(output / "class_names.txt", "".join(f"{name}\n" for name in class_names))
    write_text(path, json.dumps(plan, indent=2) + "\n")


def write_shard(path: Path, items: list[VideoItem], class_names: list[str], short_side: int) -> dict:
    """Writes a shard beside its place, then its report, then renames it: a shard that has its name is complete.

    Returns:
        The report: `videos` (how many there are) and `skipped` (key -> reason).
    """
    partial_path = path.with_name(f".{path.name}.tmp")  # the next attempt overwrites what a kill leaves behind
    skipped: dict[str, str] = {}
    try:
        with tempfile.TemporaryDirectory() as scratch, tarfile.open(partial_path, "w") as tar:
            for index, item in enumerate(items):
                try:
                    video = read_video(item.video, transform=partial(resize_short_side, size=short_side))
                except (OSError, ValueError) as error:
                    skipped[item.key] = " ".join(str(error).split())
                    continue
                mp4 = Path(scratch) / "video.mp4"
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
                add_file(tar, f"{index:06d}.json", json.dumps(facts).encode())
                add_file(tar, f"{index:06d}.mp4", mp4.read_bytes())
        report = {"videos": len(items) - len(skipped), "skipped": skipped}
        write_text(path.with_suffix(".json"), json.dumps(report, indent=2) + "\n")
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)
    return report


def read_report(path: Path) -> dict:
    return json.loads(path.with_suffix(".json").read_text())


def add_file(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)  # no owner and no time: equal inputs give equal shards
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_text(path: Path, text: str) -> None:
    partial_path = path.with_name(f".{path.name}.tmp")
    try:
        partial_path.write_text(text)
        os.replace(partial_path, path)
    finally:
        partial_path.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
