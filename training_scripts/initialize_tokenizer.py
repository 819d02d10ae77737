#!/usr/bin/env python
"""Computes the weights of a tokenizer that already is a rough codec: principal components, k-means, least squares.

It takes minutes on a CPU, in one process, and writes a model folder that `train_tokenizer.py --init_from` reads:

    python training_scripts/initialize_tokenizer.py training_scripts/recipes/tokenizer_tiny_init.json \
        --data_root DATA --output_dir runs/tokenizer_tiny_init

With `--val_folder` it prints the PSNR at several budgets. `adaptok_hf/training/closed_form/transform_codec.py` explains the
method; it needs learned position tables.
"""

from accelerate import Accelerator
from accelerate.utils import set_seed

from adaptok_hf import AdapTokConfig, AdapTokModel
from adaptok_hf.atomic_files import atomic_folder, check_new_folder
from adaptok_hf.cli.program import run_script
from adaptok_hf.training.clips import open_clips
from adaptok_hf.training.closed_form.arguments import TokenizerInitialization
from adaptok_hf.training.closed_form.transform_codec import initialize_as_transform_codec
from adaptok_hf.training.recipes import parse_arguments
from adaptok_hf.training.tokenizer.validation import Reconstructor, measure_psnr


def main() -> None:
    args, accelerator = parse_arguments(TokenizerInitialization), Accelerator(cpu=True)
    check_new_folder(args.output_dir)
    set_seed(args.seed)
    config = AdapTokConfig(**args.model)
    model = AdapTokModel(config).eval()
    clips, val_clips = open_clips(args, config)
    num_frames = min(3, config.num_blocks) * config.tubelet_size
    video = clips.sample(args.num_clips)[:, :num_frames].float() / 255
    initialize_as_transform_codec(model, video, args.coarse_latents)
    with atomic_folder(args.output_dir) as folder:
        model.save_pretrained(folder)
    if val_clips is not None:
        print(measure_psnr(Reconstructor(model, config.num_blocks, quantize=True), val_clips, accelerator))


if __name__ == "__main__":
    run_script(main)
