"""Write the results of `adaptok reconstruct`, `generate` and `predict`: videos, pictures that show them, and numbers."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..atomic_files import files_together, write_json
from ..figures.contact_sheets import contact_sheet, side_by_side
from ..figures.plots import plot_tokens
from ..metrics import VideoPSNR, VideoSSIM
from ..video.video_writing import write_video
from .outputs import check_folder

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline, AdapTokPipelineOutput
    from ..pipelines.pipeline_generation import AdapTokGenerationOutput


def write_report(
    folder: str | os.PathLike, output: "AdapTokPipelineOutput", pipeline: "AdapTokPipeline", request: dict[str, Any]
) -> dict[str, Any]:
    """Write `reconstruction.mp4`, `side_by_side.mp4`, `tokens.png` and `report.json` into `folder`, once all are complete.

    Args:
        folder: created if it does not exist. Files of these names in it are replaced.
        output: what `pipeline.reconstruct` returned, with `output_type="uint8"`.
        request: the arguments of the call, kept in the report.

    Returns:
        The report, as in `report.json`.

    Raises: see `check_folder`.
    """
    folder = check_folder(folder)
    tokens = output.tokens
    frames_per_block = pipeline.tokenizer.config.tubelet_size
    quality = measure(output, frames_per_block)
    num_blocks = tokens.num_blocks
    # of clips that overlap, and of tiles, one number for each block of time
    counts = tokens.counts_over_time()[: -(-tokens.num_frames // frames_per_block)].round().int().tolist()
    maximum = tokens.codes.shape[2]
    report = {
        "request": request,
        "frames": tokens.num_frames,
        "fps": tokens.fps,
        "seconds_of_video": tokens.seconds,
        "source_size": list(tokens.source_size),
        "model_size": list(output.original.shape[2:4]),
        "output_size": list(output.frames.shape[2:4]),
        "resize_mode": tokens.resize_mode,
        "tiles": len(tokens.tiles) if tokens.tiles else 1,
        "overlap_blocks": tokens.overlap_blocks,
        "blocks": num_blocks,
        "latents_per_block": maximum,
        "allocation": tokens.allocation,
        "tokens": tokens.num_tokens,
        "tokens_per_block": tokens.num_tokens / num_blocks,
        "token_counts": counts,
        "tokens_per_second": tokens.tokens_per_second,
        "bits_per_second": tokens.bits_per_second,
        "psnr_db": quality["psnr"],
        "ssim": quality["ssim"],
        "psnr_db_per_block": quality["psnr_per_block"],
        "stage_seconds": {stage: round(value, 4) for stage, value in output.seconds.items()},
        "model_hash": tokens.model_hash,
        "device": str(pipeline.device),
        "dtype": tokens.dtype,
    }
    with files_together(folder) as partial:
        write_video(partial / "reconstruction.mp4", output.frames[0], tokens.fps, tokens.timestamps)
        if tokens.num_frames == 1:
            write_video(partial / "reconstruction.png", output.frames[0], tokens.fps)
        frames = side_by_side(_at_model_size(output), output.original[0], counts, maximum, frames_per_block)
        write_video(partial / "side_by_side.mp4", frames, tokens.fps, tokens.timestamps)
        plot_tokens(partial / "tokens.png", report, tokens.timestamps[::frames_per_block])
        write_json(partial / "report.json", report)
    return report


def _at_model_size(output: "AdapTokPipelineOutput") -> np.ndarray:
    """Return the reconstruction at the size of `output.original`; squashed videos got their proportions back."""
    if output.frames.shape == output.original.shape:
        return output.frames[0]
    frames = torch.from_numpy(output.frames[0]).permute(0, 3, 1, 2)
    frames = torch.nn.functional.interpolate(frames, output.original.shape[2:4], mode="bilinear", antialias=True)
    return frames.permute(0, 2, 3, 1).numpy()


def measure(output: "AdapTokPipelineOutput", frames_per_block: int) -> dict[str, Any]:
    """Return PSNR in dB over the whole video and per block, and the mean SSIM of the frames, at the model's size."""
    pair = (_at_model_size(output), output.original[0])
    # a strip that is thinner than SSIM's window of 11 pixels is filled up with copies of its edge
    fill = [(0, 0), *((0, max(11 - length, 0)) for length in pair[0].shape[1:3]), (0, 0)]
    pair = [torch.from_numpy(np.pad(frames, fill, mode="edge")).permute(0, 3, 1, 2)[None] for frames in pair]
    # block by block, because a video may be long
    blocks = list(zip(*(frames.split(frames_per_block, dim=1) for frames in pair), strict=True))
    lengths = torch.tensor([original.shape[1] for _, original in blocks]) / pair[0].shape[1]
    psnr, ssim = (
        torch.cat([metric.measure(decoded / 255, original / 255) for decoded, original in blocks])
        for metric in (VideoPSNR(), VideoSSIM())
    )
    return {
        "psnr": _finite(-10 * (lengths * 10 ** (-psnr / 10)).sum().log10()),
        "ssim": round(float((lengths * ssim).sum()), 4),
        "psnr_per_block": [_finite(value) for value in psnr],
    }


def _finite(decibel: torch.Tensor) -> float:
    """Return at most 100 dB: identical pictures have infinite PSNR, which JSON does not have."""
    return round(min(float(decibel), 100.0), 3)


def write_generation(
    folder: str | os.PathLike, output: "AdapTokGenerationOutput", pipeline: "AdapTokPipeline", request: dict[str, Any]
) -> dict[str, Any]:
    """Write each generated video as an mp4, `contact_sheet.png` and `report.json` into `folder`.

    Args:
        folder: as in `write_report`.
        output: what `pipeline.generate` or `pipeline.predict` returned, with `output_type="uint8"`.
        request: the arguments of the call, kept in the report.

    Returns:
        The report, as in `report.json`; `videos` lists the file, class, seeds and token counts of each.
    """
    folder = check_folder(folder)
    names = output.class_names or ["prediction"] * len(output.frames)
    videos = []
    for index, name in enumerate(names):
        videos.append(
            {
                "file": f"{index:03d}_{_file_name(name)}.mp4",
                "class_name": name if output.class_names else None,
                "class_label": output.class_labels[index] if output.class_labels else None,
                "seeds": output.seeds[index].tolist(),
                "token_counts": output.token_counts[index].flatten().tolist(),
                "tokens": int(output.token_counts[index].sum()),
            }
        )
    report = {
        "request": request,
        "frames": output.frames.shape[1],
        "condition_frames": output.num_condition_frames,
        "fps": output.fps,
        "device": str(pipeline.device),
        "dtype": str(pipeline.dtype).removeprefix("torch."),
        "videos": videos,
    }
    with files_together(folder) as partial:
        for video, frames in zip(videos, output.frames, strict=True):
            write_video(partial / video["file"], frames, output.fps)
        captions = [f"{name}, {video['tokens']} tokens" for name, video in zip(names, videos, strict=True)]
        contact_sheet(output.frames, captions, output.num_condition_frames).save(partial / "contact_sheet.png")
        write_json(partial / "report.json", report)
    return report


def _file_name(text: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in text.lower())
