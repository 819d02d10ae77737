#!/usr/bin/env python
"""Trains an AdapTok scorer: it learns the loss that a block's reconstruction will have at each token count.

Each step chooses one block q at random, and random counts for the earlier blocks; the clip is decoded with every level
of block q (or with a random sample of `levels_per_step`), and the scorer regresses the measured loss of block q
(AdapTok, "scorer"). Decoding is causal, so blocks after q are left out. `--target` is what is measured, by default LPIPS.

A run that finishes in minutes on a CPU:

    accelerate launch --cpu training_scripts/train_scorer.py training_scripts/recipes/scorer_tiny.json \
        --data_root DATA --tokenizer runs/tokenizer_tiny/model_ema --output_dir runs/scorer_tiny

The paper's scorer, on one machine with 8 GPUs (16 of its 128 clips on each):

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 training_scripts/train_scorer.py \
        training_scripts/recipes/scorer_paper.json --data_root DATA --ucf101_folder UCF-101 \
        --ucf101_splits ucfTrainTestlist --val_folder val --num_workers 8 --tokenizer runs/tokenizer_paper/model_ema \
        --output_dir runs/scorer_paper --report_to tensorboard

`--init_from` starts from a trained scorer, or from the one that `initialize_scorer.py` wrote. The recipe holds every number
of the run; an option on the command line overrides it. Number of processes and mixed precision are accelerate's
(`accelerate config`, or options of `accelerate launch`). Processes hold whole models, so FSDP and DeepSpeed raise an error.

`output_dir` gets `model/` and, with `ema_decay`, `model_ema/` (both load with `AutoModel.from_pretrained`),
`checkpoint-<step>/` (everything that is needed to resume), `validation/` (pictures), `recipe.json` and `metrics.jsonl`.
The same command with `--resume_from_checkpoint latest` resumes a killed run, on a CPU bit for bit.
"""

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
    main()
