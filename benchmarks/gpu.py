"""Codec, generation and training on a GPU, and whether it writes the codes that a CPU writes. No weights are needed.

    python benchmarks/gpu.py -o runs/gpu.json                                  # under 8 minutes on a GPU of an H100's class
    python benchmarks/gpu.py -o runs/gpu_tiny.json --device cpu --size tiny    # rehearses every section

A section is written to the JSON file as soon as it is done. A second run with the same file runs the sections that are
missing or have failed. The exit status is 1 if one has failed. A section starts nothing new after `--limit` seconds; what
it had no time for is missing from its results.

The floor of a codec's call and of a training step is the time that its matrix products take at the rate of a large bfloat16
product; that of a token, the time in which a copy moves as many bytes as the weights have. Models start at random from a
fixed seed.
"""

import argparse
import copy
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from codec import count_operations, machine
from timing import copy_rate, matrix_rate, repeat, seconds
from training import RECIPES, build_trainer, count_training_operations, read_arguments, take_step

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, AdapTokConfig, AdapTokModel
from adaptok_hf.atomic_files import write_json

LOOKAHEAD = 8
TINY_LAYERS = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}


@dataclass(frozen=True)
class Size:
    """What is measured: configurations, recipes and how much of each.

    Args:
        tokenizer, generator: fields of the configurations that differ from the released ones.
        training: changes of the recipes.
        clips: batch size and share of the tokens (one in so many) of a codec's calls.
        tokens: of a generated sequence, `<EOB>` included.
        matrix, copy: rows of the matrices and bytes of the copy that give the machine's speed.
    """

    tokenizer: dict = field(default_factory=dict)
    generator: dict = field(default_factory=dict)
    training: dict = field(default_factory=dict)
    clips: tuple = ((1, 4), (8, 4), (8, 1))
    tokens: int = 128
    matrix: int = 8192
    copy: int = 2**31


TINY_TOKENIZER = {
    **{"image_size": 16, "hidden_size": 32, "num_attention_heads": 2, "num_encoder_layers": 2, "num_decoder_layers": 2},
    **{"latents_per_block": 8, "codebook_size": 64, "codebook_dim": 8},
}
TINY = Size(
    tokenizer=TINY_TOKENIZER,
    generator=TINY_LAYERS | {"intermediate_size": 64, "codebook_size": 64, "num_key_value_heads": 2},
    training={"model": TINY_TOKENIZER, "discriminator": TINY_LAYERS, "prior": TINY_LAYERS},
    clips=((2, 4),),
    tokens=4,
    matrix=128,
    copy=2**20,
)
SIZES = {"base": Size(), "tiny": TINY}


@dataclass(frozen=True)
class Section:
    """What a section has: the device, the sizes, the machine's speed, how many repeats, and until when it may start one."""

    device: str
    size: Size
    backend: str
    repeats: int
    rates: dict[str, float]
    end: float

    def times(self, run: Callable[[], object]) -> list[float]:
        return repeat(run, self.device, self.repeats, self.end - time.perf_counter())

    def is_over(self) -> bool:
        return time.perf_counter() >= self.end


def measure_rates(section: Section) -> dict:
    matrix = matrix_rate(section.device, section.size.matrix)
    return {"matrix_flops": matrix, "copy_bytes": copy_rate(section.device, section.size.copy)}


# --- codec ----------------------------------------------------------------------------------------------------------------


def build_tokenizer(section: Section, device: str) -> AdapTokModel:
    torch.manual_seed(0)
    with torch.device(device):
        return AdapTokModel(AdapTokConfig.base(**section.size.tokenizer)).eval().requires_grad_(False)


