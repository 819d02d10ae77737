"""Arithmetic, time and memory of encode, score and decode, against the original's way with the same weights.

    python benchmarks/codec.py                             # the shipped checkpoint
    python benchmarks/codec.py --size base                 # the released size, random weights
    python benchmarks/codec.py --count                     # the released size, operations only, on the meta device
    python benchmarks/codec.py --precision DATA/wild/val   # bfloat16 against float32, first clips of videos

The original's way, which is kept here and not in the package: a dense (sequence, sequence) mask in every layer, all
outputs of the last layer, one scorer pass over all latents for every block, and a decoder that works on all latents and
masks the dropped ones. Both ways run in the same process, in turns: milliseconds are of the fastest of `--repeats` runs,
ratios of CPU time are the median of all turns and their range. Operations are counted by `torch.utils.flop_counter` (a
multiplication and an addition are two). Memory is the highest resident size during a stage above what was resident before
it; on a GPU what torch has allocated.
"""

import argparse
import copy
import ctypes
import os
import re
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from timing import spread
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from adaptok_hf import (
    AdapTokConfig,
    AdapTokModel,
    AdapTokPipeline,
    AdapTokScorerConfig,
    AdapTokScorerModel,
    read_video,
)
from adaptok_hf.metrics import VideoLPIPS, VideoPSNR
from adaptok_hf.models.attention_masks import Segment, dense_mask, kept_tokens
from adaptok_hf.models.block_cache import BlockCache

# --- the original's way -------------------------------------------------------------------------------------------------


def dense_layers(layers: nn.ModuleList, hidden_states: torch.Tensor, mask: torch.Tensor, kept=None) -> torch.Tensor:
    """Apply layers under a mask over all pairs of the sequence; dropped tokens see themselves only."""
    if kept is not None:
        mask = (mask & kept[:, None] & kept[..., None]) | torch.eye(len(mask), dtype=torch.bool, device=mask.device)
        mask = mask[:, None]
    for layer in layers:
        hidden_states = layer(hidden_states, [Segment(mask=mask)])
    return hidden_states


def sequence_mask(config, attention_type: str, segments: list[str], device: torch.device) -> torch.Tensor:
    """Return the (sequence, sequence) mask of all "patches" and "latents", concatenated in this order."""
    blocks = torch.arange(config.num_blocks, device=device)
    rows = [blocks.repeat_interleave(getattr(config, f"{segment}_per_block")) for segment in segments]
    is_patch = [torch.full_like(row, segment == "patches") for row, segment in zip(rows, segments, strict=True)]
    return dense_mask(attention_type, torch.cat(rows), torch.cat(is_patch).bool())


def dense_encode(tokenizer: AdapTokModel, video: torch.Tensor) -> torch.Tensor:
    encoder, config = tokenizer.encoder, tokenizer.config
    patches = encoder.patch_embedding(video) + encoder.patch_positions()
    latents = encoder.latent_queries().expand(len(video), -1, -1)
    hidden_states = torch.cat([patches, latents], dim=1).to(video.dtype)
    mask = sequence_mask(config, config.encoder_attention_type, ["patches", "latents"], video.device)
    return dense_layers(encoder.layers, hidden_states, mask[None, None])[:, -config.num_latent_tokens :]


def dense_scores(scorer: AdapTokScorerModel, latents: torch.Tensor, quantized: torch.Tensor, counts: torch.Tensor):
    """Run one pass over all latents for each block: (batch, blocks, levels)."""
    config, scores = scorer.config, []
    mask = sequence_mask(config, config.attention_type, ["latents"], latents.device)
    for block in range(config.num_blocks):
        known = counts.clone()
        known[:, block], known[:, block + 1 :] = config.latents_per_block, 0
        kept = kept_tokens(known, config.latents_per_block).flatten(1)
        inputs = torch.cat([latents, quantized], dim=-1).flatten(1, 2) * kept[..., None]
        hidden_states = dense_layers(scorer.layers, scorer.project_in(inputs) + scorer.positions(), mask, kept)
        levels = hidden_states[:, config.score_step - 1 :: config.score_step]
        scores.append(scorer.scores_of(levels).unflatten(1, (config.num_blocks, -1))[:, block])
    return torch.stack(scores, dim=1)


