#!/usr/bin/env python
"""Turns a folder of videos into tokens for `train_ar.py`: Parquet shards of codes and counts.

Every window of a video is encoded, and a budget is shared by the windows of a batch, as by the clips of one video.

    accelerate launch --cpu training_scripts/tokenize_dataset.py --videos DATA/action32/train --output_dir tokens/action32 \
        --labels folder --window_step 8 --budget 32

Each shard holds the windows of a few videos. Finished shards are not made again, so an interrupted run goes on where it
was; with several processes each makes its own shards. `datasets.load_dataset("parquet", data_files="tokens/*/*.parquet")`
reads them. Columns: `codes` (blocks * latents_per_block), `token_counts` (blocks), `label` (-1 without), `source`, `start`
(first frame of the window) and, with `--num_condition_frames`, `condition_codes`: the codes of the clip that repeats the
last of the window's first frames. `dataset.json` tells how they were made.
"""

import hashlib
import json
import logging
import os
import random
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from datasets import Dataset
from recipe_arguments import parse_arguments
from tqdm.auto import tqdm

from adaptok_hf import AdapTokPipeline
from adaptok_hf.data.video_folder import VIDEO_SUFFIXES

logger = logging.getLogger(__name__)


@dataclass
class Arguments:
    videos: str = field(metadata={"help": "Folder of videos, searched recursively."})
    output_dir: str = field(metadata={"help": "Where the shards go."})
    model: str | None = field(default=None, metadata={"help": "Pipeline folder or Hub id; default: the shipped one."})
    labels: str = field(default="none", metadata={"help": "'folder': the class is the video's folder; 'none'."})
    window_step: int = field(default=16, metadata={"help": "Frames between the starts of two windows."})
    allocation: str | None = field(default=None, metadata={"help": "Strategy; default: the pipeline's."})
    budget: float | None = field(default=None, metadata={"help": "Average tokens per block."})
    price: float | None = field(default=None, metadata={"help": "Loss that a token must save (strategy quality)."})
    num_condition_frames: int = field(default=0, metadata={"help": "Frames given in frame prediction; 0: none."})
    batch_size: int = field(default=32, metadata={"help": "Windows that share a budget."})
    videos_per_shard: int = field(default=32)
    seed: int = field(default=0, metadata={"help": "Of the videos' order."})

    def __post_init__(self):
        if self.labels not in ("folder", "none"):
            raise ValueError(f"labels must be 'folder' or 'none', got {self.labels!r}")
        for name in ("window_step", "batch_size", "videos_per_shard"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def read_windows(pipeline: AdapTokPipeline, path: Path, step: int) -> tuple[torch.Tensor, list[int]]:
    """The windows of a video, (windows, num_frames, 3, size, size) uint8, and the first frame of each."""
    clips = pipeline.video_processor.clips(path)
    frames, length = clips.frames.flatten(0, 1)[: clips.num_frames], clips.frames.shape[1]
    starts = list(range(0, len(frames) - length + 1, step))
    if not starts:
        raise ValueError(f"{path}: {len(frames)} frames, a window has {length}")
    return torch.stack([frames[start : start + length] for start in starts]), starts


@torch.no_grad()
def tokenize_windows(pipeline: AdapTokPipeline, windows: torch.Tensor, args: Arguments) -> dict[str, torch.Tensor]:
    """Columns of the rows of some windows, which share the budget."""
    # Windows in a row are to the pipeline the clips of one video.
    tokens = pipeline.tokenize(
        windows.flatten(0, 1), budget=args.budget, price=args.price, allocation=args.allocation, fps=1.0
    )
    columns = {"codes": tokens.codes.flatten(1), "token_counts": tokens.token_counts}
    if args.num_condition_frames:
        columns["condition_codes"] = pipeline.tokenize_condition(windows, args.num_condition_frames).flatten(1)
    return columns


def write_shard(path: Path, pipeline: AdapTokPipeline, videos: list[Path], names: list[str], args: Arguments) -> int:
    """Tokenizes some videos and writes their rows, beside and then renamed; returns the number of videos left out."""
    windows, rows, left_out = [], [], 0
    for video in videos:
        try:
            clips, starts = read_windows(pipeline, video, args.window_step)
        except (ValueError, OSError) as error:
            logger.warning("left out: %s", error)
            left_out += 1
            continue
        windows.append(clips)
        label = names.index(video.parent.name) if names else -1
        source = str(video.relative_to(args.videos))
        rows += [{"label": label, "source": source, "start": start} for start in starts]
    if not rows:
        raise ValueError(f"none of the {len(videos)} videos of {path.name} could be used; the first is {videos[0]}")
    all_windows = torch.cat(windows)
    # in random order, so that those which share a budget come from several videos
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(args.seed)).tolist()
    table: dict[str, list] = {name: [rows[i][name] for i in order] for name in ("label", "source", "start")}
    for start in range(0, len(order), args.batch_size):
        for name, values in tokenize_windows(pipeline, all_windows[order[start : start + args.batch_size]], args).items():
            table.setdefault(name, []).extend(values.to(torch.int32).tolist())
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    Dataset.from_dict(table).to_parquet(partial)
    os.replace(partial, path)
    return left_out


def main() -> None:
    args = parse_arguments(Arguments)
    accelerator = Accelerator()
    pipeline = AdapTokPipeline.from_pretrained(args.model).to(accelerator.device)
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.tokenizer.config
    root, output = Path(args.videos), Path(args.output_dir)
    videos = sorted(path for path in root.rglob("*") if path.suffix.lower() in VIDEO_SUFFIXES)
    if not videos:
        raise ValueError(f"{root}: no videos below this folder")
    names = sorted({path.parent.name for path in videos}) if args.labels == "folder" else []
    random.Random(args.seed).shuffle(videos)
    shards = [videos[i : i + args.videos_per_shard] for i in range(0, len(videos), args.videos_per_shard)]

    made_by = {name: value for name, value in asdict(args).items() if name not in ("videos", "output_dir", "model")}
    information = made_by | {
        "num_videos": len(videos),
        "class_names": names,
        "codebook_size": config.codebook_size,
        "num_blocks": config.num_blocks,
        "latents_per_block": config.latents_per_block,
        "model_hash": pipeline.model_hash,
    }
    information["hash"] = hashlib.sha256(json.dumps(information, sort_keys=True).encode()).hexdigest()
    described = output / "dataset.json"
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
        if described.exists() and json.loads(described.read_text())["hash"] != information["hash"]:
            raise ValueError(f"{output} holds tokens that were made otherwise, see {described}; give another folder")
        partial = described.with_suffix(".tmp")
        partial.write_text(json.dumps(information, indent=2) + "\n")
        os.replace(partial, described)
    accelerator.wait_for_everyone()

    own = range(accelerator.process_index, len(shards), accelerator.num_processes)
    left_out = 0
    for index in tqdm(own, desc="shards", disable=not accelerator.is_main_process):
        path = output / f"tokens-{index:05d}-of-{len(shards):05d}.parquet"
        if not path.exists():
            left_out += write_shard(path, pipeline, shards[index], names, args)
    accelerator.wait_for_everyone()
    print(f"process {accelerator.process_index}: {len(own)} shards in {output}, {left_out} videos left out")


if __name__ == "__main__":
    main()
