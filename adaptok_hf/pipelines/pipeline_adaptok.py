"""The pipeline: any video in, tokens on a budget, video out; as a stream (`pipeline_streaming`); and new videos
(`pipeline_generation`)."""

import hashlib
import json
import time
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from diffusers.utils import BaseOutput

from ..allocation import STRATEGIES, allocate, joint
from ..allocation.budgets import level_total, tokens_per_block
from ..models.block_cache import BlockCache
from ..models.modeling_adaptok import AdapTokEncoderOutput, AdapTokModel
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..models.modeling_adaptok_scorer import AdapTokScorerModel
from ..video.tokenized_video import TokenizedVideo
from ..video.video_processing_adaptok import AdapTokVideoProcessor, ClipBatch
from .measured_losses import levels_to_measure, measure_losses
from .pipeline_batches import LatentsAgain, plan_batches
from .pipeline_generation import AdapTokGenerationOutput, GenerationMixin, check_output_type
from .pipeline_loading import LoadingMixin
from .pipeline_streaming import StreamingMixin

# What `allocation` may be: `measured` is `joint` with losses that are measured, so it has no function of a score table.
_ALLOCATIONS = (*STRATEGIES, "measured")
# Strategies that decide block after block, each time looking at all clips of the video.
_BLOCK_BY_BLOCK_OVER_CLIPS = ("ipal", "bithr", "bidelta")
# Strategies that decide block after block for each clip alone.
_BLOCK_BY_BLOCK = ("quality", "threshold")


@dataclass
class AdapTokPipelineOutput(BaseOutput):
    """
    Args:
        frames: the reconstruction. `"np"`: uint8 (frames, height, width, 3); `"pt"`: float (frames, 3, height, width) in
            [0, 1]; `"pil"`: a list of images.
        tokens: codes, counts, fps, timestamps, tokens and bits per second.
        original: uint8 (frames, size, size, 3), the input as the model saw it (resized and cropped).
        seconds: wall-clock seconds of the stages `read`, `encode`, `score` (for `measured`: measuring), `allocate`,
            `decode`.
    """

    frames: np.ndarray | torch.Tensor | list
    tokens: TokenizedVideo
    original: np.ndarray
    seconds: dict[str, float]

    @property
    def token_counts(self) -> torch.Tensor:
        """(clips, blocks) long, the tokens spent on each block."""
        return self.tokens.token_counts

    @property
    def fps(self) -> float:
        return self.tokens.fps

    @property
    def timestamps(self) -> np.ndarray:
        """(frames,) float64, seconds."""
        return self.tokens.timestamps

    @property
    def bits_per_second(self) -> float:
        return self.tokens.bits_per_second


