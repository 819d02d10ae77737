import json
import math
import os
import subprocess
import sys

import pytest
import torch
from builders.generators import tiny, tiny_fp
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from torch.nn import functional
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, set_seed

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM
from adaptok_hf.models.modeling_adaptok_ar import AdapTokARModel
from adaptok_hf.models.token_layout import pack

NO_DROPOUT = dict.fromkeys(("embedding_dropout", "residual_dropout", "mlp_dropout", "class_dropout"), 0.0)


def clips(model: AdapTokARForCausalLM, batch: int = 4) -> dict[str, torch.Tensor]:
    """Random clips, ragged, with empty, full and last blocks that are the longest."""
    config, generator = model.config, torch.Generator().manual_seed(1)
    shape = (batch, config.num_blocks, config.latents_per_block)
    codes = torch.randint(config.codebook_size, shape, generator=generator)
    counts = torch.tensor([[4, 4, 4], [1, 0, 4], [2, 3, 0], [3, 1, 1]])[:batch]
    if config.is_class_conditional:
        return {"codes": codes, "token_counts": counts, "class_labels": torch.tensor([0, 4, -1, 2])[:batch]}
    return {"codes": codes, "token_counts": counts, "condition_codes": codes.flip(0)}


# --- ids and configuration ---------------------------------------------------------------------------------------


def test_ids():
    config = tiny().config
    assert (config.eob_token_id, config.first_class_token_id, config.null_class_token_id) == (20, 21, 26)
    assert (config.vocab_size, config.condition_separator_token_id) == (27, None)
    assert config.conditioning_token_ids == [21, 22, 23, 24, 25, 26]
    assert (config.prompt_length, config.max_sequence_length, config.max_position_embeddings) == (1, 15, 16)
    config = tiny_fp().config
    assert (config.first_class_token_id, config.null_class_token_id) == (None, None)
    assert (config.eob_token_id, config.condition_separator_token_id, config.vocab_size) == (20, 21, 22)
    assert (config.prompt_length, config.num_generated_blocks, config.max_sequence_length) == (7, 2, 10)


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"num_classes": 0}, ["num_classes", "num_condition_codes", "0 and 0"]),
        ({"num_condition_codes": 4}, ["5 and 4"]),
        ({"num_classes": 0, "num_condition_codes": 13}, ["num_condition_codes=13", "3 x 4"]),
        ({"num_classes": 0, "num_condition_codes": 4, "start_block": 3}, ["start_block=3", "0..2"]),
        ({"num_classes": 0, "num_condition_codes": 4, "start_block": 2}, ["num_condition_codes=4", "2", "4"]),
        ({"start_block": 1}, ["start_block=1", "0..2"]),
        ({"position_embedding": "alibi"}, ["'rope'", "'absolute'", "'alibi'"]),
        ({"class_dropout": 1.0}, ["class_dropout", "[0, 1)", "1.0"]),
        ({"latents_per_block": 0}, ["latents_per_block", "0"]),
        ({"num_attention_heads": 5}, ["32", "5"]),
    ],
)
def test_refuses_configurations(changes, values):
    with pytest.raises((ValueError, StrictDataclassError)) as error:
        tiny(**changes)
    assert all(value in str(error.value) for value in values), str(error.value)


# Size -> parameters that PAPER.md states, layers, and what they hold for: five of the names come from image generators with
# 16384 codes and 1000 classes, and "22M" is the layers alone.
IMAGES = {"codebook_size": 16384, "num_classes": 1000, "num_blocks": 1, "latents_per_block": 256}
SIZES = {
    "small": (22e6, 12, {"codebook_size": 1, "num_classes": 1, "num_blocks": 1, "latents_per_block": 1}),
    "base": (111e6, 12, IMAGES),
    "large": (343e6, 24, IMAGES),
    "large_plus": (632e6, 30, {}),
    "extra_large": (775e6, 36, IMAGES),
    "double_extra_large": (1.4e9, 48, IMAGES),
    "triple_extra_large": (3.9e9, 48, IMAGES),
}


