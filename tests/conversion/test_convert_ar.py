"""Original checkpoints of the generators."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from adaptok_hf import AdapTokARForCausalLM, AdapTokPipeline
from adaptok_hf.conversion.class_names import UCF101
from adaptok_hf.conversion.configs import read_configs
from adaptok_hf.conversion.convert import convert_checkpoint, map_tensors, original_names
from adaptok_hf.conversion.original_names import KEYS
from adaptok_hf.models.layers import latent_positions

PARITY = Path(__file__).parents[1] / "assets" / "parity"
CLASS_CONDITIONAL = PARITY / "ar_tiny" / "checkpoint_easydict.pth"
FRAME_PREDICTION = PARITY / "fp_tiny"
TOKENIZER = PARITY / "tokenizer_tiny" / "checkpoint_easydict.pth"


@pytest.fixture
def class_conditional(tmp_path) -> tuple[dict, dict[str, torch.Tensor]]:
    """Arguments and tensors as a folder holds them."""
    report = convert_checkpoint(CLASS_CONDITIONAL, tmp_path / "once")
    ours = load_file(report.destination / "ar_model" / "model.safetensors")
    tensors = {}
    for name in ours:
        originals, adapt = original_names("ar_model", name)
        if adapt is None:
            tensors[originals[0]] = ours[name]
    for i in range(2):
        parts = [ours[f"model.layers.{i}.self_attn.{part}_proj.weight"] for part in "qkv"]
        tensors[f"layers.{i}.attention.wqkv.weight"] = torch.cat(parts)
    tensors["tok_embeddings.weight"] = ours["model.embed_tokens.weight"][:129].clone()
    tensors["cls_embedding.embedding_table.weight"] = ours["model.embed_tokens.weight"][129:].clone()
    tensors["output.weight"] = ours["lm_head.weight"][:129].clone()
    return json.loads((PARITY / "ar_tiny" / "config.json").read_text()), tensors


@pytest.fixture
def frame_prediction() -> tuple[dict, dict[str, torch.Tensor]]:
    return (
        json.loads((FRAME_PREDICTION / "config.json").read_text()),
        load_file(FRAME_PREDICTION / "model.safetensors"),
    )


@pytest.fixture
def write_source(tmp_path):
    """Writes arguments and tensors as a folder of the original's layout."""

    def write(arguments, tensors) -> Path:
        folder = tmp_path / "source"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(arguments))
        save_file(tensors, folder / "model.safetensors")
        return folder

    return write


def test_class_conditional(class_conditional, write_source, tmp_path):
    """A training checkpoint, whose name says the size, and a folder give the same."""
    arguments, tensors = class_conditional
    report = convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    assert [(model.name, model.tensors, model.tables) for model in report.models] == [("ar_model", 22, 0)]
    assert [path.name for path in report.destination.iterdir()] == ["ar_model"]
    one, other = (tmp_path / name / "ar_model" for name in ("once", "out"))
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert (one / "config.json").read_bytes() == (other / "config.json").read_bytes()
    model = AutoModelForCausalLM.from_pretrained(other)
    config = model.config
    assert type(model) is AdapTokARForCausalLM
    assert (config.num_blocks, config.latents_per_block, config.start_block) == (4, 16, 0)
    assert (config.num_classes, config.eob_token_id, config.null_class_token_id) == (101, 128, 230)
    assert (config.position_embedding, config.learned_positions, config.intermediate_size) == ("absolute", True, 256)
    dropouts = ("embedding_dropout", "residual_dropout", "mlp_dropout", "attention_dropout", "class_dropout")
    assert [getattr(config, name) for name in dropouts] == [0.1, 0.1, 0.1, 0.0, 0.1]
    assert config.id2label[0] == "ApplyEyeMakeup" and config.id2label[100] == "YoYo" and config.label2id["Surfing"] == 87
    assert torch.equal(model.model.embed_tokens.weight[129:], tensors["cls_embedding.embedding_table.weight"])
    assert not model.lm_head.weight[129:].any() and model.lm_head.weight[:129].any(1).all()


def test_frame_prediction(tmp_path):
    report = convert_checkpoint(FRAME_PREDICTION, tmp_path / "out")
    config = AutoModelForCausalLM.from_pretrained(report.destination / "fp_model").config
    assert (config.num_blocks, config.latents_per_block, config.start_block) == (4, 16, 1)
    assert (config.num_condition_codes, config.condition_separator_token_id, config.num_classes) == (32, 129, 0)
    assert (config.prompt_length, config.max_sequence_length, config.vocab_size) == (33, 51, 130)


