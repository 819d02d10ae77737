import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel

from adaptok_hf import AdapTokScorerConfig, AdapTokScorerModel

COUNTS = torch.tensor([[4, 2, 6], [6, 0, 1]])


@pytest.fixture
def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and quantized of two clips: (2, 3, 6, 32) each."""
    generator = torch.Generator().manual_seed(3)
    return tuple(torch.randn(2, 3, 6, 32, generator=generator) for _ in range(2))


def test_shapes(tiny_scorer, inputs):
    output = tiny_scorer(*inputs)
    assert output.scores.shape == (2, 3, 3)
    assert not torch.equal(output.scores[0], output.scores[1])
    (scores,) = tiny_scorer(*inputs, return_dict=False)
    assert torch.equal(scores, output.scores)


# --- causality ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [None, COUNTS])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_causal_over_blocks(tiny_scorer, inputs, block, counts):
    inputs = [x.requires_grad_() for x in inputs]
    scores = tiny_scorer(*inputs, counts).scores
    if counts is not None:
        scores = scores[:1]  # the other clip has an empty block
    for gradient in torch.autograd.grad(scores[:, block].pow(2).sum(), inputs):
        gradients = gradient[: len(scores)].abs().amax((0, 2, 3))
        assert (gradients[: block + 1] > 0).all() and (gradients[block + 1 :] == 0).all()


def test_fewer_blocks_give_the_same(tiny_scorer, inputs):
    latents, quantized = inputs
    for counts in (None, COUNTS):
        whole = tiny_scorer(latents, quantized, counts).scores
        for blocks in (1, 2):
            part = None if counts is None else counts[:, :blocks]
            scores = tiny_scorer(latents[:, :blocks], quantized[:, :blocks], part).scores
            assert_close(scores, whole[:, :blocks], atol=1e-5, rtol=1e-5)


def test_later_counts_have_no_influence(tiny_scorer, inputs):
    for block in range(3):
        scores = []
        for later in (0, 3, 6):
            counts = torch.full((2, 3), later)
            counts[:, : block + 1] = torch.tensor([4, 1, 6])[: block + 1]
            scores.append(tiny_scorer(*inputs, counts).scores[:, : block + 1])
        assert torch.equal(scores[0], scores[1]) and torch.equal(scores[0], scores[2])


def test_earlier_counts_matter(tiny_scorer, inputs):
    few, many = (tiny_scorer(*inputs, torch.tensor([[count, 6, 6]] * 2)).scores for count in (2, 6))
    assert (few[:, 1:] - many[:, 1:]).abs().amin((0, 2)).min() > 1e-5


def test_full_attention_is_not_causal(tiny_scorer, inputs):
    config = AdapTokScorerConfig(**{**tiny_scorer.config.to_diff_dict(), "attention_type": "full"})
    model = AdapTokScorerModel(config).eval()
    latents, quantized = inputs
    changed = torch.cat([latents[:, :2], latents[:, 2:] + 1], 1)
    before, after = model(latents, quantized).scores, model(changed, quantized).scores
    assert not torch.allclose(before[:, 0], after[:, 0], atol=1e-6)


# --- dropping -----------------------------------------------------------------------------------------------------


def test_dropped_tokens_have_no_influence(tiny_scorer, inputs):
    dropped = (torch.arange(6) >= COUNTS[..., None])[..., None]
    scrambled = [torch.where(dropped, torch.full_like(x, 7.0), x) for x in inputs]
    assert not torch.equal(scrambled[0], inputs[0])
    scores = tiny_scorer(*inputs, COUNTS).scores
    assert torch.equal(scores, tiny_scorer(*scrambled, COUNTS).scores)
    assert not torch.allclose(scores, tiny_scorer(*inputs).scores, atol=1e-5)


def test_dropped_tokens_are_seen_by_nobody(tiny_scorer, inputs):
    """Not even by their place in the sequence: COUNTS drops the last two latents of the first clip's first block."""
    before = tiny_scorer(*inputs, COUNTS).scores[0]
    with torch.no_grad():
        tiny_scorer.positions.weight[:, 4:6] += 1
    after = tiny_scorer(*inputs, COUNTS).scores[0]
    assert torch.equal(after[1:], before[1:]) and torch.equal(after[0, :2], before[0, :2])
    assert not torch.equal(after[0, 2], before[0, 2])