class AdapTokPipeline(GenerationMixin, StreamingMixin, LoadingMixin, DiffusionPipeline):
    """Compresses videos of any length to a budget of tokens and reconstructs them, whole or as a stream of blocks; makes
    videos of a class or from a few frames.

    Args:
        video_processor ([`AdapTokVideoProcessor`]): videos of any kind to clips, and back.
        tokenizer ([`AdapTokModel`]): clips to codes, and back.
        scorer ([`AdapTokScorerModel`], *optional*): needed by every allocation strategy but `"fixed"` and `"measured"`.
        ar_model ([`AdapTokARForCausalLM`], *optional*): class-conditional, for `generate`.
        fp_model ([`AdapTokARForCausalLM`], *optional*): frame prediction, for `predict`.
    """

    _optional_components = ["scorer", "ar_model", "fp_model"]

    def __init__(
        self,
        video_processor: AdapTokVideoProcessor,
        tokenizer: AdapTokModel,
        scorer: AdapTokScorerModel | None = None,
        ar_model: AdapTokARForCausalLM | None = None,
        fp_model: AdapTokARForCausalLM | None = None,
    ):
        super().__init__()
        _check_components(video_processor, tokenizer, scorer)
        _check_generators(tokenizer, ar_model, fp_model)
        self.register_modules(
            video_processor=video_processor, tokenizer=tokenizer, scorer=scorer, ar_model=ar_model, fp_model=fp_model
        )

    def __call__(
        self, video: Any = None, *, class_labels: Any = None, **kwargs
    ) -> AdapTokPipelineOutput | AdapTokGenerationOutput:
        """`generate` where `class_labels` are given, `predict` with a video and `num_condition_frames`, else `reconstruct`.

        Raises:
            ValueError: if not exactly one of `video` and `class_labels` is given.
        """
        if (video is None) == (class_labels is None):
            raise ValueError("give either a video or class_labels")
        if class_labels is not None:
            return self.generate(class_labels, **kwargs)
        return self.predict(video, **kwargs) if "num_condition_frames" in kwargs else self.reconstruct(video, **kwargs)

    def reconstruct(
        self,
        video: Any,
        *,
        budget: float | str | Sequence[float] | None = None,
        price: float | None = None,
        threshold: float | None = None,
        allocation: str | None = None,
        rounding: str | None = None,
        resize_mode: str | None = None,
        fps: float | None = None,
        batch_size: int = 8,
        max_memory: int | str | None = None,
        output_type: str = "np",
    ) -> AdapTokPipelineOutput:
        """Tokenizes a video on a budget and decodes it again; the output has as many frames as the input.

        Args: see `tokenize`; `output_type` is `"np"`, `"pt"` or `"pil"`.
        """
        check_output_type(output_type)
        seconds: dict[str, float] = {}
        with _timed(seconds, "read"):
            clips = self.video_processor.clips(video, fps=fps, resize_mode=resize_mode)
        memory = {"batch_size": batch_size, "max_memory": max_memory}
        tokens = self._tokenize(clips, seconds, budget, price, threshold, allocation, rounding, resize_mode, **memory)
        with _timed(seconds, "decode"):
            frames = self.detokenize(tokens, **memory, output_type=output_type)
        original = clips.frames.flatten(0, 1)[: clips.num_frames].permute(0, 2, 3, 1).numpy()
        return AdapTokPipelineOutput(frames=frames, tokens=tokens, original=original, seconds=seconds)

    def tokenize(
        self,
        video: Any,
        *,
        budget: float | str | Sequence[float] | None = None,
        price: float | None = None,
        threshold: float | None = None,
        allocation: str | None = None,
        rounding: str | None = None,
        resize_mode: str | None = None,
        fps: float | None = None,
        batch_size: int = 8,
        max_memory: int | str | None = None,
    ) -> TokenizedVideo:
        """Video -> tokens.

        Args:
            video: a path, a list of PIL images, an array or tensor, a decoder, a [`Video`]; of any length and size. It
                is cut into clips, which share the budget.
            budget: AVERAGE tokens per block, or a percentage of `latents_per_block` such as `"25%"`; for `ipal` also one
                number per block position. Without budget, price and threshold all tokens are kept.
            price: score per token, for `quality`.
            threshold: score that each block must undercut, for `threshold`.
            allocation: `"fixed"`, `"bithr"`, `"bidelta"`, `"ipal"`, `"joint"`, `"quality"` or `"threshold"`, see
                [`allocate`]. Or `"measured"`: `joint` with losses that are measured instead of predicted, see
                [`measure_losses`]; it needs no scorer, but the time of one decoding for each of up to 40 levels. Default:
                `"quality"` with a price, `"threshold"` with a threshold, otherwise `"joint"`, or `"fixed"` if the
                pipeline has no scorer. `ipal`, `bithr` and `bidelta` treat the clips of the video as the batch.
            rounding: `"floor"` lets `ipal`, `joint` and `measured` take a budget that is off the grid, as the original
                does. The levels of `measured` are those of [`levels_to_measure`].
            resize_mode: `"crop"` or `"squash"`, see [`AdapTokVideoProcessor`].
            fps: frames per second of an input that does not tell.
            batch_size: the most clips that are worked on together; has no influence on the result beyond round-off.
            max_memory: the most that they may take on the device beyond the weights, in bytes or as `"2GiB"`: fewer clips
                are worked on together where `bytes_per_clip` says so. Default: half of what is free (a container's own
                limit is not seen). Frames and tokens of the whole video, in the host's memory, come on top.

        Raises:
            ValueError: for something that is not a video, an unknown strategy, a budget that cannot be met, or a
                `max_memory` that is too low for a single clip.
        """
        clips = self.video_processor.clips(video, fps=fps, resize_mode=resize_mode)
        request = (budget, price, threshold, allocation, rounding, resize_mode)
        return self._tokenize(clips, {}, *request, batch_size, max_memory)

    @torch.no_grad()
    def detokenize(
        self,
        tokens: TokenizedVideo,
        *,
        batch_size: int = 8,
        max_memory: int | str | None = None,
        output_type: str = "np",
    ) -> np.ndarray | torch.Tensor | list:
        """Tokens -> frames, see [`AdapTokPipelineOutput`]. Squashed videos get their proportions back.

        Args: see `tokenize`; `output_type` is `"np"`, `"pt"` or `"pil"`.

        Raises:
            ValueError: if the tokens were made by another tokenizer.
        """
        check_output_type(output_type)
        if tokens.model_hash != self.model_hash:
            raise ValueError(
                f"these tokens were made by another model (hash {tokens.model_hash[:12]}, this model's is "
                f"{self.model_hash[:12]})"
            )
        output_size = tuple(tokens.source_size) if tokens.resize_mode == "squash" else None
        num_clip_frames = self.tokenizer.config.num_frames
        batch_size, _ = plan_batches(self.tokenizer, self.scorer, len(tokens.codes), batch_size, max_memory)
        frames = []
        for start in self._batches(len(tokens.codes), batch_size, "decode"):
            part = slice(start, start + batch_size)
            counts = tokens.token_counts[part].to(self.device) if self.tokenizer.config.adaptive else None
            with torch.inference_mode():
                video = self.tokenizer.decode(tokens.codes[part].to(self.device), counts).pixel_values_videos
            real = min(len(video) * num_clip_frames, tokens.num_frames - start * num_clip_frames)
            frames.append(self.video_processor.unclip(video.float(), num_frames=real, output_size=output_size))
        return _convert_frames(np.concatenate(frames), output_type)

    @property
    def model_hash(self) -> str:
        """SHA-256 of the tokenizer's configuration and weights (rounded to bfloat16: float32 and bfloat16 loads agree)."""
        config = self.tokenizer.config
        architecture = {key: getattr(config, key) for key in sorted(type(config).__annotations__)}
        digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
        for name, tensor in sorted(self.tokenizer.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
        return digest.hexdigest()

    @torch.no_grad()
    def _tokenize(
        self,
        clips: ClipBatch,
        seconds: dict[str, float],
        budget: float | str | Sequence[float] | None,
        price: float | None,
        threshold: float | None,
        allocation: str | None,
        rounding: str | None,
        resize_mode: str | None,
        batch_size: int,
        max_memory: int | str | None,
    ) -> TokenizedVideo:
        per_block = self.tokenizer.config.latents_per_block
        given = {"budget": tokens_per_block(budget, per_block), "price": price, "threshold": threshold}
        given = {name: value for name, value in given.items() if value is not None}
        if rounding is not None:
            given["rounding"] = rounding
        strategy = self._strategy(allocation, given)
        valid = clips.valid_blocks
        step = self.scorer.config.score_step if self.scorer is not None else 1
        if strategy == "measured":
            levels = levels_to_measure(per_block, step)
            step = levels.step
            # a budget that cannot be met is told before everything is decoded at every level
            blocks = {"num_blocks": int(valid.sum()), "num_levels": len(levels), "step": step}
            level_total(**given, **blocks, where="allocation 'measured': ")
        seconds.update({"encode": 0.0, "score": 0.0, "allocate": 0.0})

        memory = {"batch_size": batch_size, "max_memory": max_memory, "measured": strategy == "measured"}
        batch_size, keep_latents = plan_batches(self.tokenizer, self.scorer, len(clips), **memory)

        def pixels(start: int) -> torch.Tensor:
            return clips.frames[start : start + batch_size].to(self.device) / 255

        def encode(start: int) -> AdapTokEncoderOutput:
            with torch.inference_mode():
                return self.tokenizer.encode(pixels(start).to(self.tokenizer.dtype))

        codes, scores, counts = [], [], []
        starts = self._batches(len(clips), batch_size, "encode")
        latents = [] if keep_latents else LatentsAgain(encode, range(0, len(clips), batch_size))
        for start in starts:
            with _timed(seconds, "encode"):
                encoded = encode(start)
                codes.append(encoded.codes.cpu())
            if strategy == "joint":
                with _timed(seconds, "score"), torch.inference_mode():
                    scores.append(self.scorer(encoded.latents, encoded.quantized).scores.cpu())
            elif strategy == "measured":
                with _timed(seconds, "score"):
                    scores.append(measure_losses(self.tokenizer, pixels(start), encoded.codes, levels).cpu())
            elif strategy in _BLOCK_BY_BLOCK:
                own = [encoded.latents], [encoded.codes], valid[start : start + batch_size]
                counts.append(self._allocate_block_by_block(*own, strategy, given, seconds))
            elif strategy in _BLOCK_BY_BLOCK_OVER_CLIPS and keep_latents:
                latents.append(encoded.latents)

        chosen_by = {"strategy": strategy or "all tokens"}
        if strategy is None:
            token_counts = valid.long() * per_block
        elif strategy == "fixed":
            table = np.zeros((*valid.shape, per_block // step))
            token_counts = torch.from_numpy(allocate(table, strategy="fixed", step=step, valid=valid.numpy(), **given))
        elif strategy in ("joint", "measured"):
            with _timed(seconds, "allocate"):
                table = torch.cat(scores).double().numpy()
                found = joint(table, step=step, valid=valid.numpy(), **given)
            token_counts = torch.from_numpy(found.token_counts)
            chosen_by |= {"objective": found.objective, "bound": found.bound}
        elif strategy in _BLOCK_BY_BLOCK:
            token_counts = torch.cat(counts)
        else:
            token_counts = self._allocate_block_by_block(latents, codes, valid, strategy, given, seconds)
        return TokenizedVideo(
            codes=torch.cat(codes),
            token_counts=token_counts,
            codebook_size=self.tokenizer.config.codebook_size,
            num_frames=clips.num_frames,
            fps=clips.fps,
            timestamps=clips.timestamps,
            source_size=tuple(clips.source_size),
            resize_mode=resize_mode or self.video_processor.resize_mode,
            model_hash=self.model_hash,
            allocation=chosen_by,
        )

    def _allocate_block_by_block(
        self,
        latents: Sequence[torch.Tensor],
        codes: list[torch.Tensor],
        valid: torch.Tensor,
        strategy: str,
        given: dict[str, Any],
        seconds: dict[str, float],
    ) -> torch.Tensor:
        """Scores block q given the counts chosen before it, allocates it, goes on with q + 1.

        Args:
            latents, codes: batches of clips, (clips, blocks, latents_per_block, ...).
            valid: (all clips, blocks) bool.

        Returns:
            (all clips, blocks) long.
        """
        config = self.scorer.config
        token_counts = torch.zeros(valid.shape, dtype=torch.long)
        budget = given.get("budget")
        if isinstance(budget, tuple) and len(budget) != valid.shape[1]:
            raise ValueError(f"a budget per block position needs {valid.shape[1]} numbers, got {len(budget)}")
        # A single batch keeps its keys and values from block to block. Those of all clips of a long video would be too
        # large: for many batches the kept tokens of earlier blocks are computed again.
        cache = BlockCache() if len(latents) == 1 and config.attention_type != "full" else None
        for block in range(valid.shape[1]):
            if not valid[:, block].any():
                break
            token_counts[:, block] = config.latents_per_block
            with _timed(seconds, "score"):
                if cache is None:
                    table = self._score_from_the_start(latents, codes, token_counts[:, : block + 1])
                else:
                    one = latents[0][:, block], self.tokenizer.quantizer.lookup(codes[0][:, block].to(self.device))
                    table = self.scorer.score_block(*one, cache).cpu()
            arguments = given | ({"budget": budget[block]} if isinstance(budget, tuple) else {})
            with _timed(seconds, "allocate"):
                token_counts[:, block] = torch.from_numpy(
                    allocate(
                        table.double().numpy(),
                        strategy=strategy,
                        step=config.score_step,
                        valid=valid[:, block].numpy(),
                        **arguments,
                    )
                )
            if cache is not None and block + 1 < valid.shape[1]:
                with _timed(seconds, "score"):
                    self.scorer.keep_tokens(*one, token_counts[:, block].to(self.device), cache)
        return token_counts

    def _score_from_the_start(
        self, latents: Sequence[torch.Tensor], codes: list[torch.Tensor], token_counts: torch.Tensor
    ) -> torch.Tensor:
        """The scores (all clips, levels) of the last block of `token_counts` (all clips, blocks), batch by batch."""
        scores, start, last = [], 0, token_counts.shape[1] - 1
        for batch_latents, batch_codes in zip(latents, codes, strict=True):
            quantized = self.tokenizer.quantizer.lookup(batch_codes[:, : last + 1].to(self.device))
            counts = token_counts[start : start + len(batch_codes)].to(self.device)
            start += len(batch_codes)
            if self.scorer.config.attention_type == "full":
                scores.append(self.scorer(batch_latents[:, : last + 1], quantized, counts).scores[:, -1].cpu())
                continue
            cache = BlockCache()
            for block in range(last):
                self.scorer.add_block(batch_latents[:, block], quantized[:, block], counts[:, block], cache)
            scores.append(self.scorer.score_block(batch_latents[:, last], quantized[:, last], cache).cpu())
        return torch.cat(scores)

    def _strategy(self, allocation: str | None, given: dict[str, Any]) -> str | None:
        """The strategy's name, or `None` for keeping everything."""
        if not self.tokenizer.config.adaptive and (given or allocation):
            raise ValueError("this tokenizer is not adaptive (CausalTok): it keeps all tokens and takes no budget")
        if allocation is None:
            if "price" in given:
                allocation = "quality"
            elif "threshold" in given:
                allocation = "threshold"
            elif "budget" in given:
                allocation = "joint" if self.scorer is not None else "fixed"
            elif given:
                raise ValueError(f"{', '.join(given)} was given without a budget")
            else:
                return None
        if allocation not in _ALLOCATIONS:
            raise ValueError(f"allocation must be one of {', '.join(_ALLOCATIONS)}, got {allocation!r}")
        if allocation not in ("fixed", "measured") and self.scorer is None:
            raise ValueError(
                f"allocation {allocation!r} needs a scorer, and this pipeline has none; use 'fixed' or 'measured'"
            )
        needed = {"quality": "price", "threshold": "threshold"}.get(allocation, "budget")
        unused = set(given) - {needed, *(["rounding"] if allocation in ("ipal", "joint", "measured") else [])}
        if needed not in given or unused:
            raise ValueError(f"allocation {allocation!r} needs a {needed}, got {', '.join(sorted(given)) or 'nothing'}")
        return allocation

    def _batches(self, total: int, batch_size: int, stage: str):
        """Start indices, with a progress bar where there is more than one batch."""
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        starts = range(0, total, batch_size)
        if len(starts) == 1:
            return starts
        bar = self.progress_bar(starts)
        bar.set_description(stage)
        return bar


def _check_components(
    video_processor: AdapTokVideoProcessor, tokenizer: AdapTokModel, scorer: AdapTokScorerModel | None
) -> None:
    config = tokenizer.config
    for name in ("image_size", "num_frames", "tubelet_size"):
        if getattr(video_processor, name) != getattr(config, name):
            raise ValueError(
                f"the video processor has {name}={getattr(video_processor, name)}, the tokenizer {getattr(config, name)}"
            )
    if scorer is not None:
        ours = (config.hidden_size, config.num_blocks, config.latents_per_block)
        theirs = (scorer.config.latent_size, scorer.config.num_blocks, scorer.config.latents_per_block)
        if ours != theirs:
            raise ValueError(f"the scorer is for (width, blocks, latents) {theirs}, the tokenizer has {ours}")


def _check_generators(
    tokenizer: AdapTokModel, ar_model: AdapTokARForCausalLM | None, fp_model: AdapTokARForCausalLM | None
) -> None:
    for name, model, is_class_conditional in (("ar_model", ar_model, True), ("fp_model", fp_model, False)):
        if model is None:
            continue
        if model.config.is_class_conditional != is_class_conditional:
            kind = "frame-prediction" if is_class_conditional else "class-conditional"
            raise ValueError(f"{name} is a {kind} generator, which belongs into the other place")
        for entry in ("codebook_size", "num_blocks", "latents_per_block"):
            theirs, ours = getattr(model.config, entry), getattr(tokenizer.config, entry)
            if theirs != ours:
                raise ValueError(f"{name} has {entry}={theirs}, the tokenizer {ours}: they do not belong together")


def _convert_frames(frames: np.ndarray, output_type: str) -> np.ndarray | torch.Tensor | list:
    if output_type == "np":
        return frames
    if output_type == "pt":
        return torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255
    from PIL import Image

    return [Image.fromarray(frame) for frame in frames]


@contextmanager
def _timed(seconds: dict[str, float], stage: str):
    start = time.perf_counter()
    yield
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start
