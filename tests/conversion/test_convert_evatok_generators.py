"""Conversion of EVATok's generators, from synthetic files in the layout that they are expected to have."""

import json
import os
from functools import cache
from pathlib import Path

import pytest
import torch
import yaml
from builders.evatok_files import (
    GENERATOR_ARGUMENTS,
    SIZES,
    generator_tensors,
    make_generator,
    make_model,
    original_tensors,
    write_checkpoint,
)
from builders.video_files import make_frames, write_mp4

from adaptok_hf import AdapTokARForCausalLM, AdapTokPipeline, EVATokModel, convert_evatok
from adaptok_hf.cli.main import main
from adaptok_hf.conversion import evatok_files, evatok_generators
from adaptok_hf.conversion.evatok_generators import convert_generator
from adaptok_hf.conversion.evatok_names import NameMatcher
from adaptok_hf.conversion.evatok_tokenizers import read_clip

GEOMETRY = {
    "frame_num": 12,
    "input_size": 16,
    "temporal_patch_size": 4,
    "spatial_token_num_choices": [1, 2, 8],
    "codebook_size": 24,
}
DEFAULT = "codes,1,2,8,classes,null"
FRAMES = {"num_classes": 0, "condition_counts": [8, 2], "class_dropout": 0.0}


def write_config(tmp_path, **changes) -> Path:
    path = tmp_path / "gpt.yaml"
    arguments = {name: value for name, value in (GEOMETRY | GENERATOR_ARGUMENTS | changes).items() if value is not None}
    path.write_text(yaml.safe_dump({"model": {"init_args": arguments}}))
    return path


def convert(tmp_path, tensors, changes=None, **options):
    source, _ = write_checkpoint(tmp_path, tensors)
    return convert_evatok(source, tmp_path / "out", config=write_config(tmp_path, **(changes or {})), **options)


def build(tmp_path, tensors, changes=None, tokenizer=None, part="ar_model", **options):
    """The model alone, notes about it, and what proves it; nothing is written."""
    names = NameMatcher(part, options.pop("names", None), tmp_path / "names.json")
    config = write_config(tmp_path, **(changes or {}))
    return convert_generator(tensors, names, config, {}, part=part, load_tokenizer=lambda: tokenizer, **options)


def assert_same(converted, model):
    ours, theirs = converted.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys()
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=0)


@pytest.fixture(scope="module")
def model() -> AdapTokARForCausalLM:
    return make_generator()


@cache
def tokenizer_of_clips() -> EVATokModel:
    return make_model(num_frames=12)


@cache
def clip_file(folder: Path) -> Path:
    return write_mp4(folder / "clip.mp4", frames=make_frames(12))


@pytest.fixture
def clip(tmp_path_factory) -> Path:
    return clip_file(tmp_path_factory.getbasetemp())


