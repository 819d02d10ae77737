"""Configuration of the AdapTok tokenizer."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .block_grid import BlockGridMixin


@strict
class AdapTokConfig(BlockGridMixin, PreTrainedConfig):
    r"""Architecture of an [`AdapTokModel`]. The defaults are the released base model (173.0M parameters).

    Args:
        image_size (`int`): height and width of a frame in pixels.
        num_channels (`int`): color channels.
        num_frames (`int`): frames of a clip.
        patch_size (`int`): height and width of a patch in pixels.
        tubelet_size (`int`): frames of a block, the unit of causality.
        hidden_size (`int`): width of encoder and decoder.
        num_attention_heads (`int`): attention heads of every layer.
        num_encoder_layers, num_decoder_layers (`int`): transformer layers.
        mlp_ratio (`int`): width of the MLPs over `hidden_size`.
        layer_norm_eps (`float`): epsilon of the layer norms in the layers (the decoder head's is 1e-6).
        latents_per_block (`int`): latent tokens of a block, M.
        codebook_size, codebook_dim (`int`): number and width of the codes.
        stochastic_quantizer (`bool`): whether codes are sampled in training.
        quantizer_temperature (`float`): temperature of that sampling.
        adaptive (`bool`): whether the tail of a block's latents may be dropped. `False` is the CausalTok baseline.
        encoder_attention_type, decoder_attention_type (`str`): `"block_causal"`, `"decoder"`, `"block_diagonal"` or
            `"full"`, see `attention_masks`.
        learned_encoder_patch_positions, learned_encoder_latent_queries (`bool`): learned table instead of a fixed
            sine-cosine one.
        learned_decoder_latent_positions, learned_decoder_patch_queries (`bool`): the same, of the decoder.
        encoder_patch_type_embedding, encoder_latent_type_embedding (`bool`): whether a learned vector is added to all
            tokens of that kind.
        decoder_latent_type_embedding, decoder_patch_type_embedding (`bool`): the same, of the decoder.
        latent_position_base (`float`): base of the fixed tables of the latents.
        initializer_range (`float`): standard deviation of the initial tables.

    Raises `ValueError` where the geometry is impossible.
    """

    model_type = "adaptok"
    # what `Trainer.predict` leaves out: it gives videos
    keys_to_ignore_at_inference = ["codes", "commitment_loss", "codebook_loss", "latents", "quantized", "code_vectors"]
    _auto_class = "AutoConfig"  # saved folders carry the code, for trust_remote_code

    # input
    image_size: int = 128
    num_channels: int = 3
    num_frames: int = 16
    patch_size: int = 8
    tubelet_size: int = 4
    # transformer
    hidden_size: int = 768
    num_attention_heads: int = 12
    num_encoder_layers: int = 12
    num_decoder_layers: int = 12
    mlp_ratio: int = 4
    layer_norm_eps: float = 1e-5
    # latents and quantiser
    latents_per_block: int = 512
    codebook_size: int = 8192
    codebook_dim: int = 16
    stochastic_quantizer: bool = True
    quantizer_temperature: float = 0.03
    adaptive: bool = True
    # attention and position tables
    encoder_attention_type: str = "block_causal"
    decoder_attention_type: str = "decoder"
    learned_encoder_patch_positions: bool = False
    learned_encoder_latent_queries: bool = True
    learned_decoder_latent_positions: bool = False
    learned_decoder_patch_queries: bool = False
    encoder_patch_type_embedding: bool = False
    encoder_latent_type_embedding: bool = False
    decoder_latent_type_embedding: bool = False
    decoder_patch_type_embedding: bool = True
    latent_position_base: float | int = 10000.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.check_multiples(
            ("num_frames", "tubelet_size"), ("image_size", "patch_size"), ("hidden_size", "num_attention_heads")
        )
        if self.hidden_size % 4:
            raise ValueError(f"hidden_size={self.hidden_size} must be a multiple of 4 (2-D sine-cosine tables)")
        for name in ("latents_per_block", "codebook_size", "codebook_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        # repeated here rather than imported: a configuration is read without torch
        types = ("block_causal", "decoder", "block_diagonal", "full")
        for name in ("encoder_attention_type", "decoder_attention_type"):
            if getattr(self, name) not in types:
                raise ValueError(f"{name} must be one of {types}, got {getattr(self, name)!r}")

    @property
    def num_latent_tokens(self) -> int:
        """K * M: latent tokens of a clip."""
        return self.num_blocks * self.latents_per_block

    @property
    def num_hidden_layers(self) -> int:
        """Layers of encoder and decoder together."""
        return self.num_encoder_layers + self.num_decoder_layers

    @property
    def eob_token_id(self) -> int:
        """Id of `<EOB>` in token sequences: the first id after the codes."""
        return self.codebook_size

    @classmethod
    def base(cls, **overrides) -> "AdapTokConfig":
        """The released model: width 768, 12 + 12 layers, 12 heads."""
        return cls(**overrides)

    @classmethod
    def small(cls, **overrides) -> "AdapTokConfig":
        """Size S of the paper's Table B: width 512, 6 + 6 layers, 8 heads."""
        return cls(
            **{"hidden_size": 512, "num_attention_heads": 8, "num_encoder_layers": 6, "num_decoder_layers": 6} | overrides
        )

    @classmethod
    def large(cls, **overrides) -> "AdapTokConfig":
        """Size L of the paper's Table B: width 768, 12 + 12 layers, 12 heads (the geometry of `base`)."""
        return cls(**overrides)

    @classmethod
    def extra_large(cls, **overrides) -> "AdapTokConfig":
        """Size XL of the paper's Table B: width 1024, 24 + 24 layers, 16 heads."""
        return cls(
            **{"hidden_size": 1024, "num_attention_heads": 16, "num_encoder_layers": 24, "num_decoder_layers": 24}
            | overrides
        )


__all__ = ["AdapTokConfig"]
