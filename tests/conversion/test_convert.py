import contextlib
import json
import os
import pickle
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel

from adaptok_hf import (
    AdapTokModel,
    AdapTokPipeline,
    AdapTokPriorConfig,
    AdapTokPriorModel,
    AdapTokScorerModel,
    AdapTokVideoProcessor,
)
from adaptok_hf.conversion.configs import read_configs
from adaptok_hf.conversion.convert import convert_checkpoint, original_names
from adaptok_hf.conversion.original_names import KEYS, TABLES

PARITY = Path(__file__).parents[1] / "assets" / "parity"
TRAINING_CHECKPOINT = PARITY / "tokenizer_tiny" / "checkpoint_easydict.pth"
CAUSAL = PARITY / "tokenizer_tiny_causal"


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> Path:
    """A tokenizer and its scorer, from a training checkpoint."""
    return convert_checkpoint(TRAINING_CHECKPOINT, tmp_path_factory.mktemp("converted") / "tiny").destination


@pytest.fixture
def causal() -> tuple[dict, dict[str, torch.Tensor]]:
    """Arguments and tensors of a tokenizer alone."""
    return json.loads((CAUSAL / "config.json").read_text()), load_file(CAUSAL / "model.safetensors")


@pytest.fixture
def write_source(tmp_path):
    """Writes arguments and tensors as a folder of the original's layout."""

    def write(arguments, tensors) -> Path:
        folder = tmp_path / "source"
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(arguments))
        save_file(tensors, folder / "model.safetensors")
        return folder

    return write


def test_training_checkpoint(converted):
    assert sorted(path.name for path in converted.iterdir()) == [
        "model_index.json",
        "scorer",
        "tokenizer",
        "video_processor",
    ]
    tokenizer = AutoModel.from_pretrained(converted / "tokenizer")
    scorer = AutoModel.from_pretrained(converted / "scorer")
    assert (type(tokenizer), type(scorer)) == (AdapTokModel, AdapTokScorerModel)
    assert (tokenizer.config.latents_per_block, tokenizer.config.adaptive) == (16, True)
    assert (tokenizer.config.encoder_attention_type, tokenizer.config.decoder_attention_type) == (
        "block_causal",
        "decoder",
    )
    assert (scorer.config.score_step, scorer.config.num_blocks) == (4, 4)
    processor = AdapTokVideoProcessor.from_pretrained(converted / "video_processor")
    assert (processor.image_size, processor.num_frames, processor.tubelet_size) == (32, 16, 4)
    assert not list(converted.parent.glob("*.partial-*"))


def test_report(tmp_path):
    report = convert_checkpoint(CAUSAL, str(tmp_path / "deep" / "out"))
    (model,) = report.models
    assert (model.name, model.tensors, model.parameters, model.tables) == ("tokenizer", 57, 304_720, 3)
    assert report.destination == tmp_path / "deep" / "out"
    assert report.source == CAUSAL / "model.safetensors"
    for digest, file in (
        (report.source_sha256, CAUSAL / "model.safetensors"),
        (model.sha256, report.destination / "tokenizer" / "model.safetensors"),
    ):
        assert subprocess.check_output(["sha256sum", file], text=True).split()[0] == digest
        assert digest in str(report)
    assert "tokenizer: 304,720 parameters in 57 tensors, 3 position tables verified" in str(report)
    assert not AutoModel.from_pretrained(report.destination / "tokenizer").config.adaptive


def test_into_an_empty_folder(tmp_path):
    assert (convert_checkpoint(CAUSAL, tmp_path).destination / "tokenizer" / "model.safetensors").is_file()


def test_prior(causal, write_source, tmp_path):
    arguments, tensors = causal
    arguments["prior_model"]["name"] = "gptc-XXS"
    arguments["prior_model"]["no_dropout"] = True
    config = AdapTokPriorConfig(num_latent_tokens=32, hidden_size=256, num_attention_heads=4, num_hidden_layers=6)
    prior = AdapTokPriorModel(config)
    for name, parameter in prior.named_parameters():
        (original,), _ = original_names("prior", name)
        tensors[original] = parameter.detach()
    report = convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    assert [model.name for model in report.models] == ["tokenizer", "prior"]
    loaded = AutoModel.from_pretrained(report.destination / "prior")
    assert type(loaded) is AdapTokPriorModel
    assert loaded.config.num_attention_heads == 4 and loaded.config.attention_dropout == 0
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, prior.get_parameter(name))


