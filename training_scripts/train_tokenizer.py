#!/usr/bin/env python
"""Trains an AdapTok tokenizer (or its CausalTok baseline: `"adaptive": false` in the recipe's model).

    accelerate launch --cpu training_scripts/train_tokenizer.py training_scripts/recipes/tokenizer_tiny.json \
        --data_root DATA --output_dir runs/tokenizer_tiny

`training_scripts/README.md` has the paper's runs, what is written, and how to shard and resume.
"""

from accelerate import DistributedDataParallelKwargs
from accelerate.utils import set_seed

from adaptok_hf.cli.program import run_script
from adaptok_hf.training.clips import open_clips
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.run_folder import start_run
from adaptok_hf.training.tokenizer.arguments import Arguments
from adaptok_hf.training.tokenizer.trainer import TokenizerTrainer
from adaptok_hf.training.tokenizer.training_step import build_model


def main() -> None:
    args = parse_arguments(Arguments)
    # without quantizer the codebook has no gradient; a stage may leave out the prior or the alignment
    partial = any("loss_weights" in stage or not stage.get("quantize", True) for stage in args.stages)
    unused = DistributedDataParallelKwargs(find_unused_parameters=partial)
    run = start_run(args, "train_tokenizer", kwargs_handlers=[unused])
    set_seed(args.seed)
    model = build_model(args)
    clips, val_clips = open_clips(args, model.config)
    TokenizerTrainer(args, run, model, clips, val_clips).train()


if __name__ == "__main__":
    run_script(main)
