"""The prior's loss: cross-entropy of each kept code of a clip, predicted from those before it.

Its gradient trains the prior and, through the code vectors, makes the tokenizer's latents predictable (AdapTok, after
LARP, arXiv 2410.21264).
"""

from typing import NamedTuple

import torch
from torch.nn.functional import cross_entropy, embedding, linear

from ..models.attention_masks import check_token_counts, kept_tokens
from ..models.modeling_adaptok_prior import AdapTokPriorModel


class PackedTokens(NamedTuple):
    """The kept tokens of each clip, moved to the front in their order; zeros after them.

    Attributes:
        vectors: (batch, tokens, codebook_dim).
        codes: (batch, tokens) long.
        positions: (batch, tokens) long, where they stood among all tokens of the clip.
        valid: (batch, tokens) bool, `True` for kept tokens.
    """

    vectors: torch.Tensor
    codes: torch.Tensor
    positions: torch.Tensor
    valid: torch.Tensor


def pack_kept_tokens(
    code_vectors: torch.Tensor, codes: torch.Tensor, token_counts: torch.Tensor | None = None
) -> PackedTokens:
    """Pack tokens, as many as the clip that keeps most of them has (2 at least).

    Args:
        code_vectors: (batch, blocks, latents_per_block, codebook_dim).
        codes: (batch, blocks, latents_per_block) long.
        token_counts: (batch, blocks) long, the leading latents of each block that are kept; `None` keeps all.

    Raises:
        ValueError: for shapes or counts that do not fit, or clips of a single token.
    """
    if code_vectors.ndim != 4 or code_vectors.shape[:-1] != codes.shape:
        raise ValueError(
            "expected code_vectors (batch, blocks, latents_per_block, codebook_dim) and codes without the last axis, got "
            f"{tuple(code_vectors.shape)} and {tuple(codes.shape)}"
        )
    batch, num_blocks, per_block = codes.shape
    if num_blocks * per_block < 2:
        raise ValueError("the prior needs clips of at least 2 tokens, got 1")
    if token_counts is None:
        token_counts = torch.full((batch, num_blocks), per_block, device=codes.device)
    check_token_counts(token_counts, batch, num_blocks, per_block)
    kept = kept_tokens(token_counts, per_block).flatten(1)
    order = torch.argsort(~kept, dim=1, stable=True)[:, : max(2, int(kept.sum(1).max()))]
    valid = kept.gather(1, order)
    vectors = code_vectors.flatten(1, 2).gather(1, order[..., None].expand(-1, -1, code_vectors.shape[-1]))
    return PackedTokens(
        vectors=vectors * valid[..., None],
        codes=codes.flatten(1).gather(1, order) * valid,
        positions=order * valid,
        valid=valid,
    )


def code_logits(predictions: torch.Tensor, codebook: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """Return cosine similarities of predictions (..., codebook_dim) to unit codebook rows, over the temperature."""
    with torch.autocast(predictions.device.type, enabled=False):  # half precision is too coarse for cosines near 1
        return linear(predictions.float(), codebook.float()) / temperature


def scheduled_sampling_ratio(step: int, total_steps: int, peak: float = 0.5, peak_at: float = 0.3) -> float:
    """Return the share of inputs that samples of the prior replace (the paper's numbers by default).

    It rises from 0 linearly to `peak`, which is reached at the share `peak_at` of the training and kept.
    """
    return peak * min(1.0, step / max(1.0, peak_at * total_steps))


def prior_loss(
    prior: AdapTokPriorModel,
    code_vectors: torch.Tensor,
    codes: torch.Tensor,
    codebook: torch.Tensor,
    token_counts: torch.Tensor | None = None,
    *,
    sampling_ratio: float = 0.0,
    num_rounds: int = 2,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Return the cross-entropy in nats, averaged over the kept tokens of this process without the first of each clip.

    In the first round the prior reads the code vectors. In each further one a random share of them (but never the first) is
    replaced by codebook rows sampled from the prediction of the round before, so that the prior learns to continue after
    its mistakes; the loss is the mean over rounds. The original's loss also counts a target "code 0" after each clip that
    has dropped tokens; this one does not.

    Args:
        code_vectors: (batch, blocks, latents_per_block, codebook_dim), `AdapTokOutput.code_vectors`: the gradient reaches
            the latents through them.
        codes: (batch, blocks, latents_per_block) long.
        codebook: (codebook_size, codebook_dim), unit rows (`quantizer.normalized_codebook()`); the gradient does not
            reach it.
        token_counts: (batch, blocks) long; `None` keeps all.
        sampling_ratio: share of replaced inputs, 0..1 (see `scheduled_sampling_ratio`).
        num_rounds: the paper's is 2.
        temperature: divides the similarities.

    Returns:
        scalar; 0 if no clip has more than one token.

    Raises:
        ValueError: for shapes, counts or numbers that do not fit.
    """
    config = prior.config
    if not 0 <= sampling_ratio <= 1:
        raise ValueError(f"sampling_ratio must lie in 0..1, got {sampling_ratio}")
    if num_rounds < 1:
        raise ValueError(f"num_rounds must be at least 1, got {num_rounds}")
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    packed = pack_kept_tokens(code_vectors, codes, token_counts)
    num_tokens, width = codes.shape[1] * codes.shape[2], code_vectors.shape[-1]
    if num_tokens > config.num_latent_tokens or width != config.codebook_dim or codebook.shape[-1] != width:
        raise ValueError(
            f"{num_tokens} tokens of width {width} and a codebook of width {codebook.shape[-1]} do not fit the prior: it "
            f"takes up to {config.num_latent_tokens} tokens of width {config.codebook_dim}"
        )
    codebook = codebook.detach()
    first, others = packed.vectors[:, :1], packed.vectors[:, 1:]
    valid = packed.valid[:, 1:]
    targets = packed.codes[:, 1:].masked_fill(~valid, -100)  # cross_entropy leaves these out
    replaced = torch.rand(targets.shape, device=targets.device) < sampling_ratio  # the same tokens in every round
    inputs, logits, losses = packed.vectors, None, []
    for _ in range(num_rounds):
        if logits is not None:
            with torch.no_grad():
                sampled = logits.flatten(0, 1).softmax(-1).multinomial(1).view_as(targets)
            sampled_vectors = embedding(sampled, codebook).to(others.dtype)
            inputs = torch.cat([first, torch.where(replaced[..., None], sampled_vectors, others)], dim=1)
        # tokens keep the positions they had; the prior is causal, so a clip's tokens do not see what comes after them
        predictions = prior(inputs, position_ids=packed.positions).predictions[:, 1:]
        logits = code_logits(predictions, codebook, temperature)
        losses.append(cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum"))
    return torch.stack(losses).mean() / valid.sum().clamp(min=1)
