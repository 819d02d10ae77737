"""The streaming part of the pipeline: frames in, blocks out, and back, one temporal block at a time."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch

from ..allocation import AllocationRequest, RateController
from ..allocation.budgets import is_finite_number
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
        window: int = 32,
        reservoir: float = 16,
        fps: float | None = None,
        resize_mode: str | None = None,
        decode: bool = True,
        output_type: str = "np",
    ) -> Iterator[StreamBlock]:
        """Tokenizes (and reconstructs) frames as they come, a block at a time, in constant memory.

        Codes, counts and frames are those of the whole-clip pass (`tokenize` with the same price or threshold), to float
        round-off. A long video is a sequence of clips: at every `num_frames` frames the model starts anew. The last block
        is filled up with copies of the last frame, which are not returned.

        Args:
            video: an iterable of frames (PIL images, arrays, tensors; or several frames at once, 4-D), a file, an address
                or camera that FFmpeg can open (`"rtsp://..."`, `"/dev/video0"`), an open PyAV container, a [`Video`].
            price: score per token (strategy `quality`).
            threshold: score that each block must undercut (strategy `threshold`).
            budget: AVERAGE tokens per block, or a percentage such as `"25%"`, held by a [`RateController`]: after n blocks
                the average is within `reservoir / n` of the budget, relative to it.
            bits_per_second: the same for an average bit rate, with the bits of `StreamBlock.bits`, at the source's fps.
            window, reservoir: of the rate controller, in blocks.
            fps: frames per second of frames that do not tell it (default: 24).
            resize_mode: `"crop"` or `"squash"`, see [`AdapTokVideoProcessor`].
            decode: whether to reconstruct the frames.
            output_type: `"np"`, `"pt"`, `"pil"` or `"uint8"`, see [`StreamBlock`].

        Yields:
            [`StreamBlock`], each as soon as its last frame has arrived. Without price, threshold, budget and bit rate all
            tokens are kept.

        Raises:
            ValueError: for more than one of price, threshold, budget and bits_per_second, impossible values, a tokenizer
                that is not causal or not adaptive, or a pipeline without scorer; while it runs, for what is not a video,
                frames that change their size, and a stream without frames.
        """
        check_output_type(output_type)
        given = {"price": price, "threshold": threshold, "budget": budget, "bits_per_second": bits_per_second}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise ValueError(f"give only one of price, threshold, budget and bits_per_second, got {', '.join(given)}")
        self._check_causal("stream")
        if given and not self.tokenizer.config.adaptive:
            raise ValueError(
                f"this tokenizer is not adaptive (CausalTok, LARP): it keeps all tokens and takes no {next(iter(given))}"
            )
        if given and self.scorer is None:
            raise ValueError(f"a {next(iter(given))} needs a scorer, and this pipeline has none")
        resize_mode = resize_mode or self.video_processor.resize_mode
        if resize_mode not in ("crop", "squash"):
            raise ValueError(f"resize_mode must be one of 'crop', 'squash', got {resize_mode!r}")
        if "bits_per_second" not in given:  # its range needs the frame rate; the others are checked at once
            self._count_rule(given, window, reservoir, 1.0)
        elif not is_finite_number(bits_per_second):
            raise ValueError(f"bits_per_second must be a finite number, got {bits_per_second!r}")
        frames = iter_frames(video, self.video_processor, fps)
        return self._stream(frames, given, window, reservoir, resize_mode, decode, output_type)

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
                encoder_cache, scorer_cache, decoder_cache = BlockCache(), BlockCache(), BlockCache()
            fps = group[0][2]
            if index == 0:
                rule = self._count_rule(given, window, reservoir, fps)
            clip = self.video_processor.clips(np.stack([frame for frame, _, _ in group]), fps, resize_mode)
            video = clip.frames[:, : config.tubelet_size]
            encoded = self.tokenizer.encode(
                (video.to(self.device) / 255).to(self.tokenizer.dtype), past_key_values=encoder_cache, return_dict=True
            )
            latents, codes = encoded.latents[:, 0], encoded.codes[:, 0]
            count, price = config.latents_per_block, None
            if rule is not None:
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

    def _count_rule(self, given: dict[str, float | str], window: int, reservoir: float, fps: float) -> CountRule | None:
        """Return how counts are chosen; `None` for keeping all tokens."""
        if not given:
            return None
        ((name, value),) = given.items()
        config, per_block = self.scorer.config, self.tokenizer.config.latents_per_block
        if name in ("price", "threshold"):
            request = AllocationRequest(**given)
            strategy, settings = request.choose_strategy(True), {"step": config.score_step, name: value}
            strategy.allocate(np.zeros((1, config.num_levels)), **settings)  # raises for a value that makes no sense
            price = value if name == "price" else None
            return lambda scores: (int(strategy.allocate(scores[None], **settings)[0][0]), price)
        if name == "bits_per_second":
            code_bits, count_bits = math.log2(self.tokenizer.config.codebook_size), math.log2(per_block + 1)
            seconds = self.tokenizer.config.tubelet_size / fps
            target = (value * seconds - count_bits) / code_bits
            if not config.score_step <= target <= per_block:
                low, high = ((count * code_bits + count_bits) / seconds for count in (config.score_step, per_block))
                raise ValueError(
                    f"bits_per_second must lie between {math.ceil(low)} and {math.floor(high)} for this model at {fps:g} "
                    f"frames per second, got {value!r}"
                )
        else:
            target = AllocationRequest(budget=value).parameters(per_block)["budget"]
        controller = RateController(
            target, step=config.score_step, num_levels=config.num_levels, window=window, reservoir=reservoir
        )
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
