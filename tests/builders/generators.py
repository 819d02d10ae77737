"""Tiny generators with random weights, and which loop their `generate` takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import torch

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM
from adaptok_hf.models import modeling_adaptok_ar


def tiny(**changes) -> AdapTokARForCausalLM:
    """3 blocks of 4 of 20 codes, 5 classes; weights large enough that logits differ."""
    settings = {
        "codebook_size": 20,
        "num_blocks": 3,
        "latents_per_block": 4,
        "num_classes": 5,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "initializer_range": 0.3,
    }
    torch.manual_seed(0)
    return AdapTokARForCausalLM(AdapTokARConfig(**settings | changes)).eval()


def tiny_fp(**changes) -> AdapTokARForCausalLM:
    return tiny(num_classes=0, num_condition_codes=6, start_block=1, **changes)


@contextmanager
def transformers_loop() -> Iterator[None]:
    """`generate` takes transformers' own loop."""
    with patch.object(modeling_adaptok_ar, "takes_loop", lambda *_: False):
        yield


@contextmanager
def loops_taken() -> Iterator[list[bool]]:
    """Whether each call of `generate` takes the lean loop."""
    taken, takes_loop = [], modeling_adaptok_ar.takes_loop

    def see(*arguments) -> bool:
        taken.append(takes_loop(*arguments))
        return taken[-1]

    with patch.object(modeling_adaptok_ar, "takes_loop", see):
        yield taken
