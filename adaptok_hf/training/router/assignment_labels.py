"""Parquet shards of the losses of many assignments of clips, which `label_assignments.py` writes and routers learn from."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers import AutoModel

from ...allocation import AssignmentTree
from ...atomic_files import claim_folder
from ...data import VideoFolderClips
from ...metrics.lpips_network import lpips_of_blocks
from ...models.modeling_adaptok import AdapTokModel
from ...models.modeling_evatok import EVATokModel
from ...pipelines.assignment_decoding import LOSSES, assignment_trees
from ..arguments import check_positive
from ..shards import shard_with_report, write_plan

COLUMNS = pa.schema(
    {
        "source": pa.string(),
        "start": pa.int32(),
        "stride": pa.int32(),
        "mirrored": pa.bool_(),
        "reversed": pa.bool_(),
        "counts": pa.list_(pa.list_(pa.int32())),
        "losses": pa.list_(pa.float32()),
    }
)


@dataclass(kw_only=True)
class Arguments:
    tokenizer: str = field(metadata={"help": "A trained AdapTokModel or EVATokModel, folder or Hub id."})
    data_root: str = field(metadata={"help": "Folder that the folders of videos are relative to."})
    folders: list[str] = field(default_factory=list, metadata={"help": "Folders of videos, kept in memory."})
    folder_weights: list[float] = field(
        default_factory=list, metadata={"help": "Share of the clips sampled from each folder."}
    )
    output_dir: str = field(metadata={"help": "Where the shards go."})
    levels: list[int] = field(
        default_factory=list, metadata={"help": "Candidate token counts of a block: multiples of the first, rising."}
    )
    prices: list[float] = field(
        default_factory=list, metadata={"help": "Loss per token: the beam is run at each of these."}
    )
    loss: str = field(default="rmse", metadata={"help": "Of a block: mse, rmse, psnr or lpips."})
    beam_width: int = field(default=10)
    num_clips: int = field(default=1000)
    strides: list[int] = field(
        default_factory=lambda: [1], metadata={"help": "Frames from one frame of a clip to the next."}
    )
    mirror: bool = field(default=False, metadata={"help": "Mirror half of the clips."})
    reverse: bool = field(default=False, metadata={"help": "Reverse half of the clips in time."})
    clips_per_shard: int = field(default=32)
    seed: int = field(default=0)

    def __post_init__(self):
        check_positive(self, "num_clips", "clips_per_shard", "beam_width")
        if empty := [name for name in ("folders", "levels", "prices") if not getattr(self, name)]:
            raise ValueError(f"{empty[0]} must not be empty")
        if len(self.folders) != len(self.folder_weights):
            raise ValueError(f"{len(self.folders)} folders but {len(self.folder_weights)} folder_weights")
        if self.loss != "lpips" and self.loss not in LOSSES:
            raise ValueError(f"loss must be lpips or one of {', '.join(LOSSES)}, got {self.loss!r}")


@dataclass(frozen=True)
class ClipChoice:
    """One clip of a video, perhaps mirrored or reversed."""

    source: str
    start: int
    stride: int = 1
    mirrored: bool = False
    reversed: bool = False

    def cut(self, video: torch.Tensor, num_frames: int) -> torch.Tensor:
        """Return the clip, uint8 (num_frames, 3, size, size), of a video's frames (frames, 3, size, size)."""
        clip = video[self.start : self.start + num_frames * self.stride : self.stride]
        clip = clip.flip(0) if self.reversed else clip
        return clip.flip(-1) if self.mirrored else clip


class LabelledVideos:
    """The videos whose clips are labelled, in memory, by their paths below the data's root."""

    def __init__(self, data_root: str, folders: list[str], num_frames: int, image_size: int):
        self.clips = VideoFolderClips([Path(data_root) / folder for folder in folders], num_frames, image_size)
        self.names = [path.relative_to(data_root).as_posix() for path in self.clips.paths]
        self.frames = dict(zip(self.names, self.clips.videos, strict=True))
        self.num_frames = num_frames

    def sample(self, args: Arguments) -> list[ClipChoice]:
        """Return random clips: the same for the same seed and videos."""
        generator = torch.Generator().manual_seed(args.seed)
        weights, choices = self.clips.sampling_weights(args.folder_weights), []
        for index in torch.multinomial(weights, args.num_clips, replacement=True, generator=generator).tolist():
            name, (stride, start, mirror, turn) = self.names[index], torch.rand(4, generator=generator).tolist()
            longest = (len(self.frames[name]) - 1) // (self.num_frames - 1)
            fitting = [each for each in args.strides if each <= longest] or [1]
            stride = fitting[int(stride * len(fitting))]
            start = int(start * (len(self.frames[name]) - stride * (self.num_frames - 1)))
            choices.append(ClipChoice(name, start, stride, args.mirror and mirror < 0.5, args.reverse and turn < 0.5))
        return choices

    def cut(self, choices: list[ClipChoice]) -> torch.Tensor:
        """Return clips, uint8 (clips, frames, 3, size, size)."""
        return torch.stack([choice.cut(self.frames[choice.source], self.num_frames) for choice in choices])


