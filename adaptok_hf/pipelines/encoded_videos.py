"""Videos that are encoded and wait for their token counts, and the steps that work on tensors of clips."""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..allocation import Strategy
from ..models.block_cache import BlockCache
from ..models.modeling_adaptok import AdapTokModel
from ..models.modeling_adaptok_scorer import AdapTokScorerModel
from ..video.clip_batch import ClipBatch
from ..video.tiles import TiledClips


@dataclass(eq=False)
class EncodedVideos:
    """Videos as codes at full width, with what scoring, measuring and decoding need: what `AdapTokPipeline.encode` returns.

    Everything is on the CPU. `encoded[2:5]` holds some of the videos.

    Args:
        clips: the clips of each video; with tiles, all tiles of its first clip, then those of the second.
        codes: (clips of all videos, blocks, latents_per_block) long. Of a tokenizer that needs token counts to encode, they
            have a shape but no values, on the meta device: `allocate` encodes, and needs the frames.
        latents: (clips of all videos, blocks, latents_per_block, hidden_size), before quantization; `None` if no scorer
            will read them any more.
        resize_mode: how frames were made square.
        model_hash: fingerprint of the tokenizer that encoded them.
        is_list: whether a list of videos was given, so that lists are returned.
        tables: `"predicted"` and `"measured"` losses, (clips of all videos, blocks, levels) float64, once computed; those
            of a router have prices as their second axis.
        seconds: wall-clock seconds of each stage.
    """

    clips: list[ClipBatch | TiledClips]
    codes: torch.Tensor
    latents: torch.Tensor | None
    resize_mode: str
    model_hash: str
    is_list: bool
    tables: dict[str, np.ndarray] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, videos: slice) -> "EncodedVideos":
        if not isinstance(videos, slice) or videos.step not in (None, 1):
            raise TypeError(f"videos are taken by a slice of neighbors, such as 2:5, got {videos}")
        chosen = self.clips[videos]
        start = sum(len(clips) for clips in self.clips[: videos.indices(len(self))[0]])
        rows = slice(start, start + sum(len(clips) for clips in chosen))
        latents = None if self.latents is None else self.latents[rows]
        tables = {name: table[rows] for name, table in self.tables.items()}
        return EncodedVideos(chosen, self.codes[rows], latents, self.resize_mode, self.model_hash, True, tables)

    def without_frames(self) -> "EncodedVideos":
        """Return the same without pixels, which need most of the memory. It can be allocated, but not measured any more."""
        return dataclasses.replace(self, clips=[clips.without_frames() for clips in self.clips])

    @property
    def valid_blocks(self) -> torch.Tensor:
        """(clips of all videos, blocks) bool, whether a block holds a real frame."""
        return join_valid_blocks(self.clips, self.codes.shape[1])

    def frames(self, rows: slice) -> torch.Tensor:
        """Return uint8 frames (clips, frames, 3, size, size) of some of all clips."""
        return take_clips(self.clips, rows)


def join_videos(parts: Sequence[EncodedVideos]) -> EncodedVideos:
    """Return videos that were encoded in several calls as those of one, so that they can share a budget."""
    first = parts[0]
    return EncodedVideos(
        [clips for part in parts for clips in part.clips],
        torch.cat([part.codes for part in parts]),
        None if first.latents is None else torch.cat([part.latents for part in parts]),
        first.resize_mode,
        first.model_hash,
        True,
        {name: np.concatenate([part.tables[name] for part in parts]) for name in first.tables},
    )


def join_valid_blocks(clips: list[ClipBatch | TiledClips], num_blocks: int) -> torch.Tensor:
    """Return (clips of all videos, blocks) bool, of no video too."""
    return torch.cat([torch.empty(0, num_blocks, dtype=torch.bool), *(batch.valid_blocks for batch in clips)])


def take_clips(clips: list[ClipBatch | TiledClips], rows: slice) -> torch.Tensor:
    """Return uint8 frames (clips, frames, 3, size, size) of the clips that `rows` counts over all videos."""
    taken, first = [], 0
    for batch in clips:
        start, stop = max(rows.start - first, 0), min(rows.stop - first, len(batch))
        if start < stop:
            taken.append(batch.take(start, stop))
        first += len(batch)
    return taken[0] if len(taken) == 1 else torch.cat(taken)


