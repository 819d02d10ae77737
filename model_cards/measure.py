#!/usr/bin/env python
"""Measures the shipped checkpoints again, for their cards: `python model_cards/measure.py DATA [NAME ...]`.

Each `results/NAME.json` is the `results.json` of one command of `adaptok evaluate`, with that command; those of
reconstruction at several budgets also have what x264 makes of equal bits. A run that was
killed resumes; its other files stay in `runs/cards/NAME`. Afterwards: `python model_cards/render.py`.
"""

import argparse
import json
import math
from pathlib import Path

import torch

from adaptok_hf import AdapTokPipeline
from adaptok_hf.atomic_files import write_json
from adaptok_hf.cli.main import main as adaptok
from adaptok_hf.data import VideoFolderClips
from adaptok_hf.evaluation import X264Codec, evaluate_reconstruction, load_networks, open_videos
from adaptok_hf.metrics import CodebookUsage, Protocol

HERE = Path(__file__).parent
ALONE = "--window first --allocation-batch 1 --lpips alex --no-fvd --no-plots"  # each clip has the budget for itself
RATES = f"--strategies compared joint {ALONE} --schedule-clips 16"
MEASURED = f"--max-videos 8 --strategies compared measured search --budgets 6.25% 12.5% 25% 50% {ALONE}"
FVD = "--strategies compared --budgets 6.25% 25% 100% --lpips none --no-plots"
COMMANDS = {  # the first part of a name is the model
    "small_reconstruction_wild": f"reconstruction DATA/wild/val {RATES} --schedule-videos DATA/wild/train",
    "small_reconstruction_action32": f"reconstruction DATA/action32/val {RATES} --schedule-videos DATA/wild/train",
    "small_measured_wild": f"reconstruction DATA/wild/val {MEASURED}",
    "small_fvd_wild": f"reconstruction DATA/wild/val {FVD}",
    "figures_reconstruction_action32": f"reconstruction DATA/action32/val {RATES} --schedule-videos DATA/action32/train",
    "figures_reconstruction_wild": f"reconstruction DATA/wild/val {RATES} --schedule-videos DATA/action32/train",
    "figures_reconstruction_emoji": f"reconstruction DATA/emoji/val {RATES} --schedule-videos DATA/action32/train",
    "figures_measured_action32": f"reconstruction DATA/action32/val {MEASURED}",
    "figures_fvd_action32": f"reconstruction DATA/action32/val --window first {FVD}",
    "figures_generation_action32": "generation DATA/action32/val --videos 64 --classifier-videos DATA/action32/train",
    "figures_prediction_action32": "prediction DATA/action32/val --temperature 0.6 --lpips alex",
}


@torch.no_grad()
def codebook_note(model: str, folder: str) -> str:
    """Return how many codes the first clips of a folder's videos use, as a line below a card's table."""
    tokenizer = AdapTokPipeline.from_pretrained(model).tokenizer
    config = tokenizer.config
    usage = CodebookUsage(config.codebook_size)
    for clip in VideoFolderClips([Path(folder)], config.num_frames, config.image_size, random_clips=False):
        usage.update(tokenizer.encode(clip["pixel_values_videos"][None]).codes)
    found = usage.compute()
    return (
        f"{found['usage']:.0%} of the {config.codebook_size} codes occur in {int(found['tokens'])} tokens of first clips, "
        f"perplexity {found['perplexity']:.0f}"
    )


def add_x264(report: dict, model: str, data: str, folder: Path) -> None:
    """Add to a report of first clips what x264 makes of them with the bits of `fixed`, for each budget."""
    config = AdapTokPipeline.from_pretrained(model).tokenizer.config
    count_bits, code_bits = math.log2(config.latents_per_block + 1), math.log2(config.codebook_size)
    equal = {result["budget"]: result for result in report["results"] if result["strategy"] == "fixed"}
    codecs = {
        f"x264 {budget:g}": X264Codec(config.num_blocks * (budget * code_bits + count_bits), fps=24) for budget in equal
    }
    protocol = next(Protocol(**fields) for fields in report["protocols"].values() if fields["allocation_batch"] is None)
    networks = load_networks("alex", fvd=False)
    coded = evaluate_reconstruction(codecs, open_videos(data), protocol, folder / "x264", networks=networks)
    for (budget, fixed), result in zip(equal.items(), coded["results"], strict=True):
        ratio = result["bits_per_second"] / fixed["bits_per_second"]
        if ratio <= 1:
            named = {"model": model, "strategy": "x264, equal bits", "budget": budget, "tokens_per_block": budget}
            report["results"].append(result | named)
        else:
            psnr = result["metrics"]["psnr"]["value"]
            report["notes"].append(
                f"x264 has no streams as small as {budget:g} tokens per block: the smallest take {ratio:.1f} times the "
                f"bits ({psnr:.2f} dB)"
            )
    report["notes"].append("x264, equal bits: libx264, preset veryslow, tune psnr, slices only (docs/evaluation.md)")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="the folder that build_demo_dataset.py wrote")
    parser.add_argument("names", nargs="*", default=list(COMMANDS), metavar="NAME", help=f"of {', '.join(COMMANDS)}")
    arguments = parser.parse_args()
    for name in arguments.names:
        model, folder = name.split("_")[0], HERE.parent / "runs" / "cards" / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        words = f"evaluate {COMMANDS[name]} --model {model} -o".split()
        local = [word.replace("DATA", arguments.data) for word in words]
        if adaptok([*local, str(folder)]) != 0:
            raise SystemExit(f"failed: {name}")
        report = json.loads((folder / "results.json").read_text())
        if "reconstruction" in words:
            report["notes"].append(codebook_note(model, local[2]))
        if "_reconstruction_" in name:
            add_x264(report, model, local[2], folder)
        write_json(HERE / "results" / f"{name}.json", {"command": " ".join(["adaptok", *words, "out"])} | report)
        print(f"wrote results/{name}.json")


if __name__ == "__main__":
    main()
