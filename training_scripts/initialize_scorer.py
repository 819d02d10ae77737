#!/usr/bin/env python
"""Computes the weights of a scorer that already predicts losses: energies of latents, least squares, and a fitted curve.

Most of the time goes into measuring blocks with the tokenizer. It runs in one process and writes a model folder that
`train_scorer.py --init_from` reads:

    accelerate launch --cpu training_scripts/initialize_scorer.py training_scripts/recipes/scorer_tiny_init.json \
        --data_root DATA --tokenizer runs/tokenizer_tiny/model_ema --output_dir runs/scorer_tiny_init

With `--val_folder` rank correlations with measured losses are printed. `adaptok_hf/training/closed_form/energy_scorer.py`
explains the method.
"""

import copy

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

from adaptok_hf import AdapTokScorerModel
from adaptok_hf.atomic_files import atomic_folder, check_new_folder
from adaptok_hf.cli.program import run_script
from adaptok_hf.training.clips import open_clips
from adaptok_hf.training.closed_form.arguments import ScorerInitialization
from adaptok_hf.training.closed_form.energy_scorer import check_groups, initialize_as_energy_scorer, measure_blocks
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.scorer.training_step import build_config, load_tokenizer
from adaptok_hf.training.scorer.validation import measure_scores, predict_scores, rank_correlations


def main() -> None:
    args, accelerator = parse_arguments(ScorerInitialization), Accelerator()
    check_new_folder(args.output_dir)
    tokenizer, block_loss = load_tokenizer(args, accelerator.device)
    config = build_config(args, tokenizer.config, args.model)
    check_groups(config, tokenizer.config.codebook_dim, args.group_starts)  # before minutes of measuring
    clips, val_clips = open_clips(args, tokenizer.config)
    set_seed(args.seed)
    measured = measure_blocks(args, config, tokenizer, clips, block_loss, accelerator)
    losses = torch.cat([blocks.losses for blocks in measured])
    config.score_mean, config.score_std = float(losses.mean()), float(losses.std())
    scorer = AdapTokScorerModel(config).eval()
    project_in = copy.deepcopy(tokenizer.quantizer.project_in).cpu()
    initialize_as_energy_scorer(scorer, measured, project_in, args.group_starts)
    with atomic_folder(args.output_dir) as folder:
        scorer.save_pretrained(folder)
    if val_clips is not None:
        val_losses = measure_scores(tokenizer, val_clips, config.score_step, block_loss, accelerator)
        predicted = predict_scores(scorer.to(accelerator.device), tokenizer, val_clips, accelerator)
        print(rank_correlations(predicted, val_losses))


if __name__ == "__main__":
    run_script(main)