def test_learned_tables(causal, write_source, tmp_path):
    """Learned patch tables are stored per axis; the others as a whole."""
    arguments, tensors = causal
    arguments |= {
        "learned_encoder_patch_pe": True,
        "learned_decoder_patch_query_embed": True,
        "learned_decoder_latent_pe": True,
        "use_encoder_patch_token_type_embed": True,
        "use_encoder_latent_query_token_type_embed": True,
        "use_decoder_latent_token_type_embed": True,
        "encoder_attn_type": "full_causal_type3",
        "decoder_attn_type": None,
    }
    del tensors["encoder_patch_pe"], tensors["decoder_patch_query_embed"]
    sizes = {"t_embed": (1, 4, 1, 1, 64), "h_embed": (1, 1, 4, 1, 64), "w_embed": (1, 1, 1, 4, 64)}
    for prefix in ("encoder", "decoder"):
        for name, shape in sizes.items():
            full_name = "encode_w_embed" if (prefix, name) == ("encoder", "w_embed") else f"{prefix}_{name}"
            tensors[full_name] = torch.randn(shape)
    for name in ("encoder_patch", "encoder_latent_query", "decoder_latent"):
        tensors[f"{name}_token_type_embed"] = torch.randn(1, 1, 64)
    report = convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    assert report.models[0].tables == 0
    model = AutoModel.from_pretrained(report.destination / "tokenizer")
    t, h, w = (tensors[name].flatten(0, -2) for name in ("encoder_t_embed", "encoder_h_embed", "encode_w_embed"))
    for token, (time, row, column) in enumerate((a, b, c) for a in range(4) for b in range(4) for c in range(4)):
        assert torch.equal(model.encoder.patch_positions.weight[0, token], t[time] + h[row] + w[column])
    assert torch.equal(model.decoder.latent_positions.weight, tensors["decoder_latent_pe"])
    assert torch.equal(model.encoder.latent_type.weight, tensors["encoder_latent_query_token_type_embed"])
    assert model.config.encoder_attention_type == "block_diagonal"
    assert model.config.decoder_attention_type == "full"


def test_fixed_queries_and_their_base(causal, write_source, tmp_path):
    arguments, tensors = causal
    arguments |= {"learned_encoder_latent_query_embed": False}
    with pytest.raises(ValueError, match="encoder_latent_query_embed"):
        convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    shutil.rmtree(tmp_path / "source")
    tensors["encoder_latent_query_embed"] = tensors["decoder_latent_pe"][0].clone()
    report = convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    assert report.models[0].tables == 4
    shutil.rmtree(tmp_path / "source")
    arguments["latent_pe_scale_factor"] = 512
    with pytest.raises(ValueError, match="decoder_latent_pe"):
        convert_checkpoint(write_source(arguments, tensors), tmp_path / "out2")


def test_half_precision_is_kept(causal, write_source, tmp_path):
    arguments, tensors = causal
    tensors = {
        name: tensor if name in TABLES["tokenizer"] else tensor.to(torch.bfloat16) for name, tensor in tensors.items()
    }
    tensors["encoder_latent_query_embed"] = tensors["encoder_latent_query_embed"].to(torch.bfloat16)
    report = convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    assert AutoModel.from_pretrained(report.destination / "tokenizer").dtype == torch.bfloat16


# --- exponential averages ----------------------------------------------------------------------------------------


@pytest.fixture
def with_average(causal, tmp_path) -> Path:
    arguments, tensors = causal
    average = tensors | {"bottleneck.in_linear.bias": torch.full((16,), 0.25)}
    file = tmp_path / "epoch-last.pth"
    model = {"name": "adaptok", "args": arguments, "sd": tensors, "ema_sd": {0.999: average}}
    torch.save({"model": model, "epoch": 3}, file)
    return file


@pytest.mark.parametrize("ema", [None, 0.999])
def test_average(with_average, causal, tmp_path, ema):
    report = convert_checkpoint(with_average, tmp_path / "out", ema=ema)
    bias = AutoModel.from_pretrained(report.destination / "tokenizer").quantizer.project_in.bias
    expected = causal[1]["bottleneck.in_linear.bias"] if ema is None else torch.full((16,), 0.25)
    assert torch.equal(bias, expected)


