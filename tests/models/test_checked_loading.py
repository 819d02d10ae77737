"""Folders whose weights are missing, damaged, or not those of their configuration."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM

from adaptok_hf import AdapTokModel, AdapTokPipeline

PARTS = ("tokenizer", "scorer", "ar_model", "fp_model")


@pytest.fixture
def folder(complete_pipeline, tmp_path):
    complete_pipeline.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def load(folder, part):
    automatic = AutoModelForCausalLM if part.endswith("model") else AutoModel
    return automatic.from_pretrained(folder / part)


@pytest.mark.parametrize("part", PARTS)
def test_missing_and_unexpected_tensors_are_named(folder, part):
    load(folder, part)
    path = folder / part / "model.safetensors"
    tensors = load_file(path)
    name = sorted(tensors)[3]
    for change, match in (({name: None}, name), ({"surprise.weight": torch.zeros(2)}, "surprise.weight")):
        changed = {key: value for key, value in (tensors | change).items() if value is not None}
        save_file(changed, path, metadata={"format": "pt"})
        for read in (lambda: load(folder, part), lambda: AdapTokPipeline.from_pretrained(folder)):
            with pytest.raises(ValueError, match=match):
                read()


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(folder, part, name):
    (folder / part / name).unlink()
    with pytest.raises(OSError, match=rf"{part}.*{name}|{name}.*{part}"):
        AdapTokPipeline.from_pretrained(folder)
    if name != "config.json":  # without it, AutoModel does not know which class to ask
        with pytest.raises(OSError, match=name):
            load(folder, part)


def test_a_folder_of_no_tensors(folder):
    save_file({}, folder / "tokenizer" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="tokenizer"):
        AdapTokPipeline.from_pretrained(folder)


@pytest.mark.parametrize(
    ("part", "entry", "value"),
    [
        ("tokenizer", "num_encoder_layers", 10**9),
        ("tokenizer", "num_encoder_layers", 3),
        ("tokenizer", "num_encoder_layers", 1),
        ("tokenizer", "num_decoder_layers", -1),
        ("tokenizer", "hidden_size", 10**9),
        ("tokenizer", "image_size", 8 * 10**4),
        ("tokenizer", "image_size", 8 * 10**18),
        ("tokenizer", "num_frames", 4 * 10**7),
        ("tokenizer", "latents_per_block", 10**6),
        ("tokenizer", "mlp_ratio", 10**6),
        ("tokenizer", "codebook_size", 10**12),
        ("tokenizer", "num_labels", 10**10),
        ("tokenizer", "layer_norm_eps", float("nan")),
        ("tokenizer", "latent_position_base", float("inf")),
        ("tokenizer", "hidden_size", "32"),
        ("tokenizer", "hidden_size", None),
        ("scorer", "num_hidden_layers", 10**8),
        ("scorer", "num_blocks", 10**8),
        ("ar_model", "num_hidden_layers", 10**8),
        ("ar_model", "num_classes", 10**8),
        ("ar_model", "intermediate_size", 10**12),
        ("fp_model", "num_key_value_heads", 10**7),
    ],
)
def test_sizes_are_bounded_by_the_weights(folder, part, entry, value):
    path = folder / part / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {entry: value}))
    with pytest.raises(ValueError, match=part):
        AdapTokPipeline.from_pretrained(folder)


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"null", b"\xff\xfe", b"[" * 10**5])
def test_damaged_configurations_are_named(folder, content):
    (folder / "tokenizer" / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"tokenizer.config\.json"):
        AdapTokModel.from_pretrained(folder / "tokenizer")


def test_large_models_lie_in_several_files(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path, max_shard_size="50KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    loaded = AdapTokModel.from_pretrained(tmp_path)
    for name, tensor in tiny_tokenizer.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    shutil.copy(shards[0], shards[1])
    with pytest.raises(ValueError, match="has no"):
        AdapTokModel.from_pretrained(tmp_path)


def test_loading_info_can_be_asked_for(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path)
    model, info = AdapTokModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(model, AdapTokModel) and not info["missing_keys"]
