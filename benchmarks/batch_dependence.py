"""Whether the tokens of a clip depend on the clips that it shares a budget with (the paper's Table C varies the batch).

    python benchmarks/batch_dependence.py DATA/wild/val

The first clips of some videos are each tokenized among changing neighbors, which share one budget (the paper's
strategies need a batch), and alone. Printed are, over the neighborhoods of a clip, the largest less the smallest
number of its tokens per block and PSNR in dB, as means and maxima over clips.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from adaptok_hf import AdapTokPipeline, allocate
from adaptok_hf.data import VideoFolderClips
from adaptok_hf.metrics import VideoPSNR

BATCH_STRATEGIES = ("bithr", "bidelta", "ipal", "joint")


@torch.no_grad()
def price_of(pipeline: AdapTokPipeline, clips: np.ndarray, budget: float) -> float:
    """Return the price of a token at which these clips take `budget` tokens per block on average, by bisection."""
    videos = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float() / 255
    encoded = pipeline.tokenizer.encode(videos)
    scores = pipeline.scorer(encoded.latents, encoded.quantized).scores.numpy()
    low, high = 0.0, float(np.ptp(scores))
    for _ in range(40):
        price = (low + high) / 2
        counts = allocate(scores, strategy="quality", step=pipeline.scorer.config.score_step, price=price)
        low, high = (price, high) if counts.mean() > budget else (low, price)
    return price


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
    clips = (
        torch.stack([folder[index]["pixel_values_videos"] for index in range(len(folder))]).permute(0, 1, 3, 4, 2).numpy()
    )
    targets = np.linspace(0, len(clips) - 1, arguments.clips).round().astype(int)
    draws = np.random.default_rng(0)
    others = {
        target: [
            draws.choice(np.delete(np.arange(len(clips)), target), 7, replace=False) for _ in range(arguments.neighborhoods)
        ]
        for target in targets
    }
    # what `quality` needs instead of a budget
    joint = pipeline.tokenize(np.concatenate(clips[targets]), budget=arguments.budget)
    price = price_of(pipeline, clips[targets], joint.token_counts.float().mean().item())

    print(f"{arguments.budget} of {config.latents_per_block} tokens; {len(targets)} clips among 7 others")
    print("\n| strategy | tokens per block: mean spread | largest | PSNR: mean spread | largest |\n|---|---|---|---|---|")
    for strategy in (*BATCH_STRATEGIES, "joint, each clip alone", "quality"):
        spreads = []
        for target in targets:
            seen = []
            for neighbors in others[target]:
                batch = np.concatenate(clips[[target, *neighbors]])
                if strategy in BATCH_STRATEGIES:
                    tokens = pipeline.tokenize(batch, budget=arguments.budget, allocation=strategy)
                elif strategy == "quality":
                    tokens = pipeline.tokenize(batch, price=price, allocation="quality")
                else:
                    tokens = pipeline.tokenize(clips[target], budget=arguments.budget)
                frames = pipeline.detokenize(tokens)[: config.num_frames]
                pair = [torch.from_numpy(video).permute(0, 3, 1, 2)[None] / 255 for video in (frames, clips[target])]
                seen.append((tokens.token_counts[0].float().mean().item(), VideoPSNR().measure(*pair).item()))
            spreads.append(np.ptp(np.array(seen), axis=0))
        mean, largest = np.mean(spreads, 0), np.max(spreads, 0)
        print(f"| {strategy} | {mean[0]:.2f} | {largest[0]:.2f} | {mean[1]:.3f} | {largest[1]:.3f} |", flush=True)


if __name__ == "__main__":
    main()
