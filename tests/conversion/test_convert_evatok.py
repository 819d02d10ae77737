"""Conversion of EVATok's files, from synthetic ones in the layout that they are expected to have."""

import json
import os

import numpy as np
import pytest
import torch
from builders.evatok_files import CONFIG, SIZES, make_model, original_tensors, write_checkpoint
from builders.video_files import write_mp4

from adaptok_hf import EVATokModel, convert_evatok
from adaptok_hf.cli.main import main
from adaptok_hf.conversion import evatok_files
from adaptok_hf.conversion.evatok_files import read_config, read_weights

OPTIONS = {"patch_order": "thwc"}  # the expected layout has a linear map to pixels


@pytest.fixture(autouse=True)
def tiny_sizes(monkeypatch):
    monkeypatch.setattr(evatok_files, "SIZES", SIZES)


@pytest.fixture(scope="module")
def model() -> EVATokModel:
    return make_model()


def convert(tmp_path, tensors, changes=None, **options):
    source, config = write_checkpoint(tmp_path, tensors, **(changes or {}))
    return convert_evatok(source, tmp_path / "out", config=config, **OPTIONS | options)


def assert_same(folder, model):
    converted = EVATokModel.from_pretrained(folder / "tokenizer")
    ours, theirs = converted.state_dict(), model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    video, counts = torch.rand(2, 8, 3, 16, 16), torch.tensor([[8, 1], [2, 8]])
    assert torch.equal(converted.encode(video, counts).codes, model.encode(video, counts).codes)


def test_expected_layout(model, tmp_path):
    report = convert(tmp_path, original_tensors(model))
    assert_same(tmp_path / "out", model)
    assert (tmp_path / "out" / "model_index.json").is_file()
    # the patch embedding has no known name: its shape is that of no other
    assert "encoder.patch_embedding.projection.weight = pixels.to_tokens.weight" in str(report)
    assert "nn.MultiheadAttention" in str(report) and report.models[0].tensors == len(model.state_dict())


def test_numbers_and_namespaces_are_read(model, tmp_path):
    source, _ = write_checkpoint(tmp_path, original_tensors(model))
    weights = read_weights(source)
    assert torch.equal(weights["quantize.embedding.weight"], model.quantizer.codebook.weight)  # the average
    plain = evatok_files._plain(evatok_files.unpickle(source, evatok_files.ALLOWED))
    assert plain["steps"] == 400_000 and type(plain["steps"]) is int and plain["args"]["lr"] == 1e-4
    assert plain["best"][2] is True and type(plain["best"][0]) is float


def test_order_and_wrappers_have_no_influence(model, tmp_path):
    tensors = dict(reversed(original_tensors(model).items()))
    convert(tmp_path, {f"module.{name}": tensor.half().float() for name, tensor in tensors.items()})
    converted = EVATokModel.from_pretrained(tmp_path / "out" / "tokenizer")
    assert torch.equal(converted.quantizer.codebook.weight, model.quantizer.codebook.weight.half().float())


def test_one_table_for_every_block(model, tmp_path):
    tensors = original_tensors(model)
    name = "s2to1encoder.positional_embedding"
    tensors[name] = tensors[name][:4]
    convert(tmp_path, tensors)
    table = EVATokModel.from_pretrained(tmp_path / "out" / "tokenizer").encoder.patch_positions.weight
    assert torch.equal(table[:, :4], table[:, 4:]) and torch.equal(table[0, :4], tensors[name][:, 0])


def test_a_transposed_convolution_to_pixels(model, tmp_path):
    tensors = original_tensors(model)
    weight = model.decoder.head.projection.weight.detach()
    tensors["s1to2decoder.conv_out.weight"] = weight.unflatten(0, (4, 8, 8, 3)).permute(4, 3, 0, 1, 2)
    tensors["s1to2decoder.conv_out.bias"] = torch.tensor([1.0, 2.0, 3.0])
    convert(tmp_path, tensors, patch_order=None)
    head = EVATokModel.from_pretrained(tmp_path / "out" / "tokenizer").decoder.head.projection
    assert torch.equal(head.weight, weight) and head.bias[:6].tolist() == [1, 2, 3, 1, 2, 3]


def test_patch_order_of_linear_maps(model, tmp_path):
    tensors = original_tensors(model)
    tensors["pixels.to_tokens.weight"] = tensors["pixels.to_tokens.weight"].movedim(1, 4).flatten(1)  # t, h, w, c
    convert(tmp_path, tensors)
    assert_same(tmp_path / "out", model)


