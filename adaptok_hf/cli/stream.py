"""`adaptok stream`: a file, camera or address, compressed and shown again while it comes in."""

import argparse
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def add_commands(verbs: Any) -> None:
    """Registers the command with the parser of `adaptok`."""
    verb = verbs.add_parser("stream", help="encode and decode a file, camera or address block by block, as it comes")
    verb.add_argument("video", help="a video file, a camera such as /dev/video0, or an address such as rtsp://...")
    verb.add_argument("-o", "--output", help="mp4 file (default: VIDEO's name with '-stream.mp4', in this folder)")
    group = verb.add_argument_group("allocation", "give one of these; without, all tokens are kept")
    group.add_argument("--price", type=float, help="loss that a token must save to be kept")
    group.add_argument("--threshold", type=float, help="loss that every block must undercut")
    group.add_argument("--budget", help="average tokens per block to hold (such as 64), or a percentage (such as 25%%)")
    group.add_argument("--bitrate", type=float, metavar="BITS", help="average bits per second to hold")
    verb.add_argument("--frames", type=int, metavar="N", help="stop after so many frames, rounded up to whole blocks")
    verb.add_argument("--resize", choices=["crop", "squash"], help="as in reconstruct")
    verb.add_argument(
        "--model", metavar="FOLDER", help="pipeline folder or Hub id (default: the checkpoint in the package)"
    )
    verb.add_argument("--device", help="such as cpu or cuda (default: cuda if there is one)")
    verb.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    verb.set_defaults(run=_stream)


def _stream(arguments: argparse.Namespace) -> None:
    from ..video.video_writing import write_video
    from .main import _load

    if arguments.frames is not None and arguments.frames < 1:
        raise ValueError(f"--frames must be at least 1, got {arguments.frames}")
    output = Path(arguments.output or f"{Path(arguments.video).stem}-stream.mp4")
    pipeline = _load(arguments)
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
    totals = {"frames": 0, "tokens": 0, "bits": 0.0}
    latencies = []

    def frames(blocks: Iterator) -> Iterator:
        for block in blocks:
            totals["frames"] += block.num_frames
            totals["tokens"] += block.token_count
            totals["bits"] += block.bits
            latencies.append(block.latency)
            yield from block.frames

    first = next(blocks)  # tells the frame rate
    write_video(output, frames(itertools.chain([first], blocks)), first.fps)
    seconds = totals["frames"] / first.fps
    print(
        f"{totals['frames']} frames, {len(latencies)} blocks: {totals['tokens'] / len(latencies):.1f} tokens per block, "
        f"{totals['bits'] / seconds / 1000:.2f} kbit/s; {1000 * sum(latencies) / len(latencies):.0f} ms per block "
        f"({seconds / sum(latencies):.2f} times real time), {1000 * max(latencies):.0f} ms at most"
    )
    print(f"wrote {output}: {totals['frames']} frames at {first.fps:.2f} fps")