@pytest.mark.parametrize("size", SIZES)
def test_sizes(size):
    stated, layers, changes = SIZES[size]
    make, counts = getattr(AdapTokARConfig, size), []
    with torch.device("meta"):
        for options in ({}, changes):
            config = make(position_embedding="absolute", **options)
            counts.append(AdapTokARForCausalLM(config).num_parameters())
    print(f"\n{size}: {counts[0] / 1e6:.1f}M; stated {stated / 1e6:.0f}M, for which we have {counts[1] / 1e6:.1f}M")
    assert config.num_hidden_layers == layers
    assert abs(counts[1] - stated) < (0.04 if size == "small" else 0.015) * stated


# --- saving and loading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("changes", [{}, {"position_embedding": "absolute"}, {"learned_positions": False}])
def test_save_and_load(tmp_path, changes):
    names = {i: f"class {i}" for i in range(5)}
    if "learned_positions" in changes:
        changes = changes | {"position_embedding": "absolute"}
    model = tiny(id2label=names, label2id={name: i for i, name in names.items()}, **changes)
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is AdapTokARConfig
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is AdapTokARForCausalLM
    assert loaded.config.id2label == names and loaded.config.label2id["class 3"] == 3
    assert loaded.config.num_labels == 5
    saved = json.loads((tmp_path / "generation_config.json").read_text())
    assert (saved["do_sample"], saved["top_k"], saved["suppress_tokens"]) == (True, 0, list(range(21, 27)))
    assert loaded.generation_config.to_dict() == model.generation_config.to_dict()
    inputs = model.build_inputs(**clips(model))
    assert torch.equal(model(**inputs).logits, loaded(**inputs).logits)


@pytest.mark.parametrize("position_embedding", ["rope", "absolute"])
def test_without_its_head(tmp_path, position_embedding):
    model = tiny(position_embedding=position_embedding)
    ids = model.build_inputs(**clips(model))["input_ids"]
    model.save_pretrained(tmp_path)
    base, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(base) is AdapTokARModel and not any(info[key] for key in ("missing_keys", "unexpected_keys"))
    output = base(ids, output_hidden_states=True)
    assert torch.equal(output.last_hidden_state, model.model(ids).last_hidden_state)
    assert len(output.hidden_states) == 1 + model.config.num_hidden_layers
    base.save_pretrained(tmp_path / "base")
    assert torch.equal(AutoModel.from_pretrained(tmp_path / "base")(ids)[0], output[0])
    with pytest.raises(ValueError, match="lm_head.weight"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="norm.weight"):
        AutoModel.from_pretrained(tmp_path)


STOCK = """
import sys
sys.modules["adaptok_hf"] = None  # importing it fails, even where it is installed
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, LlamaForCausalLM, LogitsProcessor, LogitsProcessorList

class Blocks(LogitsProcessor):  # 3 blocks of at most 4 codes; the rules again, row by row
    def __call__(self, ids, scores):
        scores = scores.clone()
        for row, score in zip(ids.tolist(), scores):
            sequence = row[1:]
            if not sequence:
                score[20] = -torch.inf
            current = len(sequence) if 20 not in sequence else sequence[::-1].index(20)
            if sequence.count(20) == 3 or current == 4:
                score[:20] = -torch.inf
        return scores

ids, results = load_file("ids")["ids"], {}
with torch.no_grad():
    model = LlamaForCausalLM.from_pretrained("rope").eval()
    greedy = model.generate(ids[:, :1], do_sample=False, logits_processor=LogitsProcessorList([Blocks()]))
    results |= {"rope logits": model(ids).logits, "rope greedy": greedy}
    model = AutoModelForCausalLM.from_pretrained("absolute", trust_remote_code=True).eval()
    assert type(model) is not LlamaForCausalLM
    greedy = model.generate(ids[:, :1], do_sample=False)
    results |= {"absolute logits": model(ids).logits, "absolute greedy": greedy}
    base = AutoModel.from_pretrained("absolute", trust_remote_code=True).eval()
    assert torch.equal(base(ids).last_hidden_state, model.model(ids).last_hidden_state)
assert not any(name.split(".")[0] == "adaptok_hf" for name in sys.modules if sys.modules[name] is not None)
save_file(results, "results")
"""


