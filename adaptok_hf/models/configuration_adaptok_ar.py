"""Configuration of the AdapTok generator."""

from huggingface_hub.dataclasses import strict
from transformers.models.llama.configuration_llama import LlamaConfig


@strict
class AdapTokARConfig(LlamaConfig):
    r"""Architecture of an [`AdapTokARForCausalLM`]: a Llama whose words are a tokenizer's codes.

    Ids: `0..codebook_size - 1` are codes, then come the ids of the layout, then what a sequence can be conditioned on: the
    classes and the null class, or the separator after the condition's codes. A sequence has one of three layouts (see
    `token_layout`): `<EOB>` after each block (AdapTok); a length token before each block (EVATok, `length_tokens`); all
    codes and nothing else (LARP, `block_separators=False`).

    Args:
        codebook_size, num_blocks, latents_per_block (`int`): of the tokenizer; `num_blocks` are those of a whole clip.
        num_classes (`int`): classes of a class-conditional model; 0 for frame prediction. Their names are `id2label`.
        num_condition_codes (`int`): codes of the condition clip that stand in front of the separator (frame prediction);
            0 for a class-conditional model.
        start_block (`int`): leading blocks that are given and not generated (frame prediction).
        length_tokens (`list[int]`, *optional*): the token counts that a block can have, in the order of their ids, which
            follow the codes. A block is the id of its count and as many codes; there is no `<EOB>`.
        block_separators (`bool`): `False`: every sequence has all codes of a clip; there is no `<EOB>`.
        condition_counts (`list[int]`, *optional*): with `length_tokens`, in frame prediction: the token counts of the
            condition's blocks, which are also those of the same blocks of every generated clip. Their sum is
            `num_condition_codes`.
        condition_length_tokens (`bool`): whether the length tokens of the condition's blocks stand in the prompt.
        condition_separator (`bool`): whether the separator follows the condition (frame prediction).
        position_embedding (`str`): `"rope"`, a plain Llama, or `"absolute"`, a table that is added to the embeddings, as in
            the original.
        learned_positions (`bool`): whether the absolute table is learned; else it is a fixed sine-cosine table.
        embedding_dropout, residual_dropout, mlp_dropout (`float`): dropout after the embeddings, the attention's output
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
    length_tokens: list[int] | tuple[int, ...] | None = None
    block_separators: bool = True
    condition_counts: list[int] | tuple[int, ...] | None = None
    condition_length_tokens: bool = True
    condition_separator: bool = True
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
        self._check_layout()
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
        if not self.condition_counts and self.start_block * self.latents_per_block > self.num_condition_codes > 0:
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
        self.vocab_size = self.num_sequence_ids + (
            self.num_classes + 1 if self.is_class_conditional else int(self.condition_separator)
        )
        self.max_position_embeddings = self.prompt_length + self.max_sequence_length
        super().__post_init__(**kwargs)

    def _check_layout(self) -> None:
        """Raise `ValueError` for an impossible layout; complete `num_condition_codes`."""
        if self.length_tokens is not None:
            lengths = self.length_tokens = list(self.length_tokens)
            in_range = bool(lengths) and 1 <= min(lengths) <= max(lengths) <= self.latents_per_block
            if not in_range or len(set(lengths)) != len(lengths):
                raise ValueError(f"length_tokens={lengths} must be different numbers in 1..{self.latents_per_block}")
            if not self.block_separators:
                raise ValueError(f"length_tokens={lengths} and block_separators=False exclude each other")
            if self.num_condition_codes and not self.condition_counts:
                raise ValueError(
                    f"num_condition_codes={self.num_condition_codes} with length_tokens={lengths} needs condition_counts, "
                    "the token counts of the condition's blocks"
                )
        if not self.condition_separator and self.num_classes:
            raise ValueError(f"condition_separator=False is for frame prediction, got num_classes={self.num_classes}")
        if self.condition_counts is None:
            if not self.condition_length_tokens:
                raise ValueError("condition_length_tokens=False needs condition_counts")
            return
        counts = self.condition_counts = list(self.condition_counts)
        if not counts or len(counts) > self.num_blocks or not set(counts) <= set(self.length_tokens or ()):
            raise ValueError(
                f"condition_counts={counts} must be 1..{self.num_blocks} numbers of length_tokens={self.length_tokens}"
            )
        if self.num_condition_codes not in (0, sum(counts)):
            raise ValueError(
                f"num_condition_codes={self.num_condition_codes}, but condition_counts={counts} are {sum(counts)}"
            )
        if self.start_block > len(counts):
            raise ValueError(f"start_block={self.start_block}, but condition_counts={counts} are {len(counts)} blocks")
        self.num_condition_codes = sum(counts)

    @property
    def is_class_conditional(self) -> bool:
        return self.num_classes > 0

    @property
    def eob_token_id(self) -> int | None:
        """Id of `<EOB>`: the first id after the codes, or `None` in a layout without it."""
        return self.codebook_size if self.block_separators and self.length_tokens is None else None

    @property
    def num_sequence_ids(self) -> int:
        """Ids that can be generated, the first ones: codes and `<EOB>`, codes and length tokens, or codes."""
        return self.codebook_size + (len(self.length_tokens) if self.length_tokens else int(self.block_separators))

    @property
    def filler_token_id(self) -> int:
        """Id with which finished rows are filled: `<EOB>`, or code 0 in a layout without it."""
        return 0 if self.eob_token_id is None else self.eob_token_id

    @property
    def first_class_token_id(self) -> int | None:
        """Id of class 0, or `None` in a frame-prediction model."""
        return self.num_sequence_ids if self.is_class_conditional else None

    @property
    def null_class_token_id(self) -> int | None:
        """Id of "no class", which guidance compares with, or `None` in a frame-prediction model."""
        return self.num_sequence_ids + self.num_classes if self.is_class_conditional else None

    @property
    def condition_separator_token_id(self) -> int | None:
        """Id after the condition's codes, or `None` in a class-conditional model and without separator."""
        return None if self.is_class_conditional or not self.condition_separator else self.num_sequence_ids

    @property
    def conditioning_token_ids(self) -> list[int]:
        """Ids that are never generated."""
        return list(range(self.num_sequence_ids, self.vocab_size))

    @property
    def num_generated_blocks(self) -> int:
        return self.num_blocks - self.start_block

    @property
    def prompt_length(self) -> int:
        """Tokens in front of what is generated: the class, or the condition's codes, length tokens and separator."""
        if self.is_class_conditional:
            return 1
        lengths = len(self.condition_counts) if self.condition_counts and self.condition_length_tokens else 0
        return self.num_condition_codes + lengths + int(self.condition_separator)

    @property
    def max_sequence_length(self) -> int:
        """Tokens of a generated sequence whose blocks are as long as they can be, `<EOB>` or length tokens included."""
        per_block = max(self.length_tokens or [self.latents_per_block]) + (self.num_sequence_ids > self.codebook_size)
        return self.num_generated_blocks * per_block

    def take_blocks(self, num_blocks: int, latents_per_block: int) -> None:
        """Let a clip's codes be as many blocks as its tokenizer has.

        A layout with separators has blocks of its own and keeps them, and so does one of another number of codes.
        """
        same_codes = self.num_blocks * self.latents_per_block == num_blocks * latents_per_block
        if same_codes and not (self.block_separators or self.start_block):
            self.num_blocks, self.latents_per_block = num_blocks, latents_per_block

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
