"""Our tokens and x264 at equal bits, through folders of frames: the way in which any other system is measured.

    python benchmarks/x264.py DATA/wild/val -o runs/x264 --model small --budgets 64 128 256

The first frames of some videos, a clip each, are coded twice. Our tokens count with log2(codebook size) bits each, not
entropy coded, and log2(latents per block + 1) bits for each block's count. x264 (PyAV's libx264, preset veryslow, tune
psnr, each clip alone) gets the lowest constant rate factor whose stream takes at most the bits of this clip's tokens, at
full and at half size (bicubic), and the better of both in PSNR is taken. Container, parameter sets and x264's note about
itself do not count. Same frames, size and frame rate for both. Where x264 has no stream that small, its smallest one is
taken: the table has the bits.

The frames of both, and the originals, are written without loss to `-o`, and measured as `adaptok metrics compare` does.
"""

import argparse
from pathlib import Path

import numpy as np
import torch

from adaptok_hf import AdapTokPipeline, read_video, write_video
from adaptok_hf.evaluation import X264Codec, compare_videos, load_networks, open_videos

METRICS = {"psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 3), "lpips": ("LPIPS", 3), "fvd": ("FVD", 0)}


def write_frames(folder: Path, frames: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames):
        write_video(folder / f"{number:02d}.png", frame[None], fps=1)


def write_both(pipeline: AdapTokPipeline, videos: dict[str, str], budgets: list[str], output: Path) -> dict[str, list]:
    """Write the frames of all systems, and return the bits of each clip by the folder's name."""
    bits = {}
    for name, path in videos.items():
        video = read_video(path, max_frames=pipeline.tokenizer.config.num_frames)
        for budget in budgets:
            ours = pipeline.reconstruct(video, budget=budget, output_type="uint8")
            codec = X264Codec(ours.tokens.num_bits, video.fps)
            streams = codec.encode(torch.from_numpy(ours.original).permute(0, 1, 4, 2, 3) / 255)
            theirs = (codec.decode(streams)[0].permute(0, 2, 3, 1) * 255).round().byte().numpy()
            write_frames(output / "real" / name, ours.original[0])
            for system, frames, used in (
                ("ours", ours.frames[0], ours.tokens.num_bits),
                ("x264", theirs, *streams.num_bits),
            ):
                write_frames(output / f"{system}-{budget}" / name, frames)
                bits.setdefault(f"{system}-{budget}", []).append(used)
    return bits


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="a folder of videos")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a new folder, for the frames")
    parser.add_argument("--model", default="small", help="a pipeline (default: small)")
    parser.add_argument("--budgets", nargs="+", default=["64", "128", "256"], help="tokens per block, each clip alone")
    parser.add_argument("--videos", type=int, default=12, metavar="N", help="spread evenly over the folder (default: 12)")
    parser.add_argument("--lpips", choices=["vgg", "alex", "none"], default="alex")
    parser.add_argument("--fvd", action="store_true", help="needs hundreds of videos to mean something")
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True)
    items = open_videos(arguments.data).items
    chosen = np.unique(np.linspace(0, len(items) - 1, min(arguments.videos, len(items))).round().astype(int))
    videos = {str(Path(items[index].key).with_suffix("")): items[index].video for index in chosen}
    pipeline = AdapTokPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    all_bits = write_both(pipeline, videos, arguments.budgets, arguments.output)
    networks = load_networks(arguments.lpips, arguments.fvd)
    print(f"{len(videos)} clips of {arguments.data}, {arguments.model}\n")
    for row, (name, bits) in enumerate(all_bits.items()):
        real, fake = arguments.output / "real", arguments.output / name
        metrics = compare_videos(real, fake, networks=networks, num_frames=pipeline.tokenizer.config.num_frames)["metrics"]
        if row == 0:
            print(f"| system - tokens per block | bits per clip | {' | '.join(METRICS[each][0] for each in metrics)} |")
            print("|---" * (2 + len(metrics)) + "|")
        cells = [f"{entry['value']:.{METRICS[each][1]}f}" for each, entry in metrics.items()]
        print(f"| {name} | {np.mean(bits):.0f} | {' | '.join(cells)} |", flush=True)
    print(f"\nadaptok metrics compare {real} {fake}    # the last row again")


if __name__ == "__main__":
    main()
