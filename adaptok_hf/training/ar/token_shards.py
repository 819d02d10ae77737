"""Parquet shards of the codes and counts of a data set's windows, which `tokenize_dataset.py` writes."""

import hashlib
import json
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, fields
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import Accelerator
from datasets import ClassLabel, Features, List, Value
from tqdm.auto import tqdm

from ...allocation import AllocationRequest
from ...allocation.budgets import tokens_per_block
from ...atomic_files import claim_folder
from ...models.configuration_adaptok import AdapTokConfig
from ...pipelines.pipeline_adaptok import AdapTokPipeline
from ..arguments import check_positive
from ..shards import SkipArguments, read_report, shard_with_report, write_plan
from .token_card import check_split, write_card
from .token_sources import MixedWindows, SourceArguments, open_source, source_hash, split_source


@dataclass(kw_only=True)
class Arguments(SourceArguments, SkipArguments):
    output_dir: str = field(metadata={"help": "Where the shards go."})
    split: str = field(default="train", metadata={"help": "Name of the split that load_dataset gives the shards."})
    model: str | None = field(default=None, metadata={"help": "Pipeline folder, Hub id or shipped name; default: small."})
    window_step: int = field(default=16, metadata={"help": "Frames between the starts of two windows."})
    allocation: str | None = field(default=None, metadata={"help": "Strategy; default: the pipeline's."})
    budget: str | None = field(default=None, metadata={"help": "Average tokens per block, or a share such as 25%%."})
    price: float | None = field(default=None, metadata={"help": "Loss that a token must save (strategy quality)."})
    threshold: float | None = field(default=None, metadata={"help": "Loss to undercut (strategy threshold)."})
    rounding: Literal["floor", "exact"] | None = field(
        default=None, metadata={"help": "Of a budget off the grid: 'floor' (the default) rounds down, 'exact' raises."}
    )
    num_condition_frames: int = field(default=0, metadata={"help": "Frames given in frame prediction; 0: none."})
    condition_counts: list[int] = field(
        default_factory=list,
        metadata={"help": "Tokens of the first blocks of conditions and windows, for a generator with the same entry."},
    )
    batch_size: int = field(default=32, metadata={"help": "Windows that share a budget."})
    videos_per_shard: int = field(default=32, metadata={"help": "Tar shards and files of the Hub stay what they are."})
    videos_at_once: int = field(default=32, metadata={"help": "Videos that are open, whose windows are mixed."})
    seed: int = field(default=0, metadata={"help": "Of the order of videos and windows."})

    def __post_init__(self):
        super().__post_init__()
        check_positive(self, "window_step", "batch_size", "videos_per_shard", "videos_at_once")
        check_split(self.split)
        if not self.condition_counts:
            return
        if not self.num_condition_frames:
            raise ValueError(f"condition_counts={self.condition_counts} needs num_condition_frames")
        if self.allocation not in ("fixed", "router") or (self.allocation == "router" and self.budget is not None):
            raise ValueError(
                f"condition_counts={self.condition_counts} needs allocation 'fixed', or 'router' without a budget, got "
                f"allocation={self.allocation!r} and budget={self.budget!r}"
            )


# what does not change the tokens, or is in the hashes of the videos and of the model
NOT_IN_HASH = {entry.name for kind in (SourceArguments, SkipArguments) for entry in fields(kind)} | {"output_dir", "model"}


def describe(args: Arguments, pipeline: AdapTokPipeline, source: Any, names: list[str]) -> dict[str, Any]:
    """Return the content of `dataset.json`."""
    config = pipeline.tokenizer.config
    description = {name: value for name, value in asdict(args).items() if name not in NOT_IN_HASH} | {
        "source_hash": source_hash(source, args),
        "class_names": names,
        "codebook_size": config.codebook_size,
        "num_blocks": config.num_blocks,
        "latents_per_block": config.latents_per_block,
        "model_hash": pipeline.model_hash,
    }
    return description | {"hash": hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()}


def columns_of(config: AdapTokConfig, class_names: list[str], with_condition: bool) -> Features:
    code = Value("uint16" if config.codebook_size <= 2**16 else "int32")
    codes = List(List(code, length=config.latents_per_block), length=config.num_blocks)
    columns = {
        "codes": codes,
        "token_counts": List(Value("int32"), length=config.num_blocks),
        "label": ClassLabel(names=class_names) if class_names else Value("int64"),
        "source": Value("string"),
        "start": Value("int32"),
        "config_hash": Value("string"),
    }
    return Features(columns | ({"condition_codes": codes} if with_condition else {}))


@torch.no_grad()
def tokenize_windows(pipeline: AdapTokPipeline, windows: torch.Tensor, args: Arguments) -> dict[str, np.ndarray]:
    """Return columns of the rows of some windows, uint8 (windows, frames, 3, size, size), which share the budget."""
    allocation = {name: getattr(args, name) for name in ("budget", "price", "threshold", "allocation", "rounding")}
    config, prefix = pipeline.tokenizer.config, args.condition_counts
    if prefix and args.allocation == "router":
        columns = _route_with_prefix(pipeline, windows, args)
    else:
        if prefix and args.budget is not None:
            rest = tokens_per_block(args.budget, config.latents_per_block)
            allocation["budget"] = [*prefix, *[rest] * config.num_blocks][: config.num_blocks]
        # windows in a row are to the pipeline the clips of one video
        tokens = pipeline.tokenize(windows.flatten(0, 1), fps=1.0, **allocation)
        columns = {"codes": tokens.codes, "token_counts": tokens.token_counts}
    if args.num_condition_frames:
        columns["condition_codes"] = pipeline.tokenize_condition(windows, args.num_condition_frames, prefix)
    return {name: values.cpu().numpy() for name, values in columns.items()}


