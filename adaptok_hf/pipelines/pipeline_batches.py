"""How many clips of a video are worked on together: as many as a memory ceiling lets."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..models.modeling_adaptok import AdapTokEncoderOutput, AdapTokModel
from ..models.modeling_adaptok_scorer import AdapTokScorerModel


def bytes_per_clip(tokenizer: AdapTokModel, scorer: AdapTokScorerModel | None = None, measured: bool = False) -> int:
    """What a clip takes beyond the weights: the largest activations of encode, score and decode, with all tokens kept.

    `measured` says whether losses are measured, see `measure_losses`.

    With K blocks of P patches and M latents, width D, MLPs r times as wide, V codes, a scorer of L layers and width d, and
    F pixel values in a clip, it is the largest of

        (2 r + 4) K (P + M) D numbers  an encoder or decoder layer: the MLP's hidden units before and after the activation
        (2 r + 4 + 2 L) K M d numbers  the scorer: a layer, and keys and values of all
        4 K M V bytes                  the quantiser: similarities to all codes, in float32 whatever the model is in

    and where losses are measured, with a decoder of l layers,

        (2 r + 4 + 2 K (l + 1)) (P + M) D numbers  a layer for one block, and keys and values of all for all blocks

    plus 4 K M D numbers (latents, quantised latents and a copy) and 4 F numbers of 4 bytes (pixels).
    Attention is counted as never holding all its weights, which is so for sdpa, but not for `"eager"`.
    """
    config = tokenizer.config
    layer = 2 * config.mlp_ratio + 4
    latents, patches = config.num_latent_tokens, config.num_blocks * config.patches_per_block
    largest = [layer * (latents + patches) * config.hidden_size]
    if scorer is not None:
        scorer_layer = 2 * scorer.config.mlp_ratio + 4 + 2 * scorer.config.num_hidden_layers
        largest.append(scorer_layer * latents * scorer.config.hidden_size)
    if measured:
        cached = 2 * config.num_blocks * (config.num_decoder_layers + 1)
        largest.append((layer + cached) * (config.latents_per_block + config.patches_per_block) * config.hidden_size)
    pixels = config.num_frames * config.num_channels * config.image_size**2
    kept = 4 * latents * config.hidden_size * tokenizer.dtype.itemsize
    return max(max(largest) * tokenizer.dtype.itemsize, 4 * latents * config.codebook_size) + kept + 4 * 4 * pixels


def plan_batches(
    tokenizer: AdapTokModel,
    scorer: AdapTokScorerModel | None,
    num_clips: int,
    batch_size: int,
    max_memory: int | str | None,
    measured: bool = False,
) -> tuple[int, bool]:
    """How to work on a video's clips in at most `max_memory`.

    Args:
        batch_size: the most clips together.
        max_memory: bytes, or a size such as `"2GiB"`. Default: half of what is free on the tokenizer's device; if the
            system does not tell, there is no ceiling.
        measured: whether losses are measured, see `measure_losses`.

    Returns:
        The number of clips that are worked on together, and whether there is room for the latents of all clips beside them.

    Raises:
        ValueError: for a `max_memory` that is no size, or too low for a single clip.
    """
    clip = bytes_per_clip(tokenizer, scorer, measured)
    ceiling = _in_bytes(max_memory) if max_memory is not None else _half_of_free(tokenizer.device)
    if ceiling is None:
        return batch_size, True
    if max_memory is not None and ceiling < clip:
        raise ValueError(f"max_memory={max_memory!r} is too low: a single clip of this model takes {clip / 2**20:.1f} MiB")
    together = min(batch_size, max(1, ceiling // clip))
    config = tokenizer.config
    latents = num_clips * config.num_latent_tokens * config.hidden_size * tokenizer.dtype.itemsize
    return together, num_clips <= together or latents + together * clip <= ceiling


class LatentsAgain(Sequence):
    """The latents of batches of clips, encoded anew whenever they are asked for: where there is no room for those of all.

    Args:
        encode: index of a batch's first clip -> what the tokenizer's `encode` gives for the batch.
        starts: of the batches.
    """

    def __init__(self, encode: Callable[[int], AdapTokEncoderOutput], starts: Sequence[int]):
        self.encode, self.starts = encode, starts

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.encode(self.starts[index]).latents


def _in_bytes(size: int | str) -> int:
    from accelerate.utils import convert_file_size_to_int

    try:
        if isinstance(size, bool) or not isinstance(size, int | str):
            raise ValueError
        return convert_file_size_to_int(size)
    except ValueError as error:
        raise ValueError(f"max_memory must be a number of bytes or a size such as '2GiB', got {size!r}") from error


def _half_of_free(device: torch.device) -> int | None:
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return (torch.cuda.mem_get_info(device)[0] + unused) // 2
    meminfo = Path("/proc/meminfo")
    if device.type != "cpu" or not meminfo.exists():
        return None
    return 1024 * int(re.search(r"MemAvailable:\s+(\d+)", meminfo.read_text()).group(1)) // 2
