"""Generated videos against real ones: FVD with its floor, whether they are of their class, and how many tokens the
generator spends on each class."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from accelerate import PartialState
from tqdm.auto import tqdm

from ..data import VideoFiles
from ..figures import plots
from ..metrics import CodebookUsage, Protocol
from ..metrics.weight_formats import tensors_sha256
from .class_accuracy import (
    LabelledFeatures,
    check_training_videos,
    measure_class_accuracy,
    pixel_features,
    with_class_ids,
)
from .clip_chunks import ClipChunks
from .encoded_clips import autocast
from .measuring import Networks, clip_features
from .part_files import PartFiles
from .processes import process_state
from .reconstruction_results import metric_entry
from .summaries import summarize_features
from .tables import write_results

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline

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
    classifier_source: VideoFiles | None = None,
    classifier_features: Literal["pixels", "network"] = "pixels",
    batch_size: int = 16,
    seed: int = 0,
    sampling: dict[str, Any] | None = None,
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
        classifier_source (*optional*): labelled real videos, other than `source`, that a small classifier learns from. Its
            accuracy on generated videos is then reported as `class_accuracy`, beside that on `source`, which needs labels,
            as they are and as the tokenizer reconstructs them.
        classifier_features: what the classifier sees: small pictures, which tell classes that differ in where colours are,
            or the network's features, which cost the network's time for every training clip.
        sampling: `temperature`, `top_k`, `top_p`, `max_tokens` of `pipeline.generate`.

    Raises:
        ValueError: for a pipeline without a class-conditional generator, unknown classes, or fewer than 2 videos; for real
            videos without a class, of classes that the generator does not know, or classes that the classifier has no
            videos of.
    """
    from ..pipelines.pipeline_generation import class_id

    networks, state, output = networks or Networks(), process_state(), Path(output_dir)
    if pipeline.ar_model is None:
        raise ValueError("this pipeline has no class-conditional generator (ar_model)")
    if num_videos < 2:
        raise ValueError(f"at least 2 videos must be generated, got {num_videos}")
    check_clip_size(pipeline, protocol)
    known = range(pipeline.ar_model.config.num_classes) if classes is None else classes
    labels = [class_id(pipeline.ar_model, label) for label in known]
    labels = [labels[index % len(labels)] for index in range(num_videos)]
    sampling = {key: value for key, value in (sampling or {}).items() if value is not None}
    training = None
    if classifier_source is not None:
        _check_classifier_features(classifier_features, networks)
        source, classifier_source = (with_class_ids(videos, pipeline.ar_model) for videos in (source, classifier_source))
        check_training_videos(classifier_source, source, labels, _class_names(pipeline))
        training = ClipChunks(classifier_source, protocol, REAL_CHUNK, seed)
    chunks = ClipChunks(source, protocol, REAL_CHUNK, seed)
    configuration = {
        "task": "generation",
        "protocol": protocol.hash,
        "data": chunks.identity,
        "model": f"{pipeline.model_hash[:12]} {tensors_sha256(pipeline.ar_model.state_dict())[:12]}",
        "classes": labels,
        "batch_size": batch_size,
        "sampling": sampling,
        "features": networks.features_key,
    }
    if training is not None:
        configuration["classifier"] = {
            "data": training.identity,
            "features": classifier_features,
            "labels": [_hash([item.label for item in of.source.items]) for of in (training, chunks)],
        }
    parts = PartFiles(output / "parts", configuration, state.is_main_process)
    state.wait_for_everyone()
    pixels = training is not None and classifier_features == "pixels"
    write_real_features(parts, "real", chunks, networks.features, pixels, state)
    if training is not None:
        seeing = None if pixels else networks.features
        write_real_features(parts, "training", training, seeing, pixels, state)
        write_real_features(parts, "reconstructed", chunks, seeing, pixels, state, pipeline)
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
                **sampling,
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
        if pixels:
            tensors["pixels"] = pixel_features(made.frames)
        if index == 0:
            tensors["videos"] = (made.frames[:8] * 255).round().to(torch.uint8)
        parts.write("generated", f"{index:06d}", rows=rows, tensors=tensors)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    files = [parts.read("generated", f"{index:06d}") for index in starts]
    rows = [{"video": i, **row} for i, row in enumerate(row for part, _ in files for row in part)]
    result = {"model": model_name, "strategy": "generated", "budget": None, "allocation_batch": None}
    result |= _token_statistics(pipeline, rows, torch.cat([tensors["codes"] for _, tensors in files]).long())
    metrics = {}
    if networks.features is not None:
        real = read_real_features(parts, "real", chunks)[1]["features"]
        fake = torch.cat([tensors["features"] for _, tensors in files])
        fvd = summarize_features(real, fake, networks.features, protocol, paired=False)
        metrics = {} if fvd is None else {"fvd": metric_entry(fvd)}
    if training is not None:
        name = "pixels" if pixels else "features"
        metrics["class_accuracy"], predicted = measure_class_accuracy(
            _labelled(*read_real_features(parts, "training", training), name),
            _labelled(*read_real_features(parts, "real", chunks), name),
            _labelled(*read_real_features(parts, "reconstructed", chunks), name),
            _labelled(rows, {name: torch.cat([tensors[name] for _, tensors in files])}, name),
            _class_names(pipeline),
            protocol,
            "pixels" if pixels else type(networks.features).__name__,
            None if pixels else tensors_sha256(networks.features.state_dict()),
        )
        metrics["class_accuracy"]["classifier"] = _hash(configuration["classifier"])
        for row, label in zip(rows, predicted, strict=True):
            row["classified_as"] = pipeline.ar_model.config.id2label[label]
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
    from ..figures.contact_sheets import contact_sheet

    captions = [f"{row.get('class', row['video'])}, {sum(row['token_counts'])} tokens" for row in rows[: len(videos)]]
    contact_sheet(videos.permute(0, 1, 3, 4, 2).numpy(), captions, num_given).save(path)


