"""Configuration of the AdapTok prior."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class AdapTokPriorConfig(PreTrainedConfig):
    r"""Architecture of an [`AdapTokPriorModel`]. The defaults are the prior of the released model (22.09M parameters).

    Args:
        codebook_dim (`int`): width of the code vectors, as in the tokenizer.
        num_latent_tokens (`int`): the longest sequence, all latent tokens of a clip.
        hidden_size, num_attention_heads, num_hidden_layers, mlp_ratio, layer_norm_eps: the transformer.
        embedding_dropout, residual_dropout, attention_dropout (`float`): dropout in training, 0 to below 1.
        initializer_range (`float`): standard deviation of the initial weights.

    Raises `ValueError` where the numbers do not fit together.
    """

    model_type = "adaptok_prior"
    _auto_class = "AutoConfig"  # saved folders carry the code, for trust_remote_code

    codebook_dim: int = 16
    num_latent_tokens: int = 2048
    hidden_size: int = 384
    num_attention_heads: int = 6
    num_hidden_layers: int = 12
    mlp_ratio: int = 4
    layer_norm_eps: float = 1e-5
    embedding_dropout: float = 0.1
    residual_dropout: float = 0.1
    attention_dropout: float = 0.1
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in ("codebook_dim", "num_latent_tokens", "num_attention_heads", "hidden_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size={self.hidden_size} must be a multiple of num_attention_heads={self.num_attention_heads}"
            )
        for name in ("embedding_dropout", "residual_dropout", "attention_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")


__all__ = ["AdapTokPriorConfig"]
