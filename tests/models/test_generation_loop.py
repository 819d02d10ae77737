"""The lean loop writes what transformers' own loop writes, and leaves to it what it cannot do."""

import pytest
import torch
from builders.generators import loops_taken, tiny, tiny_fp, transformers_loop
from peft import LoraConfig
from transformers import CompileConfig, DynamicCache, LogitsProcessor
from transformers.generation.streamers import BaseStreamer

CLASSES = {"class_labels": [0, 1, 2, 3, 4, 0, 1, -1], "seeds": range(8)}
CODES = {"condition_codes": torch.arange(96).view(8, 3, 4) % 20, "seeds": range(8)}
LENGTHS, ALL = {"length_tokens": [1, 2, 4]}, {"block_separators": False}
COUNTS = {"condition_counts": [2, 4], **LENGTHS}
RAGGED = torch.tensor([[1, 0, 0]] * 5 + [[4, 4, 4]] * 3)
GUIDED = {"guidance_scale": 2.0}


def check_same(model, given):
    with transformers_loop():
        expected = model.generate(**given)
    with loops_taken() as taken:
        assert torch.equal(model.generate(**given), expected)
    assert taken == [True]


@pytest.mark.parametrize(
    ("make", "layout", "given"),
    [
        (tiny, {}, CLASSES),
        (tiny, {"position_embedding": "absolute"}, CLASSES | {"max_tokens": RAGGED}),
        (tiny, {"position_embedding": "absolute", "learned_positions": False}, CLASSES | {"do_sample": False}),
        (tiny, {"num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}, CLASSES | {"max_tokens": 5}),
        (tiny, {}, CLASSES | GUIDED | {"max_tokens": RAGGED}),
        (tiny, {}, CLASSES | GUIDED | {"guidance_interval": 3, "temperature": 0.8}),
        (tiny, {}, CLASSES | {"top_k": 5, "top_p": 0.9, "min_p": 0.01, "cache_implementation": "static"}),
        (tiny, {}, CLASSES | {"max_tokens": RAGGED, "pad_token_id": 3, "max_new_tokens": 7}),
        (tiny, {}, {"class_labels": [1], "seeds": [2]}),
        (tiny, {}, {"class_labels": [1], "max_new_tokens": 1, "do_sample": False}),
        (tiny, {}, {"class_labels": [1], "num_return_sequences": 3, "seeds": [1, 2, 3]}),
        (tiny, LENGTHS, CLASSES | GUIDED | {"max_tokens": 9}),
        (tiny, LENGTHS, CLASSES | {"allowed_lengths": [[1], [2, 4], [1, 4]], "do_sample": False}),
        (tiny, ALL, CLASSES | GUIDED),
        (tiny_fp, {}, CODES | {"max_tokens": RAGGED[:, 1:] + 1 - RAGGED[:, 1:] // 4}),
        (tiny_fp, COUNTS, CODES),
        (tiny_fp, ALL, CODES | {"do_sample": False}),
    ],
)
def test_sequences_are_those_of_transformers_loop(make, layout, given):
    check_same(make(**layout), given)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sequences_in_half_precision(dtype):
    check_same(tiny().to(dtype), CLASSES | GUIDED)


def test_operations_are_the_same():
    """Bit by bit, so that no sequence can differ."""
    model, logits = tiny(num_key_value_heads=2), []

    class See(LogitsProcessor):
        def __call__(self, input_ids, scores):
            logits.append(scores.clone())
            return scores

    check_same(model, CLASSES | {"logits_processor": [See()]})
    half = len(logits) // 2
    assert half > 10 and all(map(torch.equal, logits[:half], logits[half:]))


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.lm_head.register_forward_hook(lambda *_: None),
        lambda model: model.model.layers[0].register_forward_pre_hook(lambda *_: None),
        lambda model: setattr(model.model.norm, "forward", model.model.norm.forward),
        lambda model: setattr(model.model.norm, "_compiled_call_impl", model.model.norm._call_impl),  # as by compile()
        lambda model: model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"])),
        lambda model: torch.nn.utils.parametrizations.weight_norm(model.lm_head),
        lambda model: setattr(model, "__class__", type("Other", (type(model),), {})),
        lambda model: model.set_attn_implementation("eager"),
        lambda model: {"return_dict_in_generate": True},
        lambda model: {"streamer": type("Ignore", (BaseStreamer,), {"put": lambda *_: None, "end": lambda *_: None})()},
        lambda model: {"past_key_values": DynamicCache()},
        lambda model: {"use_cache": False},
    ],
)  # fmt: skip
def test_others_take_transformers_loop(change):
    model = tiny()
    options = change(model)
    with loops_taken() as taken:
        model.generate(class_labels=[1], max_new_tokens=2, **(options if isinstance(options, dict) else {}))
    assert taken == [False]


def test_autocast_takes_transformers_loop():
    with loops_taken() as taken, torch.autocast("cpu", torch.bfloat16):
        tiny().generate(class_labels=[1], max_new_tokens=2)
    assert taken == [False]


@pytest.mark.parametrize("disable", [False, True])
def test_compile_config(monkeypatch, disable):
    seen = []

    def compile_as_is(function, **options):
        seen.append(options)
        return function

    monkeypatch.setattr(torch, "compile", compile_as_is)
    check_same(tiny(), CLASSES | {"compile_config": CompileConfig(mode="default"), "disable_compile": disable})
    assert [options["mode"] for options in seen] == ([] if disable else ["default"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "layout", "given"),
    [
        (tiny, {}, CLASSES | {"max_tokens": RAGGED, "temperature": 0.7, "top_k": 5, "top_p": 0.9}),
        (tiny, {"position_embedding": "absolute"}, CLASSES | GUIDED | {"guidance_interval": 5}),
        (tiny, LENGTHS, {"class_labels": [1], "seeds": [2], "max_tokens": 9}),
        (tiny_fp, ALL, CODES | {"do_sample": False}),
    ],
)
def test_compiled_sequences(make, layout, given):
    torch._dynamo.reset()
    check_same(make(**layout), given | {"compile_config": CompileConfig(fullgraph=True, mode="default")})
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    torch._dynamo.utils.counters.clear()
    assert graphs == (2 if "guidance_interval" in given else 1)


@pytest.mark.slow
def test_without_a_compiler(monkeypatch, tmp_path, caplog):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("torch._inductor.config.cpp.cxx", ("no-such-compiler",))
    torch._dynamo.reset()
    check_same(tiny(), CLASSES | {"compile_config": CompileConfig(mode="default")})
    assert "compil" in caplog.text
