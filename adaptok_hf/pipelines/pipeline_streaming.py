"""The streaming part of the pipeline: frames in, blocks out, and back, one temporal block at a time."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from ..allocation import STRATEGIES, AllocationRequest, RateController
from ..allocation.budgets import is_finite_number
from ..allocation.routing import spread_levels
from ..models.block_cache import BlockCache
from ..video.frame_stream import Frame, iter_frames
from .pipeline_output import Frames, StreamBlock, check_output_type, convert_frames

# scores of a block (levels,) -> its token count and the price that decided it
CountRule = Callable[[np.ndarray], tuple[int, float | None]]


class StreamingMixin:
    """`stream` and `stream_decode` of [`AdapTokPipeline`]."""

    def stream(
        self,
        video: Any,
        *,
        price: float | None = None,
        threshold: float | None = None,
        budget: float | str | None = None,
        bits_per_second: float | None = None,
        allocation: str | None = None,
        window: int = 32,
        reservoir: float = 16,
        fps: float | None = None,
        resize_mode: str | None = None,
        decode: bool = True,
        output_type: str = "np",
    ) -> Iterator[StreamBlock]:
        """Tokenizes (and reconstructs) frames as they come, a block at a time, in constant memory.

        Codes, counts and frames are those of the whole-clip pass (`tokenize` with the same price or threshold), to float
        round-off. A long video is a sequence of clips: at every `num_frames` frames the model starts again. The last block
        is filled up with copies of the last frame, which are not returned.

        Args:
            video: an iterable of frames (PIL images, arrays, tensors; or several frames at once, 4-D), a file, an address
                or camera that FFmpeg can open (`"rtsp://..."`, `"/dev/video0"`), an open PyAV container, a [`Video`].
            price: score per token (strategy `quality`), or loss per token (strategy `router`).
            threshold: score that each block must undercut (strategy `threshold`).
            budget: AVERAGE tokens per block, or a percentage such as `"25%"`, held by a [`RateController`]: after n blocks
                the average is within `reservoir / n` of the budget, relative to it.
            bits_per_second: the same for an average bit rate, with the bits of `StreamBlock.bits`, at the source's fps.
            allocation: `"router"` lets the router decide, which needs the head "blocks" and, if it takes a price, one of
                price, budget and bit rate. A rate controller then works on its log-probabilities at its lowest price.
                By default the scorer's `quality` or `threshold`.
            window, reservoir: of the rate controller, in blocks.
            fps: frames per second of frames that do not tell it (default: 24).
            resize_mode: `"crop"` or `"squash"`, see [`AdapTokVideoProcessor`].
            decode: whether to reconstruct the frames.
            output_type: `"np"`, `"pt"`, `"pil"` or `"uint8"`, see [`StreamBlock`].

        Yields:
            [`StreamBlock`], each as soon as its last frame has arrived. Without price, threshold, budget, bit rate and
            strategy all tokens are kept.

        Raises:
            ValueError: for more than one of price, threshold, budget and bits_per_second, impossible values, a tokenizer
                that is not causal or not adaptive, a pipeline without scorer or router, or a strategy that does not stream;
                while it runs, for what is not a video, frames that change their size, and a stream without frames.
        """
        check_output_type(output_type)
        given = {"price": price, "threshold": threshold, "budget": budget, "bits_per_second": bits_per_second}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"give only one of price, threshold, budget and bits_per_second, got {', '.join(given)}")
        self._check_causal("stream")
        if (given or allocation) and not self.tokenizer.config.adaptive:
            asked = next(iter(given), "allocation")
            raise ValueError(f"this tokenizer is not adaptive (CausalTok, LARP): it keeps all tokens and takes no {asked}")
        is_routed = self._check_stream_strategy(allocation, given)
        if given and not is_routed and not self.tokenizer.prefix_decodable:
            raise ValueError(
                f"{next(iter(given))}={next(iter(given.values()))!r} looks at encoded tokens, and a "
                f"{type(self.tokenizer).__name__} needs token counts to encode: allocation='router' decides first"
            )
        if given and not is_routed and self.scorer is None:
            raise ValueError(f"a {next(iter(given))} needs a scorer, and this pipeline has none")
        resize_mode = resize_mode or self.video_processor.resize_mode
        if resize_mode not in ("crop", "squash"):
            raise ValueError(f"resize_mode must be one of 'crop', 'squash', got {resize_mode!r}")
        if "bits_per_second" not in given:  # its range needs the frame rate; the others are checked at once
            self._count_rule(given, is_routed, window, reservoir, 1.0)
        elif not is_finite_number(bits_per_second):
            raise ValueError(f"bits_per_second must be a finite number, got {bits_per_second!r}")
        frames = iter_frames(video, self.video_processor, fps)
        return self._stream(frames, given, is_routed, window, reservoir, resize_mode, decode, output_type)

    def stream_decode(self, blocks: Iterable[StreamBlock], *, output_type: str = "np") -> Iterator[Any]:
        """The receiving side: blocks in, frames out, in constant memory. Only `codes[:token_count]` are looked at.

        Args:
            blocks: what `stream` yields, in order. They may begin with the first block of any clip.
            output_type: `"np"`, `"pt"`, `"pil"` or `"uint8"`.

        Yields:
            One frame after the other: float32 (height, width, 3) or (3, height, width) in [0, 1], an image, or uint8
            (height, width, 3). Squashed videos get their proportions back.

        Raises:
            ValueError: for blocks of another tokenizer, a missing block, and counts or codes that do not fit.
        """
        check_output_type(output_type)
        self._check_causal("stream_decode")
        return self._stream_decode(blocks, output_type)

    def _check_causal(self, method: str) -> None:
        config = self.tokenizer.config
        for part in ("encoder", "decoder"):
            if (attention_type := getattr(config, f"{part}_attention_type", None)) == "full":
                raise ValueError(
                    f"{method} needs a causal tokenizer; the {part} of this one (such as LARP's) sees the whole clip, "
                    f"{part}_attention_type={attention_type!r}: use tokenize and detokenize"
                )

    @torch.no_grad()
    def _stream_decode(self, blocks: Iterable[StreamBlock], output_type: str) -> Iterator:
        own_hash, per_clip = self.model_hash, self.tokenizer.config.num_blocks
        cache, expected = BlockCache(), None
        for block in blocks:
            if block.model_hash != own_hash:
                raise ValueError(
                    f"block {block.index} was made by another model (hash {block.model_hash[:12]}, this model's is "
                    f"{own_hash[:12]})"
                )
            if block.index % per_clip == 0:
                cache = BlockCache()
            elif block.index != expected:
                before = "it is the first" if expected is None else f"the one before was {expected - 1}"
                raise ValueError(
                    f"got block {block.index}, but {before}; a stream can be joined at the first block of a clip only "
                    f"(a multiple of {per_clip})"
                )
            yield from self._decode_block(block.codes, block.token_count, cache, block, output_type)
            expected = block.index + 1

    @torch.no_grad()
    def _stream(
        self,
        frames: Iterator[Frame],
        given: dict[str, float | str],
        is_routed: bool,
        window: int,
        reservoir: float,
        resize_mode: str,
        decode: bool,
        output_type: str,
    ) -> Iterator[StreamBlock]:
        config, model_hash, rule = self.tokenizer.config, self.model_hash, None
        code_bits, count_bits = math.log2(config.codebook_size), math.log2(config.latents_per_block + 1)
        for index, group in enumerate(_blocks(frames, config.tubelet_size)):
            arrived = time.perf_counter()
            if index % config.num_blocks == 0:
                encoder_cache, scorer_cache, decoder_cache, router_cache = (BlockCache() for _ in range(4))
            fps = group[0][2]
            if index == 0:
                rule = self._count_rule(given, is_routed, window, reservoir, fps)
            clip = self.video_processor.clips(np.stack([frame for frame, _, _ in group]), fps, resize_mode)
            video = clip.frames[:, : config.tubelet_size]
            pixels = video.to(self.device) / 255
            count, price = config.latents_per_block, None
            if is_routed:
                count, price = rule(self._route_block(pixels, given, router_cache))
            counts = () if self.tokenizer.prefix_decodable else (torch.tensor([[count]], device=self.device),)
            pixels = pixels.to(self.tokenizer.dtype)
            encoded = self.tokenizer.encode(pixels, *counts, past_key_values=encoder_cache, return_dict=True)
            latents, codes = encoded.latents[:, 0], encoded.codes[:, 0]
            if rule is not None and not is_routed:
                quantized = self.tokenizer.quantizer.lookup(codes)
                scores = self.scorer.score_block(latents, quantized, scorer_cache)
                count, price = rule(scores[0].double().cpu().numpy())
                if scorer_cache.num_blocks < config.num_blocks:  # nobody looks at the last block of a clip
                    counts = torch.tensor([count], device=self.device)
                    self.scorer.keep_tokens(latents, quantized, counts, scorer_cache)
            block = StreamBlock(
                index=index,
                codes=codes[0].cpu(),
                token_count=count,
                num_frames=len(group),
                timestamps=np.array([seconds for _, seconds, _ in group]),
                fps=fps,
                source_size=tuple(clip.source_size),
                resize_mode=resize_mode,
                bits=count * code_bits + count_bits,
                price=price,
                model_hash=model_hash,
                frames=None,
                original=convert_frames(video[0, : len(group)].permute(0, 2, 3, 1).numpy(), output_type),
                latency=0.0,
            )
            if decode:
                block.frames = self._decode_block(block.codes, count, decoder_cache, block, output_type)
            block.latency = time.perf_counter() - arrived
            yield block

    def _check_stream_strategy(self, allocation: str | None, given: dict[str, float | str]) -> bool:
        """Return whether the router decides; raise `ValueError` for a strategy that does not stream or lacks something."""
        if allocation is None:
            return False
        amounts = {name: value for name, value in given.items() if name != "bits_per_second"}
        request = AllocationRequest(strategy=allocation, **amounts)
        strategy = request.choose_strategy(self.scorer is not None, self.router is not None)
        if not strategy.is_streamable:
            streamable = ", ".join(name for name, row in STRATEGIES.items() if row.is_streamable)
            raise ValueError(f"strategy {allocation!r} does not stream; {streamable} do")
        if strategy.needs_router:
            if self.router.config.head != "blocks":
                raise ValueError(f"a router with head {self.router.config.head!r} looks at whole clips and does not stream")
            self.check_router({"budget" if name == "bits_per_second" else name: value for name, value in given.items()})
        return strategy.needs_router

    def _route_block(self, frames: torch.Tensor, given: dict[str, float | str], cache: BlockCache) -> np.ndarray:
        """Return minus the log-probabilities (levels,) of a clip's next block; without a price, at the router's lowest."""
        config = self.router.config
        price = given.get("price", config.price_range[0]) if config.price_conditioned else None
        losses = self.router.level_losses(frames, price, past_key_values=cache)[0]
        losses = losses.double().cpu().numpy()
        return (spread_levels(losses, config.levels) if self.tokenizer.prefix_decodable else losses)[0]

    def _decode_block(
        self, codes: torch.Tensor, count: int, cache: BlockCache, block: StreamBlock, output_type: str
    ) -> Frames:
        """The next block of a clip -> its real frames."""
        counts = torch.tensor([[count]], device=self.device) if self.tokenizer.config.adaptive else None
        decoded = self.tokenizer.decode(codes[None, None].to(self.device), counts, past_key_values=cache, return_dict=True)
        frames = self.video_processor.unclip(
            decoded.pixel_values_videos.float(),
            num_frames=block.num_frames,
            output_size=block.source_size if block.resize_mode == "squash" else None,
        )
        return convert_frames(frames, output_type)

    def _count_rule(
        self, given: dict[str, float | str], is_routed: bool, window: int, reservoir: float, fps: float
    ) -> CountRule | None:
        """Return how counts are chosen; `None` for keeping all tokens."""
        if not given and not is_routed:
            return None
        levels, per_block = self._levels("routed" if is_routed else "predicted"), self.tokenizer.config.latents_per_block
        only_levels = self._only_levels(STRATEGIES["router"]) if is_routed else {}
        step, levels = levels.step, only_levels.get("levels", levels)
        if is_routed and given.keys() <= {"price"}:  # which is the router's
            return lambda losses: (levels[int(losses.argmin())], given.get("price"))
        ((name, value),) = given.items()
        if name in ("price", "threshold"):
            request = AllocationRequest(**given)
            strategy, settings = request.choose_strategy(True), {"step": step, name: value}
            strategy.allocate(np.zeros((1, len(levels))), **settings)  # raises for a value that makes no sense
            price = value if name == "price" else None
            return lambda scores: (int(strategy.allocate(scores[None], **settings)[0][0]), price)
        if name == "bits_per_second":
            code_bits, count_bits = math.log2(self.tokenizer.config.codebook_size), math.log2(per_block + 1)
            seconds = self.tokenizer.config.tubelet_size / fps
            target = (value * seconds - count_bits) / code_bits
            if not levels[0] <= target <= levels[-1]:
                low, high = ((count * code_bits + count_bits) / seconds for count in (levels[0], levels[-1]))
                raise ValueError(
                    f"bits_per_second must lie between {math.ceil(low)} and {math.floor(high)} for this model at {fps:g} "
                    f"frames per second, got {value!r}"
                )
        else:
            target = AllocationRequest(budget=value).parameters(per_block)["budget"]
        options = {"window": window, "reservoir": reservoir} | only_levels
        controller = RateController(target, step=step, num_levels=len(levels), **options)
        return lambda scores: (controller.choose(scores), controller.price)


def _blocks(frames: Iterator[Frame], size: int) -> Iterator[list[Frame]]:
    """Groups of `size` frames, each as soon as it is complete; the last one may be shorter."""
    group: list[Frame] = []
    for frame in frames:
        group.append(frame)
        if len(group) == size:
            yield group
            group = []
    if group:
        yield group
