"""The original authors' checkpoints, loaded as users load pipelines."""

import json
import logging
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from builders.fake_hub import COMMIT, serve_repository
from safetensors.torch import load_file, save_file

from adaptok_hf import AdapTokPipeline
from adaptok_hf.cli.main import main
from adaptok_hf.conversion.convert import convert_checkpoint
from adaptok_hf.conversion.original_names import TABLES
from adaptok_hf.conversion.sources import read_source
from adaptok_hf.pipelines.original_loading import is_original

PARITY = Path(__file__).parents[1] / "assets" / "parity"
TOKENIZER, CAUSAL = PARITY / "tokenizer_tiny" / "checkpoint_easydict.pth", PARITY / "tokenizer_tiny_causal"
AR, FP = PARITY / "ar_tiny" / "checkpoint_easydict.pth", PARITY / "fp_tiny"
ENTRIES_OF_FILES = ("_name_or_path", "model_type", "architectures", "auto_map", "transformers_version")


@pytest.fixture
def messages():
    """What loading logs, whatever the level that other tests have set."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    logger = logging.getLogger("adaptok_hf.conversion.originals")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    yield records
    logger.removeHandler(handler)
    logger.setLevel(level)


def write_folder(folder: Path, **changes) -> Path:
    """A folder as the authors' repositories are: with a scorer, unless `changes` of the arguments leave it out."""
    arguments, tensors, _ = read_source(TOKENIZER, None)
    arguments = {name: value for name, value in (arguments | changes).items() if value != "absent"}
    if arguments.get("scorer_name") is None:
        tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("scorer.")}
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(arguments))
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def converted(tmp_path_factory) -> AdapTokPipeline:
    folder = tmp_path_factory.mktemp("converted") / "all"
    for source in (TOKENIZER, AR, FP):
        convert_checkpoint(source, folder)
    return AdapTokPipeline.from_pretrained(folder)