def codec_calls(tokenizer: AdapTokModel, device: str, batch: int, share: int) -> dict[str, Callable[[], object]]:
    """Return encoding and decoding without the checks of values, which wait for the device."""
    config = tokenizer.config
    kind = {"device": device, "dtype": tokenizer.dtype}
    video = torch.rand(batch, config.num_frames, config.num_channels, config.image_size, config.image_size, **kind)
    quantized = torch.randn(batch, config.num_blocks, config.latents_per_block, config.hidden_size, **kind)
    counts = torch.full((batch, config.num_blocks), config.latents_per_block // share, device="cpu")
    encode = lambda: tokenizer.encoder(video)  # noqa: E731
    if device != "meta":  # where the quantizer does not run; it is 0.1% of the whole
        encode = lambda: tokenizer.quantizer(tokenizer.encoder(video))  # noqa: E731
    return {"encode": encode, "decode": lambda: tokenizer.decoder(quantized, counts)}


def captured(run: Callable[[], object], device: str) -> Callable[[], object]:
    """Return the replay of a call as a CUDA graph; on a CPU the call."""
    if device != "cuda":
        return run
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


@torch.inference_mode()
def measure_codec(section: Section, way: str) -> dict:
    """Time encoding and decoding in bfloat16: eager, with compiled layers, or as CUDA graphs of what eager does."""
    tokenizer, shapes = build_tokenizer(section, section.device).to(torch.bfloat16), build_tokenizer(section, "meta")
    if way == "compiled":
        torch._dynamo.config.recompile_limit = 64  # each number of tokens and of clips
        for layer in [*tokenizer.encoder.layers, *tokenizer.decoder.layers]:
            layer.compile(backend=section.backend, dynamic=False)
    result = {}
    for batch, share in section.size.clips:
        calls, counted = (codec_calls(*pair, batch, share) for pair in ((tokenizer, section.device), (shapes, "meta")))
        for stage, run in calls.items():
            if section.is_over():
                break
            run = captured(run, section.device) if way == "graphs" else run
            first = seconds(run, section.device)  # compiles
            run()
            taken = statistics.median(section.times(run))
            operations = count_operations(counted[stage])
            result[f"{stage}, {batch} clips, 1/{share} of the tokens"] = {
                "first_seconds": first,
                "ms_per_clip": 1000 * taken / batch,
                "tflop_per_clip": operations / batch / 1e12,
                "share_of_floor": operations / section.rates["matrix_flops"] / taken,
            }
    return result


@torch.inference_mode()
def compare_codes(section: Section) -> dict:
    """Compare codes and pixels of the device with those of the CPU in float32, from the same weights."""
    reference = build_tokenizer(section, "cpu")
    config = reference.config
    video = torch.rand(2, config.num_frames, config.num_channels, config.image_size, config.image_size)
    expected = reference.encode(video)
    counts = torch.full(expected.codes.shape[:2], config.latents_per_block // 4)
    pixels = reference.decode(expected.codes, counts).pixel_values_videos
    result = {}
    for name in ("float32", "bfloat16"):
        model = copy.deepcopy(reference).to(section.device, getattr(torch, name))
        codes = model.encode(video.to(section.device, model.dtype)).codes.cpu()
        decoded = model.decode(expected.codes.to(section.device), counts).pixel_values_videos.float().cpu()
        result[name] = {
            "equal_codes": (codes == expected.codes).float().mean().item(),
            "largest_pixel_difference": (decoded - pixels).abs().max().item(),
        }
    return result


# --- generation and training ----------------------------------------------------------------------------------------------


def measure_generation(section: Section, batch: int, **options: str) -> dict:
    """Time sequences of one block at the generator's released size, in bfloat16; single ones with lookahead, too."""
    torch.manual_seed(0)
    geometry = {"num_blocks": 1, "latents_per_block": section.size.tokens - 1}
    with torch.device(section.device):
        model = AdapTokARForCausalLM(AdapTokARConfig(**section.size.generator | geometry)).eval().to(torch.bfloat16)
    tables = {id(table.weight) for table in model.modules() if isinstance(table, torch.nn.Embedding)}
    size = sum(p.nbytes for p in model.parameters() if id(p) not in tables or p is model.lm_head.weight)
    prompt = model.build_prompt(torch.arange(batch, device=section.device) % model.config.num_classes)
    ways = {"one token": options}
    if batch == 1 and not options:  # lookahead takes single sequences only
        ways["lookahead"] = {"lookahead": LOOKAHEAD}
    result, expected = {"weights_bytes": size}, None
    for name, way in ways.items():
        if section.is_over():
            break
        run = partial(model.generate, prompt, seeds=range(batch), **way)
        ids = run()
        expected = ids if expected is None else expected
        taken = statistics.median(section.times(run))
        steps = ids.shape[1] - prompt.shape[1]
        result[name] = {
            "tokens_per_second": batch * steps / taken,
            "share_of_floor": size * steps / section.rates["copy_bytes"] / taken,  # of one token at a time
            "same_tokens": torch.equal(ids, expected),
        }
    return result


def measure_training(section: Section, recipe: str) -> dict:
    """Time steps of a recipe with its prior and discriminator, without LPIPS, on the paper's 4 clips of a GPU."""
    with tempfile.TemporaryDirectory() as folder:
        args = read_arguments(RECIPES / recipe, Path(folder), batch=4, **section.size.training)
        trainer = build_trainer(args, section.device)
        step = partial(take_step, trainer)
        step()  # is the discriminator's turn, as are two of each ten that follow
        times = section.times(step)
        taken = statistics.mean(times)
        return {
            "clips_per_second": 4 / taken,
            "steps": len(times),
            "share_of_floor": count_training_operations(trainer) / section.rates["matrix_flops"] / taken,
            "loss": trainer.progress.means.pop(trainer.accelerator)["loss"],
        }


SECTIONS = {
    "rates": measure_rates,
    "codec_eager": partial(measure_codec, way="eager"),
    "codec_compiled": partial(measure_codec, way="compiled"),
    "codec_graphs": partial(measure_codec, way="graphs"),
    "generation_1": partial(measure_generation, batch=1),
    "generation_8": partial(measure_generation, batch=8),
    "generation_64": partial(measure_generation, batch=64),
    "generation_static_1": partial(measure_generation, batch=1, cache_implementation="static"),
    "training_small": partial(measure_training, recipe="tokenizer_small.json"),
    "training_base": partial(measure_training, recipe="tokenizer_paper.json"),
    "parity": compare_codes,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON file")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--backend", default="inductor", help="of torch.compile (default: inductor)")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--limit", type=float, default=40, help="seconds of a section (default: 40)")
    arguments = parser.parse_args()
    settings = {"device": arguments.device, "size": arguments.size, "backend": arguments.backend}
    report = {"machine": machine(arguments.device), "settings": settings, "sections": {}}
    if arguments.output.exists():
        before = json.loads(arguments.output.read_text())
        if before["settings"] != settings:
            parser.error(f"{arguments.output} has results of {before['settings']}: give another --output")
        report["sections"] = {name: done for name, done in before["sections"].items() if "error" not in done}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    for name, measure in SECTIONS.items():
        if name in report["sections"]:
            print(f"{name}: done before", flush=True)
            continue
        begin = time.perf_counter()
        rates = report["sections"].get("rates", {})
        size, end = SIZES[arguments.size], begin + arguments.limit
        section = Section(arguments.device, size, arguments.backend, arguments.repeats, rates, end)
        try:
            result = measure(section)
        except Exception as error:  # the next sections have nothing to do with it
            result = {"error": f"{type(error).__name__}: {error}"}
        result["seconds"] = time.perf_counter() - begin
        report["sections"][name] = result
        write_json(arguments.output, report)
        print(f"{name}: {json.dumps(result, indent=2)}", flush=True)
        if arguments.device == "cuda":
            torch.cuda.empty_cache()
    if failed := [name for name, result in report["sections"].items() if "error" in result]:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