def test_keeping_everything_is_no_counts(tiny_scorer, inputs):
    assert_close(tiny_scorer(*inputs, torch.full((2, 3), 6)).scores, tiny_scorer(*inputs).scores, atol=1e-6, rtol=1e-6)


def test_a_clip_does_not_depend_on_its_neighbours(tiny_scorer, inputs):
    together = tiny_scorer(*inputs, COUNTS).scores
    for i in range(2):
        alone = tiny_scorer(*(x[i : i + 1] for x in inputs), COUNTS[i : i + 1]).scores
        assert_close(alone[0], together[i], atol=1e-6, rtol=1e-6)


# --- recorded outputs, loss ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [None, COUNTS])
def test_hidden_states_and_attentions(tiny_scorer, inputs, counts):
    output = tiny_scorer(*inputs, counts, output_hidden_states=True, output_attentions=True)
    assert [state.shape for state in output.hidden_states] == [(2, 18, 16)] * 3
    assert [weights.shape for weights in output.attentions] == [(2, 2, 18, 18)] * 2
    assert_close(output.attentions[0].sum(-1), torch.ones(2, 2, 18))
    assert not output.attentions[0][:, :, :6, 6:].any()
    assert_close(output.scores, tiny_scorer(*inputs, counts).scores)


def test_the_loss_is_that_of_standardized_scores(tiny_scorer, inputs):
    tiny_scorer.config.score_std = 0.5
    labels = torch.rand(2, 3, 3)
    output = tiny_scorer(*inputs, labels=labels)
    assert_close(output.loss, (output.scores - labels).square().mean() * 4)
    assert tiny_scorer(*inputs).loss is None
    partial = torch.full_like(labels, torch.nan)
    partial[:, -1] = labels[:, -1]
    last = tiny_scorer(*inputs, labels=partial)
    assert_close(last.loss, (output.scores - labels)[:, -1].square().mean() * 4)
    last.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in tiny_scorer.parameters())
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(2, 3, 3\)"):
        tiny_scorer(*inputs, labels=labels[:, :, 0])


# --- output scale, attention, precision ---------------------------------------------------------------------------


def test_mean_and_deviation_turn_the_output(tiny_scorer, inputs):
    plain = tiny_scorer(*inputs).scores
    tiny_scorer.config.score_mean, tiny_scorer.config.score_std = 0.25, 0.5
    assert_close(tiny_scorer(*inputs).scores, plain * 0.5 + 0.25)


@pytest.mark.parametrize(
    ("implementation", "counts"),
    [
        ("eager", None),
        ("eager", COUNTS),
    ],
)
def test_attention_implementations_agree(tiny_scorer, inputs, implementation, counts):
    with torch.no_grad():
        assert tiny_scorer.config._attn_implementation == "sdpa"
        expected = tiny_scorer(*inputs, counts).scores
        tiny_scorer.set_attn_implementation(implementation)
        assert tiny_scorer.config._attn_implementation == implementation
        assert_close(tiny_scorer(*inputs, counts).scores, expected, atol=1e-5, rtol=1e-4)


def test_half_precision_gives_float32_scores(tiny_scorer, inputs):
    expected = tiny_scorer(*inputs).scores
    scores = tiny_scorer.to(torch.bfloat16)(*inputs).scores
    assert scores.dtype == torch.float32
    assert_close(scores, expected, atol=0.1, rtol=0)


# --- training -----------------------------------------------------------------------------------------------------