def masked_decode(tokenizer: AdapTokModel, quantized: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    decoder, config = tokenizer.decoder, tokenizer.config
    kept = kept_tokens(counts, config.latents_per_block).flatten(1)
    latents = quantized.flatten(1, 2) * kept[..., None] + decoder.latent_positions()
    queries = decoder.patch_queries() + (decoder.patch_type() if decoder.patch_type is not None else 0)
    hidden_states = torch.cat([latents, queries.expand(len(latents), -1, -1)], dim=1).to(quantized.dtype)
    mask = sequence_mask(config, config.decoder_attention_type, ["latents", "patches"], quantized.device)
    kept = nn.functional.pad(kept, (0, queries.shape[1]), value=True)
    return decoder.head(dense_layers(decoder.layers, hidden_states, mask, kept)[:, config.num_latent_tokens :])


# --- ours -----------------------------------------------------------------------------------------------------------------


def scores_block_by_block(scorer: AdapTokScorerModel, latents: torch.Tensor, quantized: torch.Tensor, counts: torch.Tensor):
    """Score a block, keep `counts` of it, then the next, as `ipal`, `quality` and `threshold` do."""
    cache, scores = BlockCache(), []
    for block in range(latents.shape[1]):
        inputs = latents[:, block], quantized[:, block]
        scores.append(scorer.score_block(*inputs, cache))
        if block + 1 < latents.shape[1]:
            scorer.keep_tokens(*inputs, counts[:, block], cache)
    return torch.stack(scores, dim=1)


def both_ways(
    tokenizer: AdapTokModel, scorer: AdapTokScorerModel | None, count: int, device: str = "cpu", batch: int = 1
) -> dict[str, tuple[Callable[[], object], Callable[[], object]]]:
    """Return by stage the original's way and ours, for `count` tokens of every block.

    On the device "meta" operations can be counted. Without a scorer the stage "score" cannot be run.
    """
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
    if device == "meta":  # the quantizer does not run there; it is the same for both, 0.1% of the whole
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


# --- measuring ------------------------------------------------------------------------------------------------------------


def resident(entry: str) -> int:
    """Return bytes from the process's status: "VmRSS" now, "VmHWM" the highest."""
    return 1024 * int(re.search(rf"{entry}:\s+(\d+)", Path("/proc/self/status").read_text()).group(1))


def measure(run: Callable[[], object], device: str) -> tuple[float, float, int]:
    """Return wall-clock seconds, CPU seconds of the process, and bytes above what was there before."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what earlier runs gave back would hide what this one takes
        Path("/proc/self/clear_refs").write_text("5")  # restarts VmHWM
        before = resident("VmRSS")
    wall, cpu = time.perf_counter(), time.process_time()
    with torch.inference_mode():
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return wall, cpu, (torch.cuda.max_memory_allocated() if device == "cuda" else resident("VmHWM")) - before


def machine(device: str) -> str:
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text()).group(1)
    threads = f"{os.cpu_count()} CPUs, {torch.get_num_threads()} threads, load average {os.getloadavg()[0]:.1f}"
    return f"{name}, {threads}, torch {torch.__version__}"


def print_row(cells: list[str]) -> None:
    print(f"| {' | '.join(cells)} |", flush=True)


def compare(arguments: argparse.Namespace, device: str) -> None:
    """Print a table of both ways, for each share of tokens."""
    models = build("base" if arguments.count else arguments.size, device)
    models = [model.to(getattr(torch, arguments.dtype)) for model in models]
    with torch.device("meta"):
        shapes = [type(model)(model.config).eval().requires_grad_(False) for model in models]
    sizes = " + ".join(f"{model.num_parameters() / 1e6:.2f}M" for model in models)
    print(f"{sizes} parameters, {arguments.dtype}, batch {arguments.batch}\n{machine(device)}\n")
    headings = ["tokens per clip", "stage", "TFLOP, original", "ours", "ratio"]
    if device != "meta":
        headings += ["ms, original", "ours", "ratio", "CPU s, ratio", "MiB, original", "ours"]
        both_ways(*models, 1, device)["decode"][1]()  # starts thread pools, compiles kernels
    print_row(headings)
    print_row(["---"] * len(headings))
    config = models[0].config
    for share in arguments.shares:
        count = config.latents_per_block // share
        counted = both_ways(*shapes, count, "meta", arguments.batch)
        rows = {stage: [[count_operations(run)] for run in pair] for stage, pair in counted.items()}
        if device != "meta":
            for stage, pair in both_ways(*models, count, device, arguments.batch).items():
                runs = [[measure(run, device) for run in pair] for _ in range(arguments.repeats)]
                for way, row in enumerate(rows[stage]):
                    wall, cpu, memory = zip(*(run[way] for run in runs), strict=True)
                    row += [min(wall), max(memory), np.array(cpu)]
        totals = [zip(*(pair[way] for pair in rows.values()), strict=True) for way in range(2)]
        rows["all"] = [[(max if column == 2 else sum)(values) for column, values in enumerate(way)] for way in totals]
        for stage, (dense, ours) in rows.items():
            cells = [str(count * config.num_blocks), stage]
            cells += [f"{dense[0] / 1e12:.4f}", f"{ours[0] / 1e12:.4f}", f"{ours[0] / dense[0]:.2f}"]
            if device != "meta":
                cells += [f"{1000 * dense[1]:.1f}", f"{1000 * ours[1]:.1f}", f"{ours[1] / dense[1]:.2f}"]
                cells += [spread(ours[3] / dense[3]), f"{dense[2] / 2**20:.0f}", f"{ours[2] / 2**20:.0f}"]
            print_row(cells)


# --- precision ------------------------------------------------------------------------------------------------------------


def with_int8_layers(model: nn.Module) -> nn.Module:
    """Return a copy whose transformer layers multiply 8-bit integers (CPU)."""
    from torch.ao.quantization import quantize_dynamic

    model = copy.deepcopy(model)
    for layers in (model.encoder.layers, model.decoder.layers):
        for index, layer in enumerate(layers):
            layers[index] = quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    return model


def load_precision(model: str, name: str) -> AdapTokPipeline:
    pipeline = AdapTokPipeline.from_pretrained(model, dtype="float32" if name == "int8" else name)
    if name == "int8":
        pipeline.register_modules(tokenizer=with_int8_layers(pipeline.tokenizer))
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def as_pixels(videos: list[np.ndarray]) -> torch.Tensor:
    return torch.from_numpy(np.stack(videos)).movedim(-1, 2) / 255


def compare_precisions(arguments: argparse.Namespace) -> None:
    """Print codes, quality and CPU time of a checkpoint in each precision."""
    pipelines = {name: load_precision(arguments.model, name) for name in ("float32", *arguments.dtypes)}
    first, paths = pipelines["float32"], sorted(Path(arguments.precision).rglob("*.mp4"))
    paths = paths[:: max(len(paths) // arguments.clips, 1)][: arguments.clips]
    num_frames = first.tokenizer.config.num_frames
    clips = [first.read(read_video(path, max_frames=num_frames)).original() for path in paths]
    metrics, originals = {"PSNR dB": VideoPSNR().measure}, as_pixels(clips)
    if arguments.lpips:
        lpips = VideoLPIPS("vgg")
        metrics["LPIPS"] = lambda videos, others: lpips.measure(videos[:, ::4], others[:, ::4])
    print(f"{arguments.model}, {len(clips)} clips\n{machine('cpu')}\n")
    headings = ["precision", "budget", "codes changed", "counts changed"]
    for name in metrics:
        headings += [name, "difference (lowest to highest)"]
    print_row([*headings, "CPU time of tokenize, ratio", "of decode, ratio"])
    print_row(["---"] * (len(headings) + 2))
    for budget in (None, "25%"):
        seconds, tokens, videos = np.zeros((len(pipelines), len(clips), 2)), {}, {}
        for index, clip in chain(enumerate(clips[:1]), enumerate(clips)):  # the first warms up
            for way, (name, pipeline) in enumerate(pipelines.items()):
                begin = time.process_time()
                tokens[name, index] = pipeline.tokenize(clip, budget=budget)
                middle = time.process_time()
                videos[name, index] = pipeline.decode(tokens[name, index])
                seconds[way, index] = middle - begin, time.process_time() - middle
        expected, expected_values = None, None
        for way, name in enumerate(pipelines):
            kept = [tokens[name, index] for index in range(len(clips))]
            found = torch.cat([each.codes for each in kept]), torch.cat([each.token_counts for each in kept])
            video = as_pixels([videos[name, index] for index in range(len(clips))])
            values = [metric(video, originals) for metric in metrics.values()]
            expected, expected_values = expected or found, expected_values or values
            changed = [(ours != theirs).float().mean() for ours, theirs in zip(found, expected, strict=True)]
            cells = [name, budget or "all tokens", *(f"{share:.2%}" for share in changed)]
            for value, other in zip(values, expected_values, strict=True):
                cells += [f"{value.mean():.4f}", spread(value - other, "{:+.4f}", torch.mean)]
            print_row(cells + [spread(ratio) for ratio in (seconds[way] / seconds[0]).T])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=["shipped", "base"], default="shipped")
    parser.add_argument("--count", action="store_true", help="only count the operations at the released size")
    parser.add_argument("--shares", type=int, nargs="+", default=[4, 1], help="keep all / SHARE tokens (default: 4 1)")
    parser.add_argument("--batch", type=int, default=1, help="clips together (default: 1)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", metavar="FOLDER", help="compare precisions on the videos of a folder instead")
    parser.add_argument("--dtypes", nargs="+", default=["bfloat16"], help="with --precision: bfloat16 (default), "
                        "float16 or int8 against float32")  # fmt: skip
    parser.add_argument("--model", default="small", help="with --precision: a checkpoint (default: small)")
    parser.add_argument("--clips", type=int, default=16, help="with --precision: videos to take (default: 16)")
    parser.add_argument("--lpips", action="store_true", help="with --precision: LPIPS of every fourth frame, too (fetches "
                        "its weights once)")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.precision:
        compare_precisions(arguments)
    else:
        compare(arguments, "meta" if arguments.count else "cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
