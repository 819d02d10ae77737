"""peft's adapters of all models: trained, saved, loaded again without further calls, merged."""

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForCausalLM

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, AdapTokModel, AdapTokScorerModel

peft = pytest.importorskip("peft")
CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def make_generator(**options) -> AdapTokARForCausalLM:
    sizes = {"codebook_size": 20, "num_blocks": 3, "latents_per_block": 4, "hidden_size": 16, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    torch.manual_seed(0)
    return AdapTokARForCausalLM(AdapTokARConfig(num_classes=5, id2label=dict(enumerate("vwxyz")), **sizes, **options))


def change(model) -> None:
    """Move what is trainable, as training would."""
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn(weight.shape) / 4)


def with_transformers(folder):
    model = AdapTokARForCausalLM.from_pretrained(folder / "base")
    model.load_adapter(str(folder / "adapter"))
    return model


LOADERS = {
    "peft": lambda folder: peft.PeftModel.from_pretrained(
        AdapTokARForCausalLM.from_pretrained(folder / "base"), folder / "adapter"
    ),
    "peft's Auto class": lambda folder: peft.AutoPeftModelForCausalLM.from_pretrained(folder / "adapter"),
    "our class": lambda folder: AdapTokARForCausalLM.from_pretrained(folder / "adapter"),
    "Auto class": lambda folder: AutoModelForCausalLM.from_pretrained(folder / "adapter"),
    "load_adapter": with_transformers,
}


@pytest.mark.parametrize(
    ("names", "rows", "options", "loaders"),
    [
        ("awb", True, {}, LOADERS),
        ("awb", True, {"tie_word_embeddings": True}, LOADERS),
        ("abcdefg", False, {}, LOADERS),
        # peft looks the rows up in the model that it is given, before it has the new classes
        ("abcdefg", True, {}, ["our class", "Auto class", "load_adapter"]),
    ],
)
def test_adapter_brings_its_classes(tmp_path, names, rows, options, loaders):
    make_generator(**options).save_pretrained(tmp_path / "base")
    base = AdapTokARForCausalLM.from_pretrained(tmp_path / "base")
    base.replace_classes(list(names))
    trained = {"trainable_token_indices": {"embed_tokens": base.config.conditioning_token_ids}} if rows else {}
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=["q_proj", "up_proj"], **trained)).eval()
    change(model)
    inputs = base.build_inputs(torch.randint(20, (len(names), 3, 4)), torch.full((len(names), 3), 2), range(len(names)))
    expected = model(**inputs).loss.detach()
    model.save_pretrained(tmp_path / "adapter")
    for name in loaders:
        loaded = LOADERS[name](tmp_path).eval()
        assert_close(loaded(**inputs).loss, expected, **CLOSE, msg=name)
        generator = loaded.get_base_model() if hasattr(loaded, "get_base_model") else loaded
        assert generator.config.id2label == dict(enumerate(names)) and generator.config.null_class_token_id == 21 + len(
            names
        )
        sequences = loaded.generate(class_labels=[len(names) - 1], seeds=[0], max_tokens=3)
        generator.unpack_sequences(sequences)
        if hasattr(loaded, "merge_and_unload"):
            assert_close(loaded.merge_and_unload()(**inputs).loss, expected, **CLOSE)


def test_adapters_of_other_classes_do_not_mix(tmp_path):
    config = {"r": 2, "target_modules": ["q_proj"]}
    for names in ("ab", "cd"):
        base = make_generator()
        base.replace_classes(list(names))
        peft.get_peft_model(base, peft.LoraConfig(**config)).save_pretrained(tmp_path / names)
    model = make_generator()
    model.load_adapter(str(tmp_path / "ab"))
    assert model.class_names == ["a", "b"]
    with pytest.raises(ValueError, match="c, d.*a, b"):
        model.load_adapter(str(tmp_path / "cd"), adapter_name="other")


def test_known_classes_keep_their_rows():
    model = make_generator()
    old = model.model.embed_tokens.weight.clone()
    model.replace_classes(["z", "new", "v"])
    assert torch.equal(model.model.embed_tokens.weight, old[[*range(21), 25, 26, 21, 26]])
    assert model.class_names == ["z", "new", "v"]


@pytest.mark.parametrize("target_modules", ["all-linear", ["qkv", "project_in", "proj"]])
@pytest.mark.parametrize("kind", ["tokenizer", "scorer"])
def test_adapters_of_tokenizer_and_scorer(tiny_tokenizer, tiny_scorer, tiny_video, tmp_path, kind, target_modules):
    base = tiny_tokenizer if kind == "tokenizer" else tiny_scorer
    base.save_pretrained(tmp_path / "base")
    inputs = (tiny_video,) if kind == "tokenizer" else tuple(torch.randn(2, 2, 3, 6, 32))
    before = base(*inputs)[0].detach()
    model = peft.get_peft_model(base, peft.LoraConfig(r=2, target_modules=target_modules)).eval()
    assert any("project_in.lora_A" in name for name, _ in model.named_parameters())
    model(*inputs)[0].square().mean().backward()
    assert not any(weight.grad is None for name, weight in model.named_parameters() if "lora_" in name and "qkv" in name)
    change(model)
    expected = model(*inputs)
    assert not torch.allclose(expected[0], before, atol=1e-3)
    model.save_pretrained(tmp_path / "adapter")
    fresh = (AdapTokModel if kind == "tokenizer" else AdapTokScorerModel).from_pretrained(tmp_path / "base")
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "adapter").eval()
    assert_close(loaded(*inputs)[0], expected[0], **CLOSE)
    merged = loaded.merge_and_unload()
    assert type(merged) is type(fresh)
    assert_close(merged(*inputs)[0], expected[0], **CLOSE)


def test_adapter_of_the_projection_has_an_effect(tiny_tokenizer, tiny_video):
    """The quantizer computes in float32, and does not pass by what wraps its projection."""
    latents = tiny_tokenizer.encode(tiny_video).latents.flatten(1, 2).detach()
    before = tiny_tokenizer.quantizer.project(latents)
    model = peft.get_peft_model(tiny_tokenizer, peft.LoraConfig(r=2, target_modules=["quantizer.project_in"]))
    change(model)
    assert not torch.allclose(tiny_tokenizer.quantizer.project(latents), before, atol=1e-2)