def test_a_renamed_tensor_is_listed_and_named(model, tmp_path):
    tensors = original_tensors(model)
    for end in ("weight", "bias"):  # two norms of one shape: their shapes do not say which is which
        for name in ("s2to1encoder.ln_post", "s2to1encoder.transformer.1.norm3"):
            tensors[f"{name.replace('.', '_')}.{end}"] = tensors.pop(f"{name}.{end}")
    with pytest.raises(ValueError, match="encoder.norm.weight") as error:
        convert(tmp_path, tensors)
    said = str(error.value)
    for name in ("encoder.layers.1.norm3.bias", "s2to1encoder_ln_post.bias", "(12,)", "GigaTok", "names.json"):
        assert name in said
    names = json.loads((tmp_path / "names.json").read_text())
    assert set(names) == {f"encoder.{name}.{end}" for name in ("norm", "layers.1.norm3") for end in ("weight", "bias")}
    assert set(names.values()) == {None} and not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match=r"names\.json exists"):
        convert(tmp_path, tensors)
    for ours in names:
        theirs = "s2to1encoder_ln_post" if ours.startswith("encoder.norm") else "s2to1encoder_transformer_1_norm3"
        names[ours] = f"{theirs}.{ours.rpartition('.')[2]}"
    (tmp_path / "names.json").write_text(json.dumps(names))
    convert(tmp_path, tensors, names=tmp_path / "names.json")
    assert_same(tmp_path / "out", model)


def test_permuted_names_are_no_shapes(model, tmp_path):
    """Two known names were exchanged: their shapes alone would put them back, against what they say."""
    tensors = original_tensors(model)
    pair = "quant_conv.weight", "post_quant_conv.weight"
    tensors |= {one: tensors[other] for one, other in zip(pair, reversed(pair), strict=True)}
    with pytest.raises(ValueError, match=r"(?s)quantizer.project_in.weight.*post_quant_conv.weight"):
        convert(tmp_path, tensors)


def test_names_that_do_not_fit(model, tmp_path):
    tensors = original_tensors(model)
    path = tmp_path / "given.json"
    path.write_text(json.dumps({"encoder.norm.weight": "s2to1encoder.no_such"}))
    with pytest.raises(ValueError, match="no_such"):
        convert(tmp_path, tensors, names=path)
    path.write_text(json.dumps({"encoder.norm.weight": "s1to2decoder.ln_post.weight"}))
    with pytest.raises(ValueError, match=r"s1to2decoder.ln_post.weight is \(16,\).*\(12,\)"):
        convert(tmp_path, tensors, names=path)
    path.write_text(json.dumps({"encoder.norm.bias": "s2to1encoder.ln_post.weight"}))
    with pytest.raises(ValueError, match=r"s2to1encoder.ln_post.weight.*encoder.norm"):
        convert(tmp_path, tensors, names=path)
    path.write_text("[1]")
    with pytest.raises(ValueError, match="given.json"):
        convert(tmp_path, tensors, names=path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop("quant_conv.weight"), ["quantizer.project_in.weight", "(4, 10)", "left over (0)"]),
        (
            lambda t: t.update({"quant_conv.weight": torch.rand(10, 4, 1, 1)}),
            ["quant_conv.weight is (10, 4, 1, 1)", "quantizer.project_in.weight (4, 10)"],
        ),
        (lambda t: t.update({"s1to2decoder.extra": torch.rand(7)}), ["s1to2decoder.extra (7,)", "without a source (0)"]),
        (
            lambda t: t.update({"s2to1encoder.transformer.0.linear1.weight": torch.rand(12, 48)}),
            ["s2to1encoder.transformer.0.linear1.weight is (12, 48)", "(48, 12)"],
        ),
    ],
)
def test_missing_and_misshapen_tensors(model, tmp_path, change, words):
    tensors = original_tensors(model)
    change(tensors)
    with pytest.raises(ValueError) as error:
        convert(tmp_path, tensors)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_separate_projections_need_a_polarity(model, tmp_path):
    tensors = original_tensors(model)
    for name in [name for name in tensors if "in_proj_" in name]:
        stem, end = name.split("in_proj_")
        for letter, part in zip("qkv", tensors.pop(name).chunk(3), strict=True):
            tensors[f"{stem}{letter}_proj.{end}"] = part.clone()
        tensors[f"{stem}wo.{end}"] = tensors.pop(f"{stem}out_proj.{end}")
    with pytest.raises(ValueError, match="mask_polarity"):
        convert(tmp_path, tensors)
    with pytest.raises(ValueError, match="later blocks"):
        convert(tmp_path, tensors, mask_polarity="hides")
    convert(tmp_path, tensors, mask_polarity="sees")
    assert_same(tmp_path / "out", model)
    (tmp_path / "fused").mkdir()
    with pytest.raises(ValueError, match="fused"):
        convert(tmp_path / "fused", original_tensors(model), mask_polarity="sees")


