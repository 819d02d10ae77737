"""What does a block gain from the blocks before it? PSNR in its clip, minus that of the same frames coded alone.

    python benchmarks/earlier_blocks.py DATA/wild/val
    python benchmarks/earlier_blocks.py DATA/action32/val --model figures

Alone, a block is a clip of one block. All blocks keep equal counts. Printed is the mean over the first clips of videos with
its 95% bootstrap interval, for the blocks after the first, whose gain is nothing.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.stats import bootstrap

from adaptok_hf import AdapTokPipeline
from adaptok_hf.data import VideoFolderClips
from adaptok_hf.metrics import VideoPSNR


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder of videos")
    parser.add_argument("--model", help="pipeline folder (default: small, in the package)")
    parser.add_argument("--shares", type=int, nargs="+", default=[16, 8, 4, 1], help="keep all / SHARE tokens")
    arguments = parser.parse_args()
    model = AdapTokPipeline.from_pretrained(arguments.model).tokenizer
    config = model.config

    def block_psnr(video: torch.Tensor, count: int) -> torch.Tensor:
        """Return the PSNR of each block, (batch, blocks), of (batch, frames, 3, height, width) in [0, 1]."""
        codes = model.encode(video).codes
        decoded = model.decode(codes, torch.full(codes.shape[:2], count)).pixel_values_videos.clamp(0, 1)
        blocks = [each.unflatten(1, (-1, config.tubelet_size)).flatten(0, 1) for each in (decoded, video)]
        return VideoPSNR().measure(*blocks).view(len(video), -1)

    folder = VideoFolderClips([Path(arguments.folder)], config.num_frames, config.image_size, random_clips=False)
    gains: dict[int, list[torch.Tensor]] = {config.latents_per_block // share: [] for share in arguments.shares}
    for clip in folder:
        video = clip["pixel_values_videos"][None].float() / 255
        for count, rows in gains.items():
            alone = block_psnr(video.unflatten(1, (-1, config.tubelet_size))[0], count).T
            rows.append((block_psnr(video, count) - alone)[0])
    print("| tokens per block | " + " | ".join(f"block {block}" for block in range(2, config.num_blocks + 1)) + " |")
    print("|---" * config.num_blocks + "|")
    for count, rows in gains.items():
        cells = []
        for column in torch.stack(rows).double().numpy().T[1:]:
            interval = bootstrap((column,), np.mean, rng=0).confidence_interval
            cells.append(f"{column.mean():+.2f} [{interval.low:.2f}, {interval.high:.2f}]")
        print(f"| {count} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
