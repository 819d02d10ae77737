#!/usr/bin/env python
"""Trains an AdapTok generator on the token sequences that `tokenize_dataset.py` wrote.

A generator is class-conditional, or continues given frames (frame prediction), as its `model` entries say. In minutes on a
CPU, with the tokens of the tiny tokenizer:

    accelerate launch --cpu training_scripts/train_ar.py training_scripts/recipes/ar_tiny.json \
        --tokens tokens/tiny --output_dir runs/ar_tiny

The paper's, on one machine with 8 GPUs:

    accelerate launch --multi_gpu --num_processes 8 --mixed_precision bf16 training_scripts/train_ar.py \
        training_scripts/recipes/ar_paper.json --tokens tokens/ucf101 --num_workers 2 --output_dir runs/ar_paper

Adapters of a trained generator, to teach it one's own classes (`docs/fine_tuning.md`):

    accelerate launch training_scripts/train_ar.py training_scripts/recipes/ar_lora.json --init_from MODEL \
        --tokens tokens/mine --output_dir runs/ar_lora

Number of processes and mixed precision are accelerate's; processes hold whole models, so FSDP and DeepSpeed raise an error.

`output_dir` gets `model/` and, with `ema_decay`, `model_ema/` (both load with `AutoModelForCausalLM.from_pretrained`;
adapters are merged into them), with `use_lora` also `adapter/` (loads with `peft.PeftModel`), `checkpoint-<step>/`
(everything that is needed to resume), `recipe.json` and `metrics.jsonl`. The same command with
`--resume_from_checkpoint latest` resumes a killed run, on a CPU bit for bit.
"""

from adaptok_hf.training.ar.arguments import Arguments
from adaptok_hf.training.ar.trainer import ARTrainer
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.run_folder import start_run


def main() -> None:
    args = parse_arguments(Arguments)
    ARTrainer(args, start_run(args, "train_ar")).train()


if __name__ == "__main__":
    main()