def test_every_parameter_is_trained(tiny_scorer, inputs):
    tiny_scorer.train()(*inputs, COUNTS).scores.square().mean().backward()
    assert [n for n, p in tiny_scorer.named_parameters() if p.grad is None or not p.grad.abs().max() > 0] == []


def test_gradient_checkpointing_changes_nothing(tiny_scorer, inputs):
    def gradients():
        tiny_scorer.zero_grad()
        tiny_scorer(*inputs, COUNTS).scores.square().mean().backward()
        return [p.grad.clone() for p in tiny_scorer.parameters()]

    tiny_scorer.train()
    plain, calls = gradients(), []
    tiny_scorer.gradient_checkpointing_enable()
    for layer in tiny_scorer.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for a, b in zip(plain, gradients(), strict=True):
        assert_close(a, b)
    assert len(calls) == 4  # each of the two layers ran again in the backward pass


# --- saving, configuration, bad input -----------------------------------------------------------------------------


def test_save_and_load_is_exact(tiny_scorer, inputs, tmp_path):
    tiny_scorer.config.score_mean, tiny_scorer.config.score_std = 0.25, 0.5
    tiny_scorer.config.schedules = [[[2, 2, 2]], [[6, 4, 2]]]
    tiny_scorer.save_pretrained(tmp_path)
    expected = tiny_scorer(*inputs, COUNTS).scores
    for loaded in (AdapTokScorerModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is AdapTokScorerModel and not loaded.training
        assert torch.equal(loaded(*inputs, COUNTS).scores, expected)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is AdapTokScorerConfig and config.score_step == 2 and config.schedules == [[[2, 2, 2]], [[6, 4, 2]]]


def test_released_size():
    with torch.device("meta"):
        model = AdapTokScorerModel(AdapTokScorerConfig())
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 1) == 89.0


def test_config_derives_its_levels():
    config = AdapTokScorerConfig()
    assert (config.num_levels, config.num_latent_tokens) == (8, 2048)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"score_step": 7}, "latents_per_block=512 .* score_step=7"),
        ({"score_step": 0}, "score_step=0"),
        ({"num_attention_heads": 7}, "hidden_size=768 .* num_attention_heads=7"),
        ({"attention_type": "decoder"}, "attention_type .* 'decoder'"),
        ({"score_std": 0.0}, "score_std must be positive"),
        ({"schedules": [[[1, 2, 3, 4]], [[1, 2, 3]]]}, r"4 counts .* \[1, 2, 3\]"),
        ({"schedules": [[[1, 2, 3, 513]]]}, "1 to 512 .* 513"),
        ({"schedules": [[[1, 1, 1, 1]], [[2, 2, 2, 2]] * 2]}, r"as many .* \[1, 2\]"),
        ({"schedule_pull": 0.1}, "0.1"),
    ],
)
def test_impossible_configurations_are_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        AdapTokScorerConfig(**overrides)


def test_bad_inputs_are_named(tiny_scorer, inputs):
    latents, quantized = inputs
    expected = r"must both be \(batch, 1..3 blocks, 6, 32\)"
    for bad in (
        (latents, quantized[:, :2]),
        (latents[:, :, :4], quantized[:, :, :4]),
        (latents[..., :16], quantized[..., :16]),
        (latents.repeat(1, 2, 1, 1), quantized.repeat(1, 2, 1, 1)),
        (latents[:, :0], quantized[:, :0]),
        (latents[0], quantized[0]),
    ):
        with pytest.raises(ValueError, match=expected):
            tiny_scorer(*bad)
    with pytest.raises(ValueError, match=r"token_counts has shape \(2, 2\)"):
        tiny_scorer(latents, quantized, COUNTS[:, :2])
    with pytest.raises(ValueError, match="0..6, got values from 0 to 7"):
        tiny_scorer(latents, quantized, COUNTS.clamp(max=1) * 7)
    with pytest.raises(ValueError, match="integers"):
        tiny_scorer(latents, quantized, COUNTS.float())
