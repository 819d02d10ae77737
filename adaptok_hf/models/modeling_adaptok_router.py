"""The router: pixels in, token counts out, in one pass before anything is encoded (EVATok, arXiv 2603.12267)."""

import itertools
import math
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .block_cache import BlockCache
from .block_sequence import BlockTokens, lay_out, run_blocks
from .checked_loading import CheckedLoading
from .configuration_adaptok_router import AdapTokRouterConfig
from .layers import (
    AdapTokAttention,
    AdapTokLayer,
    LearnedPositions,
    PatchEmbedding,
    init_layer_weights,
    recorded_outputs,
)


@dataclass
class AdapTokRouterOutput(ModelOutput):
    """
    Args:
        loss: scalar cross-entropy, where labels were given.
        logits: (batch, blocks, levels) of the head "blocks"; (batch, assignments) of "assignment", in the order of
            `itertools.product`: the last block varies fastest.
        hidden_states: with `output_hidden_states`, the input of the first layer and the output of each, (batch, blocks *
            (1 + patches), hidden_size): the query of each block, then its patches.
        attentions: with `output_attentions`, the weights of each layer, (batch, heads, tokens, tokens), 0 where a token
            does not see another.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class AdapTokRouterPreTrainedModel(CheckedLoading, PreTrainedModel):
    config_class = AdapTokRouterConfig
    base_model_prefix = ""
    main_input_name = "pixel_values_videos"
    input_modalities = ("video",)
    _auto_class = "AutoModel"  # saved folders carry the code, for trust_remote_code
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch: `Trainer` divides it when it accumulates gradients
    _no_split_modules = ["AdapTokLayer"]
    _can_record_outputs = {"hidden_states": AdapTokLayer, "attentions": AdapTokAttention}
    _supports_sdpa = True
    _supports_flash_attn = False  # has no way to express the block masks
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        init_layer_weights(module, self.config.initializer_range)


class AdapTokRouterModel(AdapTokRouterPreTrainedModel):
    """A small transformer over the patches of a clip and one query per block, or one for the clip.

    With the head "blocks" it is causal over blocks: what it chooses for a block depends on this and earlier blocks. It then
    also takes clips of fewer blocks, and a clip a few blocks at a time, with a [`BlockCache`].
    """

    def __init__(self, config: AdapTokRouterConfig):
        super().__init__(config)
        self.patch_embedding = PatchEmbedding(config)
        self.patch_positions = LearnedPositions(config.num_blocks * config.patches_per_block, config.hidden_size)
        num_queries = 1 if config.attention_type == "full" else config.num_blocks
        self.queries = LearnedPositions(num_queries, config.hidden_size)
        if config.price_conditioned:
            self.price_in = nn.Linear(1, config.hidden_size)
            self.price_out = nn.Linear(config.hidden_size, config.hidden_size)
        self.layers = nn.ModuleList(AdapTokLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.num_outputs)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        return self.patch_embedding.projection

    @capture_outputs
    def forward(
        self,
        pixel_values_videos: torch.Tensor,
        price: torch.Tensor | float | None = None,
        labels: torch.Tensor | None = None,
        past_key_values: BlockCache | None = None,
        **kwargs,
    ) -> AdapTokRouterOutput:
        """
        Args:
            pixel_values_videos: (batch, frames, channels, image_size, image_size), floats in [0, 1].
            price: loss per token, one number or (batch,), above 0; only for a `price_conditioned` router, which needs it.
            labels: indices (long) or probabilities of the choices: (batch, blocks) or (batch, blocks, levels) of the head
                "blocks", (batch,) or (batch, assignments) of "assignment".
            past_key_values: holds the blocks of the clip that came before; the head "blocks" only.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: for shapes or a price that do not fit the configuration.
        """
        config, video = self.config, pixel_values_videos
        recorded = recorded_outputs(config, kwargs)
        self._check(video, price, past_key_values)
        patches = self.patch_embedding(video.to(self.dtype)).unflatten(1, (-1, config.patches_per_block))
        first, blocks = past_key_values.num_blocks if past_key_values is not None else 0, patches.shape[1]
        table = self.patch_positions().unflatten(1, (config.num_blocks, -1))[:, first : first + blocks]
        queries = self.queries()[:, first : first + blocks].expand(len(video), -1, -1)
        if price is not None:
            price = torch.as_tensor(price, dtype=torch.float32, device=video.device).expand(len(video))
            scaled = (price.log() - config.log_price_mean) / config.log_price_std
            embedded = self.price_out(nn.functional.gelu(self.price_in(scaled[:, None].to(self.dtype))))
            queries = queries + embedded[:, None]
        patches = patches + table
        if config.attention_type == "full":
            sequence = [BlockTokens("latent", 0, queries), BlockTokens("patch", 0, patches.flatten(1, 2))]
        else:
            sequence = lay_out(queries[:, :, None], patches, None, past_key_values)
        options = {"past_key_values": past_key_values, **recorded}
        outputs = run_blocks(self.layers, config.attention_type, sequence, "latent", **options)
        if config.head == "assignment":
            outputs = outputs[:, -1]  # of the only or the last block's query, which sees the whole clip
        logits = self.head(self.norm(outputs)).float()
        loss = None
        if labels is not None:
            labels = labels.flatten(0, -2 if labels.is_floating_point() else -1)
            loss = nn.functional.cross_entropy(logits.flatten(0, -2), labels)
        return AdapTokRouterOutput(loss=loss, logits=logits)

    def _check(self, video: torch.Tensor, price, cache: BlockCache | None) -> None:
        config = self.config
        size = (config.num_channels, config.image_size, config.image_size)
        if video.ndim != 5 or tuple(video.shape[2:]) != size or not video.is_floating_point():
            raise ValueError(
                f"pixel_values_videos is {video.dtype} of shape {tuple(video.shape)}, expected floats (batch, frames, "
                f"*{size})"
            )
        num_blocks = video.shape[1] / config.tubelet_size
        most = config.num_blocks - (cache.num_blocks if cache is not None else 0)
        whole = config.head == "assignment"
        if num_blocks not in ((config.num_blocks,) if whole else range(1, most + 1)) or (whole and cache is not None):
            expected = (
                f"{config.num_frames}"
                if whole
                else f"a multiple of {config.tubelet_size} up to {most * config.tubelet_size}"
            )
            raise ValueError(f"{video.shape[1]} frames do not fit a router with head {config.head!r}: expected {expected}")
        if (price is not None) != config.price_conditioned:
            raise ValueError(f"price_conditioned={config.price_conditioned}, but the price is {price!r}")
        if price is not None and not bool((torch.as_tensor(price) > 0).all()):
            raise ValueError(f"a price must be above 0, got {price!r}")

    @torch.no_grad()
    def level_losses(
        self,
        pixel_values_videos: torch.Tensor,
        price: torch.Tensor | float | None = None,
        past_key_values: BlockCache | None = None,
    ) -> torch.FloatTensor:
        """Return minus the log-probability of each level of each block, (batch, blocks, levels).

        That of the head "assignment" is of the most probable assignment that has the level at the block. The lowest losses
        are those of the counts that `route` returns. Arguments and errors are those of `forward`.
        """
        losses = -self(pixel_values_videos, price, past_key_values=past_key_values).logits.log_softmax(-1)
        if self.config.head == "blocks":
            return losses
        num_blocks = self.config.num_blocks
        losses = losses.unflatten(1, (len(self.config.levels),) * num_blocks)
        others = [[axis for axis in range(1, num_blocks + 1) if axis != block + 1] for block in range(num_blocks)]
        return torch.stack([losses.amin(axes) if axes else losses for axes in others], dim=1)

    @torch.no_grad()
    def route(
        self,
        pixel_values_videos: torch.Tensor,
        price: torch.Tensor | float | None = None,
        prefix: tuple[int, ...] = (),
    ) -> torch.LongTensor:
        """Return the most probable token counts, (batch, blocks) long.

        Args:
            pixel_values_videos, price: as in `forward`.
            prefix: token counts of the first blocks, which are fixed (EVATok's frame prediction: 512, 128).

        Raises:
            ValueError: for a prefix that is not of levels, or longer than the clip.
        """
        config = self.config
        if not set(prefix) <= set(config.levels) or len(prefix) > config.num_blocks:
            raise ValueError(f"prefix must be up to {config.num_blocks} counts of {config.levels}, got {prefix}")
        logits = self(pixel_values_videos, price).logits
        if config.head == "assignment":
            choices = torch.tensor(list(itertools.product(config.levels, repeat=config.num_blocks)), device=logits.device)
            fits = (choices[:, : len(prefix)] == torch.tensor(prefix, device=logits.device, dtype=torch.long)).all(1)
            return choices[logits.masked_fill(~fits, -math.inf).argmax(-1)]
        counts = torch.tensor(config.levels, device=logits.device)[logits.argmax(-1)]
        counts[:, : len(prefix)] = torch.tensor(prefix, device=logits.device, dtype=torch.long)
        return counts


__all__ = ["AdapTokRouterModel", "AdapTokRouterPreTrainedModel"]