def test_condition_of_no_size_of_its_own(frame_prediction, write_source, tmp_path):
    """Then it has as many codes as the generated blocks."""
    arguments, tensors = frame_prediction
    arguments |= {"custom_cls_token_num": False, "cls_token_num": 1}
    with pytest.raises(ValueError, match=r"abs_pe.*1, 83, 64"):
        convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    tensors["abs_pe"] = torch.randn(1, 48 + 1 + 51 - 1, 64)
    report = convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(report.destination / "fp_model")
    assert model.config.num_condition_codes == 48
    assert torch.equal(model.model.positions.weight, tensors["abs_pe"])


def test_dropouts_and_width(class_conditional, write_source, tmp_path):
    arguments, tensors = class_conditional
    arguments |= {"token_dropout_p": 0.2, "attn_dropout_p": 0.3, "resid_dropout_p": 0.4, "ffn_dropout_p": 0.0}
    arguments |= {"class_dropout_prob": 0.25, "multiple_of": 32, "norm_eps": 1e-6, "num_classes": 5}
    for i in range(2):
        for name in ("w1", "w3"):
            tensors[f"layers.{i}.feed_forward.{name}.weight"] = torch.randn(192, 64)
        tensors[f"layers.{i}.feed_forward.w2.weight"] = torch.randn(64, 192)
    tensors["cls_embedding.embedding_table.weight"] = torch.randn(6, 64)
    report = convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    config = AutoModelForCausalLM.from_pretrained(report.destination / "ar_model").config
    dropouts = ("embedding_dropout", "residual_dropout", "mlp_dropout", "attention_dropout", "class_dropout")
    assert [getattr(config, name) for name in dropouts] == [0.2, 0.4, 0.0, 0.3, 0.25]
    assert (config.rms_norm_eps, config.intermediate_size, config.num_classes) == (1e-6, 192, 5)
    assert UCF101[0] not in (config.id2label or {}).values()


def test_fixed_positions(class_conditional, write_source, tmp_path):
    """The table is stored; ours is computed, and must be the same."""
    arguments, tensors = class_conditional
    arguments["use_fixed_pe"] = True
    with pytest.raises(ValueError, match="abs_pe"):
        convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    tensors["abs_pe"] = latent_positions(68, 64, 10000.0)
    report = convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    assert report.models[0].tables == 1 and "1 position tables verified" in str(report)
    assert "model.positions.weight" not in load_file(report.destination / "ar_model" / "model.safetensors")
    model = AutoModelForCausalLM.from_pretrained(report.destination / "ar_model")
    torch.testing.assert_close(model.model.positions(), tensors["abs_pe"], atol=0, rtol=0)


# --- into a pipeline's folder ------------------------------------------------------------------------------------