def _route_with_prefix(pipeline: AdapTokPipeline, windows: torch.Tensor, args: Arguments) -> dict[str, torch.Tensor]:
    """Return the columns of windows whose first blocks have `condition_counts`; a router chooses the rest for these."""
    given = {"price": args.price, "threshold": args.threshold, "rounding": args.rounding}
    pipeline.check_request(AllocationRequest(strategy="router", **given))
    tokenizer, video = pipeline.tokenizer, windows.to(pipeline.device) / 255
    counts = pipeline.router.route(video, args.price, tuple(args.condition_counts))
    needed = () if tokenizer.prefix_decodable else (counts,)
    return {"codes": tokenizer.encode(video.to(tokenizer.dtype), *needed).codes, "token_counts": counts}


def write_shard(
    path: Path, features: Features, pipeline: AdapTokPipeline, windows: MixedWindows, args: Arguments, config_hash: str
) -> dict[str, Any]:
    """Tokenize windows and write their rows, batch after batch, then the report; the shard is renamed last.

    Returns:
        The report: `videos` (how many were tried), `windows`, and `skipped` (key -> reason).
    """
    schema, count = features.arrow_schema, 0
    iterator = iter(windows)
    with shard_with_report(path) as (partial, report):
        with pq.ParquetWriter(partial, schema) as writer:
            while batch := list(islice(iterator, args.batch_size)):
                columns = tokenize_windows(pipeline, torch.stack([row["pixel_values_videos"] for row in batch]), args)
                rows = {name: values.tolist() for name, values in columns.items()} | {
                    "label": [int(row["label"]) for row in batch],
                    "source": [row["key"] for row in batch],
                    "start": [int(row["window"]) for row in batch],
                    "config_hash": [config_hash] * len(batch),
                }
                writer.write_table(pa.Table.from_pydict(rows, schema))
                count += len(batch)
        report |= {"videos": windows.num_videos, "windows": count, "skipped": windows.skipped}
    return report


def _check_request(args: Arguments, pipeline: AdapTokPipeline) -> None:
    """Raise `ValueError` unless one window alone can be tokenized so, as the last batch of a shard may be."""
    config = pipeline.tokenizer.config
    blank = torch.zeros(1, config.num_frames, 3, config.image_size, config.image_size, dtype=torch.uint8)
    try:
        tokenize_windows(pipeline, blank, args)
    except ValueError as error:
        hint = "; a batch may be one window: rounding 'floor' rounds down" if args.rounding == "exact" else ""
        raise ValueError(f"{error}{hint}") from error


def write_token_shards(args: Arguments, pipeline: AdapTokPipeline, accelerator: Accelerator) -> int:
    """Write the shards that are missing; each process makes its share. Return the number of windows in all.

    Raises:
        ValueError, OSError, TooManySkippedVideos: for missing or unusable videos, and an output folder that holds other
            tokens or that another run writes into.
    """
    output = Path(args.output_dir)
    if accelerator.is_main_process:
        output.mkdir(parents=True, exist_ok=True)
    with claim_folder(output) if accelerator.is_main_process else nullcontext():
        return _write_missing(args, pipeline, accelerator, output)


def _write_missing(args: Arguments, pipeline: AdapTokPipeline, accelerator: Accelerator, output: Path) -> int:
    config = pipeline.tokenizer.config
    _check_request(args, pipeline)
    source, class_names = open_source(args)
    inputs = split_source(source, args.videos_per_shard, args.seed)
    description = describe(args, pipeline, source, class_names)
    features = columns_of(config, class_names, args.num_condition_frames > 0)
    if accelerator.is_main_process:
        write_plan(output / "dataset.json", description)
        write_card(output, features, description, config)
    accelerator.wait_for_everyone()

    tried, count, skipped = 0, 0, {}
    share = range(accelerator.process_index, len(inputs), accelerator.num_processes)
    for index in tqdm(share, desc="shards", disable=not accelerator.is_main_process):
        path = output / f"tokens-{index:05d}-of-{len(inputs):05d}.parquet"
        if path.exists():
            report = read_report(path)
        else:
            windows = MixedWindows(
                inputs[index],
                clip_length=config.num_frames,
                step=args.window_step,
                image_size=config.image_size,
                videos_at_once=args.videos_at_once,
                seed=(args.seed, index),
            )
            report = write_shard(path, features, pipeline, windows, args, description["hash"])
        tried, count, skipped = tried + report["videos"], count + report["windows"], skipped | report["skipped"]
        args.check_skipped(tried, skipped)
    print(
        f"process {accelerator.process_index}: {len(share)} shards in {output}, {len(skipped)} videos left out", flush=True
    )
    total = int(accelerator.reduce(torch.tensor(count, device=accelerator.device)))
    if not total:
        raise ValueError(f"none of the videos could be used, such as {list(skipped.items())[:3]}")
    return total
