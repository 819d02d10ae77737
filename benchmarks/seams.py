"""The seam between two clips of a long video, and whether clips that overlap by one block hide it.

    python benchmarks/seams.py DATA/wild/val --budgets 32 64

Each video of at least 3 clips is reconstructed twice with the same number of tokens in all: in clips one after the other,
and in clips that begin a block earlier than the last one ends. There the two reconstructions of the block are faded into
each other. Overlapping clips are more blocks, so each gets fewer tokens: by a quarter, with 4 blocks in a clip.

PSNR (dB) is the mean over videos: of all frames, of the two frames at each border (the last of a clip and the first of the
next; with overlap, all frames of the block that is faded), and of the others. The jump is the mean absolute difference of
the frames on both sides of a border over the original's, and over the same at block borders inside clips.
"""

import argparse
from pathlib import Path

import numpy as np

from adaptok_hf import AdapTokPipeline, Video

ROWS = ("PSNR", "PSNR at borders", "PSNR elsewhere", "jump at borders", "jump at other blocks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model")
    parser.add_argument("--budgets", type=float, nargs="+", default=[32, 64], help="tokens per block without overlap")
    parser.add_argument("--max-clips", type=int, default=8, metavar="N", help="of a video")
    arguments = parser.parse_args()
    pipeline = AdapTokPipeline.from_pretrained(arguments.model)
    pipeline.set_progress_bar_config(disable=True)
    clip = pipeline.tokenizer.config.num_frames
    videos = []
    for path in sorted(arguments.folder.glob("*.mp4")):
        video = pipeline.video_processor.clips(path)
        count = min(video.num_frames // clip, arguments.max_clips)
        if count >= 3:
            videos.append(video.original()[: count * clip])
    print(f"{len(videos)} videos, {sum(map(len, videos)) // clip} clips")
    print(f"{'':<22}{'apart':>10}{'overlap':>10}{'gain':>8}  +- (95%)")
    for budget in arguments.budgets:
        apart = np.array([measure(pipeline, frames, budget, 0) for frames in videos])
        overlap = np.array([measure(pipeline, frames, budget, pipeline.tokenizer.config.tubelet_size) for frames in videos])
        for row, first, second in zip(ROWS, apart.T, overlap.T, strict=True):
            gain = second - first
            interval = 1.96 * gain.std(ddof=1) / len(gain) ** 0.5
            print(f"{budget:<5g}{row:<17}{first.mean():10.2f}{second.mean():10.2f}{gain.mean():+8.2f}  +- {interval:.2f}")


def measure(pipeline: AdapTokPipeline, frames: np.ndarray, budget: float, shared: int) -> list[float]:
    """Return the numbers of `ROWS` for a video in clips that share `shared` frames with the one before."""
    config = pipeline.tokenizer.config
    length, block, step = config.num_frames, config.tubelet_size, config.num_frames - shared
    starts = list(range(0, len(frames) - shared, step))
    clips = [frames[start : start + length] for start in starts]
    blocks = sum(-(-len(each) // block) for each in clips)
    request = {"budget": budget * (len(frames) // block) / blocks, "rounding": "floor"}
    outputs = pipeline.reconstruct([Video(each, 24.0, np.arange(len(each)) / 24) for each in clips], **request)
    result, weight = np.zeros(frames.shape, np.float32), np.zeros((len(frames), 1, 1, 1), np.float32)
    fade = np.arange(1, shared + 1) / (shared + 1)
    for start, output in zip(starts, outputs, strict=True):
        weights = np.ones(len(output.frames))
        if start:
            weights[:shared] = fade
        if start + length < len(frames):
            weights[len(weights) - shared :] = fade[::-1]
        weights = weights[:, None, None, None].astype(np.float32)
        result[start : start + len(weights)] += output.frames * weights
        weight[start : start + len(weights)] += weights
    return summarize(frames.astype(np.float32), np.rint(result / weight), starts[1:], shared, block)


def summarize(original: np.ndarray, result: np.ndarray, borders: list[int], shared: int, block: int) -> list[float]:
    """Return the numbers of `ROWS`; `borders` are the first frames of clips."""
    error = ((original - result) ** 2).mean((1, 2, 3))
    border_frames = {frame for border in borders for frame in range(border - (not shared), border + max(shared, 1))}
    at = np.isin(np.arange(len(original)), list(border_frames))
    # the frames where a step into another block is seen: with overlap, any step of the fade
    seams = [frame for border in borders for frame in range(border, border + shared + 1) if frame < len(original)]
    others = [frame for frame in range(block, len(original), block) if frame not in seams]
    jumps = [
        np.mean([np.abs(result[f] - result[f - 1]).mean() for f in places])
        / max(np.mean([np.abs(original[f] - original[f - 1]).mean() for f in places]), 1e-6)
        for places in (seams, others)
    ]
    psnr = [10 * np.log10(255**2 / error[where].mean()) for where in (slice(None), at, ~at)]
    return [*psnr, *jumps]


if __name__ == "__main__":
    main()
