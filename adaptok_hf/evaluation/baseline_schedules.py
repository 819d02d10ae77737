"""The baseline of an evaluation: the best constant schedule of each budget, learned on other clips than those measured."""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from tqdm.auto import tqdm

from ..allocation import best_schedule, schedule_levels
from ..data import VideoFiles
from ..metrics import Protocol
from ..pipelines.assignment_decoding import LOSSES, assignment_trees
from .clip_chunks import ClipChunks, Clips
from .encoded_clips import autocast
from .part_files import PartFiles
from .settings import Setting

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline


def schedule_clips(source: VideoFiles, protocol: Protocol, count: int, seed: int, loss: str) -> ClipChunks:
    """Return one clip each of at most so many videos, spread over all of them.

    Raises:
        ValueError: for no clips, or a loss that is unknown.
    """
    if loss not in LOSSES or count < 1:
        raise ValueError(
            f"schedules are learned with a loss of {', '.join(LOSSES)} on at least 1 clip, got {loss!r} and {count}"
        )
    total = len(source.items)
    items = [source.items[index * total // count] for index in range(count)] if count < total else source.items
    window = "first" if protocol.window == "all" else protocol.window
    return ClipChunks(VideoFiles(items), dataclasses.replace(protocol, window=window), max(len(items), 1), seed)


def write_schedules(
    name: str,
    pipeline: "AdapTokPipeline",
    settings: Sequence[Setting],
    chunks: ClipChunks,
    parts: PartFiles,
    leave_one_out: bool,
    loss: str,
    batch_size: int,
) -> None:
    """Write the schedules of those settings that lack them.

    Nothing is written where there are too few clips. What was measured is kept, for more budgets and runs that resume.

    Args:
        chunks: one chunk of clips, see `schedule_clips`.
        leave_one_out: whether the clips are also evaluated: each video then gets the schedule of the others.
        loss: `"rmse"`, `"mse"` or `"psnr"`.
    """
    todo = [s for s in settings if s.strategy == "schedule" and not parts.exists("schedules", name, s.name)]
    if todo and not pipeline.tokenizer.prefix_decodable:  # it needs counts to encode
        return
    clips = chunks.read(0) if todo else Clips(torch.empty(0), [], [], [], [])
    videos = set(clips.keys)
    if len(videos) < 1 + leave_one_out:
        return
    config, device = pipeline.tokenizer.config, pipeline.device
    levels = schedule_levels(config.latents_per_block, pipeline.scorer.config.score_step if pipeline.scorer else 1)
    with autocast(device, chunks.protocol.precision):
        encoded = pipeline.encode(clips.videos, batch_size=batch_size)
        codes = encoded.codes.to(device)
        trees = assignment_trees(pipeline.tokenizer, clips.videos, codes, encoded.valid_blocks, levels, loss)
        if parts.exists("schedules", name, "losses"):
            for tree, losses in zip(trees, parts.read("schedules", name, "losses")[0], strict=True):
                tree.losses.update((tuple(counts), value) for counts, value in losses)
        for setting in tqdm(todo, desc="schedules"):
            others = {video: [t for t, key in zip(trees, clips.keys, strict=True) if key != video] for video in videos}
            rows = {
                "schedule": best_schedule(trees, setting.budget),
                "left_out": {v: best_schedule(of, setting.budget) for v, of in others.items()} if leave_one_out else {},
                "learned_on": f"{len(trees)} {'evaluated' if leave_one_out else 'other'} clips, {loss}"
                + (", each left out for itself" if leave_one_out else ""),
            }
            parts.write("schedules", name, "losses", rows=[list(tree.losses.items()) for tree in trees])
            parts.write("schedules", name, setting.name, rows=rows)


def with_schedules(name: str, settings: Sequence[Setting], parts: PartFiles) -> tuple[list[Setting], list[str]]:
    """Return the settings without those whose schedule could not be learned, and a note if there are such."""
    without = [s for s in settings if s.strategy == "schedule" and not parts.exists("schedules", name, s.name)]
    notes = (
        [f"{name}: no schedule, which takes prefixes that decode, and two videos or others to learn it on"]
        if without
        else []
    )
    return [setting for setting in settings if setting not in without], notes


def scheduled_counts(name: str, setting: Setting, clips: Clips, parts: PartFiles) -> torch.Tensor:
    """Return the token counts (clips, blocks) long of evaluated clips by their schedules."""
    rows, _ = parts.read("schedules", name, setting.name)
    return torch.tensor([rows["left_out"].get(video, rows["schedule"]) for video in clips.keys])
