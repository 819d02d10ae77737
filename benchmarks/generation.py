"""Tokens per second of generation: our loop of `generate` against that of transformers in the same run.

    python benchmarks/generation.py                       # a small model, 3M parameters
    python benchmarks/generation.py --compile             # also with the step compiled, which takes a minute once
    python benchmarks/generation.py --released --dtype bfloat16 --tokens 24 --batches 1   # 633M, random weights

Weights are random; every way writes the same tokens, which is checked. Ways take turns; times are CPU time, and ratios are
the median of those of each turn, with the lowest and the highest. For each way the speed at which it reads the weights is
printed, next to that of a large copy in memory (bytes read and bytes written).
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
from timing import ratios, seconds
from transformers import CompileConfig

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM

SMALL = {
    "hidden_size": 192,
    "num_attention_heads": 3,
    "num_hidden_layers": 5,
    "intermediate_size": 512,
    "codebook_size": 4096,
    "num_classes": 32,
    "tie_word_embeddings": True,
}


def take_turns(ways: dict[str, Callable], repeats: int) -> dict[str, list[float]]:
    """The seconds of each way, in turns."""
    turns = [{name: seconds(run) for name, run in ways.items()} for _ in range(repeats)]
    return {name: [turn[name] for turn in turns] for name in ways}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", action="store_true", help="the released size instead of the small one")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"])
    parser.add_argument("--compile", action="store_true", help="also time the compiled step, after compiling it")
    parser.add_argument("--tokens", type=int, default=128, help="tokens of a sequence, <EOB> included (default: 128)")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args()
    # one block of exactly the tokens asked for, so that no way stops earlier than another
    geometry = {"num_blocks": 1, "latents_per_block": arguments.tokens - 1}
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, arguments.dtype))
    model = AdapTokARForCausalLM(AdapTokARConfig(**({} if arguments.released else SMALL) | geometry)).eval()
    torch.set_default_dtype(torch.float32)
    size = sum(
        weight.nbytes for name, weight in model.named_parameters() if "embed" not in name or weight is model.lm_head.weight
    )
    print(f"{model.num_parameters() / 1e6:.1f}M parameters, {torch.get_num_threads()} threads, {os.cpu_count()} cores")

    block = torch.ones(min(size, 2**29) // 4)  # not below the caches where the weights are not
    target = torch.empty_like(block)
    options = {
        "transformers' loop": {"return_dict_in_generate": True},  # which our loop leaves to it
        "our loop": {},
    }
    if arguments.compile:
        options["our loop, compiled"] = {"compile_config": CompileConfig(mode="default")}
    for batch in arguments.batches:
        given = {"inputs": model.build_prompt(torch.arange(batch)), "seeds": range(batch)}
        ways = {name: lambda o=o, g=given: model.generate(**g, **o) for name, o in options.items()}
        first, written = {}, []
        for name, run in ways.items():
            start = time.process_time()
            written.append(getattr(ids := run(), "sequences", ids))
            first[name] = time.process_time() - start
        expected, *others = written
        for name, ids in zip(list(ways)[1:], others, strict=True):
            if not torch.equal(ids, expected):
                print(f"{name} writes other tokens")
        steps = expected.shape[1] - 1
        times = take_turns(ways | {"copy": lambda: target.copy_(block)}, arguments.repeats)
        copy = statistics.median(2 * block.nbytes / taken for taken in times.pop("copy"))
        print(f"batch {batch}, {steps} tokens a row; a copy moves {copy / 1e9:.1f} GB/s")
        if arguments.compile:
            print(
                f"  compiled in {first['our loop, compiled']:.1f} s, the first run included; torch keeps the machine code"
            )
        for name, taken in times.items():
            ratio = ratios(times["transformers' loop"], taken)
            median = statistics.median(taken)
            speed = size * steps / median
            print(
                f"  {name:20}{batch * steps / median:9.1f} tokens/s   {ratio:24}"
                f"   weights at {speed / 1e9:.1f} GB/s, {speed / copy:.0%} of the copy"
            )

    batch = 8
    limits = torch.full((batch, 1), max(1, arguments.tokens // 8))
    limits[0] = arguments.tokens - 1
    given = {
        "inputs": model.build_prompt(torch.arange(batch)),
        "do_sample": False,
        "suppress_tokens": [model.config.eob_token_id],
    }
    if batch in arguments.batches:
        ways = {"early": lambda: model.generate(**given, max_tokens=limits), "late": lambda: model.generate(**given)}
        times = take_turns(ways, arguments.repeats)
        print(f"seven of eight rows finish after an eighth: {ratios(times['late'], times['early'])} faster than full rows")


if __name__ == "__main__":
    main()
