"""The losses of a clip's assignments, measured by decoding them block by block: what [`search`] asks for."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..allocation.beam_search import Assignment, AssignmentTree
from ..models.block_cache import BlockCache
from ..models.modeling_adaptok import AdapTokModel

# (rows, frames, channels, height, width) decoded and original, both in [0, 1] -> (rows,) losses, lower is better
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
# The pixels and keys of so many rows are in memory together.
_ROWS_AT_ONCE = 16


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


class BlockDecoder:
    """Decodes the next block of a clip at some counts, after any counts of the blocks before.

    The keys and values of counts that were asked for are kept, so each step decodes one block only.

    Args:
        tokenizer: must be adaptive.
        frames: (frames, channels, image_size, image_size) floats in [0, 1], the original, on the tokenizer's device.
        codes: (blocks, latents_per_block) long, what the tokenizer made of it.
        loss: of blocks.
    """

    def __init__(self, tokenizer: AdapTokModel, frames: torch.Tensor, codes: torch.Tensor, loss: Loss):
        self.tokenizer, self.codes, self.loss = tokenizer, codes, loss
        self.blocks = frames.split(tokenizer.config.tubelet_size)
        self.is_causal = tokenizer.config.decoder_attention_type != "full"
        self.caches: dict[Assignment, BlockCache] = {(): BlockCache()}

    @torch.inference_mode()
    def __call__(self, counts: Assignment, levels: Sequence[int]) -> np.ndarray:
        """Return the losses (levels,) of the block after those with these counts."""
        block, losses = len(counts), []
        for some in torch.tensor(levels, device=self.codes.device).split(_ROWS_AT_ONCE):
            decoded = self._decode(counts, some)[:, -len(self.blocks[block]) :].float().clamp(0, 1)
            losses.append(self.loss(decoded, self.blocks[block].expand_as(decoded)))
        return torch.cat(losses).double().cpu().numpy()

    def _decode(self, counts: Assignment, levels: torch.Tensor) -> torch.Tensor:
        block, rows = len(counts), len(levels)
        if not self.is_causal:  # no cache: earlier blocks are decoded again
            before = torch.tensor(counts, device=levels.device).expand(rows, block)
            codes = self.codes[: block + 1].expand(rows, -1, -1)
            return self.tokenizer.decode(codes, torch.cat([before, levels[:, None]], dim=1)).pixel_values_videos
        cache = self._cache(counts).repeat(rows)
        codes = self.codes[block].expand(rows, 1, -1)
        return self.tokenizer.decode(codes, levels[:, None], past_key_values=cache).pixel_values_videos

    def _cache(self, counts: Assignment) -> BlockCache:
        if counts not in self.caches:
            cache = self._cache(counts[:-1]).repeat(1)
            last = torch.tensor([[counts[-1]]], device=self.codes.device)
            self.tokenizer.decode(self.codes[None, len(counts) - 1 : len(counts)], last, past_key_values=cache)
            self.caches[counts] = cache
        return self.caches[counts]


def assignment_trees(
    tokenizer: AdapTokModel,
    frames: torch.Tensor,
    codes: torch.Tensor,
    valid: torch.Tensor,
    levels: Sequence[int],
    loss: str | Loss = "rmse",
) -> list[AssignmentTree]:
    """Return the tree of each clip's assignments; nothing is decoded yet.

    Args:
        tokenizer: must be adaptive.
        frames: (clips, frames, channels, image_size, image_size) floats in [0, 1], on the tokenizer's device.
        codes: (clips, blocks, latents_per_block) long, there too.
        valid: (clips, blocks) bool; the blocks that are not valid come last.
        levels: token counts that a beam tries.
        loss: `"mse"`, `"rmse"`, `"psnr"` or a callable: (rows, frames, channels, height, width) decoded and original in
            [0, 1] -> (rows,), lower is better.

    Raises:
        ValueError: for a name that is none of these.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise ValueError(f"a loss is {', '.join(map(repr, LOSSES))} or a callable, got {loss!r}")
        loss = LOSSES[loss]
    return [
        AssignmentTree(BlockDecoder(tokenizer, clip, clip_codes, loss), levels, int(blocks))
        for clip, clip_codes, blocks in zip(frames, codes, valid.sum(1), strict=True)
    ]
