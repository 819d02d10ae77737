"""How the cost of a clip grows: time of encoding and decoding against the machine's floor, as a log-log picture.

    python benchmarks/growth.py docs/images/cost_growth.png

Four panels: tokens that are kept, frames of a clip, clips of a batch, parameters. Each starts from the shape of `small`,
with random weights in float32. Per point the original's way (see `codec.py`) and ours take turns; the median of CPU time
counts. The floor is what ours would take if all of its operations ran at the rate of a large product of matrices.
"""

import argparse
import statistics

import matplotlib.pyplot as plt
import torch
from codec import both_ways, count_operations, machine
from timing import matrix_rate, seconds

from adaptok_hf import AdapTokConfig, AdapTokModel, AdapTokPipeline

SIZES = ((128, 2, 2), (256, 3, 5), (512, 6, 6), (768, 12, 12))  # width, layers of the encoder and of the decoder


def points(tiny: bool) -> dict[str, list[tuple[float, AdapTokConfig, int, int]]]:
    """Return for each panel its points: where it stands on the axis, configuration, tokens per block, batch."""
    shape = AdapTokPipeline.from_pretrained().tokenizer.config.to_dict()
    full = shape["latents_per_block"]

    def config(**changes) -> AdapTokConfig:
        return AdapTokConfig.from_dict(shape | changes)

    def size(width: int, encoder: int, decoder: int) -> AdapTokConfig:
        layers = {"num_encoder_layers": encoder, "num_decoder_layers": decoder}
        return config(hidden_size=width, num_attention_heads=width // 64, **layers)

    steps = 2 if tiny else 5
    panels = {
        "tokens per clip": [(4 * (full >> step), config(), full >> step, 1) for step in range(steps)],
        "frames per clip": [(8 << step, config(num_frames=8 << step), full // 4, 1) for step in range(steps - 1)],
        "clips in a batch": [(1 << step, config(), full // 4, 1 << step) for step in range(steps)],
    }
    with torch.device("meta"):
        models = [AdapTokModel(size(*sizes)) for sizes in SIZES[: steps - 1]]
    panels["million parameters"] = [(model.num_parameters() / 1e6, model.config, full // 4, 1) for model in models]
    return panels


@torch.inference_mode()
def measure(config: AdapTokConfig, count: int, batch: int, repeats: int) -> tuple[float, float, int]:
    """Return the CPU seconds of the original's way and of ours, encoding and decoding together, and ours in operations."""
    models = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            tokenizer = AdapTokModel(config).eval().requires_grad_(False)
        models.append(both_ways(tokenizer, None, count, device, batch))
    timed, counted = ([stages[name] for name in ("encode", "decode")] for stages in models)
    for _, ours in timed:
        ours()
    turns = [[sum(seconds(stage[way]) for stage in timed) for way in range(2)] for _ in range(repeats)]
    original, ours = (statistics.median(taken) for taken in zip(*turns, strict=True))
    return original, ours, sum(count_operations(stage[1]) for stage in counted)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("picture", help="the file to write")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="two points a panel")
    arguments = parser.parse_args()
    rate = matrix_rate("cpu", dtype=torch.float32)
    print(f"{machine('cpu')}; a product of matrices reaches {rate / 1e9:.0f} GFLOP/s\n")
    print("| | | ms, original | ours | floor | share of the floor |\n|---|---|---|---|---|---|")
    panels = points(arguments.tiny)
    figure, axes = plt.subplots(1, len(panels), figsize=(14, 3.6), sharey=True, layout="constrained")
    for axis, (name, steps) in zip(axes, panels.items(), strict=True):
        curves = {"original's way": [], "ours": [], "floor of ours": []}
        for place, config, count, batch in steps:
            original, ours, operations = measure(config, count, batch, arguments.repeats)
            times = [1000 * taken for taken in (original, ours, operations / rate)]
            for curve, taken in zip(curves.values(), times, strict=True):
                curve.append(taken)
            print(
                f"| {name} | {place:.4g} | {times[0]:.1f} | {times[1]:.1f} | {times[2]:.1f} | {times[2] / times[1]:.0%} |"
            )
        for (label, curve), style in zip(curves.items(), ("o--", "o-", "k:"), strict=True):
            axis.loglog([step[0] for step in steps], curve, style, label=label, base=2)
        axis.set_xlabel(name)
        axis.set_xticks([step[0] for step in steps], [f"{step[0]:.4g}" for step in steps])
        axis.minorticks_off()
        axis.set_yscale("log", base=10)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("encoding and decoding (ms)")
    axes[0].legend()
    figure.savefig(arguments.picture, dpi=110)


if __name__ == "__main__":
    main()