def check_clip_size(pipeline: "AdapTokPipeline", protocol: Protocol) -> None:
    config = pipeline.tokenizer.config
    if (config.num_frames, config.image_size) != (protocol.num_frames, protocol.image_size):
        raise ValueError(
            f"the model makes {config.num_frames} frames of {config.image_size} x {config.image_size}, the protocol "
            f"{protocol.name} has {protocol.num_frames} of {protocol.image_size} x {protocol.image_size}"
        )


def write_real_features(
    parts: PartFiles,
    name: str,
    chunks: ClipChunks,
    network: torch.nn.Module | None,
    pixels: bool,
    state: PartialState,
    pipeline: "AdapTokPipeline | None" = None,
) -> None:
    """Features of this process' share of the real clips, by the network and of their pixels where they are wanted; with a
    pipeline, of what it decodes from all tokens of the clips."""
    if network is None and not pixels:
        return
    own = range(state.process_index, len(chunks), state.num_processes)
    for index in tqdm(own, desc=name, disable=not state.is_main_process):
        if parts.exists(name, f"{index:05d}"):
            continue
        clips = chunks.read(index)
        videos, tensors = clips.videos / 255, {}
        if pipeline is not None and len(clips):
            with torch.no_grad(), autocast(pipeline.device, chunks.protocol.precision):
                codes = pipeline.tokenizer.encode(videos.to(pipeline.device)).codes
                videos = pipeline.tokenizer.decode(codes).pixel_values_videos.float().clamp(0, 1)
        if network is not None:
            tensors["features"] = clip_features(network, videos, chunks.protocol.feature_size)
        if pixels:
            tensors["pixels"] = pixel_features(videos)
        rows = [{"video": key, "label": label} for key, label in zip(clips.keys, clips.labels, strict=True)]
        parts.write(name, f"{index:05d}", rows=rows, tensors=tensors)


def read_real_features(parts: PartFiles, name: str, chunks: ClipChunks) -> tuple[list[dict], dict[str, torch.Tensor]]:
    """`video` and `label` of every clip, and what `write_real_features` took of them, (clips, D) each."""
    files = [parts.read(name, f"{index:05d}") for index in range(len(chunks))]
    columns = {key: torch.cat([tensors[key] for _, tensors in files]) for key in files[0][1]}
    return [row for rows, _ in files for row in rows], columns


def _labelled(rows: list[dict], tensors: dict[str, torch.Tensor], name: str) -> LabelledFeatures:
    return LabelledFeatures(tensors[name], [row["label"] for row in rows], [str(row["video"]) for row in rows])


def _class_names(pipeline: "AdapTokPipeline") -> list[str]:
    config = pipeline.ar_model.config
    return [config.id2label[label] for label in range(config.num_classes)]


def _check_classifier_features(wanted: str, networks: Networks) -> None:
    if wanted not in ("pixels", "network"):
        raise ValueError(f"classifier_features must be 'pixels' or 'network', got {wanted!r}")
    if wanted == "network" and networks.features is None:
        raise ValueError("classifier_features='network' needs the network of FVD, which is left out here")


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
