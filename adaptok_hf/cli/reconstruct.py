"""`adaptok reconstruct`, `adaptok tokenize` and `adaptok detokenize`: one file, or many that share a budget."""

import argparse
import glob
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..atomic_files import write_json
from .common import (
    add_allocation_options,
    add_batch_size_option,
    add_json_option,
    add_model_options,
    add_resize_option,
    add_verb,
    allocation_request,
    load_pipeline,
)
from .inputs import check_file, find_files, is_one_file, list_tokens, list_videos
from .outputs import REPORT_FILES, add_overwrite_option, output_file, output_folder
from .tokenizing import describe, rate, skip_file, spending, summarize, tokenize_files
from .waiting import waiting

SUMMARY = "summary.json"


def add_commands(verbs: Any) -> None:
    """Register the commands with the parser of `adaptok`."""
    verb = add_verb(
        verbs,
        "reconstruct",
        "encode videos on a token budget, decode them, and show what it did",
        "reconstruct clip.mp4 --budget 25%",
        "reconstruct a.mp4 b.mp4 --budget 32 -o out     # both share the budget",
        'reconstruct "videos/*.mp4" --price 0.0005 -o out --json',
    )
    _add_videos(verb)
    verb.add_argument("-o", "--output", metavar="FOLDER", help="output folder; of several videos it has one for each, "
                      "and a summary (default: VIDEO's name with '-adaptok', in this folder)")  # fmt: skip
    _add_encoding_options(verb)
    verb.set_defaults(run=_reconstruct)

    verb = add_verb(
        verbs,
        "tokenize",
        "write videos as tokens files",
        "tokenize clip.mp4 --budget 32",
        "tokenize videos/ --budget 25% -o tokens/       # a file for each, which share the budget",
        "tokenize a.mp4 b.mp4 --budget 32 --exact-budget --json",
    )
    _add_videos(verb)
    verb.add_argument("-o", "--output", help="tokens file, of several videos a folder, which gets the structure of theirs "
                      "(default: VIDEO's name with .safetensors, in this folder)")  # fmt: skip
    _add_encoding_options(verb)
    verb.set_defaults(run=_tokenize)

    verb = add_verb(
        verbs,
        "detokenize",
        "turn tokens files back into videos",
        "detokenize clip.safetensors",
        "detokenize tokens/ -o videos/",
    )
    verb.add_argument("tokens", nargs="+", help="files that 'adaptok tokenize' wrote, folders of them, or quoted patterns")
    verb.add_argument(
        "-o",
        "--output",
        help="mp4 file (png for one frame), of several a folder (default: TOKENS' name with .mp4, in this folder)",
    )
    add_overwrite_option(verb)
    add_json_option(verb)
    add_model_options(verb)
    add_batch_size_option(verb)
    verb.set_defaults(run=_detokenize)


def _add_videos(verb: argparse.ArgumentParser) -> None:
    verb.add_argument(
        "video",
        nargs="+",
        help="videos, pictures, folders of them, or quoted patterns such as 'videos/*.mp4'",
    )


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
    add_json_option(verb)
    add_model_options(verb)
    add_batch_size_option(verb)


def _encoding_options(arguments: argparse.Namespace) -> dict[str, Any]:
    return {
        "resize_mode": arguments.resize,
        "overlap_blocks": arguments.overlap_blocks,
        "batch_size": arguments.batch_size,
    }


def _reconstruct(arguments: argparse.Namespace) -> dict[str, Any]:
    request, is_one = allocation_request(arguments), is_one_file(arguments.video)
    if is_one:
        (video,) = arguments.video
        folder, folders = arguments.output or f"{Path(video).stem}-adaptok", {video: ""}
    else:
        folder, suffix = arguments.output or ".", "" if arguments.output else "-adaptok"
        folders = {path: f"{name}{suffix}" for path, name in find_files(arguments.video, list_videos, folder).items()}
    names = [str(Path(glob.escape(name), file)) for name in folders.values() for file in REPORT_FILES]
    names += [SUMMARY] if arguments.output and not is_one else []
    with output_folder(folder, names, *folders, arguments.model, overwrite=arguments.overwrite) as folder:
        for video in folders:
            check_file(video)
        skipped = None if is_one else []
        reports = _write_reports(arguments, {video: folder / name for video, name in folders.items()}, request, skipped)
        if is_one:
            return reports[0]
        result = summarize(reports, skipped)
        for quality in ("psnr_db", "ssim") if reports else ():
            result[quality] = sum(report[quality] for report in reports) / len(reports)
        if SUMMARY in names:
            write_json(folder / SUMMARY, result)
    _print_summary(result)
    return result


