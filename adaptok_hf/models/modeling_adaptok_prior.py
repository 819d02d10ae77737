"""The AdapTok prior: predicts each code vector from those before it; in training its loss shapes the latents."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from transformers.utils.output_capturing import capture_outputs

from .checked_loading import CheckedLoading
from .configuration_adaptok_prior import AdapTokPriorConfig
from .layers import LearnedPositions, eager_attention_forward, recorded_outputs


@dataclass
class AdapTokPriorOutput(ModelOutput):
    """
    Args:
        predictions: (batch, tokens, codebook_dim), unit vectors. The one at position t is predicted from the inputs
            before t; the first repeats the first input.
        hidden_states: with `output_hidden_states`, the input of the first layer and the output of each, (batch, tokens - 1,
            hidden_size).
        attentions: with `output_attentions`, the weights of each layer, (batch, heads, tokens - 1, tokens - 1).
    """

    predictions: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class AdapTokPriorAttention(nn.Module):
    """Causal multi-head self-attention."""

    def __init__(self, config: AdapTokPriorConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.scaling = (config.hidden_size // config.num_attention_heads) ** -0.5
        self.is_causal = False  # causality comes from the mask
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(config.hidden_size, config.hidden_size)
        self.value = nn.Linear(config.hidden_size, config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor, attention_mask=None, output_attentions: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(batch, tokens, width) -> the same shape, and the weights, which `output_attentions` makes sure of."""
        query, key, value = (
            projection(hidden_states).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.query, self.key, self.value)
        )  # each (batch, heads, tokens, head_dim)
        implementation = "eager" if output_attentions else self.config._attn_implementation
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        dropout = self.config.attention_dropout if self.training else 0.0
        output, weights = attention(self, query, key, value, attention_mask, scaling=self.scaling, dropout=dropout)
        return self.proj(output.flatten(2)), weights


class AdapTokPriorLayer(GradientCheckpointingLayer):
    """Pre-norm transformer layer: attention and MLP, each added to the residual stream."""

    def __init__(self, config: AdapTokPriorConfig):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = AdapTokPriorAttention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_ratio * config.hidden_size)
        self.fc2 = nn.Linear(config.mlp_ratio * config.hidden_size, config.hidden_size)
        self.dropout = nn.Dropout(config.residual_dropout)

    def forward(self, hidden_states: torch.Tensor, attention_mask=None, output_attentions: bool = False) -> torch.Tensor:
        attended, _ = self.attention(self.norm1(hidden_states), attention_mask, output_attentions)
        hidden_states = hidden_states + self.dropout(attended)
        expanded = nn.functional.gelu(self.fc1(self.norm2(hidden_states)))
        return hidden_states + self.dropout(self.fc2(expanded))


class AdapTokPriorPreTrainedModel(CheckedLoading, PreTrainedModel):
    config_class = AdapTokPriorConfig
    base_model_prefix = ""
    main_input_name = "code_vectors"
    supports_gradient_checkpointing = True
    _auto_class = "AutoModel"  # saved folders carry the code, for trust_remote_code
    _no_split_modules = ["AdapTokPriorLayer"]
    _can_record_outputs = {"hidden_states": AdapTokPriorLayer, "attentions": AdapTokPriorAttention}
    _input_embed_layer = "project_in"
    _supports_sdpa = True
    _supports_flash_attn = False
    _supports_attention_backend = True

    @torch.no_grad()
    def _init_weights(self, module):
        if isinstance(module, nn.Linear | LearnedPositions):
            init.normal_(module.weight, std=self.config.initializer_range)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)


class AdapTokPriorModel(AdapTokPriorPreTrainedModel):
    """A GPT over continuous code vectors, used in training only."""

    def __init__(self, config: AdapTokPriorConfig):
        super().__init__(config)
        self.project_in = nn.Linear(config.codebook_dim, config.hidden_size)
        self.positions = LearnedPositions(config.num_latent_tokens, config.hidden_size)
        self.dropout = nn.Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(AdapTokPriorLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.head = nn.Linear(config.hidden_size, config.codebook_dim)
        self.post_init()

    @capture_outputs
    def forward(self, code_vectors: torch.Tensor, position_ids: torch.Tensor | None = None, **kwargs) -> AdapTokPriorOutput:
        """
        Args:
            code_vectors: (batch, tokens, codebook_dim), 2..`config.num_latent_tokens` tokens: the tokenizer's
                `code_vectors` with blocks and latents flattened.
            position_ids: (batch, tokens) long, where the tokens stood before dropped ones were left out; default: 0, 1, ...
            kwargs: `output_hidden_states`, `output_attentions`, `return_dict`.

        Raises:
            ValueError: for a shape that does not fit the configuration.
        """
        config, recorded = self.config, recorded_outputs(self.config, kwargs)
        if (
            code_vectors.ndim != 3
            or not 2 <= code_vectors.shape[1] <= config.num_latent_tokens
            or code_vectors.shape[2] != config.codebook_dim
        ):
            raise ValueError(
                f"code_vectors has shape {tuple(code_vectors.shape)}, expected (batch, "
                f"2..{config.num_latent_tokens} tokens, {config.codebook_dim})"
            )
        inputs = code_vectors[:, :-1].to(self.dtype)
        length = inputs.shape[1]
        table = self.positions()[:, :length] if position_ids is None else self.positions()[0, position_ids[:, :length]]
        hidden_states = self.dropout(self.project_in(inputs) + table)
        mask = torch.ones(length, length, dtype=torch.bool, device=inputs.device).tril()
        for layer in self.layers:
            hidden_states = layer(hidden_states, mask, output_attentions=recorded["output_attentions"])
        predictions = torch.cat([inputs[:, :1], self.head(self.norm(hidden_states))], dim=1)
        return AdapTokPriorOutput(predictions=nn.functional.normalize(predictions, dim=-1))


__all__ = ["AdapTokPriorModel", "AdapTokPriorPreTrainedModel"]
