"""The prior's loss on kept tokens, and its scheduled sampling."""

import pytest
import torch
from builders.parity_table import FULL, Parity, blocks
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy, normalize, pad
from torch.testing import assert_close

from adaptok_hf import AdapTokPriorConfig, AdapTokPriorModel
from adaptok_hf.losses import (
    prior_loss,
    scheduled_sampling_ratio,
)
from adaptok_hf.losses.prior import code_logits, pack_kept_tokens

needs_full = pytest.mark.skipif(FULL is None, reason="ADAPTOK_PARITY_DIR does not name the folder with all golden tensors")


def close(ours: torch.Tensor, stored: float | torch.Tensor, bound: float = 1e-5) -> None:
    assert_close(ours.detach(), torch.as_tensor(stored, dtype=ours.dtype), atol=bound, rtol=0)


COUNTS = torch.tensor([[3, 0, 4], [1, 2, 0]])


@pytest.fixture
def prior() -> AdapTokPriorModel:
    torch.manual_seed(0)
    config = AdapTokPriorConfig(
        codebook_dim=8,
        num_latent_tokens=12,
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        initializer_range=0.3,
    )
    return AdapTokPriorModel(config).eval()


@pytest.fixture
def tokens() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Code vectors (2, 3, 4, 8), codes (2, 3, 4), and the codebook (20, 8)."""
    generator = torch.Generator().manual_seed(1)
    codebook = normalize(torch.randn(20, 8, generator=generator), dim=-1)
    codes = torch.randint(20, (2, 3, 4), generator=generator)
    return codebook[codes], codes, codebook


def plain_prior_loss(prior, code_vectors, codes, codebook, token_counts) -> float:
    """Clip by clip and target by target; each prediction from a sequence of its own."""
    losses = []
    for vectors, clip, counts in zip(code_vectors, codes, token_counts.tolist(), strict=True):
        kept = [(q, m) for q, count in enumerate(counts) for m in range(count)]
        for t in range(1, len(kept)):
            known = torch.stack([vectors[q, m] for q, m in kept[:t]])
            hidden = prior.project_in(known) + torch.stack([prior.positions.weight[0, 4 * q + m] for q, m in kept[:t]])
            mask = torch.full((t, t), -torch.inf).triu(1)[None, None]
            hidden = hidden[None]
            for layer in prior.layers:
                hidden = layer(hidden, mask)
            prediction = prior.head(prior.norm(hidden))[0, -1]
            similarity = codebook @ (prediction / prediction.norm())
            q, m = kept[t]
            losses.append(float(similarity.logsumexp(0) - similarity[clip[q, m]]))
    return sum(losses) / len(losses)


@torch.no_grad()
def test_prior_loss_is_that_of_each_kept_token(prior, tokens):
    expected = plain_prior_loss(prior, *tokens, COUNTS)
    assert float(prior_loss(prior, *tokens, COUNTS, num_rounds=1)) == pytest.approx(expected, abs=1e-5)
    assert float(prior_loss(prior, *tokens, COUNTS)) == pytest.approx(expected, abs=1e-5)
    full = torch.full_like(COUNTS, 4)
    expected = plain_prior_loss(prior, *tokens, full)
    assert float(prior_loss(prior, *tokens, full)) == pytest.approx(expected, abs=1e-5)
    assert float(prior_loss(prior, *tokens)) == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
def test_unpacked_predictions_are_the_models(prior, tokens):
    packed = pack_kept_tokens(*tokens[:2])
    assert torch.equal(packed.positions, torch.arange(12).expand(2, -1)) and packed.valid.all()
    predictions = prior(packed.vectors, position_ids=packed.positions).predictions[:, 1:]
    assert_close(predictions, prior(tokens[0].flatten(1, 2)).predictions[:, 1:], atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Parity:
    return Parity(FULL, tmp_path_factory.mktemp("parity"))


@needs_full
@pytest.mark.parametrize("pattern", ["uneven", "zeros", "full", None])
@torch.no_grad()
def test_prior_equals_the_original(original, pattern):
    golden = load_file(FULL / "prior_tiny" / "prior.safetensors")
    prior = AdapTokPriorModel.from_pretrained(original.folder / "prior").eval()
    vectors, codes, codebook = blocks(golden["regularized_z"]), blocks(golden["indices"]), golden["codebook_normalized"]
    if pattern is None:
        for rounds in (1, 2):
            close(prior_loss(prior, vectors, codes, codebook, num_rounds=rounds), golden["nomask.loss"][0])
        return
    counts = golden[f"{pattern}.latent_nums"]
    for rounds in (1, 2):
        loss = prior_loss(prior, vectors, codes, codebook, counts, num_rounds=rounds)
        close(loss, golden[f"{pattern}.loss_label_validity"][0])

    packed = pack_kept_tokens(vectors, codes, counts)
    length = packed.codes.shape[1]
    for name, ours in (("packed_input", packed.vectors), ("packed_mask", packed.valid), ("pos_ids", packed.positions)):
        stored = golden[f"{pattern}.{name}"]
        assert torch.equal(stored[:, :length].to(ours.dtype), ours) and not stored[:, length:].any()
    assert torch.equal(golden[f"{pattern}.labels"], pad(packed.codes[:, 1:], (0, 64 - length)))

    predictions = prior(packed.vectors, position_ids=packed.positions).predictions[:, 1:]
    logits = code_logits(predictions, codebook)
    known = packed.valid[:, :-1]  # a prediction is made after each of these
    assert_close(predictions[known], golden[f"{pattern}.ar_predict"][:, 1:length][known], atol=1e-5, rtol=0)
    assert_close(logits[known], golden[f"{pattern}.logits"][:, : length - 1][known], atol=1e-5, rtol=0)

    # The original counts a target "code 0" after each clip that has dropped tokens.
    vectors, codes = pad(packed.vectors, (0, 0, 0, 1))[:, :64], pad(packed.codes, (0, 1))
    valid, positions = (pad(values, (0, 1))[:, :64] for values in (packed.valid, packed.positions))
    logits = code_logits(prior(vectors, position_ids=positions).predictions[:, 1:], codebook)[:, :63]
    known, targets = valid[:, :-1], codes[:, 1:64]
    close(cross_entropy(logits[known], targets[known]), golden[f"{pattern}.loss"][0])
    ranks = (logits[known] > logits[known].gather(1, targets[known][:, None])).sum(1)
    for top in (1, 5):
        close(100 * (ranks < top).float().mean(), golden[f"{pattern}.top{top}"][0], 1e-3)


def test_packing():
    codes = torch.arange(1, 13).view(1, 3, 4).repeat(2, 1, 1)
    packed = pack_kept_tokens(codes[..., None].float(), codes, COUNTS)
    assert packed.codes.tolist() == [[1, 2, 3, 9, 10, 11, 12], [1, 5, 6, 0, 0, 0, 0]]
    assert packed.positions.tolist() == [[0, 1, 2, 8, 9, 10, 11], [0, 4, 5, 0, 0, 0, 0]]
    assert torch.equal(packed.valid, packed.codes > 0)
    assert torch.equal(packed.vectors[..., 0], packed.codes.float())


def test_dropped_tokens_play_no_part(prior, tokens):
    vectors, codes, codebook = tokens
    vectors = vectors.clone().requires_grad_()
    loss = prior_loss(prior, vectors, codes, codebook, COUNTS)
    (gradient,) = torch.autograd.grad(loss, vectors)
    kept = torch.arange(4) < COUNTS[..., None]
    for last in ((0, 2, 3), (1, 1, 1)):  # (clip, block, latent): nothing is predicted from a clip's last token
        assert kept[last] and gradient[last].abs().max() == 0
        kept[last] = False
    assert (gradient[kept].abs().amax(-1) > 0).all() and (gradient[~kept] == 0).all()
    other = torch.where(torch.arange(4) < COUNTS[..., None], codes, 7)
    assert torch.equal(prior_loss(prior, vectors, other, codebook, COUNTS), loss)


def test_prior_gradient_reaches_the_latents_and_not_the_codebook(prior, tiny_tokenizer, tiny_video):
    """Through the straight-through code vectors: the encoder gets their gradient unchanged."""
    torch.manual_seed(0)
    config = AdapTokPriorConfig(
        codebook_dim=8, num_latent_tokens=18, hidden_size=16, num_attention_heads=2, num_hidden_layers=1
    )
    prior = AdapTokPriorModel(config)
    output = tiny_tokenizer(tiny_video, torch.tensor([[6, 2, 1], [1, 4, 6]]))
    output.code_vectors.retain_grad()
    codebook = tiny_tokenizer.quantizer.normalized_codebook()
    ratio = {"sampling_ratio": 0.5}
    prior_loss(prior, output.code_vectors, output.codes, codebook, torch.tensor([[6, 2, 1], [1, 4, 6]]), **ratio).backward()
    assert output.code_vectors.grad.abs().max() > 0
    assert tiny_tokenizer.encoder.patch_embedding.projection.weight.grad.abs().max() > 0
    assert tiny_tokenizer.quantizer.project_in.weight.grad.abs().max() > 0
    assert tiny_tokenizer.quantizer.codebook.weight.grad is None
    without = {name for name, parameter in prior.named_parameters() if parameter.grad is None}
    assert without == set()


def test_scheduled_sampling_replaces_inputs_by_draws(prior, tokens):
    vectors, codes, codebook = tokens
    with torch.no_grad():
        torch.manual_seed(0)
        plain = prior_loss(prior, vectors, codes, codebook, COUNTS)
        mixed = {round(float(prior_loss(prior, vectors, codes, codebook, COUNTS, sampling_ratio=0.5)), 6) for _ in range(4)}
        assert len(mixed) > 1 and round(float(plain), 6) not in mixed
        one_round = prior_loss(prior, vectors, codes, codebook, COUNTS, sampling_ratio=1.0, num_rounds=1)
        assert torch.equal(one_round, prior_loss(prior, vectors, codes, codebook, COUNTS, num_rounds=1))

    # At ratio 1 and next to no temperature the second round reads the first one's best codes, which can be written out.
    with torch.no_grad():
        temperature = 1e-3
        loss = prior_loss(prior, vectors, codes, codebook, sampling_ratio=1.0, temperature=temperature)
        packed = pack_kept_tokens(vectors, codes)
        first = code_logits(prior(packed.vectors, position_ids=packed.positions).predictions[:, 1:], codebook, temperature)
        inputs = torch.cat([packed.vectors[:, :1], codebook[first.argmax(-1)]], dim=1)
        second = code_logits(prior(inputs, position_ids=packed.positions).predictions[:, 1:], codebook, temperature)
        targets = packed.codes[:, 1:].flatten()
        expected = sum(cross_entropy(logits.flatten(0, 1), targets) for logits in (first, second)) / 2
    assert_close(loss, expected, rtol=1e-5, atol=0)


def test_replaced_inputs_get_no_gradient_in_the_second_round(prior, tokens):
    """With every input but the first replaced, the others' gradient is that of the first round alone."""
    vectors, codes, codebook = tokens
    vectors = vectors.clone().requires_grad_()
    both = prior_loss(prior, vectors, codes, codebook, sampling_ratio=1.0)
    (gradient,) = torch.autograd.grad(both, vectors)
    (alone,) = torch.autograd.grad(prior_loss(prior, vectors, codes, codebook, num_rounds=1), vectors)
    assert_close(gradient.flatten(1, 2)[:, 1:], alone.flatten(1, 2)[:, 1:] / 2)
    assert (gradient[:, 0, 0] - alone[:, 0, 0] / 2).abs().max() > 1e-6