def learn(model: AdapTokARForCausalLM, clip: Path, steps: int = 30) -> AdapTokARForCausalLM:
    """Learn a clip's tokens by heart, at several counts; of the classes only number 1 has them."""
    tokenizer = tokenizer_of_clips()
    video = read_clip(clip, tokenizer.config)
    counts = torch.tensor([[8, 2, 1], [1, 8, 2], [2, 1, 8], [8, 2, 8], [8, 2, 2]])
    if model.config.num_classes == 0:
        counts[:, :2] = torch.tensor([8, 2])
    inputs = {"codes": tokenizer.encode(video.expand(5, -1, -1, -1, -1), counts).codes, "token_counts": counts}
    if model.config.num_classes:
        codes = [inputs["codes"], inputs["codes"], (inputs["codes"] + 7) % 24]
        labels = [-1] * 5 + [1] * 5 + [0, 2, 0, 2, 0]
        inputs = {"codes": torch.cat(codes), "token_counts": counts.repeat(3, 1), "class_labels": labels}
    else:
        given = torch.cat([video[:, :5], video[:, 4:5].expand(-1, 7, -1, -1, -1)], dim=1)
        condition = tokenizer.encode(given, counts[:1]).codes[:, :2]
        inputs["condition_codes"] = condition.expand(5, -1, -1)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(steps):
        model(**model.build_inputs(**inputs)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.lm_head.weight.data[model.config.num_sequence_ids :] = 0
    return model.eval()


@pytest.fixture(scope="module")
def learned(tmp_path_factory) -> AdapTokARForCausalLM:
    return learn(make_generator(), clip_file(tmp_path_factory.getbasetemp()))


@pytest.fixture(scope="module")
def learned_frames(tmp_path_factory) -> AdapTokARForCausalLM:
    return learn(make_generator(**FRAMES), clip_file(tmp_path_factory.getbasetemp()))


# --- names, shapes and ids ---------------------------------------------------------------------------------------


def test_joins_its_tokenizer(model, tmp_path, monkeypatch):
    monkeypatch.setattr(evatok_files, "SIZES", SIZES)
    source, config = write_checkpoint(tmp_path, original_tensors(tokenizer_of_clips()), frame_num=12)
    convert_evatok(source, tmp_path / "out", config=config, patch_order="thwc")
    # the geometry is the tokenizer's
    report = convert(tmp_path, generator_tensors(model), dict.fromkeys(GEOMETRY))
    assert [part.name for part in report.models] == ["ar_model"] and f"ids: {DEFAULT}" in str(report)
    pipeline = AdapTokPipeline.from_pretrained(tmp_path / "out")
    assert_same(pipeline.ar_model, model)
    inputs = model.build_inputs(torch.randint(24, (1, 3, 8)), torch.tensor([[8, 1, 2]]), class_labels=[2])
    assert torch.equal(pipeline.ar_model(**inputs).logits, model(**inputs).logits)
    assert pipeline.ar_model.config.to_diff_dict().get("length_tokens") == [1, 2, 8]

    convert(tmp_path, generator_tensors(make_generator(**FRAMES)), part="fp_model", condition_counts=[8, 2])
    assert AdapTokPipeline.from_pretrained(tmp_path / "out").fp_model.config.prompt_length == 13
    with pytest.raises(ValueError, match="ar_model exists"):
        convert(tmp_path, generator_tensors(model))


def test_must_fit_the_tokenizer(model, tmp_path):
    tokenizer_of_clips().save_pretrained(tmp_path / "out" / "tokenizer")
    (tmp_path / "out" / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match=r"num_blocks=6.*3"):
        convert(tmp_path, generator_tensors(make_generator(num_blocks=6)), {"frame_num": 24})
    assert not (tmp_path / "out" / "ar_model").exists()


@pytest.mark.parametrize(
    "order",
    ["8,1,2,codes,classes,null", "codes,8,2,1,classes,null", "bos,codes,unused,1,unused,8,2,null,classes"],
)
def test_id_orders(model, tmp_path, order):
    converted, notes, _ = build(tmp_path, generator_tensors(model, order), id_order=order)
    assert_same(converted, model)
    assert f"ids: {order}" in notes


def test_classes_in_the_table_of_tokens(model, tmp_path):
    tensors = generator_tensors(model)
    tensors["tok_embeddings.weight"] = torch.cat(
        [tensors["tok_embeddings.weight"], tensors.pop("cls_embedding.embedding_table.weight")]
    )
    assert_same(build(tmp_path, tensors)[0], model)


@pytest.mark.parametrize(
    ("order", "words"),
    [
        ("codes,1,2,classes,null", "codes,1,2,classes,null"),
        ("codes,1,2,8,8,classes,null", "8,8"),
        ("codes,1,2,8,eob,classes,null", "eob"),
        ("codes,1,2,8,unused,classes,null", r"tok_embeddings.weight has 27 rows.*codebook_size=24.* 28"),
    ],
)
def test_id_orders_that_do_not_fit(model, tmp_path, order, words):
    with pytest.raises(ValueError, match=words):
        build(tmp_path, generator_tensors(model), id_order=order)


def test_rows_without_a_meaning_are_asked_for(model, tmp_path):
    with pytest.raises(ValueError, match=r"tok_embeddings.weight has 29 rows.* 27.*--id-order.*unused"):
        build(tmp_path, generator_tensors(model, f"codes,1,2,8,unused,unused,{DEFAULT[-12:]}"))


def test_positions(model, tmp_path):
    """Tables that count length tokens and the last place, or do not."""
    tensors, table = generator_tensors(model), model.model.positions.weight
    tensors["positional_embedding"] = table.transpose(0, 1).clone()
    assert_same(build(tmp_path, tensors)[0], model)
    tensors["positional_embedding"] = table[0, :-3].clone()
    converted, notes, _ = build(tmp_path, tensors)
    positions = converted.model.positions.weight[0]
    assert torch.equal(positions[:-3], table[0, :-3]) and torch.equal(positions[-3:], table[0, -4].expand(3, -1))
    assert any("last 3" in note for note in notes)
    for length in (9, 23, 32):  # the first divides the expected number, 27
        tensors["positional_embedding"] = torch.rand(length, 32)
        with pytest.raises(ValueError, match=rf"positional_embedding is \({length}, 32\), but .*\(27, 32\)"):
            build(tmp_path, tensors)


def test_a_renamed_tensor_is_found_by_its_shape_or_listed(model, tmp_path):
    tensors = generator_tensors(model)
    tensors["labels.table"] = tensors.pop("cls_embedding.embedding_table.weight")
    with pytest.raises(ValueError, match=r"evatok\.pt.*cls_embedding.*--part"):
        convert(tmp_path, tensors)
    converted, notes, _ = build(tmp_path, tensors)
    assert_same(converted, model)
    assert "matched by shape: model.embed_tokens.classes = labels.table" in notes

    tensors["words"], tensors["logits"] = tensors.pop("tok_embeddings.weight"), tensors.pop("output.weight")
    tensors["a_buffer"] = torch.zeros(3)
    with pytest.raises(ValueError, match=r"(?s)model.embed_tokens.weight \(27, 32\); of this shape: .*logits") as error:
        build(tmp_path, tensors)
    for words in ("lm_head.weight", "words (27, 32)", "a_buffer (3,)", "names.json"):
        assert words in str(error.value)
    path = tmp_path / "names.json"
    assert json.loads(path.read_text()) == {"lm_head.weight": None, "model.embed_tokens.weight": None}
    names = {"lm_head.weight": "logits", "model.embed_tokens.weight": "words", "unused": ["a_buffer"]}
    path.write_text(json.dumps(names))
    assert_same(build(tmp_path, tensors, names=path)[0], model)
    path.write_text(json.dumps(names | {"unused": ["another_buffer"]}))
    with pytest.raises(ValueError, match="another_buffer"):
        build(tmp_path, tensors, names=path)
    path.write_text(json.dumps(names | {"unused": "a_buffer"}))
    with pytest.raises(ValueError, match=r"names\.json.*unused"):
        build(tmp_path, tensors, names=path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("layers.1.ffn_norm.weight"), ["layers.1.post_attention_layernorm.weight (32,)", "left over (0)"]),
        (lambda t: t.pop("cls_embedding.embedding_table.weight"), ["model.embed_tokens.classes (4, 32)"]),
        (lambda t: t.pop("positional_embedding"), ["model.positions.weight (27, 32)"]),
        (
            lambda t: t.update({"layers.0.feed_forward.w2.weight": t["layers.0.feed_forward.w1.weight"]}),
            ["layers.0.feed_forward.w2.weight is (96, 32)", "(32, 96)"],
        ),
        (lambda t: t.update({"layers.0.attention.wqkv.weight": torch.rand(64, 32)}), ["wqkv.weight is (64, 32)"]),
        (lambda t: t.update({"output.weight": torch.rand(26, 32)}), ["output.weight is (26, 32)", "(27, 32)"]),
        (
            lambda t: t.update({"cls_embedding.embedding_table.weight": torch.rand(102, 32)}),
            ["cls_embedding.embedding_table.weight is (102, 32)", "(4, 32)"],
        ),
        (
            lambda t: t.update(
                {"norm.weight": t["output.weight"], "output.weight": t["norm.weight"]},
            ),
            ["norm.weight is (27, 32)", "output.weight is (32,)"],
        ),
        (lambda t: t.update({"layers.0.attention.q_norm.weight": torch.rand(16)}), ["q_norm.weight (16,)"]),
    ],
)
def test_missing_and_misshapen_tensors(model, tmp_path, change, words):
    tensors = generator_tensors(model)
    change(tensors)
    with pytest.raises(ValueError) as error:
        build(tmp_path, tensors)
    assert all(word in str(error.value) for word in words), str(error.value)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("part", ["ar_model", "fp_model", "router"])
