"""Predicted frames against the true ones: FVD, and PSNR frame by frame, between a copy of the last given frame as baseline
and the true frames' own reconstruction as what decoding can reach."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data import VideoFiles
from ..metrics import Protocol, VideoPSNR
from ..metrics.weight_formats import tensors_sha256
from .clip_chunks import ClipChunks
from .encoded_clips import autocast, reconstruct_from_all_tokens
from .illustrations import draw_samples
from .measuring import Networks, check_clip_size, clip_features, measure_clips, sampling_settings
from .part_files import PartFiles
from .summaries import summarize_features, summarize_pairs
from .tables import write_report

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline

SYSTEMS = PREDICTED, DETAILED, COPIED, RECONSTRUCTED = (
    "predicted",
    "predicted, details kept",
    "last given frame",
    "reconstructed",
)
NUM_PICTURES = 6
MAX_PSNR = 100.0  # of equal frames


def evaluate_prediction(
    pipeline: "AdapTokPipeline",
    source: VideoFiles,
    protocol: Protocol,
    output_dir: str | Path,
    *,
    networks: Networks | None = None,
    sampling: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    paper: Sequence[dict] = (),
    model_name: str = "shipped",
) -> dict[str, Any] | None:
    """Continue every clip from its first frames and write `results.json`, `.csv`, `.md`, `per_video.csv` and pictures.

    The same is measured for predictions with `keep_details` (see `AdapTokPipeline.predict`), for a copy of the last given
    frame, and for the true frames decoded from all their tokens: what a perfect generator could reach with this tokenizer.
    PSNR, SSIM and LPIPS are over the frames that were NOT given; FVD over whole clips, the given frames as the model
    decodes them, or as they are where details are kept. Processes, interruptions and errors as in
    `evaluate_reconstruction`; `batch_size` is the unit of work.

    Args:
        protocol: `num_condition_frames` are given.
        sampling: `temperature`, `top_k`, `top_p` and `max_tokens`, see `AdapTokPipeline.predict`.

    Raises:
        ValueError: for a pipeline without a frame-prediction generator, or a protocol that gives it no frame.
    """
    networks, sampling = networks or Networks(), dict(sampling or {})
    num_given = protocol.num_condition_frames
    if pipeline.fp_model is None:
        raise ValueError("this pipeline has no frame-prediction generator (fp_model); the checkpoint 'figures' has")
    if not 1 <= num_given < protocol.num_frames:
        raise ValueError(f"num_condition_frames must lie in 1..{protocol.num_frames - 1}, got {num_given}")
    check_clip_size("the model", pipeline, protocol)
    chunks = ClipChunks(source, protocol, batch_size, seed)
    configuration = {
        "task": "prediction",
        "protocol": protocol.hash,
        "data": chunks.identity,
        "model": f"{pipeline.model_hash[:12]} {tensors_sha256(pipeline.fp_model.state_dict())[:12]}",
        "sampling": sampling_settings(pipeline.fp_model, sampling),
        "lpips": networks.lpips_key,
        "features": networks.features_key,
    }
    parts = PartFiles(Path(output_dir) / "parts", configuration)
    for index in parts.unfinished("clips", len(chunks)):
        _measure_chunk(pipeline, chunks, index, parts, networks, sampling, seed)
    parts.state.wait_for_everyone()
    if not parts.state.is_main_process:
        return None

    rows, tensors = parts.read_all("clips", len(chunks))
    if not rows:
        raise ValueError("no video could be measured: all were too short or could not be read")
    rows_of = {system: [row for row in rows if row["system"] == system] for system in SYSTEMS}
    results = [_summarize(system, rows_of[system], tensors, protocol, networks, model_name) for system in rows_of]
    num_later = protocol.num_frames - num_given
    notes = [*networks.missing, f"PSNR, SSIM, LPIPS over the {num_later} frames after the given {num_given}"]
    report = write_report(
        output_dir,
        rows,
        task="prediction",
        configuration_hash=parts.hash,
        protocols=[protocol],
        notes=notes,
        results=results,
        paper=paper,
        psnr_of_frames={
            system: torch.tensor([row["psnr_of_frames"] for row in rows], dtype=torch.float64).mean(0).tolist()
            for system, rows in rows_of.items()
        },
    )
    if "videos" in tensors[0]:  # unless no video of the first chunk could be read
        draw_samples(Path(output_dir) / "predicted.png", tensors[0]["videos"], rows_of[PREDICTED], num_given)
    return report


@torch.no_grad()
def _measure_chunk(
    pipeline: "AdapTokPipeline",
    chunks: ClipChunks,
    index: int,
    parts: PartFiles,
    networks: Networks,
    sampling: Mapping[str, Any],
    seed: int,
) -> None:
    from ..pipelines.kept_details import with_details
    from ..pipelines.pipeline_generation import sample_seeds, sampling_arguments

    protocol, clips = chunks.protocol, chunks.read(index)
    num_given = protocol.num_condition_frames
    rows, tensors = [], {}
    if len(clips):
        seeds = sample_seeds(len(clips), torch.Generator().manual_seed(seed + index))
        settings = sampling_arguments(*(sampling.get(name) for name in ("temperature", "top_k", "top_p")))
        settings |= {name: sampling.get(name) for name in ("max_tokens", "allowed_lengths")}
        with autocast(pipeline.device, protocol.precision):
            condition = pipeline.tokenize_condition(clips.videos, num_given)
            sequences = pipeline.fp_model.generate(condition_codes=condition, seeds=seeds, **settings)
            codes, counts = pipeline.fp_model.unpack_sequences(sequences, condition)
            predicted = pipeline.decode_clips(codes, counts)
            reconstructed = reconstruct_from_all_tokens(pipeline, clips.videos / 255).cpu() * 255
        token_counts = {
            PREDICTED: counts.tolist(),
            DETAILED: counts.tolist(),
            COPIED: torch.zeros_like(counts).tolist(),
            RECONSTRUCTED: torch.full_like(counts, pipeline.tokenizer.config.latents_per_block).tolist(),
        }
        frames = torch.arange(protocol.num_frames).clamp(max=num_given - 1)
        real = clips.videos / 255
        detailed = with_details(predicted, clips.videos[:, :num_given].cpu())
        shown = predicted, detailed, clips.videos[:, frames], reconstructed
        for system, videos in zip(SYSTEMS, shown, strict=True):
            fake = videos / 255
            numbers = measure_clips(networks, fake[:, num_given:], real[:, num_given:])
            each_frame = [video.flatten(0, 1).unsqueeze(1) for video in (fake, real)]  # a video of one frame each
            per_frame = VideoPSNR().measure(*each_frame).view(len(clips), -1).clamp(max=MAX_PSNR).tolist()
            for clip, values in enumerate(numbers):
                row = {"system": system, "video": clips.keys[clip], "first_frame": clips.starts[clip]}
                row |= {"token_counts": token_counts[system][clip], **values, "psnr_of_frames": per_frame[clip]}
                rows.append(row)
            if networks.features is not None:
                tensors[f"features {system}"] = clip_features(networks.features, fake, protocol.feature_size)
        if networks.features is not None:
            tensors["features real"] = clip_features(networks.features, real, protocol.feature_size)
        if index == 0:
            tensors["videos"] = predicted[:NUM_PICTURES]
    parts.write("clips", f"{index:05d}", rows=rows, tensors=tensors)


def _summarize(
    system: str, rows: list[dict], tensors: list[dict], protocol: Protocol, networks: Networks, model_name: str
) -> dict[str, Any]:
    metrics = summarize_pairs(rows, networks, protocol)
    if networks.features is not None:
        names = ("features real", f"features {system}")
        sides = [torch.cat([part[name] for part in tensors if name in part]) for name in names]
        metrics |= summarize_features(*sides, networks.features, protocol, paired=True)
    counts = [count for row in rows for count in row["token_counts"]]
    return {
        "model": model_name,
        "strategy": system,
        "budget": None,
        "allocation_batch": None,
        "tokens_per_block": sum(counts) / len(counts),
        "tokens_per_clip": sum(counts) / len(rows),
        "metrics": metrics,
    }