def test_everything_in_one_line(converted, tmp_path, messages):
    """And nothing differs from the converted folder."""
    pipeline = AdapTokPipeline.from_pretrained(TOKENIZER, ar_model=str(AR), fp_model=FP)
    (record,) = messages
    assert record.levelno == logging.INFO and "a scorer" in record.getMessage() and "without" not in record.getMessage()
    assert pipeline.name_or_path == TOKENIZER and pipeline.model_hash == converted.model_hash
    for name in ("tokenizer", "scorer", "ar_model", "fp_model"):
        ours, theirs = getattr(pipeline, name), getattr(converted, name)
        assert not ours.training and ours.dtype == torch.float32
        states = ours.state_dict(), theirs.state_dict()
        assert states[0].keys() == states[1].keys()
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
        entries = [vars(model.config) | dict.fromkeys(ENTRIES_OF_FILES) for model in (ours, theirs)]
        assert entries[0] == entries[1]
    video = torch.rand(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    outputs = [each.reconstruct(video, budget=8).tokens for each in (pipeline, converted)]
    assert torch.equal(outputs[0].token_counts, outputs[1].token_counts) and outputs[0].num_tokens == 32
    generated = [
        each.generate([0], generator=torch.Generator().manual_seed(1), max_tokens=12).token_counts
        for each in (pipeline, converted)
    ]
    assert torch.equal(*generated)

    pipeline.save_pretrained(tmp_path / "saved")
    assert AdapTokPipeline.from_pretrained(tmp_path / "saved").model_hash == converted.model_hash


def test_options(tmp_path, messages):
    """Components by keyword, `None` for one to leave out, types of numbers, an average; the rest is an error by name."""
    assert AdapTokPipeline.from_pretrained(str(TOKENIZER), torch_dtype=torch.bfloat16).dtype == torch.bfloat16
    assert AdapTokPipeline.from_pretrained(TOKENIZER, dtype={"scorer": torch.float16}).scorer.dtype == torch.float16
    whole = AdapTokPipeline.from_pretrained(TOKENIZER, trust_remote_code=True, use_safetensors=False, variant=None)
    messages.clear()
    alone = AdapTokPipeline.from_pretrained(TOKENIZER, scorer=None)
    assert alone.scorer is None and "fixed, measured" in messages[0].getMessage()
    assert AdapTokPipeline.from_pretrained(TOKENIZER, scorer=whole.scorer).scorer is whole.scorer
    assert AdapTokPipeline.from_pretrained(FP, tokenizer=whole.tokenizer).video_processor.num_frames == 16
    for option in ({"variant": "fp16"}, {"device_map": "balanced"}):
        with pytest.raises(TypeError, match=next(iter(option))):
            AdapTokPipeline.from_pretrained(TOKENIZER, **option)
    with pytest.raises(ValueError, match="0.99"):
        AdapTokPipeline.from_pretrained(TOKENIZER, ema=0.99)
    with pytest.raises(ValueError, match="scorer='small'.*load the model"):
        AdapTokPipeline.from_pretrained(TOKENIZER, scorer="small")
    with pytest.raises(ValueError, match="fp_model=.*ar_tiny.*ar_model"):
        AdapTokPipeline.from_pretrained(TOKENIZER, fp_model=AR)


@pytest.mark.parametrize(("dtype", "expected"), [("auto", torch.bfloat16), ("float16", torch.float16)])
def test_types_of_numbers_by_name(tmp_path, dtype, expected):
    folder = write_folder(tmp_path / "half")
    tensors = load_file(folder / "model.safetensors")
    tables = {table for names in TABLES.values() for table in names}  # which are compared with ours
    half = {name: tensor if name in tables else tensor.bfloat16() for name, tensor in tensors.items()}
    save_file(half, folder / "model.safetensors")
    pipeline = AdapTokPipeline.from_pretrained(folder, dtype=dtype)
    assert pipeline.tokenizer.dtype == pipeline.scorer.dtype == expected


def test_folders(tmp_path, messages):
    """A folder as the authors' repositories are, and one with a training checkpoint."""
    assert AdapTokPipeline.from_pretrained(write_folder(tmp_path / "Scorer", scorer_name="transformer_scorer")).scorer
    folder = write_folder(tmp_path / "AdapTok", scorer_name=None)
    messages.clear()
    pipeline = AdapTokPipeline.from_pretrained(folder / "model.safetensors")
    (record,) = messages
    assert record.levelno == logging.WARNING and "fixed, measured" in record.getMessage()
    assert pipeline.scorer is None
    assert pipeline.reconstruct(torch.rand(16, 3, 32, 32), budget=8, allocation="measured").tokens.num_tokens == 32

    (tmp_path / "run").mkdir()
    shutil.copy(TOKENIZER, tmp_path / "run" / "epoch-last.pth")
    assert AdapTokPipeline.from_pretrained(tmp_path / "run").model_hash == pipeline.model_hash
    shutil.copy(TOKENIZER, tmp_path / "run" / "epoch-best.pth")
    with pytest.raises(FileNotFoundError, match="epoch-best.pth, epoch-last.pth"):
        AdapTokPipeline.from_pretrained(tmp_path / "run")


def test_larp(tmp_path, messages):
    """LARP's tokenizer is AdapTok's without masks, tails and scorer, and names fewer arguments."""
    absent = ("encoder_attn_type", "decoder_attn_type", "scorer_attn_type", "mask_generator", "scorer_name")
    pipeline = AdapTokPipeline.from_pretrained(write_folder(tmp_path / "larp", **dict.fromkeys(absent, "absent")))
    assert "not adaptive" in messages[0].getMessage()
    config = pipeline.tokenizer.config
    assert (config.encoder_attention_type, config.decoder_attention_type, config.adaptive) == ("full", "full", False)
    assert pipeline.reconstruct(torch.rand(16, 3, 32, 32)).frames.shape == (1, 16, 32, 32, 3)


def test_what_is_no_pipeline(tmp_path):
    with pytest.raises(ValueError, match=f'a generator from frames.*AdapTok-Scorer", fp_model="{FP}"'):
        AdapTokPipeline.from_pretrained(FP)
    with pytest.raises(FileNotFoundError, match="nothing.pth"):
        AdapTokPipeline.from_pretrained("nothing.pth")
    (tmp_path / "video.mp4").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="video.mp4"):
        AdapTokPipeline.from_pretrained(tmp_path / "video.mp4")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        AdapTokPipeline.from_pretrained(tmp_path)
    for kind in ("adaptok", "evatok"):  # models of ours
        (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
        save_file({}, tmp_path / "model.safetensors")
        assert not is_original(tmp_path)
        with pytest.raises(ValueError, match=f"converted already .*'{kind}'"):
            read_source(tmp_path, None)


@pytest.fixture
def online(monkeypatch):
    """Gives the libraries a Hub on this machine."""

    def use(address: str) -> None:
        url = f"{address}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        values = {"ENDPOINT": address, "HUGGINGFACE_CO_URL_TEMPLATE": url, "HF_HUB_OFFLINE": False}
        for name, value in values.items():
            monkeypatch.setattr(huggingface_hub.constants, name, value)

    return use


def test_from_the_hub(online, tmp_path, monkeypatch, capsys):
    options = {"cache_dir": tmp_path / "cache"}
    with serve_repository("yeahhhh326/AdapTok", CAUSAL) as (address, fetched):
        online(address)
        pipeline = AdapTokPipeline.from_pretrained("yeahhhh326/AdapTok", revision=COMMIT, token="t", **options)
        assert sorted(fetched) == ["config.json", "io.safetensors", "model.safetensors"]
        assert pipeline.name_or_path == "yeahhhh326/AdapTok"
        with pytest.raises(OSError, match="cache"):
            AdapTokPipeline.from_pretrained("yeahhhh326/AdapTok", cache_dir=tmp_path / "other", local_files_only=True)
    assert AdapTokPipeline.from_pretrained("yeahhhh326/AdapTok", local_files_only=True, **options, revision=COMMIT)

    with serve_repository("yeahhhh326/AdapTok-Scorer", write_folder(tmp_path / "Scorer")) as (address, _):
        online(address)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        assert main(["info", "--json", "--model", "yeahhhh326/AdapTok-Scorer", "--device", "cpu"]) == 0
        info = json.loads(capsys.readouterr().out)
        assert info["scorer_parameters"] > 0 == info["ar_model_parameters"] and info["latents_per_block"] == 16
