"""Generated videos against real ones: FVD with its floor, and how many tokens the generator spends on each class."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ..data import VideoFiles
from ..metrics import CodebookUsage, Protocol
from ..metrics.weight_formats import tensors_sha256
from . import plots
from .clip_chunks import ClipChunks
from .encoded_clips import autocast
from .measuring import Networks, clip_features
from .part_files import PartFiles
from .processes import process_state
from .reconstruction_results import metric_entry
from .summaries import summarize_features
from .tables import write_results

if TYPE_CHECKING:
    from ..pipeline_adaptok import AdapTokPipeline

# Real videos whose features are one file.
REAL_CHUNK = 16


def evaluate_generation(
    pipeline: "AdapTokPipeline",
    source: VideoFiles,
    protocol: Protocol,
    output_dir: str | Path,
    *,
    num_videos: int,
    classes: Sequence[int | str] | None = None,
    networks: Networks | None = None,
    batch_size: int = 16,
    seed: int = 0,
    drawing: dict[str, Any] | None = None,
    paper: Sequence[dict] = (),
    model_name: str = "shipped",
) -> dict[str, Any] | None:
    """
    Generates videos of all classes in turn and writes `results.json`, `.csv`, `.md`, `per_video.csv` and pictures.
    Processes, interruptions and errors as in `evaluate_reconstruction`; which videos come out does not depend on the
    number of processes (it does on `batch_size`, the unit of work).

    Args:
        source: real videos (`draw_videos` gives as many windows as a protocol asks for).
        protocol: frames and windows of the real clips, guidance scale.
        num_videos: to generate over all classes.
        classes: names or ids; by default all that the generator knows.
        drawing: `temperature`, `top_k`, `top_p`, `budget` of `pipeline.generate`.

    Raises:
        ValueError: for a pipeline without a class-conditional generator, unknown classes, or fewer than 2 videos.
    """
    from ..pipeline_generation import class_id

    networks, state, output = networks or Networks(), process_state(), Path(output_dir)
    if pipeline.ar_model is None:
        raise ValueError("this pipeline has no class-conditional generator (ar_model)")
    if num_videos < 2:
        raise ValueError(f"at least 2 videos must be generated, got {num_videos}")
    check_clip_size(pipeline, protocol)
    known = range(pipeline.ar_model.config.num_classes) if classes is None else classes
    labels = [class_id(pipeline.ar_model, label) for label in known]
    labels = [labels[index % len(labels)] for index in range(num_videos)]
    drawing = {key: value for key, value in (drawing or {}).items() if value is not None}
    chunks = ClipChunks(source, protocol, REAL_CHUNK, seed)
    configuration = {
        "task": "generation",
        "protocol": protocol.hash,
        "data": chunks.identity,
        "model": f"{pipeline.model_hash[:12]} {tensors_sha256(pipeline.ar_model.state_dict())[:12]}",
        "classes": labels,
        "batch_size": batch_size,
        "drawing": drawing,
        "features": networks.features_key,
    }
    parts = PartFiles(output / "parts", configuration, state.is_main_process)
    state.wait_for_everyone()
    write_real_features(parts, chunks, networks, state)
    starts = list(range(0, num_videos, batch_size))
    for index in tqdm(starts[state.process_index :: state.num_processes], disable=not state.is_main_process):
        if parts.exists("generated", f"{index:06d}"):
            continue
        generator = torch.Generator().manual_seed(seed + index)
        with autocast(pipeline.device, protocol.precision):
            made = pipeline.generate(
                labels[index : index + batch_size],
                guidance_scale=protocol.guidance_scale,
                generator=generator,
                batch_size=batch_size,
                output_type="pt",
                **drawing,
            )
        rows = [
            {"label": label, "class": name, "seed": int(clip_seed), "token_counts": counts}
            for label, name, clip_seed, counts in zip(
                made.class_labels, made.class_names, made.seeds[:, 0], made.token_counts[:, 0].tolist(), strict=True
            )
        ]
        tensors = {"codes": made.codes[:, 0].to(torch.int32)}
        if networks.features is not None:
            tensors["features"] = clip_features(networks.features, made.frames, protocol.feature_size)
        if index == 0:
            tensors["videos"] = (made.frames[:8] * 255).round().to(torch.uint8)
        parts.write("generated", f"{index:06d}", rows=rows, tensors=tensors)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    files = [parts.read("generated", f"{index:06d}") for index in starts]
    rows = [{"video": i, **row} for i, row in enumerate(row for part, _ in files for row in part)]
    result = {"model": model_name, "strategy": "generated", "budget": drawing.get("budget"), "allocation_batch": None}
    result |= _token_statistics(pipeline, rows, torch.cat([tensors["codes"] for _, tensors in files]).long())
    metrics = {}
    if networks.features is not None:
        real, fake = read_real_features(parts, chunks), torch.cat([tensors["features"] for _, tensors in files])
        fvd = summarize_features(real, fake, networks.features, protocol, paired=False)
        metrics = {} if fvd is None else {"fvd": metric_entry(fvd)}
    report = {
        "task": "generation",
        "configuration_hash": parts.hash,
        "protocols": {protocol.hash: dataclasses.asdict(protocol)},
        "num_clips": len(rows),
        "num_videos": len(rows),
        "notes": [*networks.missing, f"{len(set(labels))} classes, {len(source.items)} real videos"],
        "results": [result | {"metrics": metrics}],
        "paper": list(paper),
    }
    write_results(output, report, rows)
    by_class: dict[str, list] = {}
    for row in rows:
        by_class.setdefault(row["class"], []).append(sum(row["token_counts"]))
    plots.plot_class_tokens(output / "tokens_per_class.png", by_class)
    _draw_sheet(output / "generated.png", files[0][1]["videos"], rows)
    return report


def _token_statistics(pipeline: "AdapTokPipeline", rows: list[dict], codes: torch.Tensor) -> dict[str, Any]:
    counts = torch.tensor([row["token_counts"] for row in rows])
    usage = CodebookUsage(pipeline.tokenizer.config.codebook_size, distributed_available_fn=lambda: False)
    usage.update(codes, counts)
    totals = counts.sum(1).double()
    classes: dict[str, list] = {}
    for row, total in zip(rows, totals.tolist(), strict=True):
        classes.setdefault(row["class"], []).append(total)
    return {
        "tokens_per_block": counts.double().mean().item(),
        "tokens_per_clip": totals.mean().item(),
        "tokens_per_clip_deviation": totals.std().item(),
        "tokens_per_block_position": counts.double().mean(0).tolist(),
        "codebook": {name: float(value) for name, value in usage.compute().items()},
        "tokens_of_classes": {
            name: {"mean": float(np.mean(v)), "min": min(v), "max": max(v), "videos": len(v)} for name, v in classes.items()
        },
    }


def _draw_sheet(path: Path, videos: torch.Tensor, rows: list[dict], num_given: int = 0) -> None:
    from ..reporting import contact_sheet

    captions = [f"{row.get('class', row['video'])}, {sum(row['token_counts'])} tokens" for row in rows[: len(videos)]]
    contact_sheet(videos.permute(0, 1, 3, 4, 2).numpy(), captions, num_given).save(path)


def check_clip_size(pipeline: "AdapTokPipeline", protocol: Protocol) -> None:
    config = pipeline.tokenizer.config
    if (config.num_frames, config.image_size) != (protocol.num_frames, protocol.image_size):
        raise ValueError(
            f"the model makes {config.num_frames} frames of {config.image_size} x {config.image_size}, the protocol "
            f"{protocol.name} has {protocol.num_frames} of {protocol.image_size} x {protocol.image_size}"
        )


def write_real_features(parts: PartFiles, chunks: ClipChunks, networks: Networks, state: PartialState) -> None:
    """Features of this process' share of the real clips."""
    if networks.features is None:
        return
    own = range(state.process_index, len(chunks), state.num_processes)
    for index in tqdm(own, desc="real", disable=not state.is_main_process):
        if not parts.exists("real", f"{index:05d}"):
            features = clip_features(networks.features, chunks.read(index).videos / 255, chunks.protocol.feature_size)
            parts.write("real", f"{index:05d}", rows=[], tensors={"features": features})


def read_real_features(parts: PartFiles, chunks: ClipChunks) -> torch.Tensor:
    return torch.cat([parts.read("real", f"{index:05d}")[1]["features"] for index in range(len(chunks))])
