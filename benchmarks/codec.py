"""Arithmetic, time and memory of encode, score, allocate and decode, against the original's way with the same weights.

    python benchmarks/codec.py                             # the shipped checkpoint
    python benchmarks/codec.py --size base --repeats 1     # the released size, random weights
    python benchmarks/codec.py --count                     # the released size, operations only, on the meta device
    python benchmarks/codec.py --precision DATA/wild/val   # bfloat16, float16, int8 and compiled on real clips

The original's way, which is kept here and not in the package: a dense (sequence, sequence) mask in every layer, all outputs
of the last layer, one scorer pass over all latents for every block, and a decoder that works on all latents and masks the
dropped ones. Both ways run in the same process, in turns; the fastest of `--repeats` runs counts. Operations are counted by
`torch.utils.flop_counter` (a multiplication and an addition are two). Memory is the highest resident size during a stage
above what was resident before it; on a GPU what torch has allocated. The floor (GPU) is the larger of operations over the
rate of a large matrix product and bytes of weights over the rate of a large copy, both measured in the same run.
"""

import argparse
import copy
import ctypes
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adaptok_hf import AdapTokConfig, AdapTokModel, AdapTokPipeline, AdapTokScorerConfig, AdapTokScorerModel
from adaptok_hf.allocation import allocate
from adaptok_hf.models.attention_masks import Segment, dense_mask, kept_tokens
from adaptok_hf.models.block_cache import BlockCache

Stages = dict[str, Callable[[], object]]


# --- the original's way -------------------------------------------------------------------------------------------------


def dense_layers(layers: nn.ModuleList, hidden_states: torch.Tensor, mask: torch.Tensor, kept=None) -> torch.Tensor:
    """Layers under a mask over all pairs of the sequence; dropped tokens see themselves only."""
    if kept is not None:
        mask = (mask & kept[:, None] & kept[..., None]) | torch.eye(len(mask), dtype=torch.bool, device=mask.device)
        mask = mask[:, None]
    else:
        mask = mask[None, None]
    for layer in layers:
        hidden_states = layer(hidden_states, [Segment(mask=mask)])
    return hidden_states


def block_of(config, patches_first: bool | None, device) -> tuple[torch.Tensor, torch.Tensor]:
    """(sequence,) block and (sequence,) is_patch of a sequence of all latents and patches; without patches if `None`."""
    blocks = torch.arange(config.num_blocks, device=device)
    latents = blocks.repeat_interleave(config.latents_per_block)
    if patches_first is None:
        return latents, torch.zeros_like(latents, dtype=torch.bool)
    patches = blocks.repeat_interleave(config.patches_per_block)
    parts = [(patches, True), (latents, False)] if patches_first else [(latents, False), (patches, True)]
    is_patch = torch.cat([torch.full_like(block, kind, dtype=torch.bool) for block, kind in parts])
    return torch.cat([block for block, _ in parts]), is_patch


def dense_encode(tokenizer: AdapTokModel, video: torch.Tensor) -> torch.Tensor:
    encoder, config = tokenizer.encoder, tokenizer.config
    patches = encoder.patch_embedding(video) + encoder.patch_positions()
    latents = encoder.latent_queries().expand(len(video), -1, -1)
    hidden_states = torch.cat([patches, latents], dim=1).to(video.dtype)
    mask = dense_mask(config.encoder_attention_type, *block_of(config, True, video.device))
    return dense_layers(encoder.layers, hidden_states, mask)[:, -config.num_latent_tokens :]


def dense_scores(scorer: AdapTokScorerModel, latents: torch.Tensor, quantized: torch.Tensor, counts: torch.Tensor):
    """One pass over all latents for each block: (batch, blocks, levels)."""
    config, scores = scorer.config, []
    for block in range(config.num_blocks):
        known = counts.clone()
        known[:, block], known[:, block + 1 :] = config.latents_per_block, 0
        kept = kept_tokens(known, config.latents_per_block).flatten(1)
        inputs = torch.cat([latents, quantized], dim=-1).flatten(1, 2) * kept[..., None]
        hidden_states = scorer.project_in(inputs) + scorer.positions()
        mask = dense_mask(config.attention_type, *block_of(config, None, latents.device))
        hidden_states = dense_layers(scorer.layers, hidden_states, mask, kept)
        levels = hidden_states[:, config.score_step - 1 :: config.score_step]
        scores.append(scorer.scores_of(levels).unflatten(1, (config.num_blocks, -1))[:, block])
    return torch.stack(scores, dim=1)