def _write_reports(
    arguments: argparse.Namespace, folders: dict[str, Path], request: dict[str, Any], skipped: list | None
) -> list[dict[str, Any]]:
    """Write the videos, picture and report of each file into its folder."""
    pipeline = load_pipeline(arguments.model, arguments.device, arguments.dtype)
    from ..pipelines.encoded_videos import stopwatch
    from ..pipelines.pipeline_output import AdapTokPipelineOutput
    from .reports import write_report

    options, reports = _encoding_options(arguments), []
    asked = {"model": arguments.model} | request | ({"loss": arguments.loss} if arguments.loss else {})  # by name, as JSON
    for video, tokens, seconds, clips in tokenize_files(pipeline, list(folders), request, skipped, **options):
        folder = folders[video]
        with waiting(f"decoding {video}"):
            with stopwatch(seconds, "decode", pipeline.device):
                frames = pipeline.decode(tokens, batch_size=arguments.batch_size)
            if clips is None:  # read again, because the pixels of many videos need much memory
                clips = pipeline.read(video, resize_mode=arguments.resize, overlap_blocks=arguments.overlap_blocks)
            original = clips.original()[None]
            output = AdapTokPipelineOutput(frames=frames[None], tokens=tokens, original=original, seconds=seconds)
            folder.parent.mkdir(parents=True, exist_ok=True)
            report = write_report(folder, output, pipeline, {"video": Path(video).name} | asked)
        del clips, original, output, frames  # the next ones are read meanwhile
        reports.append({"video": video, "folder": str(folder)} | report)
        numbers = describe(report, report["allocation"] if skipped is None else None)
        name = "" if skipped is None else f"{video}: "
        print(f"{name}{numbers}, PSNR {report['psnr_db']:.2f} dB, SSIM {report['ssim']:.3f}")
        source, size = report["source_size"], report["output_size"]
        if size != source:
            print(f"the input is {source[1]}x{source[0]}; the output is {size[1]}x{size[0]} ({report['resize_mode']})")
        print(f"wrote {folder}/: {', '.join(name for name in REPORT_FILES if (folder / name).exists())}")
    return reports


def _print_summary(result: dict[str, Any]) -> None:
    if files := result["files"]:
        numbers = describe(result, files[0]["allocation"])
        quality = f", PSNR {result['psnr_db']:.2f} dB, SSIM {result['ssim']:.3f} on average" if "ssim" in result else ""
        print(f"{len(files)} videos, {numbers}{quality}")


@contextmanager
def _output_files(
    arguments: argparse.Namespace, inputs: list[str], list_folder: Callable[[str], list[str]], suffix: str
) -> Iterator[dict[str, Path]]:
    """Yield the output file of each input, which no other run writes meanwhile."""
    if is_one_file(inputs):
        (path,), output = inputs, arguments.output or f"{Path(inputs[0]).stem}{suffix}"
        with output_file(output, path, arguments.model, suffix=suffix, overwrite=arguments.overwrite) as output:
            check_file(path)
            yield {path: output}
        return
    folder = arguments.output or "."
    names = {path: f"{name}{suffix}" for path, name in find_files(inputs, list_folder, folder).items()}
    patterns = [glob.escape(name) for name in names.values()]
    with output_folder(folder, patterns, *names, arguments.model, overwrite=arguments.overwrite) as folder:
        yield {path: folder / name for path, name in names.items()}


def _tokenize(arguments: argparse.Namespace) -> dict[str, Any]:
    request = allocation_request(arguments)
    with _output_files(arguments, arguments.video, list_videos, ".safetensors") as outputs:
        pipeline = load_pipeline(arguments.model, arguments.device, arguments.dtype)
        options, results = _encoding_options(arguments), []
        skipped = None if is_one_file(arguments.video) else []
        for video, tokens, *others in tokenize_files(pipeline, list(outputs), request, skipped, **options):
            del others  # the clips, since the next ones are read meanwhile
            outputs[video].parent.mkdir(parents=True, exist_ok=True)
            tokens.save(outputs[video])
            results.append({"video": video, "file": str(outputs[video])} | spending(tokens))
            cost = rate(results[-1], tokens.allocation if skipped is None else None)
            print(f"wrote {outputs[video]}: {tokens.num_frames} frames, {tokens.num_tokens} tokens ({cost})")
    if skipped is None:
        return results[0]
    result = summarize(results, skipped)
    _print_summary(result)
    return result


def _detokenize(arguments: argparse.Namespace) -> dict[str, Any]:
    from ..video.tokenized_video import TokenizedVideo
    from ..video.video_writing import write_video

    suffix = ".png" if Path(arguments.output or "").suffix.lower() == ".png" else ".mp4"
    with _output_files(arguments, arguments.tokens, list_tokens, suffix) as outputs:
        is_one = is_one_file(arguments.tokens)
        results, skipped = [], None if is_one else []
        if is_one:
            TokenizedVideo.load(arguments.tokens[0])  # before the model
        pipeline = load_pipeline(arguments.model, arguments.device, arguments.dtype)
        for path, output in outputs.items():
            try:
                with waiting(f"decoding {path}"):
                    tokens = TokenizedVideo.load(path)
                    frames = pipeline.decode_frames(tokens, batch_size=arguments.batch_size)
            except (ValueError, OSError) as error:
                skip_file(path, error, skipped)
                continue
            output.parent.mkdir(parents=True, exist_ok=True)
            write_video(output, frames, tokens.fps, tokens.timestamps)
            results.append({"tokens": path, "file": str(output), "frames": tokens.num_frames, "fps": tokens.fps})
            print(f"wrote {output}: {tokens.num_frames} frames at {tokens.fps:.2f} fps")
    return results[0] if is_one else {"files": results, "skipped": skipped}
