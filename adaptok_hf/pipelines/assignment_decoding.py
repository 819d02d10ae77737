"""The losses of a clip's assignments, measured by decoding them block by block: what [`search`] asks for.

Where token counts are an input of encoding, blocks are also encoded again at each.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..allocation.beam_search import Assignment, AssignmentTree, search_levels
from ..allocation.schedules import best_schedule, schedule_levels, schedule_variants
from ..models.block_cache import BlockCache
from ..models.modeling_adaptok import AdapTokModel
from ..models.modeling_evatok import EVATokModel
from ..models.qformer_evatok import take_row

# (rows, frames, channels, height, width) decoded and original, both in [0, 1] -> (rows,) losses, lower is better
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# The pixels and keys of so many rows are in memory together.
_ROWS_AT_ONCE = 16
# So many assignments of all clips keep their keys and values: a beam comes back to few but the last. A beam of 10 over
# EVATok's 5 levels has so many before its last block.
_MOST_CACHES = 80
Caches = tuple[BlockCache, BlockCache]  # of encoder and decoder


def mse(decoded: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Return the mean squared error of each row's pixels."""
    return (decoded - original).square().flatten(1).mean(1)


def rmse(decoded: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Return the root of the mean squared error of each row's pixels."""
    return mse(decoded, original).sqrt()


def psnr(decoded: torch.Tensor, original: torch.Tensor) -> torch.Tensor:
    """Return minus the PSNR in dB, the mean over each row's frames; a frame has at most 100 dB."""
    return 10 * (decoded - original).square().flatten(2).mean(2).clamp(min=1e-10).log10().mean(1)


LOSSES: dict[str, Loss] = {"mse": mse, "rmse": rmse, "psnr": psnr}


def choose_loss(loss: str | Loss) -> Loss:
    """Return the loss of this name, or a callable as it is; raise `ValueError` for anything else."""
    if not callable(loss) and loss not in LOSSES:
        raise ValueError(f"a loss is {', '.join(map(repr, LOSSES))} or a callable, got {loss!r}")
    return loss if callable(loss) else LOSSES[loss]


class BlockDecoder:
    """Decodes the next block of a clip at some counts, after any counts of the blocks before.

    The keys and values of the counts that were asked for last are kept, so most steps decode one block only.

    Args:
        tokenizer: must be adaptive.
        frames: uint8 (frames, channels, image_size, image_size), the original.
        codes: (blocks, latents_per_block) long, what the tokenizer made of it.
        caches: (clip, counts) -> keys and values, shared by the decoders of several clips.
        clip: which of these this one is.
        loss: of blocks.
    """

    def __init__(
        self,
        tokenizer: AdapTokModel,
        frames: torch.Tensor,
        codes: torch.Tensor,
        loss: Loss,
        caches: OrderedDict[tuple[int, Assignment], BlockCache],
        clip: int = 0,
    ):
        self.tokenizer, self.codes, self.loss, self.caches, self.clip = tokenizer, codes, loss, caches, clip
        self.blocks = frames.split(tokenizer.config.tubelet_size)
        self.is_causal = tokenizer.config.decoder_attention_type != "full"

    @torch.inference_mode()
    def __call__(self, counts: Assignment, levels: Sequence[int]) -> np.ndarray:
        """Return the losses (levels,) of the block after those with these counts."""
        original, losses = self.blocks[len(counts)].to(self.codes.device) / 255, []
        for some in torch.tensor(levels, device=self.codes.device).split(_ROWS_AT_ONCE):
            decoded = self._decode(counts, some)[:, -len(original) :].float().clamp(0, 1)
            losses.append(self.loss(decoded, original.expand_as(decoded)))
        return torch.cat(losses).double().cpu().numpy()

    def _decode(self, counts: Assignment, levels: torch.Tensor) -> torch.Tensor:
        block, rows = len(counts), len(levels)
        if not self.is_causal:  # no cache: earlier blocks are decoded again
            before = torch.tensor(counts, device=levels.device, dtype=torch.long).expand(rows, block)
            codes = self.codes[: block + 1].expand(rows, -1, -1)
            return self.tokenizer.decode(codes, torch.cat([before, levels[:, None]], dim=1)).pixel_values_videos
        cache = self._cache(counts).repeat(rows)
        codes = self.codes[block].expand(rows, 1, -1)
        decoded = self.tokenizer.decode(codes, levels[:, None], past_key_values=cache).pixel_values_videos
        if rows == 1 and block + 1 < len(self.blocks):  # the next block needs no second pass
            self.caches[self.clip, (*counts, int(levels))] = cache
            if len(self.caches) > _MOST_CACHES:
                self.caches.popitem(last=False)
        return decoded

    def _cache(self, counts: Assignment) -> BlockCache:
        if not counts:
            return BlockCache()
        key = self.clip, counts
        if key not in self.caches:
            self._decode(counts[:-1], torch.tensor(counts[-1:], device=self.codes.device))
        self.caches.move_to_end(key)
        return self.caches[key]


class BlockCoder:
    """Encodes and decodes the next block of a clip at some counts, after any counts of the blocks before.

    For a tokenizer that needs counts to encode. Every assignment of the first blocks is coded once, as long as its keys
    and values are kept.

    Args:
        tokenizer, frames, loss, clip: as in [`BlockDecoder`].
        caches: (clip, counts) -> keys and values, shared by the coders of several clips.
    """

    def __init__(
        self,
        tokenizer: EVATokModel,
        frames: torch.Tensor,
        loss: Loss,
        caches: OrderedDict[tuple[int, Assignment], Caches],
        clip: int = 0,
    ):
        self.tokenizer, self.loss, self.caches, self.clip = tokenizer, loss, caches, clip
        self.blocks = frames.split(tokenizer.config.tubelet_size)

    @torch.inference_mode()
    def __call__(self, counts: Assignment, levels: Sequence[int]) -> np.ndarray:
        """Return the losses (levels,) of the block after those with these counts."""
        tokenizer, device = self.tokenizer, self.tokenizer.device
        original, losses = self.blocks[len(counts)].to(device) / 255, []
        for some in torch.tensor(levels, device=device).split(_ROWS_AT_ONCE):
            encoder, decoder = (cache.repeat(len(some)) for cache in self._caches(counts))
            pixels = original.to(tokenizer.dtype).expand(len(some), *original.shape)
            given = {"token_counts": some[:, None], "return_dict": True}
            codes = tokenizer.encode(pixels, past_key_values=encoder, **given).codes
            decoded = tokenizer.decode(codes, past_key_values=decoder, **given).pixel_values_videos.float().clamp(0, 1)
            losses.append(self.loss(decoded, original.expand_as(decoded)))
            for row, level in enumerate(some.tolist() if len(counts) + 1 < len(self.blocks) else ()):
                self.caches[self.clip, (*counts, level)] = take_row(encoder, row), take_row(decoder, row)
                if len(self.caches) > _MOST_CACHES:
                    self.caches.popitem(last=False)
        return torch.cat(losses).double().cpu().numpy()

    def _caches(self, counts: Assignment) -> Caches:
        if not counts:
            return BlockCache(), BlockCache()
        if (self.clip, counts) not in self.caches:  # no longer kept
            self(counts[:-1], counts[-1:])
        for block in range(len(counts)):  # a walk of the whole tree comes back to what begins alike
            for key in [key for key in self.caches if key[0] == self.clip and key[1][:-1] == counts[:block]]:
                self.caches.move_to_end(key)
        return self.caches[self.clip, counts]


def assignment_trees(
    tokenizer: AdapTokModel | EVATokModel,
    frames: torch.Tensor,
    codes: torch.Tensor | None,
    valid: torch.Tensor,
    levels: Sequence[int],
    loss: str | Loss = "rmse",
) -> list[AssignmentTree]:
    """Return the tree of each clip's assignments; nothing is decoded yet.

    Args:
        tokenizer: must be adaptive.
        frames: uint8 (clips, frames, channels, image_size, image_size).
        codes: (clips, blocks, latents_per_block) long, on the tokenizer's device; not looked at if the tokenizer is not
            `prefix_decodable`.
        valid: (clips, blocks) bool; the blocks that are not valid come last.
        levels: token counts that a beam tries.
        loss: `"mse"`, `"rmse"`, `"psnr"` or a callable: (rows, frames, channels, height, width) decoded and original in
            [0, 1] -> (rows,), lower is better.

    Raises:
        ValueError: for a name that is none of these.
    """
    loss = choose_loss(loss)
    caches: OrderedDict = OrderedDict()
    if tokenizer.prefix_decodable:
        measures = [BlockDecoder(tokenizer, frames[i], codes[i], loss, caches, i) for i in range(len(valid))]
    else:
        measures = [BlockCoder(tokenizer, frames[i], loss, caches, i) for i in range(len(valid))]
    return [AssignmentTree(each, levels, int(blocks)) for each, blocks in zip(measures, valid.sum(1), strict=True)]


def learn_schedules(
    tokenizer: AdapTokModel,
    frames: torch.Tensor,
    step: int | None = None,
    loss: str | Loss = "rmse",
    batch_size: int = 8,
    variants: int = 4,
) -> list[list[list[int]]]:
    """Return schedules for a dozen budgets from `step` to all tokens: a scorer's `config.schedules`.

    Args:
        tokenizer: must be adaptive.
        frames: uint8 (clips, frames, channels, image_size, image_size), some tens of clips.
        step: the least that a block keeps; default: a 64th of its latents.
        loss: as for [`assignment_trees`].
        batch_size: clips that are encoded together.
        variants: schedules of a budget next to the best one, see [`schedule_variants`].

    Returns:
        For each budget the best schedule of all clips, and so many others.
    """
    most, valid = tokenizer.config.latents_per_block, torch.ones(len(frames), tokenizer.config.num_blocks, dtype=torch.bool)
    step = max(most // 64, 1) if step is None else step
    with torch.inference_mode():
        codes = torch.cat([tokenizer.encode(part.to(tokenizer.device)).codes for part in frames.split(batch_size)])
    trees = assignment_trees(tokenizer, frames, codes, valid, schedule_levels(most, step), loss)
    schedules = []
    for budget in search_levels(most, step):
        best = best_schedule(trees, budget)
        schedules.append([list(counts) for counts in (best, *schedule_variants(trees, best, variants))])
    return schedules
