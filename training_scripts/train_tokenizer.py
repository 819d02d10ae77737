#!/usr/bin/env python
"""Trains an AdapTok tokenizer (or its CausalTok baseline: `"adaptive": false` in the recipe's model).

A run that finishes in minutes on a CPU, from the model that `initialize_tokenizer.py` wrote:

    accelerate launch --cpu training_scripts/train_tokenizer.py training_scripts/recipes/tokenizer_tiny.json \
        --init_from runs/tokenizer_tiny_init --data_root DATA --output_dir runs/tokenizer_tiny

The paper's tokenizer, on one machine with 8 GPUs (its batch of 128 clips in 2 parts for each GPU):

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 training_scripts/train_tokenizer.py \
        training_scripts/recipes/tokenizer_paper.json --data_root DATA --ucf101_folder UCF-101 \
        --ucf101_splits ucfTrainTestlist --val_folder val --num_workers 8 --gradient_accumulation_steps 2 \
        --output_dir runs/tokenizer_paper --report_to tensorboard

More lines, for many machines too, are in `training_scripts/README.md`. The recipe holds every number of the run; an option
on the command line overrides it. Number of processes and mixed precision are accelerate's (`accelerate config`, or
options of `accelerate launch`). Processes hold whole models, or parts of them with `--shard_over`, which takes the place of
accelerate's FSDP and DeepSpeed.

`output_dir` gets `model/` and, with `ema_decay`, `model_ema/` (both load with `AutoModel.from_pretrained`),
`checkpoint-<step>/` (everything that is needed to resume), `validation/` (pictures), `recipe.json` and `metrics.jsonl`.
The same command with `--resume_from_checkpoint latest` resumes a killed run, on a CPU bit for bit.
"""

from accelerate import DistributedDataParallelKwargs
from accelerate.utils import set_seed

from adaptok_hf.training.clips import open_clips
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.run_folder import start_run
from adaptok_hf.training.tokenizer.arguments import Arguments
from adaptok_hf.training.tokenizer.trainer import TokenizerTrainer
from adaptok_hf.training.tokenizer.training_step import build_model


def main() -> None:
    args = parse_arguments(Arguments)
    # without quantizer the codebook has no gradient
    unused = DistributedDataParallelKwargs(find_unused_parameters=args.quantize_after > 0)
    run = start_run(args, "train_tokenizer", kwargs_handlers=[unused])
    set_seed(args.seed)
    model = build_model(args)
    clips, val_clips = open_clips(args, model.config)
    TokenizerTrainer(args, run, model, clips, val_clips).train()


if __name__ == "__main__":
    main()
