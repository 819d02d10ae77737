#!/usr/bin/env python
"""Rebuilds the videos and photographs that the shipped checkpoints were trained on, from public packages.

    python training_scripts/build_demo_dataset.py --output_dir DATA

`demo_dataset.csv` names every clip: its path (`action32/<split>/<class>/...`, `emoji/<split>/<class>/...`,
`photos/train/...` or `wild/<split>/...`), the package and the file inside that it comes from, its frames or the part of the
picture, and the hash of the file that was made before. Packages (`demo_packages.csv`, 1.8 GB in all, 1.3 GB without
`photos`; those of apt are Debian 12's) are fetched by npm, pip and apt and verified by their hashes; what is missing is
listed at the end. A second call makes only what is missing. `manifest.csv` lists what was made, with the licenses that the
packages declare.
"""

from pathlib import Path

from adaptok_hf.cli.program import run_script
from adaptok_hf.training.demo_dataset import Arguments, build, read_packages, read_plan
from adaptok_hf.training.recipes import parse_arguments

PLAN = Path(__file__).with_name("demo_dataset.csv")
PACKAGES = Path(__file__).with_name("demo_packages.csv")


def main() -> None:
    args = parse_arguments(Arguments)
    plan = read_plan(PLAN, args.sets)
    made, unchanged, problems = build(args, plan, read_packages(PACKAGES))
    print(f"{made} of {len(plan)} clips are in {args.output_dir}, {unchanged} of them with the bytes made before")
    if made < len(plan):
        print("missing:", *problems, sep="\n  ")
        raise SystemExit(1)


if __name__ == "__main__":
    run_script(main)
