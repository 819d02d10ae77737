"""The generating half of the pipeline: videos of a class, and continuations of given frames."""

import difflib
import math
import operator
from collections.abc import Callable, Sequence
from types import NoneType
from typing import Any

import torch

from ..models.generation_adaptok import check_number
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..video.video_io import DEFAULT_FPS, check_fps
from ..video.video_processing_adaptok import is_video_list
from .encoded_videos import decode_clips
from .kept_details import with_details
from .pipeline_arguments import BlockCallback, check_arguments, number_of_videos
from .pipeline_output import AdapTokGenerationOutput, as_tuple, check_output_type, convert_frames


class GenerationMixin:
    """`generate` and `predict` of [`AdapTokPipeline`]."""

    _callback_tensor_inputs = ["sequences"]
    _interrupt = False

    def generate(
        self,
        class_labels: int | str | Sequence[int | str],
        *,
        num_videos_per_class: int | None = None,
        num_videos_per_prompt: int | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_tokens: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        fps: float = DEFAULT_FPS,
        batch_size: int = 16,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sequences",),
        **generate_kwargs,
    ) -> AdapTokGenerationOutput | tuple:
        """Make videos of classes.

        Args:
            class_labels: class names or ids, see `class_names`.
            num_videos_per_class, num_videos_per_prompt: videos of each (default: 1); the second is diffusers' name for it.
            guidance_scale, guidance_interval: see [`AdapTokARForCausalLM.generate`].
            temperature, top_k, top_p: how tokens are sampled; default: the model's `generation_config`.
            max_tokens: the most tokens to write: of a whole clip, or one number for each generated block.
            generator: seeds each video; the videos do not depend on `batch_size`. Or a list with a generator for each.
            fps: of the output; the model knows nothing of time.
            batch_size: videos that are generated together.
            output_type: `"np"`, `"pt"`, `"pil"` or `"uint8"`, see [`AdapTokPipelineOutput`].
            return_dict: `False` gives a tuple of the output's fields, `frames` first.
            callback_on_step_end, callback_on_step_end_tensor_inputs: called after each block, see [`BlockCallback`].
                Where it sets `pipeline._interrupt`, the rest is not written: the output has what was made so far.
            generate_kwargs: for [`AdapTokARForCausalLM.generate`], such as `cache_implementation="static"`, or
                `allowed_lengths` of a generator with length tokens.

        Raises:
            ValueError: if the pipeline has no class-conditional generator, for unknown classes (naming the closest) and
                for impossible settings.
            TypeError: for arguments of diffusers' pipelines that make no sense here.
        """
        if self.ar_model is None:
            raise ValueError("this pipeline has no class-conditional generator (ar_model); the checkpoint 'figures' has")
        check_output_type(output_type)
        generate_kwargs = check_arguments(generate_kwargs, self.tokenizer.config)
        copies = number_of_videos(num_videos_per_class=num_videos_per_class, num_videos_per_prompt=num_videos_per_prompt)
        fps = check_fps(fps)
        if hasattr(class_labels, "tolist"):  # of an array or tensor
            class_labels = class_labels.tolist()
        classes = [class_labels] if isinstance(class_labels, int | str) else list(class_labels)
        labels = [class_id(self.ar_model, label) for label in classes for _ in range(copies)]
        if not labels:
            raise ValueError("class_labels is empty")
        settings = sampling_arguments(temperature, top_k, top_p) | generate_kwargs
        settings |= {"guidance_scale": guidance_scale, "guidance_interval": guidance_interval, "max_tokens": max_tokens}
        seeds = sample_seeds(len(labels), generator)
        settings |= self._watch(self.ar_model, callback_on_step_end, callback_on_step_end_tensor_inputs, settings)
        frames, codes, counts = [], [], []
        for start in self.batches(len(labels), batch_size, "generate"):
            rows = slice(start, start + batch_size)
            clips = self._write(self.ar_model, settings, class_labels=labels[rows], seeds=seeds[rows])
            frames.append(self.decode_clips(*clips))
            codes.append(clips[0].cpu())
            counts.append(clips[1].cpu())
            if self.interrupt:
                labels, seeds = labels[: rows.stop], seeds[: rows.stop]
                break
        self.maybe_free_model_hooks()
        output = AdapTokGenerationOutput(
            frames=convert_frames(torch.cat(frames).movedim(2, 4).numpy(), output_type),
            codes=torch.cat(codes)[:, None],
            token_counts=torch.cat(counts)[:, None],
            seeds=seeds[:, None],
            class_labels=labels,
            class_names=[self.class_names[label] for label in labels],
            num_condition_frames=0,
            fps=fps,
        )
        return output if return_dict else as_tuple(output)

    def predict(
        self,
        video: Any,
        *,
        num_condition_frames: int = 5,
        num_rollouts: int = 1,
        keep_details: bool = False,
        num_videos: int | None = None,
        num_videos_per_prompt: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        max_tokens: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        resize_mode: str | None = None,
        fps: float | None = None,
        output_type: str = "np",
        return_dict: bool = True,
        callback_on_step_end: Callable | None = None,
        callback_on_step_end_tensor_inputs: Sequence[str] = ("sequences",),
        **generate_kwargs,
    ) -> AdapTokGenerationOutput | tuple:
        """Continue the first frames of a video, or of each of a list of videos.

        Args:
            video: anything that `tokenize` takes; only its first `num_condition_frames` frames are used.
            num_condition_frames: frames that the model is given.
            num_rollouts: clips to predict one after the other, each from the last `num_condition_frames` frames of the
                previous one.
            keep_details: return the given frames as they are, and let later ones look like the last of them where the
                decoded picture does not change. `False`: all frames are decoded from tokens, the given ones too.
            num_videos, num_videos_per_prompt: different continuations of each (default: 1).
            temperature, top_k, top_p, generator, return_dict, callback_on_step_end, generate_kwargs: as in `generate`.
            max_tokens: as in `generate`, for each predicted clip; the blocks that are given do not count.
            resize_mode, fps: as in `tokenize`.

        Returns:
            Videos of `num_frames + (num_rollouts - 1) * (num_frames - num_condition_frames)` frames.

        Raises:
            ValueError: if the pipeline has no frame-prediction generator, a video has too few frames, or videos differ in
                their frame rate.
            TypeError: for arguments of diffusers' pipelines that make no sense here.
        """
        if self.fp_model is None:
            raise ValueError("this pipeline has no frame-prediction generator (fp_model); the checkpoint 'figures' has")
        check_output_type(output_type)
        generate_kwargs = check_arguments(generate_kwargs, self.tokenizer.config)
        check_number("num_rollouts", num_rollouts, 1, math.inf, whole=True)
        copies = number_of_videos(num_videos=num_videos, num_videos_per_prompt=num_videos_per_prompt)
        length = self.tokenizer.config.num_frames
        check_number("num_condition_frames", num_condition_frames, 1, length - 1, whole=True)
        windows, fps = self._given_frames(video, num_condition_frames, fps, resize_mode)
        windows = windows.repeat_interleave(copies, dim=0)
        settings = sampling_arguments(temperature, top_k, top_p) | generate_kwargs | {"max_tokens": max_tokens}
        settings |= self._watch(self.fp_model, callback_on_step_end, callback_on_step_end_tensor_inputs, settings)
        frames, codes, counts, seeds = [], [], [], []
        for rollout in range(num_rollouts):
            condition = self.tokenize_condition(windows, num_condition_frames)
            seeds.append(sample_seeds(len(windows), generator))
            clips = self._write(self.fp_model, settings, condition_codes=condition, seeds=seeds[-1])
            decoded = self.decode_clips(*clips)
            windows = with_details(decoded, windows[:, :num_condition_frames]) if keep_details else decoded
            frames.append(windows if rollout == 0 else windows[:, num_condition_frames:])
            codes.append(clips[0].cpu())
            counts.append(clips[1].cpu())
            windows = windows[:, -num_condition_frames:]
            if self.interrupt:
                break
        self.maybe_free_model_hooks()
        output = AdapTokGenerationOutput(
            frames=convert_frames(torch.cat(frames, dim=1).movedim(2, 4).numpy(), output_type),
            codes=torch.stack(codes, dim=1),
            token_counts=torch.stack(counts, dim=1),
            seeds=torch.stack(seeds, dim=1),
            class_labels=None,
            class_names=None,
            num_condition_frames=num_condition_frames,
            fps=fps,
        )
        return output if return_dict else as_tuple(output)

    @property
    def interrupt(self) -> bool:
        """Whether `generate` or `predict` was asked to stop, by `pipeline._interrupt = True` in its callback."""
        return self._interrupt

    def _given_frames(
        self, video: Any, count: int, fps: float | None, resize_mode: str | None
    ) -> tuple[torch.Tensor, float]:
        """Return the first clip of each video, uint8 (videos, frames, 3, size, size), and their frame rate."""
        videos = [
            self.video_processor.load(each, fps=fps, max_frames=count)
            for each in (video if is_video_list(video) else [video])
        ]
        for each in videos:
            if len(each.frames) < count:
                raise ValueError(
                    f"the video has {len(each.frames)} frames, {count} are needed to continue it (num_condition_frames)"
                )
        if len(rates := {each.fps for each in videos}) != 1:
            raise ValueError(f"videos that are continued together need one frame rate, got {sorted(rates)}")
        clips = [self.video_processor.clips(each, resize_mode=resize_mode).frames[:1] for each in videos]
        return torch.cat(clips), rates.pop()

    def _watch(self, model: AdapTokARForCausalLM, callback: Callable | None, tensor_inputs: Sequence[str], settings: dict):
        """Return the stopping criteria of a call: the given ones, and the one that calls the callback after each block."""
        self._interrupt = False
        watcher = BlockCallback(self, callback, list(tensor_inputs), model)
        return {"stopping_criteria": [*(settings.get("stopping_criteria") or []), watcher]}

    def _write(self, model: AdapTokARForCausalLM, settings: dict[str, Any], **given) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes and counts of a batch of clips; one that was stopped early has no tokens in its last blocks."""
        settings["stopping_criteria"][-1].start()
        sequences = model.generate(**given, **settings)
        return model.unpack_sequences(sequences, given.get("condition_codes"), fill=True)

    @property
    def class_names(self) -> list[str]:
        """The names of the class-conditional generator's classes, by id."""
        if self.ar_model is None:
            raise ValueError("this pipeline has no class-conditional generator (ar_model); the checkpoint 'figures' has")
        config = self.ar_model.config
        return [config.id2label.get(label, str(label)) for label in range(config.num_classes)]

    @torch.no_grad()
    def tokenize_condition(
        self, windows: torch.Tensor, num_condition_frames: int, condition_counts: Sequence[int] | None = None
    ) -> torch.LongTensor:
        """Return the codes of clips that repeat the last given frame: the condition of a frame-prediction generator.

        Args:
            windows: uint8 (batch, frames, 3, image_size, image_size), at least `num_condition_frames` frames.
            condition_counts: how many tokens an [`EVATokModel`] makes of each of the first blocks, which hold all given
                frames. Default: the generator's, or the most of every block.

        Returns:
            (batch, blocks, latents_per_block) long.

        Raises:
            ValueError: if the blocks do not hold the given frames.
        """
        config, counts = self.tokenizer.config, ()
        fixed = condition_counts or getattr(getattr(self.fp_model, "config", None), "condition_counts", None)
        if fixed and num_condition_frames > len(fixed) * config.tubelet_size:
            raise ValueError(
                f"num_condition_frames={num_condition_frames}, but condition_counts={list(fixed)} are blocks of "
                f"{len(fixed) * config.tubelet_size} frames"
            )
        if not self.tokenizer.prefix_decodable:
            row = [*fixed, *[0] * config.num_blocks][: config.num_blocks] if fixed else [config.latents_per_block]
            counts = (torch.tensor(row, device=self.device).expand(len(windows), config.num_blocks),)
        index = torch.arange(self.tokenizer.config.num_frames).clamp(max=num_condition_frames - 1)
        video = (windows[:, index].to(self.device) / 255).to(self.tokenizer.dtype)
        return self.tokenizer.encode(video, *counts, return_dict=True).codes

    def decode_clips(self, codes: torch.Tensor, token_counts: torch.Tensor) -> torch.Tensor:
        """Return the frames of whole clips, uint8 (clips, frames, 3, height, width)."""
        return (decode_clips(self.tokenizer, codes, token_counts) * 255).round().to(torch.uint8).cpu()


