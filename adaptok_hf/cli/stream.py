"""`adaptok stream`: a file, camera or address, compressed and shown while it comes in."""

import argparse
import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .common import add_json_option, add_model_options, add_resize_option, add_verb, load_pipeline
from .inputs import check_file
from .outputs import add_overwrite_option, output_file
from .program import one_line
from .waiting import waiting


def add_commands(verbs: Any) -> None:
    """Register the command with the parser of `adaptok`."""
    verb = add_verb(
        verbs,
        "stream",
        "encode and decode a file, camera or address block by block, as it comes",
        "stream clip.mp4 --budget 32",
        "stream /dev/video0 --bitrate 2000 --frames 480 -o camera.mp4",
        "stream - --price 0.0005 < clip.webm",
    )
    verb.add_argument(
        "video", help="a video file, - for standard input, a camera such as /dev/video0, or an address such as rtsp://..."
    )
    verb.add_argument("-o", "--output", help="mp4 file (default: VIDEO's name with '-stream.mp4', in this folder)")
    group = verb.add_argument_group("allocation", "give one of these; without, all tokens are kept")
    group.add_argument("--price", type=float, help="loss that a token must save to be kept")
    group.add_argument("--threshold", type=float, help="loss that every block must stay below")
    group.add_argument("--budget", help="average tokens per block to hold (such as 64), or a percentage (such as 25%%)")
    group.add_argument("--bitrate", type=float, metavar="BITS", help="average bits per second to hold")
    group.add_argument("--allocation", choices=["quality", "threshold", "router"], help="router: decided by the router, "
                       "alone or at one of these (default: by the scorer, at one of these)")  # fmt: skip
    verb.add_argument("--frames", type=int, metavar="N", help="stop after so many frames, rounded up to whole blocks")
    add_overwrite_option(verb)
    add_json_option(verb)
    add_resize_option(verb)
    add_model_options(verb)
    verb.set_defaults(run=_stream)


def _stream(arguments: argparse.Namespace) -> dict[str, Any]:
    amounts = [name for name in ("price", "threshold", "budget", "bitrate") if getattr(arguments, name) is not None]
    if len(amounts) > 1:
        raise ValueError(f"give only one of --price, --threshold, --budget and --bitrate, got {', '.join(amounts)}")
    name = "stdin" if arguments.video == "-" else Path(arguments.video).stem
    video = "/dev/stdin" if arguments.video == "-" else arguments.video  # the file that the shell opened, if it is one
    output, inputs = arguments.output or f"{name}-stream.mp4", [video, arguments.model]
    with output_file(output, *inputs, suffix=".mp4", overwrite=arguments.overwrite) as output, _source(arguments) as source:
        return _write_stream(arguments, output, source)


@contextmanager
def _source(arguments: argparse.Namespace) -> Iterator[Any]:
    """Yield what the pipeline can stream: for `-` the container in standard input, which cannot be rewound."""
    if arguments.video != "-":
        if "://" not in arguments.video and not arguments.video.startswith("/dev/video"):
            check_file(arguments.video)
        yield arguments.video
        return
    if sys.stdin is None or sys.stdin.isatty():
        raise ValueError("- reads a video from standard input, which is a terminal: pipe a video into it")
    import av

    from ..video.video_io import CONTAINER_FORMATS

    raw = open(sys.stdin.fileno(), "rb", buffering=0, closefd=False)  # unbuffered: frames are there as they come
    pipe = SimpleNamespace(read=raw.read, name="standard input")  # no `seek`, which FFmpeg would use
    try:
        container = av.open(pipe, options={"format_whitelist": CONTAINER_FORMATS}, metadata_errors="replace")
    except (av.error.FFmpegError, OSError) as error:
        raise ValueError(
            f"standard input: not a video of a format that can be read from a pipe, such as mkv, webm, ts, avi or an mp4 "
            f"whose index comes first ({one_line(error)})"
        ) from error
    with container:
        try:
            yield container
        except ValueError as error:
            hint = "; in a pipe an mp4 must have its index first (ffmpeg: -movflags faststart)"
            raise ValueError(f"{error}{hint if 'mp4' in container.format.name else ''}") from error


def _write_stream(arguments: argparse.Namespace, output: Path, source: Any) -> dict[str, Any]:
    from ..allocation.budgets import tokens_per_block
    from ..video.video_writing import write_video

    pipeline = load_pipeline(arguments.model, arguments.device, arguments.dtype)
    blocks = pipeline.stream(
        source,
        price=arguments.price,
        threshold=arguments.threshold,
        budget=arguments.budget,
        bits_per_second=arguments.bitrate,
        allocation=arguments.allocation,
        resize_mode=arguments.resize,
        output_type="uint8",
    )
    if arguments.frames is not None:
        blocks = itertools.islice(blocks, -(-arguments.frames // pipeline.tokenizer.config.tubelet_size))
    first = next(blocks)  # has the frame rate
    facts = []  # of each block: frames, tokens, bits, seconds

    def frames() -> Iterator:
        for block in itertools.chain([first], blocks):
            facts.append((block.num_frames, block.token_count, block.bits, block.latency))
            yield from block.frames

    with waiting("streaming"):
        write_video(output, frames(), first.fps)
    num_frames, tokens, bits, latency = (sum(column) for column in zip(*facts, strict=True))
    slowest, seconds = max(fact[3] for fact in facts), num_frames / first.fps
    budget = tokens_per_block(arguments.budget, pipeline.tokenizer.config.latents_per_block)
    asked = "" if budget is None else f" of {budget:g}"
    print(
        f"{num_frames} frames, {len(facts)} blocks: {tokens / len(facts):.1f}{asked} tokens per block, "
        f"{bits / seconds / 1000:.2f} kbit/s; {1000 * latency / len(facts):.0f} ms per block "
        f"({seconds / latency:.2f} times real time), {1000 * slowest:.0f} ms at most"
    )
    print(f"wrote {output}: {num_frames} frames at {first.fps:.2f} fps")
    return {
        "video": arguments.video,
        "file": str(output),
        "frames": num_frames,
        "fps": first.fps,
        "blocks": len(facts),
        "tokens": tokens,
        "token_counts": [fact[1] for fact in facts],
        "budget": budget,
        "tokens_per_block": tokens / len(facts),
        "bits_per_second": bits / seconds,
        "seconds_per_block": latency / len(facts),
    }
