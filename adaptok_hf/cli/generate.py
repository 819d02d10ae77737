"""`adaptok generate` and `adaptok predict`."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..checkpoints import DEFAULT_GENERATORS
from .common import (
    add_batch_size_option,
    add_json_option,
    add_model_options,
    add_resize_option,
    add_sampling_options,
    add_seed_option,
    add_verb,
    load_pipeline,
    sampling_arguments,
)
from .inputs import check_file
from .outputs import GENERATION_FILES, add_overwrite_option, output_folder
from .waiting import waiting

if TYPE_CHECKING:
    import torch

    from ..pipelines.pipeline_adaptok import AdapTokPipeline
    from ..pipelines.pipeline_generation import AdapTokGenerationOutput


def add_commands(verbs: Any) -> None:
    """Register the commands with the parser of `adaptok`."""
    verb = add_verb(
        verbs,
        "generate",
        "make videos of a class",
        "generate --class surfing",
        "generate --class surfing --class juggling --videos 2 --guidance 1.5 -o out",
        "info --classes          # lists the classes",
    )
    verb.add_argument(
        "--class", dest="class_labels", action="append", required=True, metavar="CLASS", help="name or id; may be repeated"
    )
    verb.add_argument("--videos", type=int, default=4, metavar="N", help="videos of each class (default: 4)")
    verb.add_argument(
        "--guidance", type=float, default=1.0, metavar="SCALE", help="classifier-free guidance (default: 1, none)"
    )
    verb.add_argument("--fps", type=float, default=24.0, help="of the videos written (default: 24)")
    verb.add_argument("-o", "--output", help="output folder (default: 'generated', in this folder)")
    add_overwrite_option(verb)
    add_json_option(verb)
    add_seed_option(verb)
    add_sampling_options(verb)
    add_model_options(verb, DEFAULT_GENERATORS)
    add_batch_size_option(verb)
    verb.set_defaults(run=_generate)

    verb = add_verb(
        verbs,
        "predict",
        "continue the first frames of a video",
        "predict clip.mp4",
        "predict clip.mp4 --condition-frames 5 --videos 2 --temperature 0.6 -o out",
    )
    verb.add_argument("video", help="a video file")
    verb.add_argument("--condition-frames", type=int, default=5, metavar="N", help="frames to start from (default: 5)")
    verb.add_argument("--rollouts", type=int, default=1, metavar="N", help="clips to predict in a row (default: 1)")
    verb.add_argument("--videos", type=int, default=1, metavar="N", help="different continuations (default: 1)")
    verb.add_argument(
        "--keep-details",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="show the given frames as they are, and what does not change as sharp as them (default), or all as decoded",
    )
    verb.add_argument("-o", "--output", help="output folder (default: VIDEO's name with '-predicted', in this folder)")
    add_overwrite_option(verb)
    add_json_option(verb)
    add_seed_option(verb)
    add_sampling_options(verb)
    add_resize_option(verb)
    add_model_options(verb, DEFAULT_GENERATORS)
    verb.set_defaults(run=_predict)


def _generate(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = sampling_arguments(arguments)
    settings |= {"num_videos_per_class": arguments.videos, "guidance_scale": arguments.guidance}
    request = {"model": arguments.model, "classes": arguments.class_labels, "seed": arguments.seed} | settings

    def run(pipeline: "AdapTokPipeline") -> "AdapTokGenerationOutput":
        options = settings | {"fps": arguments.fps, "batch_size": arguments.batch_size, "output_type": "uint8"}
        return pipeline.generate(arguments.class_labels, generator=_generator(arguments), **options)

    return _write(arguments, arguments.output or "generated", run, request)


def _predict(arguments: argparse.Namespace) -> dict[str, Any]:
    settings = sampling_arguments(arguments) | {
        "num_condition_frames": arguments.condition_frames,
        "num_rollouts": arguments.rollouts,
        "num_videos": arguments.videos,
        "keep_details": arguments.keep_details,
    }
    request = {"model": arguments.model, "video": Path(arguments.video).name, "seed": arguments.seed} | settings

    def run(pipeline: "AdapTokPipeline") -> "AdapTokGenerationOutput":
        options = settings | {"resize_mode": arguments.resize, "output_type": "uint8"}
        return pipeline.predict(arguments.video, generator=_generator(arguments), **options)

    return _write(arguments, arguments.output or f"{Path(arguments.video).stem}-predicted", run, request, arguments.video)


def _generator(arguments: argparse.Namespace) -> "torch.Generator":
    import torch

    return torch.Generator().manual_seed(arguments.seed)


def _write(arguments: argparse.Namespace, folder: str, run: Callable, request: dict[str, Any], *videos: str) -> dict:
    """Load the pipeline, run it, and write what it returns; return the report."""
    inputs = [*videos, arguments.model]
    with output_folder(folder, GENERATION_FILES, *inputs, overwrite=arguments.overwrite) as folder:
        for video in videos:
            check_file(video)
        pipeline = load_pipeline(arguments.model, arguments.device, arguments.dtype)
        from .reports import write_generation

        with waiting("generating"):
            report = write_generation(folder, run(pipeline), pipeline, request)
        _print_report(folder, report)
    return {"folder": str(folder)} | report


def _print_report(folder: Path, report: dict) -> None:
    tokens = [video["tokens"] for video in report["videos"]]
    blocks = sum(len(video["token_counts"]) for video in report["videos"])
    print(
        f"{len(tokens)} videos of {report['frames']} frames: {min(tokens)} to {max(tokens)} tokens each, "
        f"{sum(tokens) / blocks:.1f} per block"
    )
    names = [video["file"] for video in report["videos"]]
    print(f"wrote {folder}/: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}, contact_sheet.png, report.json")
