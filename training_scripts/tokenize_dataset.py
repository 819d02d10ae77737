#!/usr/bin/env python
"""Turns videos into tokens for `train_ar.py`: Parquet shards of codes and counts.

Every window of a video is encoded. A budget is shared by the windows of a batch, which come from several videos, as by the
clips of one video; `quality` and `threshold` decide for each window alone.

    accelerate launch --cpu training_scripts/tokenize_dataset.py --videos DATA/action32/train --labels folder \
        --window_step 8 --budget 32 --output_dir tokens/action32

Finished shards are not made again: the same command resumes an interrupted run. With several processes each makes some of
the shards, and the result is the same. The folder is a data set for `datasets.load_dataset`. Columns: `codes` (blocks,
latents_per_block), `token_counts` (blocks), `label` (a class, or -1), `source` (the video), `start` (the window's first
frame), `config_hash` (of `dataset.json`, which says how they were made) and, with `--num_condition_frames`,
`condition_codes`: the codes of the clip that repeats the last of the window's first frames. Videos that cannot be used are
skipped and named, in the `.json` next to each shard too; too many are an error. `training_scripts/README.md` has the
options of the paper's data sets.
"""

from accelerate import Accelerator

from adaptok_hf import AdapTokPipeline
from adaptok_hf.cli.program import run_script
from adaptok_hf.training.ar.token_shards import Arguments, write_token_shards
from adaptok_hf.training.recipes import parse_arguments


def main() -> None:
    args, accelerator = parse_arguments(Arguments), Accelerator()
    pipeline = AdapTokPipeline.from_pretrained(args.model).to(accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    count = write_token_shards(args, pipeline, accelerator)
    accelerator.print(f"{count} windows")


if __name__ == "__main__":
    run_script(main)