def test_no_such_average(with_average, tmp_path):
    with pytest.raises(ValueError, match="0.99.*0.999"):
        convert_checkpoint(with_average, tmp_path / "out", ema=0.99)
    with pytest.raises(ValueError, match="0.99.*none"):
        convert_checkpoint(TRAINING_CHECKPOINT, tmp_path / "out", ema=0.99)
    with pytest.raises(ValueError, match="ema=0.99.*.pth"):
        convert_checkpoint(CAUSAL, tmp_path / "out", ema=0.99)


# --- the released size -------------------------------------------------------------------------------------------


def test_released_size():
    """Every name and shape of the released file goes to exactly one of ours."""
    released = json.loads((PARITY / "fullsize" / "tokenizer_with_scorer.json").read_text())
    configs = read_configs(released["arguments"])
    with torch.device("meta"):
        models = {
            "tokenizer": AdapTokModel(configs["tokenizer"]),
            "scorer": AdapTokScorerModel(configs["scorer"]),
            "prior": AdapTokPriorModel(configs["prior"]),
        }
    reached = []
    for part, model in models.items():
        for name, parameter in model.named_parameters():
            (original,), adapt = original_names(part, name)
            stored = torch.empty(released["shapes"][original], device="meta")
            assert (stored if adapt is None else adapt(stored)).shape == parameter.shape, original
            reached.append(original)
    for original, ours in TABLES["tokenizer"].items():
        if original not in reached:
            stored = released["shapes"][original]
            assert tuple(stored) == models["tokenizer"].get_submodule(ours).weight.shape
            reached.append(original)
    assert sorted(reached) == sorted(released["shapes"])
    counts = {part: model.num_parameters() for part, model in models.items()}
    assert {part: round(count / 1e6, 2) for part, count in counts.items()} == {
        "tokenizer": 172.97,
        "scorer": 88.96,
        "prior": 22.09,
    }
    assert configs["tokenizer"].to_dict() == type(configs["tokenizer"]).base().to_dict()


def test_every_row_is_used():
    """A row that no parameter ever asks for would be a typing error."""
    named = {"learned": True, "type_embedding": True}
    released = json.loads((PARITY / "fullsize" / "tokenizer_with_scorer.json").read_text())
    config = read_configs(released["arguments"])["tokenizer"].to_dict()
    config |= {name: True for name in config if any(part in name for part in named)}
    with torch.device("meta"):
        model = AdapTokModel(AdapTokModel.config_class(**config))
    names = {original for name, _ in model.named_parameters() for original in original_names("tokenizer", name)[0]}
    for original, *_ in KEYS["tokenizer"]:
        for each in (original,) if isinstance(original, str) else original:
            each = each.replace("*", "0")
            assert {each, f"{each}.weight"} & names, each


# --- what raises an error ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("bottleneck.args.norm", "batch", "bottleneck.args.norm='batch'.*None, 'none'"),
        ("bottleneck.args.regularizer.args.l2_normalized", False, "l2_normalized=False.*True"),
        ("bottleneck.args.regularizer.name", "fsq", "regularizer.name='fsq'"),
        ("decoder_hidden_size", 128, "decoder_hidden_size=128.*encoder_hidden_size=64"),
        ("decoder_num_heads", 8, "decoder_num_heads=8.*encoder_num_heads=4"),
        ("decoder_patch_size", 16, "decoder_patch_size=16.*patch_size=8"),
        ("decoder_temporal_patch_size", 2, "decoder_temporal_patch_size=2.*temporal_patch_size=4"),
        ("encoder_attn_type", "windowed", "encoder_attn_type='windowed'.*'full_causal_type1'"),
        ("encoder_attn_type", ["x"], r"encoder_attn_type=\['x'\]"),
        ("scorer_name", "cnn_scorer", "scorer_name='cnn_scorer'"),
        ("prior_model.name", "gptc-XL", "prior_model.name='gptc-XL'.*'none', 'gptc-L'"),
        ("prior_model.name", ["x"], r"prior_model.name=\['x'\]"),
        ("transformer_name", "mamba", "transformer_name='mamba'"),
        ("bottleneck_token_num", 33, "bottleneck_token_num=33.*16 / 4"),
        ("frame_num", "16", "frame_num.*'16', 4"),
        ("input_size", 30, "image_size=30.*patch_size=8"),
        ("input_size", "32", "image_size"),
        ("cls_token_num", 1, "vocab_size, dim, n_layer, n_head"),
        ("model_type", "adaptok", "model_type 'adaptok'"),
    ],
)
def test_refuses_arguments(causal, write_source, tmp_path, path, value, message):
    arguments, tensors = causal
    *parents, last = path.split(".")
    place = arguments
    for parent in parents:
        place = place[parent]
    place[last] = value
    with pytest.raises(ValueError, match=message) as error:
        convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_refuses_several_at_once_and_missing_arguments(causal, write_source, tmp_path):
    arguments, tensors = causal
    source = write_source(arguments | {"decoder_patch_size": 4, "decoder_hidden_size": 32}, tensors)
    with pytest.raises(ValueError, match="decoder_hidden_size=32.*; decoder_patch_size=4"):
        convert_checkpoint(source, tmp_path / "out")
    del arguments["bottleneck"]
    (source / "config.json").write_text(json.dumps(arguments))
    with pytest.raises(ValueError, match="bottleneck.args.bottleneck_dim, .*codebook_size"):
        convert_checkpoint(source, tmp_path / "out")