@pytest.mark.slow  # every part of an export is loaded so in tests/hub
def test_without_the_package(tmp_path):
    """A rope checkpoint is a plain Llama's, generation settings included; any checkpoint brings its code."""
    models = {name: tiny(position_embedding=name) for name in ("rope", "absolute")}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    ids = model.build_inputs(**clips(model))["input_ids"][:, :-1].contiguous()
    save_file({"ids": ids}, tmp_path / "ids")
    caches = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | caches
    command = [sys.executable, "-P", "-c", STOCK]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    results = load_file(tmp_path / "results")
    for name, model in models.items():
        with torch.no_grad():
            assert torch.equal(results[f"{name} logits"], model(ids).logits)
        greedy, result = model.generate(ids[:, :1], do_sample=False), results[f"{name} greedy"]
        assert torch.equal(result[:, : greedy.shape[1]], greedy)
        assert (result[:, greedy.shape[1] :] == 20).all()


# --- teacher forcing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [tiny, tiny_fp])
@pytest.mark.parametrize("positions", ["rope", "absolute"])
def test_loss_by_hand(make, positions):
    """Row by row without padding: the mean over every kept code and every `<EOB>`, among codes and `<EOB>` only."""
    model = make(position_embedding=positions)
    given, config = clips(model), model.config
    inputs = model.build_inputs(**given)
    losses = []
    for row in range(4):
        one = {name: value[row : row + 1] for name, value in given.items()}
        condition = {name: one[name] for name in one if name not in ("codes", "token_counts")}
        sequence, _ = pack(one["codes"][:, config.start_block :], one["token_counts"][:, config.start_block :], 20)
        ids = torch.cat([model.build_prompt(**condition), sequence], dim=1)
        logits = model(ids[:, :-1]).logits[:, config.prompt_length - 1 :, :21]
        losses.append(functional.cross_entropy(logits[0], sequence[0], reduction="none"))
        used = one["token_counts"][:, config.start_block :].sum() + config.num_generated_blocks
        assert len(losses[-1]) == used == (inputs["labels"][row] != -100).sum()
    torch.testing.assert_close(model(**inputs).loss, torch.cat(losses).mean(), atol=1e-6, rtol=1e-6)


def test_every_end_of_block_is_learned():
    """The gradient of the loss reaches each logit that predicts a target, the last `<EOB>` of the longest row too."""
    model = tiny()
    inputs = model.build_inputs(**clips(model))
    kept = []
    model.lm_head.register_forward_hook(lambda module, given, output: output.retain_grad() or kept.append(output))
    model(**inputs).loss.backward()
    gradient = kept[0].grad
    learned = gradient.abs().sum(-1) > 0
    targets = functional.pad(inputs["labels"][:, 1:] != -100, (0, 1))
    assert torch.equal(learned, targets)
    assert (inputs["labels"] == 20).sum() == 12  # 4 clips of 3 blocks
    assert inputs["labels"][0, -1] == 20 and learned[0, -2]
    assert not gradient[..., 21:].any()  # conditioning ids have no part in the softmax


def test_conditioning_ids_are_no_targets():
    model = tiny()
    inputs = model.build_inputs(**clips(model))
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)  # the class as a label too
    assert torch.equal(model(**inputs | {"labels": labels}).loss, model(**inputs).loss)
    shifted = functional.pad(inputs["labels"][:, 1:], (0, 1), value=-100)
    shifted = shifted.masked_fill(shifted == -100, model.config.first_class_token_id)
    assert torch.equal(model(**inputs, shift_labels=shifted).loss, model(**inputs).loss)
    # Trainer's way of counting targets over accumulated steps.
    items = torch.tensor(1000)
    count = (inputs["labels"] != -100).sum()
    scaled = model(**inputs, num_items_in_batch=items).loss
    torch.testing.assert_close(scaled, model(**inputs).loss * count / 1000)


