"""Configuration of the AdapTok generator."""

from huggingface_hub.dataclasses import strict
from transformers.models.llama.configuration_llama import LlamaConfig


@strict
class AdapTokARConfig(LlamaConfig):
    r"""Architecture of an [`AdapTokARForCausalLM`]: a Llama whose words are a tokenizer's codes.

    Ids: `0..codebook_size - 1` are codes, then comes `<EOB>`, then what a sequence can be conditioned on: the classes and
    the null class, or the separator behind the condition's codes.

    Args:
        codebook_size, num_blocks, latents_per_block (`int`): of the tokenizer; `num_blocks` are those of a whole clip.
        num_classes (`int`): classes of a class-conditional model; 0 for frame prediction. Their names are `id2label`.
        num_condition_codes (`int`): codes of the condition clip that stand in front of the separator (frame prediction);
            0 for a class-conditional model.
        start_block (`int`): leading blocks that are given and not generated (frame prediction).
        position_embedding (`str`): `"rope"`, a plain Llama, or `"absolute"`, a table that is added to the embeddings, as in
            the original.
        learned_positions (`bool`): whether the absolute table is learned; else it is a fixed sine-cosine table.
        embedding_dropout, residual_dropout, mlp_dropout (`float`): dropout behind the embeddings, the attention's output
            projection and the MLP. `attention_dropout` is Llama's.
        class_dropout (`float`): share of the clips whose class is replaced by the null class in training, for guidance.
        hidden_size, num_hidden_layers, num_attention_heads ...: as in [`LlamaConfig`].
        intermediate_size (`int`, *optional*): default: 8/3 of `hidden_size`, rounded up to a multiple of 256.

    The sizes' parameters are counted with 8192 codes and 101 classes; the public code states its own for 16384 and 1000.
    `vocab_size` and `max_position_embeddings` follow from these. Raises `ValueError` where the numbers do not fit together.
    """

    model_type = "adaptok_ar"
    _auto_class = "AutoConfig"  # saved folders carry the code, for trust_remote_code

    codebook_size: int = 8192
    num_blocks: int = 4
    latents_per_block: int = 512
    num_classes: int = 101
    num_condition_codes: int = 0
    start_block: int = 0
    position_embedding: str = "rope"
    learned_positions: bool = True
    embedding_dropout: float | int = 0.1
    residual_dropout: float | int = 0.1
    mlp_dropout: float | int = 0.1
    class_dropout: float | int = 0.1
    # Llama's, with the defaults of the released size (633M)
    hidden_size: int = 1280
    intermediate_size: int | None = None
    num_hidden_layers: int = 30
    num_attention_heads: int = 20
    rms_norm_eps: float = 1e-5
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        for name in ("codebook_size", "num_blocks", "latents_per_block", "hidden_size", "num_attention_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if (self.num_classes > 0) == (self.num_condition_codes > 0):
            raise ValueError(
                "a generator is conditioned on a class or on frames: exactly one of num_classes and num_condition_codes "
                f"must be positive, got {self.num_classes} and {self.num_condition_codes}"
            )
        if self.num_condition_codes > self.num_blocks * self.latents_per_block:
            raise ValueError(
                f"num_condition_codes={self.num_condition_codes} is more than a clip's {self.num_blocks} x "
                f"{self.latents_per_block} codes"
            )
        if not 0 <= self.start_block < self.num_blocks or (self.start_block and self.is_class_conditional):
            raise ValueError(
                f"start_block={self.start_block} must be 0..{self.num_blocks - 1}, and 0 in a class-conditional model"
            )
        if self.start_block * self.latents_per_block > self.num_condition_codes > 0:
            raise ValueError(
                f"the {self.start_block} given blocks of {self.latents_per_block} codes do not fit into "
                f"num_condition_codes={self.num_condition_codes}"
            )
        if self.position_embedding not in ("rope", "absolute"):
            raise ValueError(f"position_embedding must be 'rope' or 'absolute', got {self.position_embedding!r}")
        for name in ("embedding_dropout", "residual_dropout", "mlp_dropout", "attention_dropout", "class_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.intermediate_size is None:
            self.intermediate_size = -(-int(8 * self.hidden_size / 3) // 256) * 256
        self.vocab_size = self.eob_token_id + 1 + (self.num_classes + 1 if self.is_class_conditional else 1)
        self.max_position_embeddings = self.prompt_length + self.max_sequence_length
        super().__post_init__(**kwargs)

    @property
    def is_class_conditional(self) -> bool:
        return self.num_classes > 0

    @property
    def eob_token_id(self) -> int:
        """Id of `<EOB>`: the first id behind the codes."""
        return self.codebook_size

    @property
    def first_class_token_id(self) -> int | None:
        """Id of class 0, or `None` in a frame-prediction model."""
        return self.codebook_size + 1 if self.is_class_conditional else None

    @property
    def null_class_token_id(self) -> int | None:
        """Id of "no class", which guidance compares with, or `None` in a frame-prediction model."""
        return self.codebook_size + 1 + self.num_classes if self.is_class_conditional else None

    @property
    def condition_separator_token_id(self) -> int | None:
        """Id behind the condition's codes, or `None` in a class-conditional model."""
        return None if self.is_class_conditional else self.codebook_size + 1

    @property
    def conditioning_token_ids(self) -> list[int]:
        """Ids that are never generated."""
        return list(range(self.eob_token_id + 1, self.vocab_size))

    @property
    def num_generated_blocks(self) -> int:
        return self.num_blocks - self.start_block

    @property
    def prompt_length(self) -> int:
        """Tokens in front of what is generated: the class, or the condition's codes and the separator."""
        return 1 if self.is_class_conditional else self.num_condition_codes + 1

    @property
    def max_sequence_length(self) -> int:
        """Tokens of a generated sequence whose blocks are all full, `<EOB>` included."""
        return self.num_generated_blocks * (self.latents_per_block + 1)

    @classmethod
    def small(cls, **overrides) -> "AdapTokARConfig":
        """Size S of the public code: 12 layers, 6 heads, width 384 (28.4M; stated 22M, the layers alone)."""
        return cls(**_size(12, 6, 384) | overrides)

    @classmethod
    def base(cls, **overrides) -> "AdapTokARConfig":
        """Size B: 12 layers, 12 heads, width 768 (99.3M; stated 111M)."""
        return cls(**_size(12, 12, 768) | overrides)

    @classmethod
    def large(cls, **overrides) -> "AdapTokARConfig":
        """Size L: 24 layers, 16 heads, width 1024 (327.4M; stated 343M)."""
        return cls(**_size(24, 16, 1024) | overrides)

    @classmethod
    def large_plus(cls, **overrides) -> "AdapTokARConfig":
        """Size LP, the released one: 30 layers, 20 heads, width 1280 (633.4M; stated 632M)."""
        return cls(**_size(30, 20, 1280) | overrides)

    @classmethod
    def extra_large(cls, **overrides) -> "AdapTokARConfig":
        """Size XL: 36 layers, 20 heads, width 1280 (755.3M; stated 775M)."""
        return cls(**_size(36, 20, 1280) | overrides)

    @classmethod
    def double_extra_large(cls, **overrides) -> "AdapTokARConfig":
        """Size XXL: 48 layers, 24 heads, width 1536 (1.39B; stated 1.4B)."""
        return cls(**_size(48, 24, 1536) | overrides)

    @classmethod
    def triple_extra_large(cls, **overrides) -> "AdapTokARConfig":
        """Size XXXL: 48 layers, 40 heads, width 2560 (3.85B; stated 3.9B)."""
        return cls(**_size(48, 40, 2560) | overrides)


def _size(layers: int, heads: int, width: int) -> dict[str, int]:
    return {"num_hidden_layers": layers, "num_attention_heads": heads, "hidden_size": width}


__all__ = ["AdapTokARConfig"]
