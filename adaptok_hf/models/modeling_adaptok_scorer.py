"""The AdapTok scorer: predicts how good a block's reconstruction will be at each candidate token count."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .attention_masks import check_token_counts, kept_tokens
from .block_cache import BlockCache
from .block_sequence import BlockTokens, run_blocks
from .checked_loading import CheckedLoading
from .configuration_adaptok_scorer import AdapTokScorerConfig
from .layers import AdapTokAttention, AdapTokLayer, LearnedPositions, init_layer_weights, recorded_outputs
from .offloading import run_hooks


@dataclass
class AdapTokScorerOutput(ModelOutput):
    """
    Args:
        loss: scalar, mean squared error of the standardized scores, `(scores - labels) / score_std`.
        scores: (batch, blocks, levels), the predicted perceptual loss of each block at each level, lower is better.
        hidden_states: with `output_hidden_states`, the input of the first layer and the output of each, (batch, blocks *
            latents_per_block, hidden_size).
        attentions: with `output_attentions`, the weights of each layer, (batch, heads, latents, latents), 0 where a latent
            does not see another.
    """

    loss: torch.FloatTensor | None = None
    scores: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class AdapTokScorerPreTrainedModel(CheckedLoading, PreTrainedModel):
    config_class = AdapTokScorerConfig
    base_model_prefix = ""
    main_input_name = "latents"
    _auto_class = "AutoModel"  # saved folders carry the code, for trust_remote_code
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch: `Trainer` divides it when it accumulates gradients
    _no_split_modules = ["AdapTokLayer"]
    _can_record_outputs = {"hidden_states": AdapTokLayer, "attentions": AdapTokAttention}
    _input_embed_layer = "project_in"
    _supports_sdpa = True
    _supports_flash_attn = False  # has no way to express the block masks
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        init_layer_weights(module, self.config.initializer_range)


class AdapTokScorerModel(AdapTokScorerPreTrainedModel):
    """Causal over blocks: the scores of a block depend on earlier blocks and their token counts, not on later ones.

    The output at the last latent of a level (positions step - 1, 2 step - 1, ...) is the score of that level.
    `score_block` and `keep_tokens` take a clip one block at a time.
    """

    def __init__(self, config: AdapTokScorerConfig):
        super().__init__(config)
        self.project_in = nn.Linear(2 * config.latent_size, config.hidden_size)
        self.positions = LearnedPositions(config.num_latent_tokens, config.hidden_size)
        self.layers = nn.ModuleList(AdapTokLayer(config, i) for i in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head_in = nn.Linear(config.hidden_size, 2 * config.hidden_size)
        self.head_out = nn.Linear(2 * config.hidden_size, 1)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        latents: torch.Tensor,
        quantized: torch.Tensor,
        token_counts: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        **kwargs,
    ) -> AdapTokScorerOutput:
        """
        Args:
            latents: (batch, blocks, latents_per_block, latent_size), the tokenizer's, before quantisation.
            quantized: the same shape, after quantisation. Fewer than `config.num_blocks` blocks may be given.
            token_counts: (batch, blocks) long. To score block q as the original does: the counts chosen for the blocks
                before q, `latents_per_block` for q, 0 for those after it. `None` keeps everything.
            labels: (batch, blocks, levels) float, the losses measured at the levels; NaN where none was measured.
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: for shapes or counts that do not fit the configuration.
        """
        config, recorded = self.config, recorded_outputs(self.config, kwargs)
        if (
            latents.shape != quantized.shape
            or latents.ndim != 4
            or not 1 <= latents.shape[1] <= config.num_blocks
            or tuple(latents.shape[2:]) != (config.latents_per_block, config.latent_size)
        ):
            raise ValueError(
                f"latents {tuple(latents.shape)} and quantized {tuple(quantized.shape)} must both be (batch, "
                f"1..{config.num_blocks} blocks, {config.latents_per_block}, {config.latent_size})"
            )
        batch, num_blocks = latents.shape[:2]
        kept = None
        if token_counts is not None:
            check_token_counts(token_counts, batch, num_blocks, config.latents_per_block)
            kept = kept_tokens(token_counts, config.latents_per_block)
            latents, quantized = latents * kept[..., None], quantized * kept[..., None]
        levels = self._run(latents, quantized, kept, **recorded)
        scores, loss = self.scores_of(levels).unflatten(1, (num_blocks, config.num_levels)), None
        if labels is not None:
            if labels.shape != scores.shape:
                raise ValueError(f"labels has shape {tuple(labels.shape)}, expected that of scores, {tuple(scores.shape)}")
            measured = ~labels.isnan()
            squared = ((scores - labels) / config.score_std).where(measured, 0).square()
            loss = squared.sum() / measured.sum()
        return AdapTokScorerOutput(loss=loss, scores=scores)

    def _run(
        self,
        latents: torch.Tensor,
        quantized: torch.Tensor,
        kept: torch.Tensor | None = None,
        past_key_values: BlockCache | None = None,
        read: bool = True,
        **recorded: bool,
    ) -> torch.Tensor:
        """Return the last layer's outputs at the last latents of levels, (batch, levels, hidden_size).

        Args:
            latents, quantized: (batch, blocks, leading tokens, latent_size).
            kept: (batch, blocks, tokens) bool.
        """
        config, (num_blocks, tokens) = self.config, latents.shape[1:3]
        first = past_key_values.num_blocks if past_key_values is not None else 0
        table = self.positions().unflatten(1, (config.num_blocks, -1))[:, first : first + num_blocks, :tokens]
        hidden_states = self.project_in(torch.cat([latents, quantized], dim=-1).to(self.dtype)) + table
        sequence = [
            BlockTokens("latent", first + block, hidden_states[:, block], None if kept is None else kept[:, block])
            for block in range(num_blocks)
        ]
        read, step = "latent" if read else None, config.score_step
        return run_blocks(self.layers, config.attention_type, sequence, read, step, past_key_values, **recorded)

    @run_hooks
    def score_block(self, latents: torch.Tensor, quantized: torch.Tensor, past_key_values: BlockCache) -> torch.FloatTensor:
        """The scores of the block that follows those in the cache. It is in the cache afterwards, with all its tokens.

        Where it does not keep all, call `keep_tokens` with the count chosen before the next block is scored.

        Args:
            latents: (batch, latents_per_block, latent_size), the tokenizer's, before quantisation.
            quantized: the same shape, after quantisation.
            past_key_values: the kept tokens of the blocks before; empty at the beginning of a clip.

        Returns:
            (batch, levels) float32: what `forward` gives for this block if `token_counts` has the counts kept of the
            blocks before and `latents_per_block` for this one.

        Raises:
            ValueError: for shapes that do not fit the configuration or the cache.
        """
        config, cache = self.config, past_key_values
        self._check_block(latents, quantized)
        cache.check_next(config.attention_type, len(latents), 1, config.num_blocks)
        return self.scores_of(self._run(latents[:, None], quantized[:, None], past_key_values=cache))

    @run_hooks
    def keep_tokens(
        self, latents: torch.Tensor, quantized: torch.Tensor, token_counts: torch.Tensor, past_key_values: BlockCache
    ) -> None:
        """Keep only the leading tokens of the last block in the cache.

        These are computed again, since they may not have seen those that go; nothing is computed if all stay.

        Args:
            latents, quantized: as passed to `score_block`.
            token_counts: (batch,) long, the leading latents that are kept, 0..latents_per_block.
            past_key_values: as passed to `score_block`.

        Raises:
            ValueError: for shapes or counts that do not fit, and for a cache without a block.
        """
        self._check_block(latents, quantized, token_counts)
        if past_key_values.num_blocks == 0:
            raise ValueError("keep_tokens drops tokens of the last block, but the cache holds 0 blocks")
        if int(token_counts.min()) < self.config.latents_per_block:
            past_key_values.crop_block()
            self.add_block(latents, quantized, token_counts, past_key_values)

    @run_hooks
    def add_block(
        self, latents: torch.Tensor, quantized: torch.Tensor, token_counts: torch.Tensor, past_key_values: BlockCache
    ) -> None:
        """Put the next block into the cache with its kept tokens, without scoring it: its count is known already.

        Args: as those of `keep_tokens`.

        Raises:
            ValueError: for shapes or counts that do not fit the configuration or the cache.
        """
        self._check_block(latents, quantized, token_counts)
        past_key_values.check_next(self.config.attention_type, len(latents), 1, self.config.num_blocks)
        fewest, most = int(token_counts.min()), int(token_counts.max())
        if most == 0:
            past_key_values.num_blocks += 1
            return
        latents, quantized, kept = latents[:, None, :most], quantized[:, None, :most], None
        if fewest < most:
            kept = kept_tokens(token_counts[:, None], most)
            latents, quantized = latents * kept[..., None], quantized * kept[..., None]
        self._run(latents, quantized, kept, past_key_values, read=False)

    def _check_block(
        self, latents: torch.Tensor, quantized: torch.Tensor, token_counts: torch.Tensor | None = None
    ) -> None:
        expected = (self.config.latents_per_block, self.config.latent_size)
        if latents.shape != quantized.shape or latents.ndim != 3 or tuple(latents.shape[1:]) != expected:
            raise ValueError(
                f"latents {tuple(latents.shape)} and quantized {tuple(quantized.shape)} must both be (batch, "
                f"{expected[0]}, {expected[1]}): one block"
            )
        if token_counts is not None:
            check_token_counts(token_counts[:, None], len(latents), 1, expected[0])

    def scores_of(self, levels: torch.Tensor) -> torch.FloatTensor:
        """Outputs at the last latents of levels (batch, levels, hidden_size) -> their scores (batch, levels) float32."""
        config = self.config
        scores = self.head_out(torch.tanh(self.head_in(self.norm(levels)))).squeeze(-1)
        return scores.float() * config.score_std + config.score_mean


__all__ = ["AdapTokScorerModel", "AdapTokScorerPreTrainedModel"]
