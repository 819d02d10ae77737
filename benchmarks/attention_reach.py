"""Do early tokens look at more of the frame than late ones? (claim of the paper's Figs. 5 and I)

    python benchmarks/attention_reach.py DATA/wild/val
    python benchmarks/attention_reach.py DATA/wild/val --model figures

Over the patches of its own block, a token's attention (mean over heads, in the encoder layer in which tokens look at
patches most) has an entropy; its exponential is the number of patches at which a token looks. Printed is its mean over
the first clips of some videos, for each eighth of a block's tokens.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from adaptok_hf import AdapTokPipeline
from adaptok_hf.data import VideoFolderClips
from adaptok_hf.evaluation.attention_maps import attention_maps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="a folder of videos")
    parser.add_argument("--model", help="pipeline folder (default: small, in the package)")
    parser.add_argument("--clips", type=int, default=8, help="clips that are looked at")
    arguments = parser.parse_args()
    model = AdapTokPipeline.from_pretrained(arguments.model).tokenizer
    config = model.config
    folder = VideoFolderClips([Path(arguments.folder)], config.num_frames, config.image_size, random_clips=False)
    chosen = np.linspace(0, len(folder) - 1, arguments.clips).round().astype(int)
    videos = [folder[int(index)]["pixel_values_videos"].float() / 255 for index in chosen]
    tokens = range(config.latents_per_block)
    layers = range(config.num_encoder_layers)
    layer = max(layers, key=lambda layer: attention_maps(model, videos[0], tokens, layer).sum((2, 3)).mean())
    patches = []
    for video in videos:
        maps = torch.from_numpy(attention_maps(model, video, tokens, layer)).flatten(2)
        maps = maps / maps.sum(-1, keepdim=True)
        patches.append(torch.special.entr(maps).sum(-1).exp().mean(1))  # (tokens,)
    eighths = torch.stack(patches).mean(0).tensor_split(8)
    print(f"encoder layer {layer}, {config.grid_size**2} patches; patches per token, from the first to the last eighth:")
    print(" ".join(f"{float(eighth.mean()):.1f}" for eighth in eighths))


if __name__ == "__main__":
    main()
