#!/usr/bin/env python
"""Trains a router: it learns to choose token counts from pixels, in one pass before encoding (EVATok).

Its labels are what `label_assignments.py` measured: at each price the assignment with the lowest loss + price * tokens.
With `"price_conditioned": true` one router learns all prices between two; with a temperature, near-best choices count too.

    accelerate launch --cpu training_scripts/train_router.py training_scripts/recipes/router_tiny.json \
        --data_root DATA --labels runs/labels_tiny --output_dir runs/router_tiny

`training_scripts/README.md` has what is written, and how to resume.
"""

from adaptok_hf.cli.program import run_script
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.router.arguments import Arguments
from adaptok_hf.training.router.trainer import RouterTrainer
from adaptok_hf.training.run_folder import start_run


def main() -> None:
    args = parse_arguments(Arguments)
    RouterTrainer(args, start_run(args, "train_router")).train()


if __name__ == "__main__":
    run_script(main)