@contextmanager
def stopwatch(seconds: dict[str, float], stage: str, device: torch.device) -> Iterator[None]:
    """Add the wall-clock seconds of the block; wait for an accelerator's queue on both sides."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    yield
    wait()
    seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - start


@torch.no_grad()
def decode_clips(tokenizer: AdapTokModel, codes: torch.Tensor, token_counts: torch.Tensor) -> torch.Tensor:
    """Decode whole clips.

    Args:
        codes: (clips, blocks, latents_per_block) long, on any device.
        token_counts: (clips, blocks) long.

    Returns:
        (clips, frames, 3, size, size) float32 in [0, 1], on the tokenizer's device.
    """
    counts = token_counts.to(tokenizer.device) if tokenizer.config.adaptive else None
    return tokenizer.decode(codes.to(tokenizer.device), counts, return_dict=True).pixel_values_videos.float().clamp(0, 1)


@torch.no_grad()
def allocate_by_block(
    tokenizer: AdapTokModel,
    scorer: AdapTokScorerModel,
    latents: list[torch.Tensor],
    codes: list[torch.Tensor],
    valid: torch.Tensor,
    strategy: Strategy,
    parameters: dict[str, Any],
    seconds: dict[str, float],
) -> torch.Tensor:
    """Score block q given the token counts chosen before it, allocate it, and move to q + 1.

    Args:
        latents, codes: batches of clips, (clips, blocks, latents_per_block, ...).
        valid: (all clips, blocks) bool.
        parameters: of the strategy; a budget may be one number per block position.
        seconds: gets the seconds of `score` and `allocate`.

    Returns:
        (all clips, blocks) long.
    """
    token_counts = torch.zeros(valid.shape, dtype=torch.long)
    # A single batch keeps its keys and values from block to block. Those of all clips of a long video would be too large:
    # for many batches the earlier blocks are scored again.
    cache = BlockCache() if len(latents) == 1 and scorer.config.attention_type != "full" else None
    for block in range(valid.shape[1]):
        if not valid[:, block].any():
            break
        token_counts[:, block] = scorer.config.latents_per_block
        with stopwatch(seconds, "score", scorer.device):
            if cache is None:
                table = _score_last_block(tokenizer, scorer, latents, codes, token_counts[:, : block + 1])
            else:
                inputs = latents[0][:, block].to(scorer.device), lookup_codes(tokenizer, codes[0][:, block])
                table = scorer.score_block(*inputs, cache).cpu()
        here = parameters
        if isinstance(parameters.get("budget"), tuple):
            here = parameters | {"budget": parameters["budget"][block]}
        with stopwatch(seconds, "allocate", scorer.device):
            counts, _ = strategy.allocate(
                table.double().numpy(), step=scorer.config.score_step, valid=valid[:, block].numpy(), **here
            )
        token_counts[:, block] = torch.from_numpy(counts)
        if cache is not None and block + 1 < valid.shape[1]:
            with stopwatch(seconds, "score", scorer.device):
                scorer.keep_tokens(*inputs, token_counts[:, block].to(scorer.device), cache)
    return token_counts


def _score_last_block(
    tokenizer: AdapTokModel,
    scorer: AdapTokScorerModel,
    latents: list[torch.Tensor],
    codes: list[torch.Tensor],
    token_counts: torch.Tensor,
) -> torch.Tensor:
    """Return the scores (all clips, levels) of the last block of `token_counts` (all clips, blocks), batch by batch."""
    scores, num_blocks = [], token_counts.shape[1]
    counts = token_counts.split([len(batch) for batch in codes])
    for batch_latents, batch_codes, batch_counts in zip(latents, codes, counts, strict=True):
        quantized = lookup_codes(tokenizer, batch_codes[:, :num_blocks])
        batch_latents, batch_counts = batch_latents[:, :num_blocks].to(scorer.device), batch_counts.to(scorer.device)
        if scorer.config.attention_type == "full":
            scores.append(scorer(batch_latents, quantized, batch_counts, return_dict=True).scores[:, -1].cpu())
            continue
        cache = BlockCache()
        for block in range(num_blocks - 1):  # with the tokens that they keep
            scorer.add_block(batch_latents[:, block], quantized[:, block], batch_counts[:, block], cache)
        scores.append(scorer.score_block(batch_latents[:, -1], quantized[:, -1], cache).cpu())
    return torch.cat(scores)


def lookup_codes(tokenizer: AdapTokModel, codes: torch.Tensor) -> torch.Tensor:
    """Return what the decoder reads for codes, on the tokenizer's device; computed where an offloaded one is just now."""
    vectors = tokenizer.quantizer.lookup(codes.to(tokenizer.quantizer.codebook.weight.device))
    return vectors.to(tokenizer.device)