def masked_decode(tokenizer: AdapTokModel, quantized: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    decoder, config = tokenizer.decoder, tokenizer.config
    kept = kept_tokens(counts, config.latents_per_block).flatten(1)
    latents = quantized.flatten(1, 2) * kept[..., None] + decoder.latent_positions()
    queries = decoder.patch_queries() + (decoder.patch_type() if decoder.patch_type is not None else 0)
    hidden_states = torch.cat([latents, queries.expand(len(latents), -1, -1)], dim=1).to(quantized.dtype)
    mask = dense_mask(config.decoder_attention_type, *block_of(config, False, quantized.device))
    everyone = torch.ones(len(latents), queries.shape[1], dtype=torch.bool, device=kept.device)
    hidden_states = dense_layers(decoder.layers, hidden_states, mask, torch.cat([kept, everyone], dim=1))
    return decoder.head(hidden_states[:, config.num_latent_tokens :])


# --- ours -----------------------------------------------------------------------------------------------------------------


def scores_block_by_block(scorer: AdapTokScorerModel, latents: torch.Tensor, quantized: torch.Tensor, counts: torch.Tensor):
    """What `ipal`, `quality` and `threshold` do: score a block, keep `counts` of it, go on."""
    cache, scores = BlockCache(), []
    for block in range(latents.shape[1]):
        own = latents[:, block], quantized[:, block]
        scores.append(scorer.score_block(*own, cache))
        if block + 1 < latents.shape[1]:
            scorer.keep_tokens(*own, counts[:, block], cache)
    return torch.stack(scores, dim=1)


def both_ways(
    tokenizer: AdapTokModel, scorer: AdapTokScorerModel, count: int, device: str = "cpu", batch: int = 1
) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Stage -> the original's way and ours, for `count` tokens of every block. On "meta" only operations can be counted."""
    config, kind = tokenizer.config, {"device": device, "dtype": tokenizer.dtype}
    generator = None if device == "meta" else torch.Generator(device).manual_seed(0)
    size = (batch, config.num_frames, config.num_channels, config.image_size, config.image_size)
    video = torch.rand(size, generator=generator, **kind)
    latents, quantized = torch.randn(
        2, batch, config.num_blocks, config.latents_per_block, config.hidden_size, generator=generator, **kind
    )
    counts = torch.full((batch, config.num_blocks), count)  # ours reads them on the CPU
    there = counts.to(device)
    encode = (lambda: tokenizer.quantizer(dense_encode(tokenizer, video)), lambda: tokenizer.encode(video))
    if device == "meta":  # the quantiser does not run there; it is the same for both, 0.1% of the whole
        encode = (lambda: dense_encode(tokenizer, video), lambda: tokenizer.encoder(video))
    return {
        "encode": encode,
        "score": (
            lambda: dense_scores(scorer, latents, quantized, there),
            lambda: scores_block_by_block(scorer, latents, quantized, counts),
        ),
        "decode": (
            lambda: masked_decode(tokenizer, quantized, there),
            lambda: tokenizer.decode(quantized=quantized, token_counts=counts),
        ),
    }


def count_operations(run: Callable[[], object]) -> int:
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def build(size: str, device: str) -> tuple[AdapTokModel, AdapTokScorerModel]:
    if size == "shipped":
        pipeline = AdapTokPipeline.from_pretrained()
        return tuple(model.requires_grad_(False).to(device) for model in (pipeline.tokenizer, pipeline.scorer))
    torch.manual_seed(0)
    with torch.device(device):
        models = AdapTokModel(AdapTokConfig.base()), AdapTokScorerModel(AdapTokScorerConfig())
    return tuple(model.eval().requires_grad_(False) for model in models)


def on_meta(*models: nn.Module) -> list[nn.Module]:
    """Models of the same architecture without weights, on which operations are counted."""
    with torch.device("meta"):
        return [type(model)(model.config).eval().requires_grad_(False) for model in models]


# --- measuring ------------------------------------------------------------------------------------------------------------


def resident(entry: str) -> int:
    """Bytes from the process's status: "VmRSS" now, "VmHWM" the highest."""
    return 1024 * int(re.search(rf"{entry}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def measure(run: Callable[[], object], device: str) -> tuple[float, float, int]:
    """Wall-clock seconds, CPU seconds of the process, bytes above what was there before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs gave back would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")  # starts VmHWM anew
        before = resident("VmRSS")
    wall, own = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    wall, own = time.perf_counter() - wall, time.process_time() - own
    peak = torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")
    return wall, own, peak - before


def machine(device: str) -> str:
    name = platform.machine()
    cpu = Path("/proc/cpuinfo")
    if device == "cuda":
        name = torch.cuda.get_device_name()
    elif cpu.exists():
        name = next((line.split(":")[1].strip() for line in cpu.read_text().splitlines() if "model name" in line), name)
    load = f", load average {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return f"{name}, {os.cpu_count()} CPUs, {torch.get_num_threads()} threads{load}, torch {torch.__version__}"


def gpu_rates(dtype: torch.dtype) -> tuple[float, float]:
    """Operations per second of a large matrix product and bytes per second of a large copy."""
    a = torch.randn(8192, 8192, device="cuda", dtype=dtype)
    product = min(measure(lambda: a @ a, "cuda")[0] for _ in range(5))
    b = torch.empty_like(a)
    copied = min(measure(lambda: b.copy_(a), "cuda")[0] for _ in range(5))
    return 2 * 8192**3 / product, 2 * a.nbytes / copied


def compare(arguments: argparse.Namespace, device: str) -> None:
    tokenizer, scorer = build("base" if arguments.count else arguments.size, device)
    tokenizer, scorer = (model.to(getattr(torch, arguments.dtype)) for model in (tokenizer, scorer))
    config, only_counted = tokenizer.config, device == "meta"
    what = f"{tokenizer.num_parameters() / 1e6:.2f}M + {scorer.num_parameters() / 1e6:.2f}M parameters, {arguments.dtype}"
    print(f"{what}, batch {arguments.batch}\n{machine(device)}\n")
    rates = gpu_rates(tokenizer.dtype) if device == "cuda" else None
    headings = ["tokens per clip", "stage", "TFLOP, original", "ours", "ratio"]
    if not only_counted:
        headings += ["ms, original", "ours", "ratio", "CPU s, ratio", "MiB, original", "ours"]
    headings += ["share of floor"] if rates else []
    print("| " + " | ".join(headings) + " |\n" + "|---" * len(headings) + "|", flush=True)
    if not only_counted:  # thread pools, kernels
        both_ways(tokenizer, scorer, 1, device)["decode"][1]()
    for share in arguments.shares:
        count = config.latents_per_block // share
        ways = both_ways(tokenizer, scorer, count, device, arguments.batch)
        counted = both_ways(*on_meta(tokenizer, scorer), count, "meta", arguments.batch)
        rows = {}
        for stage, pair in ways.items():
            row = [count_operations(run) for run in counted[stage]]
            if not only_counted:
                runs = [[measure(run, device) for run in pair] for _ in range(arguments.repeats)]
                for index in range(2):  # wall clock, CPU
                    row += [min(run[way][index] for run in runs) for way in range(2)]
                row += [max(run[way][2] for run in runs) for way in range(2)]
            rows[stage] = row
        rows["all"] = [
            sum(column) if index < 6 else max(column) for index, column in enumerate(zip(*rows.values(), strict=True))
        ]
        for stage, row in rows.items():
            cells = [f"{row[0] / 1e12:.4f}", f"{row[1] / 1e12:.4f}", f"{row[1] / row[0]:.2f}"]
            if not only_counted:
                cells += [
                    f"{1000 * row[2]:.1f}",
                    f"{1000 * row[3]:.1f}",
                    f"{row[3] / row[2]:.2f}",
                    f"{row[5] / row[4]:.2f}",
                ]
                cells += [f"{row[6] / 2**20:.0f}", f"{row[7] / 2**20:.0f}"]
            if rates:
                modules = {"encode": [tokenizer.encoder], "score": [scorer], "decode": [tokenizer.decoder]}
                used = modules.get(stage, [tokenizer, scorer])
                weights = sum(p.nbytes for module in used for p in module.parameters())
                cells.append(f"{max(row[1] / rates[0], weights / rates[1]) / row[3]:.0%}")
            print(f"| {count * config.num_blocks} | {stage} | " + " | ".join(cells) + " |", flush=True)
    if only_counted:
        return
    table = np.sort(np.random.default_rng(0).random((8, config.num_blocks, scorer.config.num_levels)))[..., ::-1]
    settings = {"strategy": "joint", "step": scorer.config.score_step, "budget": config.latents_per_block / 4}
    seconds = min(measure(lambda: allocate(table, **settings), "cpu")[0] for _ in range(5))
    print(f"\nallocate (joint, {config.num_blocks * 8} blocks together): {1000 * seconds:.2f} ms")


# --- precision ------------------------------------------------------------------------------------------------------------


def with_int8_layers(model: nn.Module) -> nn.Module:
    """A copy whose transformer layers multiply 8-bit integers (CPU)."""
    from torch.ao.quantization import quantize_dynamic

    model = copy.deepcopy(model)
    for name, part in model.named_children():
        for index, layer in enumerate(getattr(part, "layers", [])):
            getattr(model, name).layers[index] = quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    return model


def compiled(model: nn.Module) -> nn.Module:
    model = copy.deepcopy(model)
    for layer in (*model.encoder.layers, *model.decoder.layers):
        layer.compile(dynamic=True)
    return model


def precision(folder: str, ways: Iterable[str], with_lpips: bool) -> None:
    from adaptok_hf import read_video

    pipeline = AdapTokPipeline.from_pretrained()
    tokenizer, processor = pipeline.tokenizer, pipeline.video_processor
    paths = sorted(Path(folder).rglob("*.mp4"))
    clips = torch.cat([processor.clips(read_video(path, max_frames=16)).frames[:1] for path in paths]) / 255
    lpips = None
    if with_lpips:
        from adaptok_hf.metrics import LPIPSNetwork

        lpips = LPIPSNetwork.from_pretrained()
    makers = {
        "float32": lambda: tokenizer,
        "bfloat16": lambda: copy.deepcopy(tokenizer).to(torch.bfloat16),
        "float16": lambda: copy.deepcopy(tokenizer).to(torch.float16),
        "int8 layers": lambda: with_int8_layers(tokenizer),
        "float32, compiled": lambda: compiled(tokenizer),
    }
    print(f"shipped checkpoint, first clip of {len(clips)} videos\n{machine('cpu')}\n")
    print(
        "| way | tokens per block | codes changed | PSNR dB | difference | LPIPS | encode ms | decode ms |\n"
        + "|---" * 8
        + "|"
    )
    for count in (tokenizer.config.latents_per_block, tokenizer.config.latents_per_block // 4):
        expected = None
        for way in ways:
            model = makers[way]()
            counts, codes, psnr, distances, seconds = torch.full((1, tokenizer.config.num_blocks), count), [], [], [], []
            with torch.inference_mode():
                model.decode(model.encode(clips[:1].to(model.dtype)).codes, counts)  # warms up
                for clip in clips[:, None]:
                    begin = time.process_time()
                    codes.append(model.encode(clip.to(model.dtype)).codes)
                    middle = time.process_time()
                    video = model.decode(codes[-1], counts).pixel_values_videos
                    seconds.append((middle - begin, time.process_time() - middle))
                    video = video.float().clamp(0, 1)
                    psnr.append(-10 * (video - clip).square().mean().log10())
                    if lpips is not None:
                        distances.append(lpips(video[0, ::4], clip[0, ::4]).mean())
            codes, psnr = torch.cat(codes), torch.stack(psnr).mean()
            if expected is None:
                expected = codes, psnr
            milliseconds = [1000 * sorted(column)[len(column) // 2] for column in zip(*seconds, strict=True)]
            distance = f"{torch.stack(distances).mean():.4f}" if distances else ""
            changed = (codes != expected[0]).float().mean()
            print(
                f"| {way} | {count} | {changed:.2%} | {psnr:.3f} | {psnr - expected[1]:+.3f} | {distance} | "
                + " | ".join(f"{value:.0f}" for value in milliseconds)
                + " |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["shipped", "base"], default="shipped")
    parser.add_argument("--count", action="store_true", help="only count the operations at the released size")
    parser.add_argument("--shares", type=int, nargs="+", default=[4, 1], help="keep all / SHARE tokens (default: 4 1)")
    parser.add_argument("--batch", type=int, default=1, help="clips together (default: 1)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", metavar="FOLDER", help="compare precisions on the videos of a folder instead")
    parser.add_argument("--lpips", action="store_true", help="with --precision: LPIPS too (fetches its weights once)")
    ways = ["float32", "bfloat16", "float16", "int8 layers", "float32, compiled"]
    parser.add_argument("--ways", nargs="+", default=ways, help="with --precision: which")
    arguments = parser.parse_args()
    if arguments.precision:
        precision(arguments.precision, arguments.ways, arguments.lpips)
        return
    device = "meta" if arguments.count else "cuda" if torch.cuda.is_available() else "cpu"
    compare(arguments, device)


if __name__ == "__main__":
    sys.exit(main())
