"""Configuration of the EVATok tokenizer."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .block_grid import BlockGridMixin


@strict
class EVATokConfig(BlockGridMixin, PreTrainedConfig):
    r"""Architecture of an [`EVATokModel`]. The defaults are the paper's "S-B" (145M parameters, arXiv 2603.12267).

    Args:
        image_size, num_channels, num_frames, patch_size, tubelet_size (`int`): the clips, as in [`AdapTokConfig`].
        levels (`list[int]`): token counts that a block may have, rising.
        encoder_hidden_size, num_encoder_layers, num_encoder_attention_heads (`int`): the encoder.
        decoder_hidden_size, num_decoder_layers, num_decoder_attention_heads (`int`): the decoder.
        mlp_ratio (`int`): width of the MLPs over that of their layer.
        layer_norm_eps (`float`): epsilon of all layer norms.
        norm_first (`bool`): layer norms before attention and MLP; `False` puts them after the sums.
        qk_norm (`bool`): a layer norm over each head's queries and keys.
        query_init (`str`): what a block's queries start from: `"pyramid"`, averages of its patches over finer and finer
            cells; `"mean"` of its patches; `"learned"`, a table.
        feature_size (`int` or `None`): width of patches that are normalised and then mapped to `encoder_hidden_size`;
            `None` maps pixels to `encoder_hidden_size` at once.
        latent_size (`int`): width of latents, before and after the quantizer.
        codebook_size, codebook_dim (`int`): number and width of the codes. The paper's tokenizers for UCF-101 and
            Kinetics-600 have 8192 codes.
        normalized_codes (`bool`): latents and codes of unit length.
        rotation_trick (`bool`): the gradient of a code reaches its latent turned as the latent is turned onto the code;
            `False` copies it.
        stochastic_quantizer (`bool`): whether codes are sampled in training.
        quantizer_temperature (`float`): temperature of that sampling.
        entropy_temperature (`float`): of the probabilities in the entropy term.
        initializer_range (`float`): standard deviation of the initial tables.

    Raises `ValueError` where the numbers do not fit together.
    """

    model_type = "evatok"
    # what `Trainer.predict` leaves out: it gives videos
    keys_to_ignore_at_inference = [
        "codes",
        "commitment_loss",
        "codebook_loss",
        "entropy_loss",
        "latents",
        "quantized",
        "code_vectors",
    ]
    # what transformers asks any configuration for
    attribute_map = {"hidden_size": "encoder_hidden_size", "num_attention_heads": "num_encoder_attention_heads"}
    _auto_class = "AutoConfig"  # saved folders carry the code, for trust_remote_code

    # input
    image_size: int = 128
    num_channels: int = 3
    num_frames: int = 16
    patch_size: int = 8
    tubelet_size: int = 4
    levels: list[int] | tuple[int, ...] = (32, 64, 128, 256, 512)
    # transformers
    encoder_hidden_size: int = 512
    num_encoder_layers: int = 6
    num_encoder_attention_heads: int = 8
    decoder_hidden_size: int = 768
    num_decoder_layers: int = 12
    num_decoder_attention_heads: int = 12
    mlp_ratio: int = 4
    layer_norm_eps: float = 1e-5
    norm_first: bool = True
    qk_norm: bool = False
    query_init: str = "pyramid"
    feature_size: int | None = None
    # latents and quantizer
    latent_size: int = 256
    codebook_size: int = 16384
    codebook_dim: int = 8
    normalized_codes: bool = True
    rotation_trick: bool = False
    stochastic_quantizer: bool = False
    quantizer_temperature: float = 0.03
    entropy_temperature: float = 0.01
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.levels = list(self.levels)
        self.check_multiples(
            ("num_frames", "tubelet_size"),
            ("image_size", "patch_size"),
            ("encoder_hidden_size", "num_encoder_attention_heads"),
            ("decoder_hidden_size", "num_decoder_attention_heads"),
        )
        for name in ("num_encoder_layers", "num_decoder_layers", "latent_size", "codebook_size", "codebook_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not self.levels or self.levels != sorted(set(self.levels)) or self.levels[0] < 1:
            raise ValueError(f"levels must be rising token counts of at least 1, got {self.levels}")
        if self.query_init not in ("pyramid", "mean", "learned"):
            raise ValueError(f"query_init must be 'pyramid', 'mean' or 'learned', got {self.query_init!r}")
        if self.query_init == "pyramid":
            pyramid_cells(self.latents_per_block, self.grid_size)
            if odd := [level for level in self.levels if level & (level - 1)]:
                raise ValueError(f"query_init='pyramid' needs levels that are powers of two, got {odd}")
        for name in ("quantizer_temperature", "entropy_temperature"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        if self.stochastic_quantizer and not self.normalized_codes:
            raise ValueError("stochastic_quantizer=True samples by cosines: it needs normalized_codes=True")

    @property
    def latents_per_block(self) -> int:
        """M: the largest level, which is how many codes of a block are stored."""
        return self.levels[-1]

    @property
    def num_latent_tokens(self) -> int:
        """K * M: places for latent tokens in a clip."""
        return self.num_blocks * self.latents_per_block

    @property
    def num_hidden_layers(self) -> int:
        """Layers of encoder and decoder together."""
        return self.num_encoder_layers + self.num_decoder_layers

    @property
    def adaptive(self) -> bool:
        """Whether blocks may have different token counts."""
        return len(self.levels) > 1

    @property
    def eob_token_id(self) -> int:
        """Id of `<EOB>` in token sequences: the first id after the codes."""
        return self.codebook_size


def pyramid_cells(num_queries: int, grid_size: int) -> list[tuple[int, int]]:
    """Return the rows and columns of cells of each level of a pyramid with so many cells in all.

    Levels have 1, 1, 2, 4, ... cells: 1x1, 1x1, 1x2, 2x2, 2x4, ... The first half of a pyramid is that of half as many.

    Raises:
        ValueError: if `num_queries` is not a power of two, or the grid of patches cannot be cut into such cells.
    """
    cells = [(2 ** (level // 2), 2 ** ((level + 1) // 2)) for level in range(num_queries.bit_length() - 1)]
    deepest = max(cells, default=(1, 1))
    if num_queries & (num_queries - 1) or grid_size % deepest[0] or grid_size % deepest[1]:
        raise ValueError(
            f"a pyramid of {num_queries} queries does not fit {grid_size}x{grid_size} patches: the number must be a power "
            "of two, and its cells must divide the grid"
        )
    return [(1, 1), *cells]


__all__ = ["EVATokConfig"]
