import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close
from transformers import AutoModel

from adaptok_hf import AdapTokPriorConfig, AdapTokPriorModel

# Weights: a corner (2 layers, 32 channels) of a prior that was found equal to the original; predictions: ours.
GOLDEN = Path(__file__).parents[1] / "assets" / "parity" / "prior_cut" / "prior.safetensors"
TINY = {"num_latent_tokens": 16, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.fixture
def prior() -> AdapTokPriorModel:
    torch.manual_seed(0)
    return AdapTokPriorModel(AdapTokPriorConfig(**TINY)).eval()


@pytest.fixture
def code_vectors() -> torch.Tensor:
    """(3, 10, 16), unit vectors."""
    vectors = torch.randn(3, 10, 16, generator=torch.Generator().manual_seed(1))
    return torch.nn.functional.normalize(vectors, dim=-1)


def plain_prior(weights: dict[str, torch.Tensor], code_vectors: torch.Tensor, heads: int = 2) -> torch.Tensor:
    """The prior written out, one clip and one position at a time, in float64."""
    weights = {name: weight.double() for name, weight in weights.items()}

    def linear(x, name):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    clips = []
    for clip in code_vectors.double():
        x = linear(clip[:-1], "project_in") + weights["positions.weight"][0, : len(clip) - 1]
        layers = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("layers."))
        for layer in (f"layers.{i}" for i in range(layers)):
            y = norm(x, f"{layer}.norm1")
            query, key, value = (linear(y, f"{layer}.attention.{name}") for name in ("query", "key", "value"))
            attended = torch.zeros_like(query)
            width = query.shape[1] // heads
            for head in (slice(i * width, (i + 1) * width) for i in range(heads)):
                for t in range(len(x)):
                    similarity = key[: t + 1, head] @ query[t, head] / math.sqrt(width)
                    attended[t, head] = similarity.softmax(0) @ value[: t + 1, head]
            x = x + linear(attended, f"{layer}.attention.proj")
            x = x + linear(gelu(linear(norm(x, f"{layer}.norm2"), f"{layer}.fc1")), f"{layer}.fc2")
        predictions = torch.cat([clip[:1], linear(norm(x, "norm"), "head")])
        clips.append(predictions / predictions.norm(dim=-1, keepdim=True))
    return torch.stack(clips).float()


def test_golden_and_plain_formula():
    golden = load_file(GOLDEN)
    weights = {name.removeprefix("weights."): golden[name] for name in golden if name.startswith("weights.")}
    prior = AdapTokPriorModel(AdapTokPriorConfig(**TINY)).eval()
    prior.load_state_dict(weights)
    with torch.no_grad():
        predictions = prior(golden["code_vectors"]).predictions
    assert_close(predictions, golden["predictions"], atol=1e-5, rtol=0)
    assert_close(plain_prior(weights, golden["code_vectors"]), golden["predictions"], atol=1e-5, rtol=0)
    assert_close(predictions.norm(dim=-1), torch.ones(2, 16))


def test_released_size():
    with torch.device("meta"):
        prior = AdapTokPriorModel(AdapTokPriorConfig())
    assert prior.num_parameters() == 22_093_456


def test_causality_by_gradient(prior, code_vectors):
    code_vectors.requires_grad_()
    for t in range(1, 10):
        predicted = prior(code_vectors).predictions[:, t]
        (gradient,) = torch.autograd.grad(predicted[..., :3].sum(), code_vectors)
        reached = gradient.abs().amax(dim=(0, 2))
        assert (reached[:t] > 0).all() and (reached[t:] == 0).all()


def test_shorter_sequences_give_the_same(prior, code_vectors):
    with torch.no_grad():
        whole = prior(code_vectors).predictions
        assert_close(prior(code_vectors[:, :6]).predictions, whole[:, :6], atol=1e-6, rtol=0)
        assert torch.equal(prior(code_vectors, return_dict=False)[0], whole)


def test_attention_implementations_agree(prior, code_vectors):
    with torch.no_grad():
        sdpa = prior(code_vectors).predictions
        prior.set_attn_implementation("eager")
        assert_close(prior(code_vectors).predictions, sdpa, atol=1e-6, rtol=0)


def test_dropout_acts_in_training_only(prior, code_vectors):
    assert torch.equal(prior(code_vectors).predictions, prior(code_vectors).predictions)
    prior.train()
    assert not torch.equal(prior(code_vectors).predictions, prior(code_vectors).predictions)
    off = AdapTokPriorConfig(**TINY, embedding_dropout=0.0, residual_dropout=0.0, attention_dropout=0.0)
    prior = AdapTokPriorModel(off).train()
    assert torch.equal(prior(code_vectors).predictions, prior(code_vectors).predictions)


def test_attention_dropout_alone_acts(code_vectors):
    prior = AdapTokPriorModel(AdapTokPriorConfig(**TINY, embedding_dropout=0.0, residual_dropout=0.0)).train()
    assert not torch.equal(prior(code_vectors).predictions, prior(code_vectors).predictions)


def test_every_parameter_has_a_gradient_with_and_without_checkpointing(prior, code_vectors):
    gradients = []
    for checkpointing in (False, True):
        prior.zero_grad()
        if checkpointing:
            prior.config.embedding_dropout = 0.0
            prior.gradient_checkpointing_enable()
            prior.train()
            for module in prior.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
            prior.config.attention_dropout = 0.0
        prior(code_vectors).predictions[..., :3].sum().backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in prior.named_parameters()})
    # A constant added to all keys changes no softmax, so the keys' bias has no gradient beyond rounding.
    assert all(gradient.abs().max() > 0 for name, gradient in gradients[0].items() if "key.bias" not in name)
    for name, gradient in gradients[0].items():
        assert_close(gradients[1][name][: len(gradient)], gradient, atol=1e-5, rtol=0)


def test_save_and_load(prior, code_vectors, tmp_path):
    prior.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path).eval()
    assert type(loaded) is AdapTokPriorModel
    assert torch.equal(loaded(code_vectors).predictions, prior(code_vectors).predictions)


@pytest.mark.parametrize("shape", [(3, 10), (3, 1, 16), (3, 17, 16), (3, 10, 8)])
def test_refuses_shapes(prior, shape):
    with pytest.raises(ValueError, match="expected .batch, 2..16 tokens, 16.") as error:
        prior(torch.zeros(shape))
    assert str(shape) in str(error.value)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"hidden_size": 30, "num_attention_heads": 4}, "hidden_size=30 must be a multiple of num_attention_heads=4"),
        ({"attention_dropout": 1.0}, "attention_dropout must lie in"),
        ({"codebook_dim": 0}, "codebook_dim must be at least 1, got 0"),
    ],
)
def test_config_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        AdapTokPriorConfig(**settings)