def test_joins_a_pipeline(tmp_path):
    folder = convert_checkpoint(TOKENIZER, tmp_path / "pipeline").destination
    index = json.loads((folder / "model_index.json").read_text())
    index["_note"] = "kept"
    (folder / "model_index.json").write_text(json.dumps(index))
    for source in (CLASS_CONDITIONAL, FRAME_PREDICTION):
        assert convert_checkpoint(source, folder).destination == folder
    assert [path.name for path in tmp_path.iterdir()] == ["pipeline"]
    module = "adaptok_hf.models.modeling_adaptok_ar"
    added = {name: [module, "AdapTokARForCausalLM"] for name in ("ar_model", "fp_model")}
    assert json.loads((folder / "model_index.json").read_text()) == index | added
    pipeline = AdapTokPipeline.from_pretrained(folder)
    assert pipeline.ar_model.config.is_class_conditional and not pipeline.fp_model.config.is_class_conditional
    assert pipeline.scorer is not None

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=str(folder / "ar_model")):
        convert_checkpoint(CLASS_CONDITIONAL, folder)
    with pytest.raises(ValueError, match=str(folder)):
        convert_checkpoint(TOKENIZER, folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_both_without_a_tokenizer(tmp_path):
    for source in (FRAME_PREDICTION, CLASS_CONDITIONAL):
        convert_checkpoint(source, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["ar_model", "fp_model"]


def test_not_into_some_folder(tmp_path):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ValueError, match=str(tmp_path)):
        convert_checkpoint(CLASS_CONDITIONAL, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_must_fit_the_tokenizer(class_conditional, write_source, tmp_path):
    arguments, tensors = class_conditional
    folder = convert_checkpoint(TOKENIZER, tmp_path / "pipeline").destination
    before = sorted(folder.rglob("*"))
    arguments |= {"tot_blocks": 2}
    with pytest.raises(ValueError, match="num_blocks.*2.*4") as error:
        convert_checkpoint(write_source(arguments, tensors), folder)
    assert "\n" not in str(error.value)
    arguments |= {"tot_blocks": 4, "max_seq_len": 32}
    with pytest.raises(ValueError, match="latents_per_block.*8.*16"):
        convert_checkpoint(write_source(arguments, tensors), folder)
    arguments |= {"max_seq_len": 64, "vocab_size": 64}
    with pytest.raises(ValueError, match="codebook_size.*64.*128"):
        convert_checkpoint(write_source(arguments, tensors), folder)
    assert sorted(folder.rglob("*")) == before


def test_nothing_half_written(tmp_path, monkeypatch):
    folder = convert_checkpoint(TOKENIZER, tmp_path / "pipeline").destination
    before = {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")}

    def fail(*args, **kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(AdapTokARForCausalLM, "save_pretrained", fail)
    with pytest.raises(OSError, match="No space left"):
        convert_checkpoint(CLASS_CONDITIONAL, folder)
    assert {path: path.is_file() and path.read_bytes() for path in tmp_path.rglob("*")} == before


# --- what raises an error ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_kv_head": 2}, "n_kv_head=2.*None"),
        ({"ffn_dim_multiplier": 1.5}, "ffn_dim_multiplier=1.5"),
        ({"drop_path_rate": 0.1}, "drop_path_rate=0.1.*0"),
        ({"with_block_sep": False}, "with_block_sep=False.*True"),
        ({"model_type": "t2v"}, "model_type='t2v'.*'class_cond'"),
        ({"max_seq_len": 63}, "max_seq_len=63.*tot_blocks=4"),
        ({"tot_blocks": "4"}, "tot_blocks='4'"),
        ({"cls_token_num": 2}, "cls_token_num=2, start_ar_block_idx=0.*1, 0"),
        ({"start_ar_block_idx": 1}, "cls_token_num=1, start_ar_block_idx=1"),
        ({"start_ar_block_idx": "x", "frame_prediction": True}, "start_ar_block_idx='x'"),
        ({"num_classes": 0}, "num_classes.*num_condition_codes"),
        ({"dim": "64"}, "dim='64'"),
        ({"n_head": 5}, "64.*5"),
        ({"n_layer": ...}, "n_layer"),
        ({"n_layer": 3}, "missing.*layers.2.attention.wo.weight"),
        ({"n_layer": 1}, "unexpected.*layers.1.attention.wo.weight"),
        ({"vocab_size": 64}, r"tok_embeddings.weight, cls_embedding.embedding_table.weight.*129, 64"),
    ],
)
def test_refuses_arguments(class_conditional, write_source, tmp_path, changes, message):
    arguments, tensors = class_conditional
    arguments = {name: value for name, value in (arguments | changes).items() if value is not ...}
    with pytest.raises(ValueError, match=message) as error:
        convert_checkpoint(write_source(arguments, tensors), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


# --- the released size -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("part, file", [("ar_model", "ar_lp_class_conditional"), ("fp_model", "ar_lp_frame_prediction")])
def test_released_size(part, file):
    """Every name and shape of the released files is used, and gives all of our model."""
    released = json.loads((PARITY / "fullsize" / f"{file}.json").read_text())
    (config,) = read_configs(released["arguments"]).values()
    with torch.device("meta"):
        model = AdapTokARForCausalLM(config)
        tensors = {name: torch.empty(shape) for name, shape in released["shapes"].items()}
    states, tables = map_tensors({part: model}, tensors)  # raises for what is missing, unexpected or misshapen
    model.load_state_dict(states[part], assign=True)
    assert tables == {part: 0}
    conditioning = len(config.conditioning_token_ids)
    stored = sum(tensor.numel() for tensor in tensors.values())
    # Beyond the released file only the zero rows of the output layer.
    assert model.num_parameters() == stored + conditioning * 1280
    expected = type(config).large_plus(
        position_embedding="absolute",
        **({"num_classes": 101} if part == "ar_model" else {"num_classes": 0, "num_condition_codes": 1024}),
        **({} if part == "ar_model" else {"start_block": 1, "class_dropout": 0.0}),
    )
    different = {k for k, v in config.to_dict().items() if v != expected.to_dict().get(k)}
    assert different <= {"id2label", "label2id"}


def test_every_row_is_used():
    for part, file in (("ar_model", "ar_lp_class_conditional"), ("fp_model", "ar_lp_frame_prediction")):
        released = json.loads((PARITY / "fullsize" / f"{file}.json").read_text())
        (config,) = read_configs(released["arguments"]).values()
        with torch.device("meta"):
            names = [name for name, _ in AdapTokARForCausalLM(config).named_parameters()]
        for _, ours, *_ in KEYS[part]:
            pattern = re.escape(ours).replace(r"\*", "0") + r"(\.weight)?"
            assert any(re.fullmatch(pattern, name) for name in names), ours


def test_class_names():
    assert len(set(UCF101)) == 101 and sorted(UCF101, key=str.lower) == list(UCF101)
