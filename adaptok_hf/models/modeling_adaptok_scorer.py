"""The AdapTok scorer: predicts how good a block's reconstruction will be at each candidate token count."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .attention_masks import (
    Segment,
    block_rule,
    block_segments,
    build_attention_mask,
    check_token_counts,
    kept_rule,
    kept_tokens,
    takes_segments,
)
from .block_cache import NOTHING, BlockCache
from .configuration_adaptok_scorer import AdapTokScorerConfig
from .layers import AdapTokLayer, LearnedPositions, init_layer_weights, run_segments


@dataclass
class AdapTokScorerOutput(ModelOutput):
    """
    Args:
        scores: (batch, blocks, levels), the predicted perceptual loss of each block at each level, lower is better.
    """

    scores: torch.FloatTensor | None = None


class AdapTokScorerPreTrainedModel(PreTrainedModel):
    config_class = AdapTokScorerConfig
    base_model_prefix = ""
    main_input_name = "latents"
    _auto_class = "AutoModel"  # saved folders carry the code, for trust_remote_code
    supports_gradient_checkpointing = True
    _no_split_modules = ["AdapTokLayer"]
    _supports_sdpa = True
    _supports_flex_attn = True
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

    def forward(
        self,
        latents: torch.Tensor,
        quantized: torch.Tensor,
        token_counts: torch.Tensor | None = None,
        return_dict: bool | None = None,
    ) -> AdapTokScorerOutput | tuple:
        """
        Args:
            latents: (batch, blocks, latents_per_block, latent_size), the tokenizer's, before quantisation.
            quantized: the same shape, after quantisation. Fewer than `config.num_blocks` blocks may be given.
            token_counts: (batch, blocks) long. To score block q as the original does: the counts chosen for the blocks
                before q, `latents_per_block` for q, 0 for those after it. `None` keeps everything.

        Raises:
            ValueError: for shapes or counts that do not fit the configuration.
        """
        config, step = self.config, self.config.score_step
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
        inputs = torch.cat([latents, quantized], dim=-1).flatten(1, 2).to(self.dtype)
        length = inputs.shape[1]
        kept = None
        if token_counts is not None:
            check_token_counts(token_counts, batch, num_blocks, config.latents_per_block)
            kept = kept_tokens(token_counts, config.latents_per_block).flatten(1)
            inputs = inputs * kept[..., None]
        hidden_states = self.project_in(inputs) + self.positions()[:, :length]

        if kept is None and takes_segments(config, config.attention_type):
            segments, _, _ = block_segments(config.attention_type, [config.latents_per_block] * num_blocks, 0)
            read = [Segment(slice(s.queries.start + step - 1, s.queries.stop, step), s.keys) for s in segments]
            levels = run_segments(self.layers, hidden_states, segments, read)
        else:
            levels = self._under_mask(hidden_states, kept)[:, step - 1 :: step]
        output = AdapTokScorerOutput(scores=self._scores(levels).unflatten(1, (num_blocks, config.num_levels)))
        return output if (return_dict is None or return_dict) else output.to_tuple()

    def _under_mask(self, hidden_states: torch.Tensor, kept: torch.Tensor | None) -> torch.Tensor:
        """(batch, tokens, hidden_size), (batch, tokens) bool or `None` -> (batch, tokens, hidden_size)."""
        config = self.config
        index = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        is_patch = torch.zeros_like(index, dtype=torch.bool)
        rule = block_rule(config.attention_type, (index // config.latents_per_block)[None], is_patch)
        if kept is not None:
            rule = kept_rule(rule, kept)
        mask = build_attention_mask(config, hidden_states, rule, per_sample=kept is not None)
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask)
        return hidden_states

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
        levels = slice(config.score_step - 1, None, config.score_step)
        hidden_states = self._embed(latents, quantized, cache.num_blocks)
        scores = self._scores(cache.run(config, self.layers, hidden_states, read=levels))
        cache.num_blocks += 1
        cache.open_tokens = config.latents_per_block
        return scores

    def keep_tokens(
        self, latents: torch.Tensor, quantized: torch.Tensor, token_counts: torch.Tensor, past_key_values: BlockCache
    ) -> None:
        """Takes the dropped tokens of the block that was scored last out of the cache.

        The tokens that stay are computed again, since they may not have seen those that go; none if all stay.

        Args:
            latents, quantized: as given to `score_block`.
            token_counts: (batch,) long, the leading latents that are kept, 0..latents_per_block.
            past_key_values: as given to `score_block`.

        Raises:
            ValueError: for shapes or counts that do not fit, and if no block was scored since the last call.
        """
        config, cache = self.config, past_key_values
        self._check_block(latents, quantized)
        check_token_counts(token_counts[:, None], len(latents), 1, config.latents_per_block)
        if not cache.open_tokens:
            raise ValueError("keep_tokens follows score_block: the cache holds no block whose count is open")
        if int(token_counts.min()) < config.latents_per_block:
            cache.forget_block(cache.open_tokens)
            self.add_block(latents, quantized, token_counts, cache)
        cache.open_tokens = 0

    def add_block(
        self, latents: torch.Tensor, quantized: torch.Tensor, token_counts: torch.Tensor, past_key_values: BlockCache
    ) -> None:
        """Puts the next block into the cache with its kept tokens, without scoring it: its count is known already.

        Args: as those of `keep_tokens`.

        Raises:
            ValueError: for shapes or counts that do not fit the configuration or the cache.
        """
        config, cache = self.config, past_key_values
        self._check_block(latents, quantized)
        check_token_counts(token_counts[:, None], len(latents), 1, config.latents_per_block)
        cache.check_next(config.attention_type, len(latents), 1, config.num_blocks)
        fewest, most = int(token_counts.min()), int(token_counts.max())
        cache.num_blocks += 1
        if most == 0:
            return
        latents, quantized, kept = latents[:, :most], quantized[:, :most], None
        if fewest < most:
            kept = kept_tokens(token_counts, most)
            latents, quantized = latents * kept[..., None], quantized * kept[..., None]
        cache.run(config, self.layers, self._embed(latents, quantized, cache.num_blocks - 1), kept, read=NOTHING)

    def _check_block(self, latents: torch.Tensor, quantized: torch.Tensor) -> None:
        expected = (self.config.latents_per_block, self.config.latent_size)
        if latents.shape != quantized.shape or latents.ndim != 3 or tuple(latents.shape[1:]) != expected:
            raise ValueError(
                f"latents {tuple(latents.shape)} and quantized {tuple(quantized.shape)} must both be (batch, "
                f"{expected[0]}, {expected[1]}): one block"
            )

    def _embed(self, latents: torch.Tensor, quantized: torch.Tensor, block: int) -> torch.Tensor:
        """Leading tokens of a block (batch, tokens, latent_size) -> (batch, tokens, hidden_size)."""
        first = block * self.config.latents_per_block
        inputs = torch.cat([latents, quantized], dim=-1).to(self.dtype)
        return self.project_in(inputs) + self.positions()[:, first : first + inputs.shape[1]]

    def _scores(self, levels: torch.Tensor) -> torch.FloatTensor:
        """Outputs at the last latents of levels (batch, levels, hidden_size) -> their scores (batch, levels) float32."""
        config = self.config
        scores = self.head_out(torch.tanh(self.head_in(self.norm(levels)))).squeeze(-1)
        return scores.float() * config.score_std + config.score_mean


__all__ = ["AdapTokScorerModel", "AdapTokScorerPreTrainedModel"]
