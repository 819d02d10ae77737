"""`adaptok reconstruct`, `adaptok tokenize` and `adaptok detokenize`."""

import argparse
from pathlib import Path
from typing import Any

from .common import (
    add_allocation_options,
    add_batch_size_option,
    add_model_options,
    add_resize_option,
    allocation_request,
    check_input,
    load_pipeline,
)
from .outputs import REPORT_FILES, add_overwrite_option, output_file, output_folder


def add_commands(verbs: Any) -> None:
    """Register the commands with the parser of `adaptok`."""
    verb = verbs.add_parser("reconstruct", help="encode a video on a token budget, decode it, and show what it did")
    verb.add_argument("video", help="a video, a picture, or a folder of pictures")
    verb.add_argument("-o", "--output", help="output folder (default: VIDEO's name with '-adaptok', in this folder)")
    _add_encoding_options(verb)
    verb.set_defaults(run=_reconstruct)

    verb = verbs.add_parser("tokenize", help="write a video as a tokens file")
    verb.add_argument("video", help="a video, a picture, or a folder of pictures")
    verb.add_argument("-o", "--output", help="tokens file (default: VIDEO's name with .safetensors, in this folder)")
    _add_encoding_options(verb)
    verb.set_defaults(run=_tokenize)

    verb = verbs.add_parser("detokenize", help="turn a tokens file back into a video")
    verb.add_argument("tokens", help="a file that 'adaptok tokenize' wrote")
    verb.add_argument("-o", "--output", help="mp4 file, or png for one frame (default: TOKENS' name with .mp4)")
    add_overwrite_option(verb)
    add_model_options(verb)
    add_batch_size_option(verb)
    verb.set_defaults(run=_detokenize)


def _add_encoding_options(verb: argparse.ArgumentParser) -> None:
    add_allocation_options(verb)
    add_resize_option(verb, tile=True)
    verb.add_argument(
        "--overlap-blocks",
        type=int,
        default=0,
        metavar="N",
        help="blocks that clips of a long video share: no jump between them",
    )
    add_overwrite_option(verb)
    add_model_options(verb)
    add_batch_size_option(verb)


def _encoding_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "resize_mode": arguments.resize,
        "overlap_blocks": arguments.overlap_blocks,
        "batch_size": arguments.batch_size,
    }


def _reconstruct(arguments: argparse.Namespace) -> None:
    request = allocation_request(arguments)
    folder, inputs = (
        arguments.output or f"{Path(arguments.video).stem}-adaptok",
        [arguments.video, arguments.model],
    )
    with output_folder(folder, REPORT_FILES, *inputs, overwrite=arguments.overwrite) as folder:
        check_input(arguments.video)
        _write_reconstruction(arguments, folder, request)


def _write_reconstruction(arguments: argparse.Namespace, folder: Path, request: dict[str, Any]) -> None:
    from .reports import write_report

    pipeline = load_pipeline(arguments.model, arguments.device, arguments.dtype)
    output = pipeline.reconstruct(arguments.video, **_encoding_options(arguments), **request)
    request = {"video": Path(arguments.video).name, "model": arguments.model} | request
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
    request = allocation_request(arguments)
    output = arguments.output or f"{Path(arguments.video).stem}.safetensors"
    inputs = [arguments.video, arguments.model]
    with output_file(output, *inputs, suffix=".safetensors", overwrite=arguments.overwrite) as output:
        check_input(arguments.video)
        tokens = load_pipeline(arguments.model, arguments.device, arguments.dtype).tokenize(
            arguments.video, **_encoding_options(arguments), **request
        )
        tokens.save(output)
    print(
        f"wrote {output}: {tokens.num_frames} frames, {tokens.num_tokens} tokens, "
        f"{tokens.bits_per_second / 1000:.1f} kbit/s"
    )


def _detokenize(arguments: argparse.Namespace) -> None:
    from ..video.tokenized_video import TokenizedVideo
    from ..video.video_writing import write_video

    output = arguments.output or f"{Path(arguments.tokens).stem}.mp4"
    inputs = [arguments.tokens, arguments.model]
    suffix = ".png" if Path(output).suffix.lower() == ".png" else ".mp4"
    with output_file(output, *inputs, suffix=suffix, overwrite=arguments.overwrite) as output:
        check_input(arguments.tokens)
        tokens = TokenizedVideo.load(arguments.tokens)
        pipeline = load_pipeline(arguments.model, arguments.device, arguments.dtype)
        frames = pipeline.decode_frames(tokens, batch_size=arguments.batch_size)
        write_video(output, frames, tokens.fps, tokens.timestamps)
    print(f"wrote {output}: {tokens.num_frames} frames at {tokens.fps:.2f} fps")