def test_hostile_pickles_are_refused_by_name(model, tmp_path, part):
    torch.save({"ema": generator_tensors(model), "args": Hostile(tmp_path / "executed")}, tmp_path / "bad.pt")
    with pytest.raises(ValueError, match=r"bad\.pt was refused.*system"):
        convert_evatok(tmp_path / "bad.pt", tmp_path / "out", config=write_config(tmp_path), part=part)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rope": True}, "rope=true"),
        ({"n_kv_head": 1}, "n_kv_head=1"),
        ({"codebook_size": None}, "codebook_size is missing"),
        ({"n_head": None}, "n_head missing"),
        ({"frame_num": 10}, "frame_num=10"),
        ({"spatial_token_num_choices": "all"}, "'all'"),
        ({"dim": "32"}, "dim='32'"),
        ({"n_head": 5}, "32.*5"),
        ({"num_classes": "three"}, "num_classes"),
        ({"num_classes": 0}, "num_classes"),
    ],
)
def test_arguments_that_do_not_fit(model, tmp_path, changes, words):
    with pytest.raises(ValueError, match=rf"gpt\.yaml.*{words}"):
        build(tmp_path, generator_tensors(model), changes)


def test_a_known_size_needs_no_arguments(model, tmp_path, monkeypatch):
    """And a file that lacks its last layer is of none."""
    monkeypatch.setitem(evatok_generators.GENERATORS, "tiny", (2, 2, 32))
    without = dict.fromkeys(("dim", "n_layer", "n_head"))
    assert_same(build(tmp_path, generator_tensors(model), without)[0], model)
    tensors = {name: tensor for name, tensor in generator_tensors(model).items() if not name.startswith("layers.1.")}
    with pytest.raises(ValueError, match="n_layer, n_head, dim"):
        build(tmp_path, tensors, without)


