"""Lossless parallel decoding of the class-conditional generator: `generate(lookahead=...)` against one token at a time.

    python benchmarks/parallel_decoding.py --videos 8

Videos are sampled one by one (batch 1) with a seed each; the script checks that all ways write the same tokens. Tokens per
pass of the model are the most that could be gained. Each way runs once before it is timed, in seconds of CPU time (on a GPU
use seconds of the clock).
"""

import argparse
import time

import torch
from transformers import CompileConfig

from adaptok_hf import AdapTokPipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="pipeline folder (default: the checkpoint in the package)")
    parser.add_argument("--videos", type=int, default=8)
    parser.add_argument("--lookahead", type=int, nargs="+", default=[4, 8, 16, 32])
    arguments = parser.parse_args()
    model = AdapTokPipeline.from_pretrained(arguments.model).ar_model.float().eval()
    compiled = CompileConfig(fullgraph=False, mode="default")
    compiled._compile_all_devices = True
    ways = {
        "one token, dynamic cache": {},
        "one token, static cache, compiled": {"cache_implementation": "static", "compile_config": compiled},
    }
    ways |= {f"lookahead {n}": {"lookahead": n} for n in arguments.lookahead}
    classes = torch.arange(arguments.videos) % model.config.num_classes

    def write(options: dict) -> list[torch.Tensor]:
        return [model.generate(class_labels=c[None], seeds=[seed], **options)[0] for seed, c in enumerate(classes)]

    print(f"{arguments.videos} videos\n\n| way | tokens per pass | tokens/s | times faster |\n|---|---|---|---|")
    wanted, base = None, None
    for name, options in ways.items():
        passes: list[int] = []
        hook = None if "compile_config" in options else model.model.register_forward_hook(lambda *_, p=passes: p.append(1))
        written = write(options)
        wanted = written if wanted is None else wanted
        assert all(map(torch.equal, written, wanted)), f"{name} writes other tokens"
        if hook is not None:
            hook.remove()
        start = time.process_time()
        write(options)
        seconds = time.process_time() - start
        tokens = sum(len(ids) - 1 for ids in written)
        base = seconds if base is None else base
        per_pass = tokens / len(passes) if passes else 1
        print(f"| {name} | {per_pass:.2f} | {tokens / seconds:.0f} | {base / seconds:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
