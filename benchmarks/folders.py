"""A folder through `adaptok tokenize`, which reads the next video while it encodes one, against one after the other.

    python benchmarks/folders.py
    python benchmarks/folders.py --videos 20 --size 1080 --dtype bfloat16

The videos are made first: copies of a drifting picture with noise (H.264). Both ways take turns in the same process. What
overlaps saves time on the clock and no CPU time: the ratio of the first is the gain, that of the second should be 1, and
CPU seconds over those of the clock are the cores that were busy. Other work on the machine leaves less to gain.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from codec import machine, print_row
from made_video import FPS, moving_picture
from timing import spread

from adaptok_hf import AdapTokPipeline, write_video
from adaptok_hf.cli.tokenizing import tokenize_files


def measure(run: Callable[[], object]) -> tuple[float, float]:
    """Return seconds of the clock, and of CPU time."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=int, default=4, help="how many (default: 4)")
    parser.add_argument("--seconds", type=float, default=2, help="length of each (default: 2)")
    parser.add_argument("--size", type=int, default=480, help="height and width (default: 480)")
    parser.add_argument("--model", default="small", help="checkpoint (default: small)")
    parser.add_argument("--dtype", default="float32", help="of the weights (default: float32)")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    pipeline = AdapTokPipeline.from_pretrained(arguments.model, dtype=arguments.dtype)
    pipeline.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as folder:
        paths = [str(Path(folder, f"{index}.mp4")) for index in range(arguments.videos)]
        write_video(paths[0], moving_picture(arguments.seconds, arguments.size), FPS)
        for path in paths[1:]:
            shutil.copy(paths[0], path)
        options = {"resize_mode": None, "overlap_blocks": 0, "batch_size": 8}
        ways = {
            "one after the other": lambda: [pipeline.tokenize(path, **options) for path in paths],
            "overlapping": lambda: [each[1] for each in tokenize_files(pipeline, paths, {}, None, **options)],
        }
        ways["overlapping"]()  # warms up
        runs = {name: [] for name in ways}
        for _ in range(arguments.repeats):
            for name, run in ways.items():
                runs[name].append(measure(run))
    print(f"{arguments.videos} videos of {arguments.seconds:g} s, {arguments.size} pixels; {arguments.model}", end=", ")
    print(f"{arguments.dtype}, all tokens\n{machine('cpu')}\n")
    print_row(["", "seconds", "ratio", "CPU seconds", "ratio", "cores busy"])
    print_row(["---"] * 6)
    for name, measured in runs.items():
        cells = [name]
        for column, base in zip(zip(*measured, strict=True), zip(*runs["one after the other"], strict=True), strict=True):
            cells += [spread(column), spread([ours / theirs for ours, theirs in zip(column, base, strict=True)])]
        print_row([*cells, spread([cpu / wall for wall, cpu in measured])])


if __name__ == "__main__":
    main()