def write_labels(args: Arguments, accelerator: Accelerator) -> int:
    """Write the shards that are missing; each process makes its share. Return the number of clips.

    Raises:
        ValueError, OSError: for missing or unusable videos, levels that do not fit the tokenizer, and an output folder that
            holds other labels or that another run writes into.
    """
    tokenizer = AutoModel.from_pretrained(args.tokenizer, dtype=torch.float32).eval().to(accelerator.device)
    config = tokenizer.config
    if not isinstance(tokenizer, AdapTokModel | EVATokModel):
        raise ValueError(f"{args.tokenizer} is no tokenizer, but a {type(tokenizer).__name__}")
    if isinstance(tokenizer, EVATokModel) and not set(args.levels) <= set(config.levels):
        raise ValueError(f"levels must be among the tokenizer's {config.levels}, got {args.levels}")
    if args.levels != sorted(set(args.levels)) or not 1 <= args.levels[0] <= args.levels[-1] <= config.latents_per_block:
        raise ValueError(f"levels must rise from 1 to at most {config.latents_per_block}, got {args.levels}")
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    plan = {name: value for name, value in asdict(args).items() if name not in ("output_dir", "data_root", "tokenizer")}
    plan |= {"num_blocks": config.num_blocks, "image_size": config.image_size, "num_frames": config.num_frames}
    plan |= {"tubelet_size": config.tubelet_size, "num_channels": config.num_channels}
    plan["mixed_precision"] = accelerator.mixed_precision
    if accelerator.is_main_process:
        with claim_folder(output):
            write_plan(output / "labels.json", plan)
    accelerator.wait_for_everyone()
    videos = LabelledVideos(args.data_root, args.folders, config.num_frames, config.image_size)
    choices, size, loss = videos.sample(args), args.clips_per_shard, args.loss
    if loss == "lpips":
        loss = lpips_of_blocks(accelerator.device)
    num_shards = -(-len(choices) // size)
    share = range(accelerator.process_index, num_shards, accelerator.num_processes)
    for index in tqdm(share, desc="shards", disable=not accelerator.is_main_process):
        path = output / f"labels-{index:05d}-of-{num_shards:05d}.parquet"
        if path.exists():
            continue
        rows = [_label(args, accelerator, tokenizer, videos, each, loss) for each in choices[index * size :][:size]]
        with shard_with_report(path) as (partial, report):
            pq.write_table(pa.Table.from_pylist(rows, COLUMNS), partial, compression="zstd")
            report["clips"] = len(rows)
    accelerator.wait_for_everyone()
    return len(choices)


def _label(
    args: Arguments, accelerator: Accelerator, tokenizer: torch.nn.Module, videos: LabelledVideos, choice: ClipChoice, loss
) -> dict[str, Any]:
    frames, codes = videos.cut([choice]), None
    if tokenizer.prefix_decodable:
        with torch.inference_mode():
            codes = tokenizer.encode(frames.to(tokenizer.device)).codes
    valid = torch.ones(1, tokenizer.config.num_blocks, dtype=torch.bool)
    tree = assignment_trees(tokenizer, frames, codes, valid, args.levels, loss)[0]
    with accelerator.autocast():  # of what is decoded: codes are those of the tokenizer's own precision
        for price in args.prices:
            tree.run_beam(price, args.beam_width)
    return asdict(choice) | {"counts": [list(counts) for counts in tree.losses], "losses": list(tree.losses.values())}


def read_labels(folder: str | Path) -> tuple[dict[str, Any], list[ClipChoice], list[AssignmentTree]]:
    """Return the plan of a folder of labels, its clips, and what was measured of each.

    Raises:
        ValueError: for a folder that is incomplete or holds no labels.
    """
    folder = Path(folder)
    if not (folder / "labels.json").exists():
        raise ValueError(f"{folder} holds no labels.json: write it with label_assignments.py")
    plan = json.loads((folder / "labels.json").read_text())
    num_shards = -(-plan["num_clips"] // plan["clips_per_shard"])
    paths = [folder / f"labels-{index:05d}-of-{num_shards:05d}.parquet" for index in range(num_shards)]
    if missing := [path.name for path in paths if not path.exists()]:
        raise ValueError(
            f"{folder} lacks {len(missing)} of {num_shards} shards, such as {missing[0]}: resume the labelling"
        )
    choices, trees = [], []
    for row in (row for path in paths for row in pq.read_table(path).to_pylist()):
        counts, losses = row.pop("counts"), row.pop("losses")
        choices.append(ClipChoice(**row))
        known = {tuple(each): loss for each, loss in zip(counts, losses, strict=True)}
        trees.append(AssignmentTree(_not_measured, plan["levels"], plan["num_blocks"], known))
    return plan, choices, trees


def _not_measured(counts: tuple[int, ...], levels: list[int]):
    raise KeyError((counts, levels))