def class_id(model: AdapTokARForCausalLM, label: int | str) -> int:
    """Return the id of a class that is given by id or by name (case, spaces, hyphens and underscores do not matter).

    Raises:
        ValueError: naming the closest classes.
    """
    config = model.config
    if not isinstance(label, str):
        label = operator.index(label)
        if not 0 <= label < config.num_classes:
            raise ValueError(f"class ids must lie in 0..{config.num_classes - 1}, got {label}")
        return label
    if label.strip().isdecimal():
        return class_id(model, int(label))
    names = {_plain(str(name)): number for number, name in config.id2label.items()}
    if _plain(label) in names:
        return names[_plain(label)]
    close = difflib.get_close_matches(_plain(label), names, n=3, cutoff=0.4)
    hint = ", ".join(repr(config.id2label[names[name]]) for name in close)
    raise ValueError(
        f"unknown class {label!r}{f', did you mean {hint}?' if hint else ';'} `adaptok info --classes` and the pipeline's "
        f"class_names list all {config.num_classes}"
    )


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def sample_seeds(count: int, generator: torch.Generator | Sequence[torch.Generator] | None) -> torch.LongTensor:
    """Return (count,) seeds from a generator (which may be on any device), one of each of a list, or torch's global one.

    Raises:
        TypeError: for anything else.
        ValueError: for a list of another length.
    """
    if isinstance(generator, list | tuple):
        if len(generator) != count:
            raise ValueError(f"got {len(generator)} generators for {count} videos, expected one for each")
        return torch.cat([sample_seeds(1, each) for each in generator])
    if not isinstance(generator, torch.Generator | NoneType):
        raise TypeError(f"generator={generator!r}, expected a torch.Generator or a list of them")
    device = generator.device if generator is not None else "cpu"
    return torch.randint(2**63 - 1, (count,), generator=generator, device=device).cpu()


def sampling_arguments(temperature: float | None, top_k: int | None, top_p: float | None) -> dict[str, float | bool]:
    """Return the arguments of transformers' `generate`; temperature 0 means the likeliest token.

    Raises:
        ValueError: for values outside their range.
    """
    if temperature is not None:
        check_number("temperature", temperature, 0, 1e6)
    if top_k is not None:
        check_number("top_k", top_k, 0, math.inf, whole=True)  # 0: no limit
    if top_p is not None:
        check_number("top_p", top_p, 1e-6, 1)
    if temperature == 0:
        return {"do_sample": False}
    values = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
    return {name: value for name, value in values.items() if value is not None}