@pytest.mark.parametrize(("order", "wrong"), [(None, "conv_out"), ("thw", "thw"), ("tthw", "tthw")])
def test_patch_order_is_said(model, tmp_path, order, wrong):
    with pytest.raises(ValueError, match=f"patch_order.*{wrong}|{wrong}.*patch_order"):
        convert(tmp_path, original_tensors(model), patch_order=order)


class Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_hostile_pickles_are_refused_by_name(tmp_path):
    _, config = write_checkpoint(tmp_path, {"a": torch.zeros(1)})
    for value, name in ((Hostile(tmp_path / "executed"), "system"), (np.array([1, "x"], object), "numpy")):
        torch.save({"ema": {"a": torch.zeros(1)}, "args": value}, tmp_path / "bad.pt")
        with pytest.raises(ValueError, match=rf"bad\.pt was refused.*{name}"):
            convert_evatok(tmp_path / "bad.pt", tmp_path / "out", config=config)
    assert not (tmp_path / "executed").exists()
    (tmp_path / "bad.pt").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="bad.pt"):
        convert_evatok(tmp_path / "bad.pt", tmp_path / "out", config=config)
    for checkpoint in ({"steps": 1}, {"steps": 1, "model": [1]}):
        torch.save(checkpoint, tmp_path / "bad.pt")
        with pytest.raises(ValueError, match="steps"):
            convert_evatok(tmp_path / "bad.pt", tmp_path / "out", config=config)


def test_a_number_named_ema_is_no_average(tmp_path):
    torch.save({"ema": 0.999, "model": {"a": torch.ones(1)}}, tmp_path / "last.pt")
    assert read_weights(tmp_path / "last.pt") == {"a": torch.ones(1)}


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"use_rope": True}, "use_rope"),
        ({"encoder_size": "huge"}, "huge"),
        ({"spatial_token_num_choices": [8, 2]}, r"\[8, 2\]"),
        ({"spatial_token_num_choices": [3]}, "3"),
    ],
)
def test_unsupported_arguments(tmp_path, changes, wrong):
    _, config = write_checkpoint(tmp_path, {"a": torch.zeros(1)}, **changes)
    with pytest.raises(ValueError, match=wrong):
        read_config(config)


def test_configurations(model, tmp_path):
    _, path = write_checkpoint(tmp_path, {}, rot=True, use_qk_norm=True, learnable_1d_query_init=True)
    config = read_config(path)
    assert config.rotation_trick and config.qk_norm and config.query_init == "learned"
    assert {name: getattr(config, name) for name in CONFIG} == CONFIG
    model.config.save_pretrained(tmp_path)
    assert read_config(tmp_path / "config.json").to_dict() == model.config.to_dict()
    path.write_text("model: {init_args: {frame_num: 8}}")
    with pytest.raises(ValueError, match="input_size"):
        read_config(path)
    with pytest.raises(FileNotFoundError, match="no.yaml"):
        read_config(tmp_path / "no.yaml")


def test_verification(model, tmp_path, capsys):
    """A random model gives gray: a gray video comes back, another does not."""
    gray = make_model()
    torch.nn.init.zeros_(gray.decoder.head.projection.weight)
    torch.nn.init.zeros_(gray.decoder.head.projection.bias)
    source, config = write_checkpoint(tmp_path, original_tensors(gray))
    write_mp4(tmp_path / "gray.mp4", frames=np.full((8, 16, 16, 3), 127, np.uint8))
    noise = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)
    write_mp4(tmp_path / "noise.mp4", frames=noise)
    options = ["convert", source, tmp_path / "out", "--config", config, "--patch-order", "thwc", "--verify"]
    assert main([*map(str, options), str(tmp_path / "noise.mp4")]) != 0
    assert "20" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*map(str, options), str(tmp_path / "gray.mp4")]) == 0
    assert "verified" in capsys.readouterr().out


def test_a_generator_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"evatok\.pt.*generator"):
        convert(tmp_path, {"tok_embeddings.weight": torch.rand(9, 4)})


def test_command_line(model, tmp_path, capsys):
    source, config = write_checkpoint(tmp_path, original_tensors(model))
    assert main(["convert", str(source), str(tmp_path / "out")]) != 0
    assert "--config" in capsys.readouterr().err
    assert main(["convert", "some/repository", str(tmp_path / "out"), "--config", str(config)]) != 0
    assert "config" in capsys.readouterr().err
