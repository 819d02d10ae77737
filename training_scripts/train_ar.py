#!/usr/bin/env python
"""Trains an AdapTok generator on the token sequences that `tokenize_dataset.py` wrote.

A generator is class-conditional, or continues given frames (frame prediction), as its `model` entries say.

    accelerate launch --cpu training_scripts/train_ar.py training_scripts/recipes/ar_tiny.json \
        --tokens tokens/tiny --output_dir runs/ar_tiny

`training_scripts/README.md` has the paper's runs, what is written, and how to resume; `docs/fine_tuning.md` shows adapters
(`use_lora`) of a trained generator.
"""

from adaptok_hf.cli.program import run_script
from adaptok_hf.training.ar.arguments import Arguments
from adaptok_hf.training.ar.trainer import ARTrainer
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.run_folder import start_run


def main() -> None:
    args = parse_arguments(Arguments)
    ARTrainer(args, start_run(args, "train_ar")).train()


if __name__ == "__main__":
    run_script(main)
