"""`adaptok stream`: a file, camera or address, compressed and shown while it comes in."""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .common import add_model_options, add_resize_option, load_pipeline


def add_commands(verbs: Any) -> None:
    """Register the command with the parser of `adaptok`."""
    verb = verbs.add_parser("stream", help="encode and decode a file, camera or address block by block, as it comes")
    verb.add_argument("video", help="a video file, a camera such as /dev/video0, or an address such as rtsp://...")
    verb.add_argument("-o", "--output", help="mp4 file (default: VIDEO's name with '-stream.mp4', in this folder)")
    group = verb.add_argument_group("allocation", "give one of these; without, all tokens are kept")
    group.add_argument("--price", type=float, help="loss that a token must save to be kept")
    group.add_argument("--threshold", type=float, help="loss that every block must stay below")
    group.add_argument("--budget", help="average tokens per block to hold (such as 64), or a percentage (such as 25%%)")
    group.add_argument("--bitrate", type=float, metavar="BITS", help="average bits per second to hold")
    verb.add_argument("--frames", type=int, metavar="N", help="stop after so many frames, rounded up to whole blocks")
    add_resize_option(verb)
    add_model_options(verb)
    verb.set_defaults(run=_stream)


def _stream(arguments: argparse.Namespace) -> None:
    from ..video.video_writing import write_video

    if arguments.frames is not None and arguments.frames < 1:
        raise ValueError(f"--frames must be at least 1, got {arguments.frames}")
    output = Path(arguments.output or f"{Path(arguments.video).stem}-stream.mp4")
    pipeline = load_pipeline(arguments.model, arguments.device, arguments.dtype)
    blocks = pipeline.stream(
        arguments.video,
        price=arguments.price,
        threshold=arguments.threshold,
        budget=arguments.budget,
        bits_per_second=arguments.bitrate,
        resize_mode=arguments.resize,
    )
    if arguments.frames is not None:
        blocks = itertools.islice(blocks, -(-arguments.frames // pipeline.tokenizer.config.tubelet_size))
    first = next(blocks)  # has the frame rate
    facts = []  # of each block: frames, tokens, bits, seconds

    def frames() -> Iterator:
        for block in itertools.chain([first], blocks):
            facts.append((block.num_frames, block.token_count, block.bits, block.latency))
            yield from block.frames

    write_video(output, frames(), first.fps)
    num_frames, tokens, bits, latency = (sum(column) for column in zip(*facts, strict=True))
    slowest, seconds = max(fact[3] for fact in facts), num_frames / first.fps
    print(
        f"{num_frames} frames, {len(facts)} blocks: {tokens / len(facts):.1f} tokens per block, "
        f"{bits / seconds / 1000:.2f} kbit/s; {1000 * latency / len(facts):.0f} ms per block "
        f"({seconds / latency:.2f} times real time), {1000 * slowest:.0f} ms at most"
    )
    print(f"wrote {output}: {num_frames} frames at {first.fps:.2f} fps")
