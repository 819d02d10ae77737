"""Predicted frames against what came: FVD at the protocol's size, and PSNR frame by frame beside a copy of the last one."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from tqdm.auto import tqdm

from ..data import VideoFiles
from ..figures import plots
from ..metrics import Protocol
from ..metrics.weight_formats import tensors_sha256
from .clip_chunks import ClipChunks
from .encoded_clips import autocast
from .generation import _draw_sheet, check_clip_size
from .measuring import Networks, clip_features, measure_clips
from .part_files import PartFiles
from .processes import process_state
from .reconstruction_results import metric_entry
from .summaries import METRIC_NAMES, bootstrap_means, interval, summarize_clips, summarize_features
from .tables import write_results

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline

PREDICTED, COPIED = "predicted", "last given frame"


def evaluate_prediction(
    pipeline: "AdapTokPipeline",
    source: VideoFiles,
    protocol: Protocol,
    output_dir: str | Path,
    *,
    networks: Networks | None = None,
    batch_size: int = 16,
    seed: int = 0,
    sampling: dict[str, Any] | None = None,
    paper: Sequence[dict] = (),
    model_name: str = "shipped",
) -> dict[str, Any] | None:
    """
    Goes on from the first frames of every clip and writes `results.json`, `.csv`, `.md`, `per_video.csv` and pictures, for
    the model and for a copy of the last given frame. PSNR, SSIM and LPIPS are over the frames that were NOT given; FVD over
    whole clips, the given frames as the model decodes them. Processes, interruptions and errors as in
    `evaluate_reconstruction`; `batch_size` is the unit of work.

    Args:
        protocol: `num_condition_frames` are given.
        sampling: `temperature`, `top_k`, `top_p`, `max_tokens` of `pipeline.predict`.

    Raises:
        ValueError: for a pipeline without a frame-prediction generator, or a protocol that gives it no frame.
    """
    networks, state, output = networks or Networks(), process_state(), Path(output_dir)
    given, sampling = protocol.num_condition_frames, {k: v for k, v in (sampling or {}).items() if v is not None}
    if pipeline.fp_model is None:
        raise ValueError("this pipeline has no frame-prediction generator (fp_model)")
    if not 1 <= given < protocol.num_frames:
        raise ValueError(f"num_condition_frames must lie in 1..{protocol.num_frames - 1}, got {given}")
    check_clip_size(pipeline, protocol)
    chunks = ClipChunks(source, protocol, batch_size, seed)
    configuration = {
        "task": "prediction",
        "protocol": protocol.hash,
        "data": chunks.identity,
        "model": f"{pipeline.model_hash[:12]} {tensors_sha256(pipeline.fp_model.state_dict())[:12]}",
        "sampling": sampling,
        "lpips": networks.lpips_key,
        "features": networks.features_key,
    }
    parts = PartFiles(output / "parts", configuration, state.is_main_process)
    state.wait_for_everyone()
    own = range(state.process_index, len(chunks), state.num_processes)
    for index in tqdm(own, desc="clips", disable=not state.is_main_process):
        if not parts.exists("clips", f"{index:05d}"):
            _measure_chunk(pipeline, chunks, index, parts, networks, sampling, seed)
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    files = [parts.read("clips", f"{index:05d}") for index in range(len(chunks))]
    rows = [row for part, _ in files for row in part]
    if not rows:
        raise ValueError("no video could be measured: all were too short or could not be read")
    results, curves = [], {}
    for system in (PREDICTED, COPIED):
        of_system = [row for row in rows if row["system"] == system]
        results.append(_summarize(system, of_system, files, protocol, networks, model_name))
        curves[system] = _curve(of_system)
    report = {
        "task": "prediction",
        "configuration_hash": parts.hash,
        "protocols": {protocol.hash: dataclasses.asdict(protocol)},
        "num_clips": len(rows) // 2,
        "num_videos": len({row["video"] for row in rows}),
        "notes": [
            *networks.missing,
            f"PSNR, SSIM, LPIPS over the {protocol.num_frames - given} frames after the given {given}",
        ],
        "results": results,
        "psnr_of_frames": {name: curve.tolist() for name, curve in curves.items()},
        "paper": list(paper),
    }
    write_results(output, report, rows)
    plots.plot_horizon(output / "psnr_over_frames.png", curves, given, "PSNR (dB)")
    sheet = next(tensors["videos"] for _, tensors in files if "videos" in tensors)
    _draw_sheet(output / "predicted.png", sheet, [row for row in rows if row["system"] == PREDICTED], given)
    return report


@torch.no_grad()
def _measure_chunk(
    pipeline: "AdapTokPipeline",
    chunks: ClipChunks,
    index: int,
    parts: PartFiles,
    networks: Networks,
    sampling: dict[str, Any],
    seed: int,
) -> None:
    from ..pipelines.pipeline_generation import sample_seeds, sampling_arguments

    protocol = chunks.protocol
    given, clips = protocol.num_condition_frames, chunks.read(index)
    rows, tensors = [], {}
    if len(clips):
        seeds = sample_seeds(len(clips), torch.Generator().manual_seed(seed + index))
        how = {name: sampling.get(name) for name in ("temperature", "top_k", "top_p")}
        with autocast(pipeline.device, protocol.precision):
            condition = pipeline.tokenize_condition(clips.videos, given)
            settings = sampling_arguments(**how) | {"max_tokens": sampling.get("max_tokens")}
            sequences = pipeline.fp_model.generate(condition_codes=condition, seeds=seeds, **settings)
            codes, counts = pipeline.fp_model.unpack_sequences(sequences, condition)
            predicted = pipeline.decode_clips(codes, counts)
        frames = torch.arange(protocol.num_frames).clamp(max=given - 1)
        systems = {PREDICTED: predicted, COPIED: clips.videos[:, frames]}
        for system, videos in systems.items():
            fake, real = videos / 255, clips.videos / 255
            numbers = measure_clips(networks, fake[:, given:], real[:, given:])
            error = (fake.double() - real.double()).square().mean(dim=(2, 3, 4))
            per_frame = (-10 * error.clamp_min(1e-10).log10()).tolist()  # equal frames: 100 dB
            for clip, values in enumerate(numbers):
                chosen = counts[clip].tolist() if system == PREDICTED else [0] * counts.shape[1]
                row = {"system": system, "video": clips.keys[clip], "first_frame": clips.starts[clip]}
                rows.append(row | {"token_counts": chosen, **values, "psnr_of_frames": per_frame[clip]})
            if networks.features is not None:
                tensors[f"features {system}"] = clip_features(networks.features, fake, protocol.feature_size)
        if networks.features is not None:
            tensors["features real"] = clip_features(networks.features, clips.videos / 255, protocol.feature_size)
        if index == 0:
            tensors["videos"] = predicted[:6]
    parts.write("clips", f"{index:05d}", rows=rows, tensors=tensors)


def _summarize(
    system: str, rows: list[dict], files: list, protocol: Protocol, networks: Networks, model_name: str
) -> dict[str, Any]:
    videos, metrics = [row["video"] for row in rows], {}
    for name in ("psnr", "ssim", "lpips"):
        if name in rows[0]:
            label, sha = METRIC_NAMES[name], None
            if name == "lpips":
                label += f" ({getattr(networks.lpips, 'net', type(networks.lpips).__name__)})"
                sha = tensors_sha256(networks.lpips.state_dict())
            metrics[name] = summarize_clips(label, [row[name] for row in rows], videos, protocol, sha)
    if networks.features is not None:
        sides = []
        for side in ("real", system):
            sides.append(torch.cat([t[f"features {side}"] for _, t in files if f"features {side}" in t]))
        fvd = summarize_features(*sides, networks.features, protocol, paired=True)
        metrics |= {} if fvd is None else {"fvd": fvd}
    counts = [count for row in rows for count in row["token_counts"]]
    return {
        "model": model_name,
        "strategy": system,
        "budget": None,
        "allocation_batch": None,
        "tokens_per_block": sum(counts) / len(counts),
        "tokens_per_clip": sum(counts) / len(rows),
        "metrics": {name: metric_entry(metric) for name, metric in metrics.items()},
    }


def _curve(rows: list[dict]) -> np.ndarray:
    """(frames, 3): mean PSNR of each frame with its interval (the mean thrice for one video)."""
    values = torch.tensor([row["psnr_of_frames"] for row in rows], dtype=torch.float64)
    videos = [row["video"] for row in rows]
    means = values.mean(0)
    if len(set(videos)) < 2:
        return torch.stack([means] * 3, dim=1).numpy()
    resampled = bootstrap_means(values, videos)
    ends = torch.tensor([interval(column) for column in resampled.T])
    return torch.cat([means[:, None], ends], dim=1).numpy()
