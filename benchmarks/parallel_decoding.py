"""Lossless parallel decoding of the class-conditional generator: `generate(lookahead=...)` against one token at a time.

    python benchmarks/parallel_decoding.py --videos 8

Videos are sampled one by one (batch 1) with a seed each; the script checks that all ways write the same tokens. Tokens per
pass of the model are the most that could be gained. Ways take turns; times are CPU time.
"""

import argparse
import statistics
import time

import torch
from transformers import CompileConfig

from adaptok_hf import AdapTokPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="figures", help="a pipeline with a generator from classes (default: figures)")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--lookahead", type=int, nargs="+", default=[4, 8, 16, 32])
    parser.add_argument("--compile", action="store_true", help="also time the compiled step")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    model = AdapTokPipeline.from_pretrained(arguments.model).ar_model.float().eval()
    ways = {"one token": {}, "one token, transformers' loop": {"return_dict_in_generate": True}}
    if arguments.compile:
        ways["one token, compiled"] = {"compile_config": CompileConfig(mode="default")}
    ways |= {f"lookahead {n}": {"lookahead": n} for n in arguments.lookahead}
    classes = torch.arange(arguments.videos) % model.config.num_classes

    def write(options: dict) -> list[torch.Tensor]:
        outputs = [model.generate(class_labels=c[None], seeds=[seed], **options) for seed, c in enumerate(classes)]
        return [getattr(output, "sequences", output)[0] for output in outputs]

    wanted, per_pass, times = write({}), {}, {name: [] for name in ways}
    tokens = sum(len(ids) - 1 for ids in wanted)
    for name, options in ways.items():
        assert all(map(torch.equal, write(options), wanted)), f"{name} writes other tokens"
        passes: list[int] = []
        if "lookahead" in options:  # a hook leaves the other ways to transformers' loop
            hook = model.model.register_forward_hook(lambda *_, p=passes: p.append(1))
            write(options)
            hook.remove()
        per_pass[name] = tokens / len(passes) if passes else 1
    for _ in range(arguments.repeats):
        for name, options in ways.items():
            start = time.process_time()
            write(options)
            times[name].append(time.process_time() - start)
    print(f"{arguments.videos} videos")
    print("| way | tokens per pass | tokens/s | times faster (lowest to highest) |")
    print("|---|---|---|---|")
    for name, taken in times.items():
        each = [before / now for before, now in zip(times["one token"], taken, strict=True)]
        ratio = f"{statistics.median(each):.2f} ({min(each):.2f} to {max(each):.2f})"
        print(f"| {name} | {per_pass[name]:.2f} | {tokens / statistics.median(taken):.0f} | {ratio} |")


if __name__ == "__main__":
    main()
