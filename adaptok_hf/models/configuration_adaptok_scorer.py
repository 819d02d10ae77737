"""Configuration of the AdapTok scorer."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class AdapTokScorerConfig(PreTrainedConfig):
    r"""Architecture of an [`AdapTokScorerModel`]. The defaults are the released scorer (88.96M parameters).

    Args:
        latent_size (`int`): width of the tokenizer's latents, its `hidden_size`.
        num_blocks, latents_per_block (`int`): blocks of a clip and latents of a block, as in the tokenizer.
        score_step (`int`): tokens between two levels; divides `latents_per_block`.
        hidden_size, num_attention_heads, num_hidden_layers, mlp_ratio, layer_norm_eps: the transformer.
        attention_type (`str`): `"block_causal"` or `"full"`.
        score_mean, score_std (`float`): the mean and standard deviation by which the training targets were
            standardized; the model's output is turned back with them.
        target (`str`, *optional*): which loss the scores predict, such as `"perceptual"` (LPIPS of a block's frames, the
            paper's); for the record, nothing is computed from it.
        target_span (`str`, *optional*): `"block"`, a block's own loss (the paper's), or `"clip"`, with what the block costs
            those that follow; for the record too.
        schedules (`list[list[list[int]]]`, *optional*): for each of some budgets the best constant schedule and a few
            others, for clips that it does not suit; one token count per block position, learned on training clips.
        schedule_pull (`float`): score per token by which [`joint`] must expect to gain before it leaves the schedule of its
            budget, chosen on validation clips: errors of the scores then cannot lose much to the schedule. 0: no pull.
        initializer_range (`float`): standard deviation of the initial position table.

    Raises `ValueError` where the numbers do not fit together.
    """

    model_type = "adaptok_scorer"
    _auto_class = "AutoConfig"  # saved folders carry the code, for trust_remote_code

    latent_size: int = 768
    num_blocks: int = 4
    latents_per_block: int = 512
    score_step: int = 64
    hidden_size: int = 768
    num_attention_heads: int = 12
    num_hidden_layers: int = 12
    mlp_ratio: int = 4
    layer_norm_eps: float = 1e-5
    attention_type: str = "block_causal"
    score_mean: float = 0.0
    score_std: float = 1.0
    target: str | None = None
    target_span: str | None = None
    schedules: list[list[list[int]]] | None = None
    schedule_pull: float = 0.0
    initializer_range: float = 0.02

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for whole, part in (("latents_per_block", "score_step"), ("hidden_size", "num_attention_heads")):
            if getattr(self, part) < 1 or getattr(self, whole) < 1 or getattr(self, whole) % getattr(self, part):
                raise ValueError(
                    f"{whole}={getattr(self, whole)} must be a positive multiple of {part}={getattr(self, part)}"
                )
        if self.attention_type not in ("block_causal", "full"):
            raise ValueError(f"attention_type must be 'block_causal' or 'full', got {self.attention_type!r}")
        if not self.score_std > 0:
            raise ValueError(f"score_std must be positive, got {self.score_std}")
        if not self.schedule_pull >= 0 or (self.schedule_pull and not self.schedules):
            raise ValueError(f"schedule_pull must be at least 0, and above only with schedules, got {self.schedule_pull}")
        if len({len(of_budget) for of_budget in self.schedules or ()}) > 1:
            raise ValueError(f"all budgets need as many schedules, got {[len(each) for each in self.schedules]}")
        for counts in (counts for of_budget in self.schedules or () for counts in of_budget):
            if len(counts) != self.num_blocks or not all(1 <= count <= self.latents_per_block for count in counts):
                raise ValueError(
                    f"a schedule has {self.num_blocks} counts of 1 to {self.latents_per_block} tokens, got {counts}"
                )

    @property
    def num_levels(self) -> int:
        """J: candidate token counts of a block, `score_step`, 2 `score_step`, ..., `latents_per_block`."""
        return self.latents_per_block // self.score_step

    @property
    def num_latent_tokens(self) -> int:
        return self.num_blocks * self.latents_per_block


__all__ = ["AdapTokScorerConfig"]
