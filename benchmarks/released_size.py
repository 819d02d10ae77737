"""Seconds and peak memory of one clip at the released size: encode, score, allocate, decode.

    python benchmarks/released_size.py [--dtype bfloat16] [--budget 256]

The weights are random (172.97M tokenizer, 88.96M scorer): time and memory do not depend on them. The first clip warms up;
the second is measured.
"""

import argparse
import resource
import time

import torch

from adaptok_hf import (
    AdapTokConfig,
    AdapTokModel,
    AdapTokPipeline,
    AdapTokScorerConfig,
    AdapTokScorerModel,
    AdapTokVideoProcessor,
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--budget", type=float, default=256, help="average tokens per block (64 to 512)")
    parser.add_argument("--allocation", default="joint")
    arguments = parser.parse_args()

    torch.manual_seed(0)
    tokenizer = AdapTokModel(AdapTokConfig.base()).eval()
    scorer = AdapTokScorerModel(AdapTokScorerConfig()).eval()
    sizes = f"{tokenizer.num_parameters() / 1e6:.2f}M + {scorer.num_parameters() / 1e6:.2f}M parameters"
    pipeline = AdapTokPipeline(AdapTokVideoProcessor(), tokenizer, scorer).to(dtype=getattr(torch, arguments.dtype))
    clip = torch.rand(16, 3, 128, 128)
    for _ in range(2):
        start = time.perf_counter()
        output = pipeline.reconstruct(clip, budget=arguments.budget, allocation=arguments.allocation, fps=25)
        total = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"{sizes}, {arguments.dtype}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(f"counts {output.token_counts.tolist()}, {arguments.allocation} allocation")
    print("| stage | seconds per clip |\n|---|---|")
    for stage, seconds in (output.seconds | {"total": total}).items():
        print(f"| {stage} | {seconds:.3f} |")
    print(f"peak memory of the process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