def test_scheduled_sampling_ratio():
    ratios = [scheduled_sampling_ratio(step, 1000) for step in (0, 150, 300, 600, 1000)]
    assert ratios == pytest.approx([0, 0.25, 0.5, 0.5, 0.5])
    assert scheduled_sampling_ratio(0, 0) == 0


def test_a_single_kept_token_has_no_loss(prior, tokens):
    counts = torch.tensor([[1, 0, 0], [1, 0, 0]])
    vectors = tokens[0].clone().requires_grad_()
    loss = prior_loss(prior, vectors, *tokens[1:], counts, sampling_ratio=0.5)
    loss.backward()
    assert loss == 0 and (vectors.grad == 0).all() and all((p.grad == 0).all() for p in prior.parameters())


def test_prior_loss_refuses(prior, tokens):
    vectors, codes, codebook = tokens
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        prior_loss(prior, vectors, codes, codebook, COUNTS[:, :2])
    with pytest.raises(ValueError, match="token_counts.*0 to 5"):
        prior_loss(prior, vectors, codes, codebook, COUNTS + (COUNTS == 4))
    with pytest.raises(ValueError, match=r"\(2, 12, 8\) and \(2, 3, 4\)"):
        prior_loss(prior, vectors.flatten(1, 2), codes, codebook)
    with pytest.raises(ValueError, match="24 tokens.* 12 tokens"):
        prior_loss(prior, vectors.repeat(1, 2, 1, 1), codes.repeat(1, 2, 1), codebook)
    with pytest.raises(ValueError, match="12 tokens of width 8.* 5"):
        prior_loss(prior, vectors, codes, codebook[:, :5])
    with pytest.raises(ValueError, match="2 tokens.*1"):
        prior_loss(prior, vectors[:, :1, :1], codes[:, :1, :1], codebook)
    for name, value in (("sampling_ratio", 1.5), ("num_rounds", 0), ("temperature", 0.0)):
        with pytest.raises(ValueError, match=f"{name}.*{value}"):
            prior_loss(prior, vectors, codes, codebook, **{name: value})
