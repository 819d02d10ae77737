"""Tokens per second of generation: `generate()` with dynamic, static and compiled static cache, against a plain loop with a
dynamic cache in the same run; and what rows cost that finish early.

    python benchmarks/generation.py                       # a small model, 3M parameters
    python benchmarks/generation.py --released --tokens 48   # the released size, 633M, random weights

Weights are random; every way writes the same number of tokens. Compilation is not timed: each way runs once before.
"""

import argparse
import os
import time

import torch
from transformers import CompileConfig, DynamicCache

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM


def plain_loop(model: AdapTokARForCausalLM, prompt: torch.Tensor, tokens: int) -> torch.Tensor:
    """What one writes first: a growing cache, the likeliest token, every row to the end."""
    ids, cache = prompt, DynamicCache(config=model.config)
    with torch.no_grad():
        for _ in range(tokens):
            logits = model(ids[:, cache.get_seq_length() :], past_key_values=cache, use_cache=True).logits[:, -1]
            ids = torch.cat([ids, logits[:, : model.config.eob_token_id].argmax(-1, keepdim=True)], dim=1)
    return ids


def seconds(run, repeats: int) -> float:
    """The fastest of some runs."""
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--released", action="store_true", help="the released size instead of the small one")
    parser.add_argument("--tokens", type=int, default=256, help="tokens of a sequence, <EOB> included (default: 256)")
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8])
    arguments = parser.parse_args()
    small = {
        "hidden_size": 192,
        "num_attention_heads": 3,
        "num_hidden_layers": 5,
        "intermediate_size": 512,
        "codebook_size": 4096,
        "num_classes": 32,
        "tie_word_embeddings": True,
    }
    # one block of exactly the tokens asked for, so that no way stops earlier than another
    geometry = {"num_blocks": 1, "latents_per_block": arguments.tokens - 1}
    torch.manual_seed(0)
    model = AdapTokARForCausalLM(AdapTokARConfig(**({} if arguments.released else small) | geometry)).eval()
    with torch.no_grad():
        model.lm_head.weight[model.config.eob_token_id] = 0  # never the likeliest of thousands: no block ends early
    print(f"{model.num_parameters() / 1e6:.1f}M parameters, {torch.get_num_threads()} threads, {os.cpu_count()} cores")

    compiled = CompileConfig(fullgraph=False, mode="default")
    compiled._compile_all_devices = True
    ways = {
        "generate, dynamic cache": {},
        "generate, static cache": {"cache_implementation": "static"},
        "generate, static cache, compiled": {"cache_implementation": "static", "compile_config": compiled},
    }
    for batch in arguments.batches:
        prompt = model.build_prompt(torch.arange(batch))
        base = seconds(lambda prompt=prompt: plain_loop(model, prompt, arguments.tokens), arguments.repeats)
        print(f"batch {batch}\n  {'plain loop, dynamic cache':36}{batch * arguments.tokens / base:9.1f} tokens/s   1.00x")
        for name, options in ways.items():
            run = lambda prompt=prompt, options=options: model.generate(prompt, do_sample=False, **options)  # noqa: E731
            taken = seconds(run, arguments.repeats)
            print(f"  {name:36}{batch * arguments.tokens / taken:9.1f} tokens/s   {base / taken:.2f}x")

    batch = 8
    prompt = model.build_prompt(torch.arange(batch))
    limits = torch.full((batch, 1), max(1, arguments.tokens // 8))
    limits[0] = arguments.tokens - 1
    rows = []
    hook = model.model.register_forward_hook(lambda module, args, output: rows.append(len(output[0])))
    model.generate(prompt, do_sample=False, max_tokens=limits)
    hook.remove()
    early = seconds(lambda: model.generate(prompt, do_sample=False, max_tokens=limits), arguments.repeats)
    late = seconds(lambda: model.generate(prompt, do_sample=False), arguments.repeats)
    print(
        f"batch 8, seven rows finish after an eighth of the tokens: {late / early:.2f}x faster than eight full rows; "
        f"{sum(rows)} rows went through the model instead of {batch * arguments.tokens}"
    )


if __name__ == "__main__":
    main()
