#!/usr/bin/env python
"""Measures the losses of many assignments of token counts to the blocks of clips: what `train_router.py` learns from.

A beam is run at several prices for each clip, decoding it block by block. All that it measures is kept, so that labels
for any price in between follow later without decoding.

    accelerate launch --cpu training_scripts/label_assignments.py training_scripts/recipes/labels_tiny.json \
        --data_root DATA --tokenizer runs/tokenizer_tiny/model_ema --output_dir runs/labels_tiny

Finished shards are not made again: the same command resumes an interrupted run. Columns: `source` (the video), `start`,
`stride`, `mirrored`, `reversed` (which frames, and how), `counts` (of the first blocks) and `losses` (of the last of
these).
"""

from accelerate import Accelerator

from adaptok_hf.cli.program import run_script
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.router.assignment_labels import Arguments, write_labels


def main() -> None:
    args, accelerator = parse_arguments(Arguments), Accelerator()
    accelerator.print(f"{write_labels(args, accelerator)} clips")


if __name__ == "__main__":
    run_script(main)
