"""Configuration of the router."""

import math

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from .block_grid import BlockGridMixin


@strict
class AdapTokRouterConfig(BlockGridMixin, PreTrainedConfig):
    r"""Architecture of an [`AdapTokRouterModel`]. The defaults have about the size of EVATok's router (arXiv 2603.12267).

    Args:
        image_size, num_frames, num_channels, tubelet_size, patch_size (`int`): the clips, as in the tokenizer.
        levels (`list[int]`): candidate token counts of a block, rising.
        head (`str`): `"blocks"`, a choice for each block that depends on this and earlier blocks only; or `"assignment"`,
            one choice among all assignments of levels to blocks (EVATok's).
        attention_type (`str`): `"block_causal"`, one query per block, which sees this and earlier blocks; or `"full"`, one
            query for the clip, and everything sees everything (EVATok's; head `"assignment"` only).
        attention_bias (`bool`): whether the projections to query, key and value have a bias.
        price_conditioned (`bool`): whether the router is given a price per token, so that one serves all budgets.
        log_price_mean, log_price_std (`float`): by which the logarithm of the price is standardized.
        hidden_size, num_attention_heads, num_hidden_layers, mlp_ratio, layer_norm_eps: the transformer.
        initializer_range (`float`): standard deviation of the initial position tables.

    Raises `ValueError` where the numbers do not fit together.
    """

    model_type = "adaptok_router"
    _auto_class = "AutoConfig"  # saved folders carry the code, for trust_remote_code

    image_size: int = 128
    num_frames: int = 16
    num_channels: int = 3
    tubelet_size: int = 4
    patch_size: int = 8
    levels: list[int] | tuple[int, ...] = (32, 64, 128, 256, 512)
    head: str = "assignment"
    attention_type: str = "block_causal"
    attention_bias: bool = False
    price_conditioned: bool = False
    log_price_mean: float = 0.0
    log_price_std: float = 1.0
    hidden_size: int = 512
    num_attention_heads: int = 8
    num_hidden_layers: int = 6
    mlp_ratio: int = 4
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.levels = list(self.levels)
        self.check_multiples(
            ("image_size", "patch_size"), ("num_frames", "tubelet_size"), ("hidden_size", "num_attention_heads")
        )
        if not self.levels or self.levels != sorted(set(self.levels)) or self.levels[0] < 1:
            raise ValueError(f"levels must be rising token counts of at least 1, got {self.levels}")
        if self.head not in ("blocks", "assignment"):
            raise ValueError(f"head must be 'blocks' or 'assignment', got {self.head!r}")
        if self.attention_type not in ("block_causal", "full") or (self.attention_type, self.head) == ("full", "blocks"):
            raise ValueError(
                "attention_type must be 'block_causal', or 'full' with head='assignment', got "
                f"{self.attention_type!r} with head={self.head!r}"
            )
        if not self.log_price_std > 0:
            raise ValueError(f"log_price_std must be positive, got {self.log_price_std}")

    @property
    def price_range(self) -> tuple[float, float]:
        """The lowest and highest price, if it was trained on prices whose logarithms are spread evenly."""
        half = math.sqrt(3) * self.log_price_std
        return math.exp(self.log_price_mean - half), math.exp(self.log_price_mean + half)

    @property
    def num_outputs(self) -> int:
        """Logits of a choice: levels, or assignments."""
        return len(self.levels) if self.head == "blocks" else len(self.levels) ** self.num_blocks


__all__ = ["AdapTokRouterConfig"]