def test_class_dropout_in_training_only():
    model = tiny(**NO_DROPOUT | {"class_dropout": 0.25})
    seen = []
    model.model.embed_tokens.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].clone()))
    ids = torch.cat([model.build_prompt(class_labels=[2] * 4000), torch.full((4000, 1), 7)], dim=1)
    model(ids)
    assert torch.equal(seen.pop(), ids)
    set_seed(0)
    model.train()(ids)
    dropped = seen[0][:, 0] == 26
    assert torch.equal(seen[0][:, 0], torch.where(dropped, 26, 23)) and torch.equal(seen[0][:, 1], ids[:, 1])
    assert abs(dropped.float().mean() - 0.25) < 4 * math.sqrt(0.25 * 0.75 / 4000)
    assert ids[0, 0] == 23  # the caller's tensor is left alone


@pytest.mark.parametrize("name", ["embedding_dropout", "residual_dropout", "mlp_dropout", "attention_dropout"])
def test_each_dropout_acts_in_training(name):
    model = tiny(**NO_DROPOUT)
    inputs = model.build_inputs(**clips(model))
    plain = model(**inputs).logits
    assert torch.equal(model.train()(**inputs).logits, plain)
    model = tiny(**NO_DROPOUT | {name: 0.5})
    assert torch.equal(model(**inputs).logits, plain)
    set_seed(0)
    assert (model.train()(**inputs).logits - plain).abs().max() > 0.1


@pytest.mark.parametrize("positions", ["rope", "absolute"])
def test_gradient_checkpointing(positions):
    gradients = []
    for checkpointing in (False, True):
        model = tiny(position_embedding=positions).train()
        if checkpointing:
            model.gradient_checkpointing_enable()
        calls = []
        model.model.layers[0].mlp.register_forward_hook(lambda *call, calls=calls: calls.append(1))
        inputs = model.build_inputs(**clips(model))
        set_seed(0)
        model(**inputs).loss.backward()
        assert len(calls) == (2 if checkpointing else 1)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradient, gradients[1][name], msg=name)


@pytest.mark.parametrize("positions", ["rope", "absolute"])
def test_half_precision(positions, tmp_path):
    model = tiny(position_embedding=positions)
    inputs = model.build_inputs(**clips(model))
    expected = model(**inputs)
    model.save_pretrained(tmp_path)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    output = half(**inputs)
    assert output.logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    assert (output.logits.float() - expected.logits).abs().max() < 0.05 * expected.logits.abs().max()
    output.loss.backward()
    sequences = half.generate(class_labels=[0, 1], do_sample=False)
    assert half.unpack_sequences(sequences)[0].shape == (2, 3, 4)


def test_cache_equals_one_pass():
    for model in (tiny(), tiny(position_embedding="absolute")):
        ids = model.build_inputs(**clips(model))["input_ids"]
        whole = model(ids).logits
        first = model(ids[:, :5], use_cache=True)
        rest = model(ids[:, 5:], past_key_values=first.past_key_values)
        torch.testing.assert_close(torch.cat([first.logits, rest.logits], 1)[:, :-1], whole[:, :-1], atol=1e-5, rtol=1e-5)


def test_tuple_output():
    model = tiny()
    inputs = model.build_inputs(**clips(model))
    loss, logits, *_ = model(**inputs, return_dict=False)
    assert torch.equal(loss, model(**inputs).loss) and torch.equal(logits, model(**inputs).logits)


# --- bad input ---------------------------------------------------------------------------------------------------


