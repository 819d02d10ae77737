"""What the shipped checkpoint reaches on a folder of videos: PSNR by budget and strategy, and how well the scorer ranks.

    python benchmarks/shipped_checkpoint.py DATA/wild/val

PSNR is per video (all frames at 128x128), then the mean over videos. Rank correlations are Spearman's, of the scorer's
prediction and the measured loss (root mean squared error of a block) on the first clip of each video, with half of the
tokens kept in earlier blocks.
"""

import argparse
from pathlib import Path

import numpy as np
from accelerate import Accelerator

from adaptok_hf import AdapTokPipeline
from adaptok_hf.cli.reports import measure
from adaptok_hf.data import VideoFolderClips
from adaptok_hf.training.scorer.targets import BlockLoss
from adaptok_hf.training.scorer.validation import measure_scores, predict_scores, rank_correlations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder of videos")
    parser.add_argument("--model", help="pipeline folder (default: the checkpoint in the package)")
    parser.add_argument("--strategies", nargs="+", default=["fixed", "joint"])
    arguments = parser.parse_args()
    pipeline = AdapTokPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.tokenizer.config
    paths = sorted(p for p in Path(arguments.folder).rglob("*.mp4"))

    print(f"{len(paths)} videos; mean PSNR in dB\n\n| budget | tokens per block |", end="")
    print("".join(f" {strategy} |" for strategy in arguments.strategies))
    print("|---" * (2 + len(arguments.strategies)) + "|")
    for share in (1 / 16, 1 / 8, 1 / 4, 1 / 2, 1):
        budget = config.latents_per_block * share
        row = []
        for strategy in arguments.strategies:
            psnr = []
            for path in paths:
                output = pipeline.reconstruct(path, budget=budget, allocation=strategy)
                psnr.append(measure(output, config.tubelet_size)["psnr"])
            row.append(float(np.mean(psnr)))
        print(f"| 1/{round(1 / share)} | {budget:g} |" + "".join(f" {value:.2f} |" for value in row), flush=True)

    clips = VideoFolderClips([arguments.folder], config.num_frames, config.image_size, random_clips=False)
    accelerator, step = Accelerator(cpu=True), pipeline.scorer.config.score_step
    measured = measure_scores(pipeline.tokenizer, clips, step, BlockLoss("rmse"), accelerator)
    result = rank_correlations(predict_scores(pipeline.scorer, pipeline.tokenizer, clips, accelerator), measured)
    print(f"\nscorer, {len(clips)} clips: " + ", ".join(f"{name} {value:.3f}" for name, value in result.items()))


if __name__ == "__main__":
    main()
