#!/usr/bin/env python
"""Trains an AdapTok scorer: it learns the loss that a block's reconstruction will have at each token count.

Each step chooses one block q at random, and random counts for the earlier blocks; the clip is decoded with every level
of block q (or with a random sample of `levels_per_step`), and the scorer regresses the measured loss of block q
(AdapTok, "scorer"). Decoding is causal, so blocks after q are left out.

    accelerate launch --cpu training_scripts/train_scorer.py training_scripts/recipes/scorer_tiny.json \
        --data_root DATA --tokenizer runs/tokenizer_tiny/model_ema --output_dir runs/scorer_tiny

`training_scripts/README.md` has the paper's run, what is written, and how to resume.
"""

from adaptok_hf.cli.program import run_script
from adaptok_hf.training.clips import open_clips
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.run_folder import start_run
from adaptok_hf.training.scorer.arguments import Arguments
from adaptok_hf.training.scorer.trainer import ScorerTrainer
from adaptok_hf.training.scorer.training_step import load_tokenizer


def main() -> None:
    args = parse_arguments(Arguments)
    run = start_run(args, "train_scorer")
    tokenizer, block_loss = load_tokenizer(args, run.accelerator.device)
    clips, val_clips = open_clips(args, tokenizer.config)
    ScorerTrainer(args, run, tokenizer, block_loss, clips, val_clips).train()


if __name__ == "__main__":
    run_script(main)