def test_refuses_conditions():
    model, fp_model = tiny(), tiny_fp()
    codes = torch.zeros(2, 3, 4, dtype=torch.long)
    for call, values in (
        (lambda: model.build_prompt(class_labels=[0, 5]), ["0..4", "5"]),
        (lambda: model.build_prompt(), ["class_labels"]),
        (lambda: model.build_prompt(condition_codes=codes), ["class_labels"]),
        (lambda: fp_model.build_prompt(class_labels=[0]), ["condition_codes"]),
        (lambda: fp_model.build_prompt(condition_codes=codes[:, :2]), ["(2, 2, 4)", "(batch, 3, 4)"]),
        (lambda: fp_model.build_prompt(condition_codes=codes + 20), ["0..19", "20..20"]),
        (lambda: model.build_inputs(codes, torch.ones(2, 3, dtype=int), [0]), ["(1, 3, 4)"]),
        (lambda: model.build_inputs(codes[:, :2], torch.ones(2, 2, dtype=int), [0, 1]), ["(2, 2, 4)"]),
        (lambda: model.build_inputs(codes, torch.full((2, 3), 5), [0, 1]), ["token_counts", "0..4"]),
        (lambda: fp_model.unpack_sequences(torch.zeros(1, 17, dtype=int)), ["condition_codes"]),
        (lambda: model.unpack_sequences(torch.tensor([[21, 1, 20, 20]])), ["2 <EOB>", "3"]),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert "\n" not in str(error.value) and all(value in str(error.value) for value in values), str(error.value)


def test_no_class_is_the_null_class():
    assert tiny().build_prompt(class_labels=[-1, 3, -7]).tolist() == [[26], [24], [26]]


# --- LoRA --------------------------------------------------------------------------------------------------------


def test_lora_on_new_classes(tmp_path):
    """Fine-tuned to other classes: adapters, and the rows of the classes; saved, loaded, merged."""
    peft = pytest.importorskip("peft")
    base = tiny(**NO_DROPOUT)
    base.replace_classes(list("abcdefg"))
    base.save_pretrained(tmp_path / "base")
    config = peft.LoraConfig(
        r=4,
        target_modules=["q_proj", "v_proj", "up_proj"],
        trainable_token_indices={"embed_tokens": base.config.conditioning_token_ids},
        init_lora_weights=False,
    )
    model = peft.get_peft_model(base, config)
    inputs = base.build_inputs(**clips(base))
    model.train()
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=0.1)
    rows = load_file(tmp_path / "base" / "model.safetensors")["model.embed_tokens.weight"]
    for _ in range(3):
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.eval()(**inputs).loss < loss
    expected = model(**inputs).logits.detach()
    model.save_pretrained(tmp_path / "adapter")
    size = sum(path.stat().st_size for path in (tmp_path / "adapter").iterdir())
    assert size < (tmp_path / "base" / "model.safetensors").stat().st_size
    del model, base

    loaded = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "adapter")
    torch.testing.assert_close(loaded.eval()(**inputs).logits, expected, atol=1e-6, rtol=1e-6)
    merged = loaded.merge_and_unload()
    assert type(merged) is AdapTokARForCausalLM
    torch.testing.assert_close(merged.eval()(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(merged.model.embed_tokens.weight[:21], rows[:21])
    moved = (merged.model.embed_tokens.weight[21:] - rows[21:]).abs().amax(1) > 0
    assert moved.tolist() == [
        True,
        False,
        True,
        False,
        True,
        False,
        False,
        True,
    ]  # the classes of the clips, and the null class
    merged.save_pretrained(tmp_path / "merged")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged").eval()
    torch.testing.assert_close(again(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert again.config.id2label == dict(enumerate("abcdefg")) and again.config.null_class_token_id == 28
    assert again.generation_config.suppress_tokens == list(range(21, 29))
    assert again.generate(class_labels=[6], do_sample=False, guidance_scale=2.0).shape[0] == 1