def test_unknown_and_optional_arguments(causal, write_source, tmp_path):
    """Unknown entries are ignored; those that have a default may be absent."""
    arguments, tensors = causal
    arguments |= {"eval_micro_bs": 4, "something": {"new": 1}}
    for name in ("patch_size", "decoder_patch_size", "in_channels", "prior_model", "mask_generator", "encoder_name"):
        del arguments[name]
    report = convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    assert report.models[0].parameters == 304_720


def test_refuses_tensors(causal, write_source, tmp_path):
    arguments, tensors = causal
    del tensors["encoder.blocks.1.attn.qkv.weight"], tensors["encoder_patch_pe"]
    tensors["scorer.project.bias"] = torch.zeros(3)
    tensors["final_layer.linear.bias"] = torch.zeros(7)
    tensors["x_embedder.proj.weight"] = torch.zeros(64)
    tensors["x_embedder.proj.bias"] = torch.zeros(64, dtype=torch.long)
    tensors["decoder_latent_pe"] += 1e-4
    with pytest.raises(ValueError) as error:
        convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    message = str(error.value)
    assert "missing tensors: encoder.blocks.1.attn.qkv.weight, encoder_patch_pe" in message
    assert "unexpected tensors: scorer.project.bias" in message
    assert "final_layer.linear.bias is (7,) torch.float32, which does not fit (768,)" in message
    assert "x_embedder.proj.weight is (64,) torch.float32, which does not fit (64, 768)" in message
    assert "x_embedder.proj.bias is (64,) torch.int64" in message
    assert "decoder_latent_pe" in message
    assert not (tmp_path / "out").exists()


def test_refuses_tables_of_another_size_or_nan(causal, write_source, tmp_path):
    arguments, tensors = causal
    tensors["decoder_latent_pe"][0, 0, 0] = float("nan")
    tensors["encoder_patch_pe"] = torch.zeros(1, 3, 64)
    with pytest.raises(ValueError, match="encoder_patch_pe.*1, 3, 64.*decoder_latent_pe"):
        convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")


