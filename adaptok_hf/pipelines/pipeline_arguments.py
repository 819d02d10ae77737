"""Arguments that users of diffusers' video pipelines bring along: done where there is an equal here, else named."""

import math
from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria

from ..models.configuration_adaptok import AdapTokConfig
from ..models.generation_adaptok import check_number

_NO_TEXT = "there is no text here; generate takes class_labels, predict a video"
_NO_STEPS = "nothing is denoised in steps; a video is written token by token"
_INSTEAD = (
    dict.fromkeys(
        ("prompt", "prompt_2", "negative_prompt", "prompt_embeds", "negative_prompt_embeds", "max_sequence_length"),
        _NO_TEXT,
    )
    | dict.fromkeys(("num_inference_steps", "timesteps", "sigmas", "latents", "strength", "eta"), _NO_STEPS)
    | {
        "image": "predict continues the first frames of a video: video= and num_condition_frames=",
        "frame_rate": "fps= is the frame rate of the output",
        "callback": "callback_on_step_end is called after each block",
        "callback_steps": "callback_on_step_end is called after each block",
        "num_return_sequences": "num_videos_per_prompt is the number of videos of each",
        "seed": "generator= seeds the videos",
        "seeds": "generator= seeds the videos",
        "decode_chunk_size": "batch_size is the number of clips that are worked on together",
    }
)


def check_arguments(arguments: dict[str, Any], config: AdapTokConfig) -> dict[str, Any]:
    """Return the arguments that are not diffusers' own; those that are may ask for nothing but what is done anyway.

    Args:
        arguments: by name; `None` asks for nothing.
        config: of the tokenizer, whose clips have a fixed size.

    Raises:
        TypeError: for one that makes no sense here, naming it and what to give instead.
        ValueError: for a size that the model does not make.
    """
    sizes = {"height": config.image_size, "width": config.image_size, "num_frames": config.num_frames}
    rest = {}
    for name, value in arguments.items():
        if name not in sizes and name not in _INSTEAD:
            rest[name] = value
        elif value is not None and name in _INSTEAD:
            raise TypeError(f"{name} is not an argument of this pipeline: {_INSTEAD[name]}")
        elif value not in (None, sizes.get(name)):
            raise ValueError(f"{name}={value!r}: this model makes clips with {name}={sizes[name]}")
    return rest


def number_of_videos(**numbers: int | None) -> int:
    """Return the one number that is given under any of its names, or 1; `ValueError` for two that differ."""
    given = {name: number for name, number in numbers.items() if number is not None}
    for name, number in given.items():
        check_number(name, number, 1, math.inf, whole=True)
    if len(set(given.values())) > 1:
        raise ValueError(f"{' and '.join(f'{name}={number}' for name, number in given.items())}: give only one of them")
    return next(iter(given.values()), 1)


class BlockCallback(StoppingCriteria):
    """Call `callback_on_step_end` when all rows of a batch have finished a block; stop if the pipeline is interrupted.

    Args:
        pipeline: its first argument; `pipeline.interrupt` ends the writing.
        callback: takes the pipeline, the number of blocks that were finished before in this call, the block's position in
            the clip, and a dictionary with the tensors asked for. It may return that dictionary.
        tensor_inputs: `"sequences"`, the ids written so far, is all there is.
        model: the generator, for the layout of its sequences.

    Raises:
        ValueError: for other `tensor_inputs`, and if the callback returns other tensors: what is written stays.
    """

    def __init__(self, pipeline: Any, callback: Callable | None, tensor_inputs: list[str], model: Any):
        if unknown := set(tensor_inputs) - {"sequences"}:
            raise ValueError(f"callback_on_step_end_tensor_inputs may hold 'sequences', got {sorted(unknown)}")
        self.pipeline, self.callback, self.tensor_inputs, self.config = pipeline, callback, tensor_inputs, model.config
        self.model = model
        self.steps, self.block = 0, 0

    def start(self) -> None:
        """Begin a new batch of clips."""
        self.block = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        config = self.config
        if self.callback is not None:
            closed = self.model.count_blocks(input_ids)
            for _ in range(self.block, min(int(closed.min()), config.num_generated_blocks)):
                tensors = {"sequences": input_ids} if self.tensor_inputs else {}
                position = config.start_block + self.block
                returned = self.callback(self.pipeline, self.steps, position, dict(tensors)) or {}
                self.steps, self.block = self.steps + 1, self.block + 1
                for name, value in returned.items():
                    if value is not tensors.get(name):
                        raise ValueError(
                            f"callback_on_step_end returned another {name!r}; what is written cannot be changed"
                        )
        return torch.full((len(input_ids),), self.pipeline.interrupt, device=input_ids.device)