def test_saved_configurations(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    source, _ = write_checkpoint(tmp_path, generator_tensors(model))
    convert_evatok(source, tmp_path / "out", config=tmp_path / "config.json")
    assert_same(AdapTokARForCausalLM.from_pretrained(tmp_path / "out" / "ar_model"), model)
    with pytest.raises(ValueError, match="condition_counts.*config.json"):
        convert_evatok(source, tmp_path / "new", config=tmp_path / "config.json", part="fp_model", condition_counts=[8])
    for changes, words in (({"position_embedding": "rope"}, "rope"), ({"length_tokens": None}, "length_tokens")):
        make_generator(**changes).config.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=words):
            convert_evatok(source, tmp_path / "new", config=tmp_path / "config.json")


def test_names_of_classes(model, tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("swim\n\nrun\nfly\n")
    converted, _, _ = build(tmp_path, generator_tensors(model), classes=path)
    assert converted.config.id2label == {0: "swim", 1: "run", 2: "fly"} and converted.config.label2id["fly"] == 2
    path.write_text("swim\nrun\n")
    with pytest.raises(ValueError, match=r"classes\.txt has 2.*3"):
        build(tmp_path, generator_tensors(model), classes=path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_order": "first-slowest", "patch_order": "cthw"}, "patch_order, class_order.*ar_model"),
        ({"condition_counts": [8, 2]}, "condition_counts.*ar_model"),
        ({"verify_class": "1"}, "verify_class='1'.*verify"),
        ({"part": "fp_model", "classes": "classes.txt"}, "classes.*fp_model"),
        ({"part": "fp_model"}, r"512, 128.*\[1, 2, 8\]"),
        ({"part": "fp_model", "condition_counts": [8, 2]}, "27 rows.*codes,1,2,8,separator are 28"),
        (
            {"part": "fp_model", "condition_counts": [8, 2], "id_order": "codes,1,2,8"},
            r"cls_embedding.embedding_table.weight \(4, 32\)",
        ),
        ({"verify": "clip.mp4"}, "out has none"),
    ],
)
def test_options_that_do_not_fit(model, tmp_path, options, words):
    with pytest.raises(ValueError, match=words):
        convert(tmp_path, generator_tensors(model), **options)
    assert not (tmp_path / "out").exists()