class Evil:
    """Unpickling this makes the file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return os.mkdir, (str(self.file),)


@pytest.mark.parametrize("where", ["model", "args", "sd", "next to it", "plain pickle"])
def test_malicious_pickle_is_not_run(causal, tmp_path, where):
    arguments, tensors = causal
    evil = Evil(tmp_path / "ran")
    file = tmp_path / "checkpoint.pth"
    checkpoint = {"model": {"name": "adaptok", "args": dict(arguments), "sd": dict(tensors)}}
    if where == "model":
        checkpoint["model"] = evil
    elif where == "next to it":
        checkpoint["cfg"] = evil
    elif where != "plain pickle":
        checkpoint["model"][where]["x"] = evil
    if where == "plain pickle":
        file.write_bytes(pickle.dumps(evil))
    else:
        torch.save(checkpoint, file)
    with pytest.raises(ValueError, match="posix.mkdir|damaged"):
        convert_checkpoint(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pth"]
    with contextlib.suppress(RuntimeError):
        torch.load(file, weights_only=False)  # the check above can fail: this does run it
    assert (tmp_path / "ran").exists()


def test_the_exception_for_easydict_is_taken_back(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    convert_checkpoint(TRAINING_CHECKPOINT, tmp_path / "out")
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("content", [b"", b"hello world, I am no checkpoint", TRAINING_CHECKPOINT.read_bytes()[:100_000]])
def test_damaged_training_checkpoint(tmp_path, content):
    file = tmp_path / "checkpoint.pth"
    file.write_bytes(content)
    with pytest.raises(ValueError, match="checkpoint.pth"):
        convert_checkpoint(file, tmp_path / "out")


@pytest.mark.parametrize(
    "checkpoint, message",
    [
        ([1, 2], "model.args"),
        ({"model": {"sd": {}}}, "model.args"),
        ({"model": {"args": {}}}, "model.sd"),
        ({"model": {"args": {}, "sd": {"a": 1}}}, "checkpoint.pth"),
        ({"model": {"args": {"cls_token_num": 1}, "sd": {}}}, "vocab_size, dim, n_layer, n_head"),
        ({"model": {"name": ["x"], "args": {"cls_token_num": 1}, "sd": {}}}, "vocab_size"),
    ],
)
def test_other_training_checkpoints(tmp_path, checkpoint, message):
    torch.save(checkpoint, tmp_path / "checkpoint.pth")
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(tmp_path / "checkpoint.pth", tmp_path / "out")


def test_damaged_folder(causal, write_source, tmp_path):
    source = write_source(*causal)
    weights = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(weights[:-1000])
    with pytest.raises(ValueError, match="model.safetensors"):
        convert_checkpoint(source, tmp_path / "out")
    (source / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json"):
        convert_checkpoint(source, tmp_path / "out")
    (source / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="list"):
        convert_checkpoint(source, tmp_path / "out")
    (source / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        convert_checkpoint(source, tmp_path / "out")


def test_no_such_source(tmp_path, monkeypatch):
    for source in (tmp_path / "nowhere", "nowhere.pth", "checkpoints/nowhere.pth", "nowhere"):
        with pytest.raises(FileNotFoundError, match="nowhere.*model.safetensors.*.pth"):
            convert_checkpoint(source, tmp_path / "out")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="somebody/something"):
        convert_checkpoint("somebody/something", tmp_path / "out")


def test_hub_id(tmp_path, monkeypatch):
    asked = {}

    def download(repo_id, allow_patterns):
        asked.update(repo_id=repo_id, allow_patterns=allow_patterns)
        return str(CAUSAL)

    monkeypatch.setattr("adaptok_hf.conversion.sources.snapshot_download", download)
    assert convert_checkpoint("somebody/something", tmp_path / "out").models[0].parameters == 304_720
    assert asked == {"repo_id": "somebody/something", "allow_patterns": ["config.json", "model.safetensors"]}


def test_destination_in_use(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").write_text("precious")
    for destination in (tmp_path / "out", tmp_path / "out" / "file"):
        with pytest.raises(ValueError, match=str(destination)):
            convert_checkpoint(CAUSAL, destination)
    assert (tmp_path / "out" / "file").read_text() == "precious"


def test_nothing_half_written(tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        assert not (tmp_path / "out").exists() and list(tmp_path.glob(".out*/tokenizer/model.safetensors"))
        raise OSError("No space left on device")

    monkeypatch.setattr(AdapTokVideoProcessor, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        convert_checkpoint(CAUSAL, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_command_line_converts(tmp_path, capsys):
    from adaptok_hf.cli.main import main

    assert main(["convert", str(PARITY / "tokenizer_tiny_causal"), str(tmp_path / "converted")]) == 0
    assert "parameters" in capsys.readouterr().out
    assert isinstance(AutoModel.from_pretrained(tmp_path / "converted" / "tokenizer"), AdapTokModel)
    pipeline = AdapTokPipeline.from_pretrained(tmp_path / "converted")
    assert pipeline.scorer is None and pipeline.tokenizer.config.adaptive is False
    capsys.readouterr()
    assert main(["convert", str(tmp_path / "missing"), str(tmp_path / "other")]) == 2
    assert capsys.readouterr().err.count("\n") == 1 and not (tmp_path / "other").exists()
