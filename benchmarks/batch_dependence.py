"""Whether the tokens of a clip depend on the clips that it shares a budget with (the paper's Table C varies the batch).

    python benchmarks/batch_dependence.py DATA/wild/val

The first clips of some videos are each tokenized among changing neighbors, which share one budget. Printed are, over the
neighborhoods of a clip, the largest less the smallest number of its tokens per block and PSNR in dB, as means and maxima
over clips. `joint` for a clip alone and `quality` do not depend on neighbors at all.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from adaptok_hf import AdapTokPipeline
from adaptok_hf.data import VideoFolderClips
from adaptok_hf.metrics import VideoPSNR


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder of videos")
    parser.add_argument("--model", help="pipeline folder (default: the checkpoint in the package)")
    parser.add_argument("--budget", default="25%", help="tokens per block, or a percentage")
    parser.add_argument("--clips", type=int, default=8, help="clips that are looked at")
    parser.add_argument("--neighborhoods", type=int, default=4, help="of each clip, of 7 others")
    arguments = parser.parse_args()
    pipeline = AdapTokPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.tokenizer.config
    folder = VideoFolderClips([Path(arguments.folder)], config.num_frames, config.image_size, random_clips=False)
    clips = torch.stack([folder[index]["pixel_values_videos"] for index in range(len(folder))])
    targets = np.linspace(0, len(clips) - 1, arguments.clips).round().astype(int)
    rng = np.random.default_rng(0)
    batches = {
        target: [
            [target, *rng.choice(np.delete(np.arange(len(clips)), target), 7, replace=False)]
            for _ in range(arguments.neighborhoods)
        ]
        for target in targets
    }
    print(f"{arguments.budget} of {config.latents_per_block} tokens; {len(targets)} clips among 7 others")
    print("\n| strategy | tokens per block: mean spread | largest | PSNR: mean spread | largest |\n|---|---|---|---|---|")
    for strategy in ("bithr", "bidelta", "ipal", "joint"):
        spreads = []
        for target, neighborhoods in batches.items():
            results = []
            for batch in neighborhoods:
                tokens = pipeline.tokenize(clips[batch].flatten(0, 1), budget=arguments.budget, allocation=strategy)
                frames = pipeline.decode(tokens)[: config.num_frames]
                video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None] / 255
                psnr = VideoPSNR().measure(video, clips[target][None] / 255).item()
                results.append((tokens.token_counts[0].float().mean().item(), psnr))
            spreads.append(np.ptp(np.array(results), axis=0))
        mean, largest = np.mean(spreads, 0), np.max(spreads, 0)
        print(f"| {strategy} | {mean[0]:.2f} | {largest[0]:.2f} | {mean[1]:.3f} | {largest[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
