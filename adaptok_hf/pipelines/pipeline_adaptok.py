"""The pipeline: any video in, tokens on a budget, video out; as a stream (`pipeline_streaming`); and new videos
(`pipeline_generation`)."""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from accelerate.utils.modeling import get_state_dict_offloaded_model
from diffusers import DiffusionPipeline

from ..allocation import AllocationRequest
from ..models.modeling_adaptok import AdapTokModel
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..models.modeling_adaptok_router import AdapTokRouterModel
from ..models.modeling_adaptok_scorer import AdapTokScorerModel
from ..models.modeling_evatok import EVATokModel
from ..video.clip_batch import ClipBatch
from ..video.overlaps import fade_clips
from ..video.tiles import TiledClips
from ..video.tokenized_video import TokenizedVideo
from ..video.video_processing_adaptok import AdapTokVideoProcessor, is_video_list
from .component_checks import check_components, check_generators
from .encoded_videos import (
    EncodedVideos,
    decode_clips,
    join_valid_blocks,
    lookup_codes,
    stopwatch,
    take_clips,
)
from .pipeline_allocation import AllocationMixin
from .pipeline_arguments import check_arguments
from .pipeline_generation import GenerationMixin
from .pipeline_loading import LoadingMixin
from .pipeline_output import (
    AdapTokGenerationOutput,
    AdapTokPipelineOutput,
    AdapTokPipelineOutputList,
    Frames,
    as_tuple,
    check_output_type,
    convert_frames,
    join_videos,
)
from .pipeline_streaming import StreamingMixin


