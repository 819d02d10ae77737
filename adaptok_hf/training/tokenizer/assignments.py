"""Token counts of the clips in a training step: sampled, fixed, or a frozen router's (EVATok)."""

from typing import Any

import torch

from ...models.configuration_adaptok import AdapTokConfig
from ...models.configuration_evatok import EVATokConfig
from ...models.modeling_adaptok_router import AdapTokRouterModel
from ...pipelines.component_checks import CLIP_ENTRIES, check_entries
from ..block_mask_sampler import sample_token_counts

KINDS = {"random": {"levels"}, "fixed": {"counts"}, "router": {"router", "price"}}


class Assignments:
    """Chooses the token counts of clips.

    Args:
        options: `kind` and what belongs to it:
            random: each block's count is one of `levels`, all alike; default: the tokenizer's levels, or without any (an
                AdapTok tokenizer) counts from a truncated normal.
            fixed: `counts`, one number or one for each block.
            router: `router`, folder or Hub id of an `AdapTokRouterModel`, which stays as it is; and the `price` if it needs
                one.
        config: of the tokenizer.

    Raises:
        ValueError: for other kinds and options, and for what does not fit the tokenizer.
    """

    def __init__(self, options: dict[str, Any], config: AdapTokConfig | EVATokConfig, device: torch.device):
        self.config, self.options = config, {"kind": "random"} | options
        kind = check_options(self.options)
        known = getattr(config, "levels", None) or range(1, config.latents_per_block + 1)
        self.levels = self.options.get("levels") or getattr(config, "levels", None)
        counts = self.options.get("counts", [])
        self.counts = counts if isinstance(counts, list) else [counts] * config.num_blocks
        if kind == "fixed" and len(self.counts) != config.num_blocks:
            raise ValueError(f"counts must be one number or {config.num_blocks}, one for each block, got {counts}")
        self.router = None
        if kind == "router":
            self.router = AdapTokRouterModel.from_pretrained(self.options["router"], dtype=torch.float32)
            self.router.eval().requires_grad_(False).to(device)
            self._check_router()
        chosen = {*(self.levels or ()), *self.counts, *(self.router.config.levels if self.router else ())}
        if odd := sorted(chosen - set(known)):
            stated = getattr(config, "levels", None) or f"1..{config.latents_per_block}"
            raise ValueError(f"assignments of kind {kind!r} have counts {odd}; the tokenizer takes {stated}")

    def _check_router(self) -> None:
        ours, price = self.router.config, self.options.get("price")
        check_entries("the router", ours, self.config, CLIP_ENTRIES)
        if ours.price_conditioned != (price is not None):
            raise ValueError(f"the router has price_conditioned={ours.price_conditioned}, the assignments price={price}")

    def sample(self, batch: int, num_blocks: int) -> torch.Tensor | None:
        """Return the counts of a whole batch, (batch, num_blocks) long, before its clips are known; `None` for a router.

        Every process must call this with the same random numbers.
        """
        if self.router is not None:
            return None
        if self.options["kind"] == "fixed":
            return torch.tensor(self.counts[:num_blocks]).expand(batch, -1)
        if self.levels is None:
            return sample_token_counts(batch, num_blocks, self.config.latents_per_block)
        return torch.tensor(self.levels)[torch.randint(len(self.levels), (batch, num_blocks))]

    def of_clips(self, videos: torch.Tensor) -> torch.Tensor:
        """Return the router's counts of clips, uint8 (batch, frames, channels, height, width) on its device."""
        return self.router.route(videos.float() / 255, self.options.get("price"))


def check_options(options: dict[str, Any]) -> str:
    """Return the kind; raise `ValueError` for another one, and for options that it lacks or does not have."""
    kind, given = options.get("kind", "random"), options.keys() - {"kind"}
    if kind not in KINDS:
        raise ValueError(f"assignments are of kind {', '.join(map(repr, KINDS))}, got {kind!r}")
    if unknown := given - KINDS[kind]:
        raise ValueError(f"assignments of kind {kind!r} take {sorted(KINDS[kind])}, got {sorted(unknown)}")
    if missing := ({"fixed": {"counts"}, "router": {"router"}}.get(kind, set()) - given):
        raise ValueError(f"assignments of kind {kind!r} need {sorted(missing)}")
    return kind
