"""Files through the pipeline one after the other, also where they share a budget; and the numbers of what was spent."""

import dataclasses
import sys
import time
from collections.abc import Iterator
from multiprocessing.pool import AsyncResult, ThreadPool
from typing import TYPE_CHECKING, Any

from .program import one_line
from .waiting import waiting

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline
    from ..video.clip_batch import ClipBatch
    from ..video.tokenized_video import TokenizedVideo


def tokenize_files(
    pipeline: "AdapTokPipeline",
    paths: list[str],
    request: dict[str, Any],
    skipped: list[dict[str, str]] | None,
    *,
    resize_mode: str | None,
    overlap_blocks: int,
    batch_size: int,
) -> "Iterator[tuple[str, TokenizedVideo, dict[str, float], ClipBatch | None]]":
    """Yield each video's path, tokens, seconds of the stages, and clips unless they were dropped.

    The next video is read while one is encoded; the pixels of these two are in memory, if the caller lets go of the clips.
    Of videos that share a budget, codes and scores are kept until all are encoded (a hundredth of the pixels); of those of
    `ipal`, `bithr` and `bidelta` also latents (up to three times the pixels).

    Args:
        request: budget, price, threshold, allocation and rounding, as of `AdapTokPipeline.reconstruct`.
        skipped: gets the file and the reason of videos that cannot be read; if `None`, they raise.

    Raises:
        ValueError: for a request that cannot be met.
    """
    from ..allocation import AllocationRequest
    from ..pipelines.encoded_videos import join_videos

    request = AllocationRequest(**{{"allocation": "strategy"}.get(name, name): value for name, value in request.items()})
    strategy = pipeline.choose_strategy(request)
    is_shared = strategy is not None and strategy.shares_budget
    # a video alone need not meet a budget exactly that all meet together
    one_by_one = dataclasses.replace(request, rounding=None) if is_shared else request
    pipeline.check_request(one_by_one)
    parts, options = {}, {"resize_mode": resize_mode, "overlap_blocks": overlap_blocks}
    is_alone, read_seconds = not is_shared or len(paths) == 1, {}
    readings = _read_ahead(pipeline, paths, options, read_seconds)
    if not is_alone:
        paths = pipeline.progress_bar(paths)
        paths.set_description("encode")
    for path in paths:
        try:
            with waiting(f"encoding {path}"):
                encoded = pipeline.encode(next(readings).get(), request=one_by_one, batch_size=batch_size, **options)
                encoded.seconds["read"] = read_seconds[path]
        except (ValueError, OSError) as error:
            skip_file(path, error, skipped)
            continue
        if is_alone:
            tokens = pipeline.allocate(encoded, request, batch_size=batch_size)
            yield path, tokens, encoded.seconds, encoded.clips[0]
            del encoded  # before the next but one is read
            continue
        if strategy.scores == "measured":
            with waiting(f"measuring {path}"):
                pipeline.score(encoded, measured=True, batch_size=batch_size)
        parts[path] = encoded if strategy.scores == "searched" else encoded.without_frames()
        del encoded
    if parts:
        together = join_videos(list(parts.values()))
        with waiting("allocating"):
            tokens = pipeline.allocate(together, request, batch_size=batch_size)
        for (path, part), video in zip(parts.items(), tokens, strict=True):
            yield path, video, part.seconds | together.seconds, None


def _read_ahead(
    pipeline: "AdapTokPipeline", paths: list[str], options: dict[str, Any], seconds: dict[str, float]
) -> "Iterator[AsyncResult[ClipBatch]]":
    """Yield what will be the clips of each video, while a thread reads the next; `seconds` gets how long reading took."""

    def read(path: str) -> "ClipBatch":
        start = time.perf_counter()
        clips = pipeline.read(path, **options)
        seconds[path] = time.perf_counter() - start
        return clips

    with ThreadPool(1) as pool:  # its thread is a daemon: Ctrl-C does not wait for a long video
        readings = [pool.apply_async(read, paths[:1])]
        for path in paths[1:]:
            readings.append(pool.apply_async(read, [path]))
            yield readings.pop(0)
        yield readings.pop()


def skip_file(path: str, error: Exception, skipped: list[dict[str, str]] | None) -> None:
    """Name a file that cannot be read on standard error and in `skipped`; if that is `None`, raise the error."""
    if skipped is None:
        raise error
    reason = one_line(error).removeprefix(f"{path}: ")
    skipped.append({"file": path, "reason": reason})
    print(f"skipped {path}: {reason}", file=sys.stderr)


def spending(tokens: "TokenizedVideo") -> dict[str, Any]:
    """Return the numbers of a video's tokens."""
    return {
        "frames": tokens.num_frames,
        "fps": tokens.fps,
        "blocks": tokens.num_blocks,
        "tokens": tokens.num_tokens,
        "tokens_per_block": tokens.num_tokens / tokens.num_blocks,
        "bits_per_second": tokens.bits_per_second,
        "seconds_of_video": tokens.seconds,
        "allocation": tokens.allocation,
        "dtype": tokens.dtype,
    }


def summarize(results: list[dict[str, Any]], skipped: list[dict[str, str]]) -> dict[str, Any]:
    """Return the numbers of several videos together, with those of each in `files`."""
    summary = {"files": results, "skipped": skipped}
    if results:
        summary |= {name: sum(result[name] for result in results) for name in ("frames", "blocks", "tokens")}
        bits, seconds = (
            sum(r["bits_per_second"] * r["seconds_of_video"] for r in results),
            sum(r["seconds_of_video"] for r in results),
        )
        summary |= {"tokens_per_block": summary["tokens"] / summary["blocks"], "bits_per_second": bits / seconds}
    return summary


def rate(result: dict[str, Any], allocation: dict[str, Any] | None = None) -> str:
    """Return what one video or several cost, in words; with the allocation of all, also the budget."""
    asked = f" of {allocation['budget']:g}" if allocation and "budget" in allocation else ""
    return f"{result['tokens_per_block']:.1f}{asked} tokens per block, {result['bits_per_second'] / 1000:.1f} kbit/s"


def describe(result: dict[str, Any], allocation: dict[str, Any] | None = None) -> str:
    """Return the numbers of one video or several in words; arguments as of `rate`."""
    numbers = f"{result['frames']} frames, {result['blocks']} blocks: {result['tokens']} tokens"
    return f"{numbers} ({rate(result, allocation)})"