class AdapTokPipeline(AllocationMixin, GenerationMixin, StreamingMixin, LoadingMixin, DiffusionPipeline):
    """Compress videos of any length to a budget of tokens and reconstruct them, whole or as a stream of blocks; make videos
    of a class or from a few frames.

    Four steps do the work of the first half: `encode`, `score`, `allocate`, `decode`. `reconstruct`, `tokenize` and
    `detokenize` compose them.

    Args:
        video_processor ([`AdapTokVideoProcessor`]): videos of any kind to clips, and back.
        tokenizer ([`AdapTokModel`] or [`EVATokModel`]): clips to codes, and back. An `EVATokModel` needs token counts to
            encode: `allocate` then encodes, and takes strategies that decide first: `fixed`, `search` and `router`.
        scorer ([`AdapTokScorerModel`], *optional*): needed by most strategies, see [`STRATEGIES`].
        ar_model ([`AdapTokARForCausalLM`], *optional*): class-conditional, for `generate`.
        fp_model ([`AdapTokARForCausalLM`], *optional*): frame prediction, for `predict`.
        router ([`AdapTokRouterModel`], *optional*): for the strategy of that name.
    """

    _optional_components = ["scorer", "ar_model", "fp_model", "router"]
    # A model leaves the accelerator when the one after it here begins: the large generator before the tokenizer decodes.
    model_cpu_offload_seq = "router->scorer->ar_model->tokenizer->fp_model"

    def __init__(
        self,
        video_processor: AdapTokVideoProcessor,
        tokenizer: AdapTokModel | EVATokModel,
        scorer: AdapTokScorerModel | None = None,
        ar_model: AdapTokARForCausalLM | None = None,
        fp_model: AdapTokARForCausalLM | None = None,
        router: AdapTokRouterModel | None = None,
    ):
        super().__init__()
        check_components(video_processor, tokenizer, scorer, router)
        check_generators(tokenizer, ar_model, fp_model)
        models = {"tokenizer": tokenizer, "scorer": scorer, "ar_model": ar_model, "fp_model": fp_model, "router": router}
        self.register_modules(video_processor=video_processor, **models)

    def __call__(
        self, video: Any = None, *, class_labels: Any = None, **kwargs
    ) -> AdapTokPipelineOutput | AdapTokPipelineOutputList | AdapTokGenerationOutput | tuple:
        """`generate` where `class_labels` are given, `predict` with a video and `num_condition_frames`, else `reconstruct`.

        Raises:
            ValueError: if not exactly one of `video` and `class_labels` is given.
            TypeError: for arguments of diffusers' pipelines that make no sense here.
        """
        kwargs = check_arguments(kwargs, self.tokenizer.config)
        if (video is None) == (class_labels is None):
            raise ValueError("give either a video or class_labels")
        if class_labels is not None:
            return self.generate(class_labels, **kwargs)
        return self.predict(video, **kwargs) if "num_condition_frames" in kwargs else self.reconstruct(video, **kwargs)

    def read(
        self, video: Any, *, fps: float | None = None, resize_mode: str | None = None, overlap_blocks: int = 0
    ) -> ClipBatch | TiledClips:
        """Read a video and cut it into clips, as `encode` does, whose arguments these are. Clips are returned as they are.

        Raises:
            ValueError: see `encode`.
        """
        resize_mode = resize_mode or self.video_processor.resize_mode
        if isinstance(video, ClipBatch | TiledClips):
            _check_read(video, fps, resize_mode, overlap_blocks)
            return video
        if resize_mode != "tile":
            return self.video_processor.clips(video, fps, resize_mode, overlap_blocks)
        if overlap_blocks:
            raise ValueError(f"overlap_blocks={overlap_blocks} is for 'crop' and 'squash', not for 'tile'")
        return self.video_processor.tiled_clips(video, fps=fps)

    @torch.no_grad()
    def encode(
        self,
        videos: Any,
        *,
        request: AllocationRequest | None = None,
        fps: float | None = None,
        resize_mode: str | None = None,
        overlap_blocks: int = 0,
        batch_size: int = 8,
    ) -> EncodedVideos:
        """Read videos, cut them into clips, and encode these at full width: the first of four steps.

        A tokenizer that needs token counts to encode, an [`EVATokModel`], does so in `allocate`, the third.

        Args:
            videos: a path, a list of PIL images, an array or tensor, a decoder, a [`Video`], or what `read` returned with
                the same arguments; of any length and size. Or a list of such videos, which will share the budget.
            request: what will be allocated. If given, it is checked as soon as the number of blocks is known, and latents
                are kept only if its strategy needs them: those of `joint` are scored at once, batch by batch, and dropped.
            fps: frames per second of an input that does not state it.
            resize_mode: `"crop"`, `"squash"` or `"tile"`, see [`AdapTokVideoProcessor`]. Each block of each tile counts as
                a block of the budget.
            overlap_blocks: blocks that each clip of a long video shares with the one before, at most half of a clip's. It
                hides the jump between them, for more tokens. Not for `"tile"`.
            batch_size: clips that are encoded together.

        Raises:
            ValueError: for something that is not a video, and a request that cannot be met.
        """
        strategy = None if request is None else self.choose_strategy(request)
        is_list = is_video_list(videos)
        resize_mode = resize_mode or self.video_processor.resize_mode
        seconds: dict[str, float] = {}
        with stopwatch(seconds, "read", self.device):
            options = {"fps": fps, "resize_mode": resize_mode, "overlap_blocks": overlap_blocks}
            clips = [self.read(video, **options) for video in (videos if is_list else [videos])]
        if strategy is not None:
            self.check_request(request, join_valid_blocks(clips, self.tokenizer.config.num_blocks))
        shape = (0, self.tokenizer.config.num_blocks, self.tokenizer.config.latents_per_block)
        if not self.tokenizer.prefix_decodable:
            codes = torch.empty(sum(map(len, clips)), *shape[1:], dtype=torch.long, device="meta")
            encoded = EncodedVideos(clips, codes, None, resize_mode, self.model_hash, is_list, {}, seconds)
            if strategy is not None and strategy.needs_router:
                self.route(encoded, price=request.price, batch_size=batch_size)
            return encoded
        needs_scorer = strategy is not None and (strategy.needs_scorer or strategy.scores == "searched")
        needs_scorer = self.scorer is not None and (request is None or needs_scorer)
        scores_at_once = strategy is not None and needs_scorer and strategy.order == "clip"
        codes, latents, scores = [], [], []
        for start in self.batches(sum(map(len, clips)), batch_size, "encode"):
            with stopwatch(seconds, "encode", self.device), torch.inference_mode():
                frames = take_clips(clips, slice(start, start + batch_size)).to(self.device)
                encoded = self.tokenizer.encode((frames / 255).to(self.tokenizer.dtype), return_dict=True)
                codes.append(encoded.codes.cpu())
                if needs_scorer and not scores_at_once:
                    latents.append(encoded.latents.cpu())
            if scores_at_once:
                with stopwatch(seconds, "score", self.device), torch.inference_mode():
                    quantized = lookup_codes(self.tokenizer, encoded.codes)
                    scores.append(self.scorer(encoded.latents, quantized, return_dict=True).scores.cpu())
        codes = torch.cat([torch.empty(shape, dtype=torch.long), *codes])
        latents = torch.cat(latents) if latents else None
        tables = {"predicted": torch.cat(scores).double().numpy()} if scores else {}
        encoded = EncodedVideos(clips, codes, latents, resize_mode, self.model_hash, is_list, tables, seconds)
        if strategy is not None and strategy.needs_router:  # while the frames are there
            self.route(encoded, price=request.price, batch_size=batch_size)
        return encoded

    def decode(self, tokens: TokenizedVideo, *, batch_size: int = 8) -> np.ndarray:
        """Decode the tokens of a video: the fourth step.

        Args:
            tokens: of this tokenizer.
            batch_size: clips that are decoded together.

        Returns:
            uint8 (frames, height, width, 3). Squashed videos get their proportions back, tiles become whole frames.

        Raises:
            ValueError: if the tokens were made by another tokenizer, or their numbers do not fit it.
        """
        frames = self.decode_frames(tokens, batch_size=batch_size)
        first = next(frames)
        video = np.empty((tokens.num_frames, *first.shape), dtype=np.uint8)
        for index, frame in enumerate(chain([first], frames)):
            video[index] = frame
        return video

    def decode_frames(self, tokens: TokenizedVideo, *, batch_size: int = 8) -> Iterator[np.ndarray]:
        """Decode as `decode` does, but return an iterator of single frames, so that a long video needs little memory.

        Arguments and errors are those of `decode`, and raised at once.
        """
        if tokens.model_hash != self.model_hash:
            raise ValueError(
                f"these tokens were made by another model (hash {tokens.model_hash[:12]}, this model's is "
                f"{self.model_hash[:12]})"
            )
        config = self.tokenizer.config
        num_clips, shared = len(tokens.codes), tokens.overlap_blocks * config.tubelet_size
        if tokens.tiles is not None:
            if tokens.tiles.size != config.image_size:
                raise ValueError(f"tiles of {tokens.tiles.size} pixels are not this tokenizer's, {config.image_size}")
            num_clips //= len(tokens.tiles)
        if tuple(tokens.codes.shape[1:]) != (config.num_blocks, config.latents_per_block):
            raise ValueError(f"codes of shape {tuple(tokens.codes.shape)} are not this tokenizer's")
        if num_clips != max(-(-(tokens.num_frames - shared) // (config.num_frames - shared)), 1):
            raise ValueError(f"num_frames={tokens.num_frames} is not of {num_clips} clips of {config.num_frames} frames")
        return islice(fade_clips(self._decode_whole_clips(tokens, batch_size), shared), tokens.num_frames)

    def _decode_whole_clips(self, tokens: TokenizedVideo, batch_size: int) -> Iterator[np.ndarray]:
        """Yield each clip at the size of the output, uint8 (frames, height, width, 3)."""
        size, tiles = tokens.source_size if tokens.resize_mode == "squash" else None, []
        for start in self.batches(len(tokens.codes), batch_size, "decode"):
            rows = slice(start, start + batch_size)
            video = decode_clips(self.tokenizer, tokens.codes[rows], tokens.token_counts[rows])
            clips = np.split(self.video_processor.unclip(video, output_size=size), len(video))
            if tokens.tiles is None:
                yield from clips
                continue
            tiles += clips
            while len(tiles) >= len(tokens.tiles):  # all of a clip
                yield np.stack(list(tokens.tiles.join(tiles[: len(tokens.tiles)], *tokens.source_size)))
                del tiles[: len(tokens.tiles)]

    def reconstruct(
        self,
        videos: Any,
        *,
        budget: float | str | Sequence[float] | None = None,
        price: float | None = None,
        threshold: float | None = None,
        allocation: str | None = None,
        rounding: str | None = None,
        loss: str | Callable | None = None,
        resize_mode: str | None = None,
        overlap_blocks: int = 0,
        fps: float | None = None,
        batch_size: int = 8,
        output_type: str = "np",
        return_dict: bool = True,
    ) -> AdapTokPipelineOutput | AdapTokPipelineOutputList | tuple:
        """Tokenize videos on a budget and decode them again; each output has as many frames as its input.

        Args:
            videos, fps, resize_mode, overlap_blocks, batch_size: see `encode`.
            budget, price, threshold, rounding, loss: see [`AllocationRequest`]; `allocation` is its `strategy`.
            output_type: `"np"`, `"pt"`, `"pil"` or `"uint8"`, see [`AdapTokPipelineOutput`].
            return_dict: `False` gives a tuple of the output's fields, `frames` first; of a list of videos, of their lists.

        Returns:
            The output; of a list of videos, an [`AdapTokPipelineOutputList`].

        Raises:
            ValueError: for something that is not a video, an unknown strategy, or a budget that cannot be met.
        """
        check_output_type(output_type)
        request = AllocationRequest(budget, price, threshold, allocation, rounding, loss)
        settings = {"fps": fps, "resize_mode": resize_mode, "overlap_blocks": overlap_blocks, "batch_size": batch_size}
        encoded = self.encode(videos, request=request, **settings)
        tokens = self.allocate(encoded, request, batch_size=batch_size)
        outputs, seconds = AdapTokPipelineOutputList(), {"score": 0.0, "allocate": 0.0} | encoded.seconds
        for video, clips in zip(tokens if encoded.is_list else [tokens], encoded.clips, strict=True):
            with stopwatch(seconds, "decode", self.device):
                frames = convert_frames(self.decode(video, batch_size=batch_size)[None], output_type)
            original = convert_frames(clips.original()[None], output_type)
            outputs.append(AdapTokPipelineOutput(frames=frames, tokens=video, original=original, seconds=seconds))
        self.maybe_free_model_hooks()
        output = outputs if encoded.is_list else outputs[0]
        return output if return_dict else as_tuple(output)

    def tokenize(
        self,
        videos: Any,
        *,
        budget: float | str | Sequence[float] | None = None,
        price: float | None = None,
        threshold: float | None = None,
        allocation: str | None = None,
        rounding: str | None = None,
        loss: str | Callable | None = None,
        resize_mode: str | None = None,
        overlap_blocks: int = 0,
        fps: float | None = None,
        batch_size: int = 8,
    ) -> TokenizedVideo | list[TokenizedVideo]:
        """Turn videos into tokens: `encode`, then `allocate`. Arguments, results and errors are those of `reconstruct`."""
        request = AllocationRequest(budget, price, threshold, allocation, rounding, loss)
        settings = {"fps": fps, "resize_mode": resize_mode, "overlap_blocks": overlap_blocks, "batch_size": batch_size}
        encoded = self.encode(videos, request=request, **settings)
        tokens = self.allocate(encoded, request, batch_size=batch_size)
        self.maybe_free_model_hooks()
        return tokens

    def detokenize(
        self, tokens: TokenizedVideo | Sequence[TokenizedVideo], *, batch_size: int = 8, output_type: str = "np"
    ) -> Frames:
        """Turn the tokens of a video or of several into frames: `decode` in the forms of [`AdapTokPipelineOutput`].

        `frames[i]` is a video, also of a single one. Videos of different shapes make a list.
        """
        check_output_type(output_type)
        videos = [tokens] if isinstance(tokens, TokenizedVideo) else tokens
        frames = [convert_frames(self.decode(video, batch_size=batch_size)[None], output_type)[0] for video in videos]
        self.maybe_free_model_hooks()
        return join_videos(frames)

    @property
    def model_hash(self) -> str:
        """SHA-256 of the tokenizer's configuration and weights (rounded to bfloat16: float32 and bfloat16 loads agree)."""
        config = self.tokenizer.config
        architecture = {key: getattr(config, key) for key in sorted(type(config).__annotations__)}
        digest = hashlib.sha256(json.dumps(architecture, sort_keys=True).encode())
        weights = self.tokenizer.state_dict()
        if any(getattr(entry, "is_meta", False) for entry in weights.values()):  # offloaded module by module
            weights = get_state_dict_offloaded_model(self.tokenizer)
        plain = {name.replace("_orig_mod.", ""): entry for name, entry in weights.items()}  # names as before compilation
        for name, entry in sorted(plain.items()):
            digest.update(name.encode())
            for tensor in entry if isinstance(entry, tuple) else (entry,):  # int8 weights come with their bias
                if not isinstance(tensor, torch.Tensor):
                    continue
                tensor = tensor.dequantize() if tensor.is_quantized else tensor
                digest.update(tensor.detach().to("cpu", torch.bfloat16).view(torch.int16).numpy().tobytes())
        return digest.hexdigest()


def _check_read(clips: ClipBatch | TiledClips, fps: float | None, resize_mode: str, overlap_blocks: int) -> None:
    """Raise `ValueError` if clips were read with other arguments, as far as they show it."""
    is_tiled, overlap = isinstance(clips, TiledClips), getattr(clips, "overlap_blocks", 0)
    if fps not in (None, clips.fps) or (resize_mode == "tile") != is_tiled or overlap_blocks != overlap:
        raise ValueError(
            f"clips were read with fps={clips.fps:g}, {'' if is_tiled else 'not '}as tiles, overlap_blocks={overlap}; got "
            f"fps={fps}, resize_mode={resize_mode!r}, overlap_blocks={overlap_blocks}"
        )
