"""`adaptok <verb>`: the pipeline from the command line.

Exit codes: 0, or 2 with one line on standard error for anything that the user can mend.
"""

import argparse
import json
import sys
from pathlib import Path

from .. import __version__
from . import evaluate, export, stream


def main(argv: list[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except (ValueError, OSError) as error:
        print(f"adaptok: error: {_one_line(error)}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("adaptok: interrupted", file=sys.stderr)
        return 130
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="adaptok", description="Adaptive, temporally causal video tokens.")
    parser.add_argument("--version", action="version", version=f"adaptok_hf {__version__}")
    verbs = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    verb = verbs.add_parser("reconstruct", help="encode a video on a token budget, decode it, and show what it did")
    verb.add_argument("video", help="a video file")
    verb.add_argument("-o", "--output", help="output folder (default: VIDEO's name with '-adaptok', in this folder)")
    _add_allocation(verb)
    _add_model(verb)
    _add_memory(verb)
    verb.set_defaults(run=_reconstruct)

    verb = verbs.add_parser("tokenize", help="write a video as a tokens file")
    verb.add_argument("video", help="a video file")
    verb.add_argument("-o", "--output", help="tokens file (default: VIDEO's name with .safetensors, in this folder)")
    _add_allocation(verb)
    _add_model(verb)
    _add_memory(verb)
    verb.set_defaults(run=_tokenize)

    verb = verbs.add_parser("detokenize", help="turn a tokens file back into a video")
    verb.add_argument("tokens", help="a file that 'adaptok tokenize' wrote")
    verb.add_argument("-o", "--output", help="mp4 file (default: TOKENS' name with .mp4, in this folder)")
    _add_model(verb)
    _add_memory(verb)
    verb.set_defaults(run=_detokenize)

    verb = verbs.add_parser("generate", help="make videos of a class")
    verb.add_argument(
        "--class", dest="class_labels", action="append", required=True, metavar="CLASS", help="name or id; may be repeated"
    )
    verb.add_argument("--videos", type=int, default=4, metavar="N", help="videos of each class (default: 4)")
    verb.add_argument(
        "--guidance", type=float, default=1.0, metavar="SCALE", help="classifier-free guidance (default: 1, none)"
    )
    verb.add_argument("--fps", type=float, default=24.0, help="of the videos written (default: 24)")
    verb.add_argument("-o", "--output", help="output folder (default: 'generated', in this folder)")
    _add_drawing(verb)
    _add_model(verb)
    verb.set_defaults(run=_generate)

    verb = verbs.add_parser("predict", help="go on from the first frames of a video")
    verb.add_argument("video", help="a video file")
    verb.add_argument("--condition-frames", type=int, default=5, metavar="N", help="frames that are given (default: 5)")
    verb.add_argument(
        "--rollouts", type=int, default=1, metavar="N", help="clips to predict one after the other (default: 1)"
    )
    verb.add_argument("--videos", type=int, default=1, metavar="N", help="different continuations (default: 1)")
    verb.add_argument("-o", "--output", help="output folder (default: VIDEO's name with '-predicted', in this folder)")
    verb.add_argument("--resize", choices=["crop", "squash"], help="as in reconstruct")
    _add_drawing(verb)
    _add_model(verb)
    verb.set_defaults(run=_predict)

    evaluate.add_commands(verbs)
    stream.add_commands(verbs)
    export.add_commands(verbs)

    verb = verbs.add_parser("convert", help="convert a checkpoint of the original code")
    verb.add_argument("source", help="folder or Hub id (config.json + model.safetensors), or a training checkpoint (.pth)")
    verb.add_argument("destination", help="folder to write; must not exist or be empty")
    verb.add_argument("--ema", type=float, help="take this exponential average from a training checkpoint")
    verb.set_defaults(run=_convert)

    verb = verbs.add_parser("info", help="print versions, device and the checkpoint's geometry")
    verb.add_argument("--json", action="store_true", help="as JSON")
    _add_model(verb)
    verb.set_defaults(run=_info)
    return parser


def _add_allocation(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group(
        "allocation", "give one of --budget, --price, --threshold; without, all tokens are kept"
    )
    group.add_argument("--budget", help="average tokens per block (such as 64), or a percentage of all (such as 25%%)")
    group.add_argument("--price", type=float, help="loss that a token must save to be kept (strategy quality)")
    group.add_argument("--threshold", type=float, help="loss that every block must undercut (strategy threshold)")
    group.add_argument(
        "--allocation",
        metavar="STRATEGY",
        help="fixed, bithr, bidelta, ipal, joint, quality, threshold, or measured: joint with losses that are measured by "
        "decoding at every level (default: joint for a budget)",
    )
    verb.add_argument(
        "--resize",
        choices=["crop", "squash"],
        help="crop the centre square (default), or squeeze the whole picture and restore its proportions afterwards",
    )


def _add_drawing(verb: argparse.ArgumentParser) -> None:
    group = verb.add_argument_group("drawing", "how tokens are drawn; default: what the model's folder says")
    group.add_argument("--seed", type=int, default=0, help="the same seed gives the same videos (default: 0)")
    group.add_argument("--temperature", type=float, help="0 takes the likeliest token")
    group.add_argument("--top-k", type=int, metavar="K", help="draw from the K likeliest; 0: from all")
    group.add_argument(
        "--top-p", type=float, metavar="P", help="draw from the likeliest that have this probability together"
    )
    group.add_argument("--budget", type=float, help="the most tokens to write, as an average per block")


def _add_model(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--model", metavar="FOLDER", help="pipeline folder or Hub id (default: the checkpoint in the package)"
    )
    verb.add_argument("--device", help="such as cpu or cuda (default: cuda if there is one)")
    verb.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    verb.add_argument("--batch-size", type=int, default=8, metavar="N", help="clips encoded together (default: 8)")


def _add_memory(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "--max-memory",
        metavar="SIZE",
        help="most memory for clips worked on together, such as 2GiB (default: half of the free)",
    )


def _memory(arguments: argparse.Namespace) -> dict:
    return {"batch_size": arguments.batch_size, "max_memory": arguments.max_memory}


def _allocation(arguments: argparse.Namespace) -> dict:
    given = {name: getattr(arguments, name) for name in ("budget", "price", "threshold", "allocation")}
    if sum(given[name] is not None for name in ("budget", "price", "threshold")) > 1:
        raise ValueError("give only one of --budget, --price and --threshold")
    return given


def _load(arguments: argparse.Namespace):
    import torch
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    from ..pipelines.pipeline_adaptok import SHIPPED_CHECKPOINT, AdapTokPipeline

    transformers_logging.disable_progress_bar()
    diffusers_logging.disable_progress_bar()
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = str(SHIPPED_CHECKPOINT if arguments.model is None else arguments.model)
    try:
        pipeline = AdapTokPipeline.from_pretrained(name, dtype=getattr(torch, arguments.dtype)).to(device)
    except Exception as error:  # diffusers, safetensors and torch each raise their own kind
        raise ValueError(f"cannot load the model {name}: {_one_line(error)}") from error
    pipeline.set_progress_bar_config(disable=not sys.stderr.isatty())
    return pipeline


def _reconstruct(arguments: argparse.Namespace) -> None:
    from .reports import check_folder, write_report

    request = _allocation(arguments)
    folder = check_folder(arguments.output or f"{Path(arguments.video).stem}-adaptok")
    pipeline = _load(arguments)
    output = pipeline.reconstruct(arguments.video, resize_mode=arguments.resize, **_memory(arguments), **request)
    request = {"video": Path(arguments.video).name, "model": arguments.model or "shipped"} | request
    report = write_report(folder, output, pipeline, request)
    print(
        f"{report['frames']} frames, {report['blocks']} blocks: {report['tokens']} tokens "
        f"({report['tokens_per_block']:.1f} per block, {report['bits_per_second'] / 1000:.1f} kbit/s), "
        f"PSNR {report['psnr_db']:.2f} dB, SSIM {report['ssim']:.3f}"
    )
    source, size = report["source_size"], report["output_size"]
    if size != source:
        print(f"the input is {source[1]}x{source[0]}; the output is {size[1]}x{size[0]} ({report['resize_mode']})")
    print(f"wrote {folder}/: reconstruction.mp4, side_by_side.mp4, tokens.png, report.json")


def _tokenize(arguments: argparse.Namespace) -> None:
    from .reports import check_file

    output = check_file(arguments.output or f"{Path(arguments.video).stem}.safetensors", ".safetensors")
    request = _allocation(arguments)
    pipeline = _load(arguments)
    tokens = pipeline.tokenize(arguments.video, resize_mode=arguments.resize, **_memory(arguments), **request)
    tokens.save(output)
    print(
        f"wrote {output}: {tokens.num_frames} frames, {tokens.num_tokens} tokens, "
        f"{tokens.bits_per_second / 1000:.1f} kbit/s"
    )


def _detokenize(arguments: argparse.Namespace) -> None:
    from ..video.tokenized_video import TokenizedVideo
    from ..video.video_writing import write_video
    from .reports import check_file

    output = check_file(arguments.output or f"{Path(arguments.tokens).stem}.mp4", ".mp4")
    tokens = TokenizedVideo.load(arguments.tokens)
    frames = _load(arguments).detokenize(tokens, **_memory(arguments))
    write_video(output, frames, tokens.fps, tokens.timestamps)
    print(f"wrote {output}: {len(frames)} frames at {tokens.fps:.2f} fps")


def _drawing(arguments: argparse.Namespace) -> dict:
    return {name: getattr(arguments, name) for name in ("temperature", "top_k", "top_p", "budget")}


def _generate(arguments: argparse.Namespace) -> None:
    import torch

    from .reports import check_folder, write_generation

    folder = check_folder(arguments.output or "generated")
    settings = _drawing(arguments) | {"num_videos_per_class": arguments.videos, "guidance_scale": arguments.guidance}
    output = _load(arguments).generate(
        arguments.class_labels,
        generator=torch.Generator().manual_seed(arguments.seed),
        fps=arguments.fps,
        batch_size=arguments.batch_size,
        **settings,
    )
    request = {"model": arguments.model or "shipped", "classes": arguments.class_labels, "seed": arguments.seed} | settings
    _print_generation(folder, write_generation(folder, output, request))


def _predict(arguments: argparse.Namespace) -> None:
    import torch

    from .reports import check_folder, write_generation

    folder = check_folder(arguments.output or f"{Path(arguments.video).stem}-predicted")
    settings = _drawing(arguments) | {
        "num_condition_frames": arguments.condition_frames,
        "num_rollouts": arguments.rollouts,
        "num_videos": arguments.videos,
    }
    output = _load(arguments).predict(
        arguments.video,
        generator=torch.Generator().manual_seed(arguments.seed),
        resize_mode=arguments.resize,
        **settings,
    )
    request = {
        "model": arguments.model or "shipped",
        "video": Path(arguments.video).name,
        "seed": arguments.seed,
    } | settings
    _print_generation(folder, write_generation(folder, output, request))


def _print_generation(folder: Path, report: dict) -> None:
    tokens = [video["tokens"] for video in report["videos"]]
    blocks = sum(len(video["token_counts"]) for video in report["videos"])
    print(
        f"{len(tokens)} videos of {report['frames']} frames: {min(tokens)} to {max(tokens)} tokens each, "
        f"{sum(tokens) / blocks:.1f} per block"
    )
    print(
        f"wrote {folder}/: {', '.join(video['file'] for video in report['videos'][:3])}"
        f"{', ...' if len(tokens) > 3 else ''}, contact_sheet.png, report.json"
    )


def _convert(arguments: argparse.Namespace) -> None:
    from transformers.utils import logging as transformers_logging

    from ..conversion.convert import convert_checkpoint

    transformers_logging.disable_progress_bar()
    print(convert_checkpoint(arguments.source, arguments.destination, ema=arguments.ema))


def _info(arguments: argparse.Namespace) -> None:
    import platform
    from importlib.metadata import version

    pipeline = _load(arguments)
    config, scorer = pipeline.tokenizer.config, pipeline.scorer
    names = ("torch", "transformers", "diffusers", "accelerate", "scipy", "numpy", "av")
    info = {
        "adaptok_hf": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in names},
        "device": str(pipeline.device),
        "model": arguments.model or "shipped",
        "image_size": config.image_size,
        "num_frames": config.num_frames,
        "tubelet_size": config.tubelet_size,
        "blocks": config.num_blocks,
        "latents_per_block": config.latents_per_block,
        "codebook_size": config.codebook_size,
        "score_step": scorer.config.score_step if scorer is not None else None,
        "tokenizer_parameters": pipeline.tokenizer.num_parameters(),
        "scorer_parameters": scorer.num_parameters() if scorer is not None else 0,
        "ar_model_parameters": pipeline.ar_model.num_parameters() if pipeline.ar_model is not None else 0,
        "fp_model_parameters": pipeline.fp_model.num_parameters() if pipeline.fp_model is not None else 0,
        "model_hash": pipeline.model_hash,
    }
    if arguments.json:
        print(json.dumps(info, indent=2))
    else:
        print("\n".join(f"{name + ':':24}{value}" for name, value in info.items()))


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."
