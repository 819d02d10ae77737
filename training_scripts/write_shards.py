#!/usr/bin/env python
"""Writes the videos of a folder as WebDataset tar shards, resized: what training then reads fast, with few files.

    python training_scripts/write_shards.py --folder videos/train --output_folder shards/train
    python training_scripts/write_shards.py --folder k600/train --kinetics_csv k600/train.csv --output_folder shards/train
    python training_scripts/write_shards.py --folder k600/val --kinetics_csv k600/val.csv --output_folder shards/val \\
        --class_names shards/train/class_names.txt

Run it again after an interruption: finished shards are kept. Every shard holds `<number>.mp4` (no sound) and
`<number>.json` (key, label, class_name, fps, num_frames); videos are shuffled over the shards. `shard-<n>.json` next to a
shard names the videos that were skipped. Read with `adaptok_hf.data.TarShards`, `webdataset`, or `datasets`.
"""

import sys

from adaptok_hf.cli.program import run_script
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.video_shards import Arguments, write_video_shards


def main() -> None:
    args = parse_arguments(Arguments)
    report = write_video_shards(args)
    for key, reason in sorted(report["skipped"].items()):
        print(f"skipped {key}: {reason}", file=sys.stderr)
    print(
        f"{report['videos']} videos in {report['shards']} shards in {args.output_folder}; {len(report['skipped'])} skipped"
    )


if __name__ == "__main__":
    run_script(main)