# --- frame prediction --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "prompt"),
    [
        ({}, {}, 13),
        ({"condition_separator": False}, {"id_order": "codes,1,2,8"}, 12),
        ({"condition_length_tokens": False}, {"condition_length_tokens": False}, 11),
        ({}, {"id_order": "separator,8,2,1,codes"}, 13),
    ],
)
def test_generators_from_frames(tmp_path, changes, options, prompt):
    model = make_generator(**FRAMES, **changes)
    tensors = generator_tensors(model, options.get("id_order"))
    converted, _, _ = build(tmp_path, tensors, part="fp_model", condition_counts=[8, 2], **options)
    assert_same(converted, model)
    assert converted.config.prompt_length == prompt and converted.config.condition_counts == [8, 2]


# --- verification ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", [DEFAULT, pytest.param("unused,8,codes,2,1,classes,null", marks=pytest.mark.slow)])
def test_verification_finds_the_order_of_ids(learned, clip, tmp_path, order):
    tensors, options = generator_tensors(learned, order), {"tokenizer": tokenizer_of_clips()}
    _, _, prove = build(tmp_path, tensors, id_order=order, **options)
    notes = prove(clip)
    assert len(notes) == 1 and "verified" in notes[0] and "(equal odds: 3.178)" in notes[0]
    wrong = "8,1,codes,2," + DEFAULT[-12:] if order == DEFAULT else "8,1,codes,2,unused,classes,null"
    _, _, prove = build(tmp_path, tensors, id_order=wrong, **options)
    with pytest.raises(ValueError, match=rf"id_order={wrong} makes .*but id_order={order} makes"):
        prove(clip)


def test_verification_finds_permuted_tensors(learned, clip, tmp_path):
    """All names and shapes are there, but the codes' rows are in another order."""
    tensors = generator_tensors(learned)
    tensors["output.weight"][:24] = tensors["output.weight"][:24].flip(0)
    _, _, prove = build(tmp_path, tensors, tokenizer=tokenizer_of_clips())
    with pytest.raises(ValueError, match=r"chance.*3\.178"):
        prove(clip)


def test_verification_of_a_condition(learned_frames, clip, tmp_path):
    tensors, options = generator_tensors(learned_frames), {"part": "fp_model", "tokenizer": tokenizer_of_clips()}
    assert "verified" in build(tmp_path, tensors, condition_counts=[8, 2], **options)[2](clip)[0]
    _, _, prove = build(tmp_path, tensors, condition_counts=[8, 2], condition_length_tokens=False, **options)
    with pytest.raises(ValueError, match="condition_length_tokens=False makes .*condition_length_tokens=True makes"):
        prove(clip)


def test_verification_of_a_class(learned, clip, tmp_path):
    tensors, options = generator_tensors(learned), {"tokenizer": tokenizer_of_clips()}
    assert "number 1 of 3" in build(tmp_path, tensors, verify_class="1", **options)[2](clip)[-1]
    note = build(tmp_path, tensors, verify_class="2", **options)[2](clip)[-1]
    assert note.startswith("warning") and "the likeliest is LABEL_1" in note
    with pytest.raises(ValueError, match="'3'.*3 classes"):
        build(tmp_path, tensors, verify_class="3", **options)[2](clip)


def test_command_line(learned, clip, tmp_path, capsys):
    tokenizer_of_clips().save_pretrained(tmp_path / "out" / "tokenizer")
    (tmp_path / "out" / "model_index.json").write_text("{}")
    order = "2,codes,1,8,null,classes"
    source, _ = write_checkpoint(tmp_path, generator_tensors(learned, order))
    command = ["convert", source, tmp_path / "out", "--config", write_config(tmp_path), "--verify", clip]
    assert main([*map(str, command)]) == 2
    assert "2,codes,1,8" in capsys.readouterr().err and not (tmp_path / "out" / "ar_model").exists()
    assert main([*map(str, command), "--id-order", order, "--verify-class", "1"]) == 0
    assert "verified" in capsys.readouterr().out and (tmp_path / "out" / "ar_model").is_dir()
