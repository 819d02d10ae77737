"""Tokens of `tokenize_dataset.py` with `datasets` and the `Trainer`, as users of these libraries use them."""

import shutil
from pathlib import Path

import datasets
import pytest
import torch
from accelerate import Accelerator
from builders.token_data import make_pipeline, write_videos
from datasets import ClassLabel, DatasetDict, List, Value, load_dataset
from transformers import Trainer, TrainingArguments

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, AdapTokPipeline
from adaptok_hf.data import TokenCollator
from adaptok_hf.training.ar.token_shards import Arguments, write_token_shards

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def pipeline() -> AdapTokPipeline:
    return make_pipeline(1, image_size=32, num_frames=16, latents_per_block=16, score_step=4, codebook_size=40)


@pytest.fixture(scope="module")
def tokens(pipeline, tmp_path_factory) -> Path:
    """8 rows of two classes, in 2 shards."""
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("cache")
    folder = tmp_path_factory.mktemp("tokens")
    write_videos(folder / "videos")
    options = {"labels": "folder", "window_step": 4, "budget": "8", "num_condition_frames": 5, "videos_per_shard": 2}
    args = Arguments(videos=str(folder / "videos"), output_dir=str(folder / "tokens"), batch_size=3, **options)
    pipeline.set_progress_bar_config(disable=True)
    assert write_token_shards(args, pipeline, Accelerator(cpu=True)) == 8
    return folder / "tokens"


def make_generator(rows: datasets.Dataset, **condition) -> AdapTokARForCausalLM:
    codes = rows.features["codes"]
    torch.manual_seed(0)
    config = AdapTokARConfig(
        codebook_size=40, num_blocks=codes.length, latents_per_block=codes.feature.length, **SIZES, **condition
    )
    return AdapTokARForCausalLM(config)


def train(model: AdapTokARForCausalLM, rows, folder: Path) -> AdapTokARForCausalLM:
    options = {"max_steps": 2, "per_device_train_batch_size": 3, "report_to": "none", "use_cpu": True}
    arguments = TrainingArguments(folder, remove_unused_columns=False, save_strategy="no", disable_tqdm=True, **options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    Trainer(model, arguments, data_collator=TokenCollator(model.config), train_dataset=rows).train()
    assert not torch.equal(before["lm_head.weight"], model.lm_head.weight)
    return model


def test_the_folder_is_a_data_set(tokens, pipeline):
    rows = load_dataset(str(tokens))["train"]
    assert rows.num_rows == 8
    assert rows.features["codes"] == List(List(Value("uint16"), length=16), length=4)
    assert rows.features["label"] == ClassLabel(names=["a_jump", "b_run"])
    streamed = load_dataset(f"{tokens}/", split="train", streaming=True)
    assert streamed.features == rows.features and list(streamed) == rows.to_list()
    assert rows.with_format("torch")[:2]["codes"].shape == (2, 4, 16)
    codes, counts = (torch.tensor(rows[:2][name]) for name in ("codes", "token_counts"))
    assert pipeline.tokenizer.decode(codes, token_counts=counts).pixel_values_videos.shape == (2, 16, 3, 32, 32)


def test_splits_and_an_uploaded_folder(tokens, tmp_path):
    """A card names the split; a copy of the folder, such as a download, loads alike, and so do two folders together."""
    shutil.copytree(tokens, tmp_path / "validation")
    card = tmp_path / "validation" / "README.md"
    card.write_text(card.read_text().replace("split: train", "split: validation"))
    validation = load_dataset(str(tmp_path / "validation"), split="validation")
    both = DatasetDict({"train": load_dataset(str(tokens), split="train"), "validation": validation})
    assert both["validation"].to_list() == both["train"].to_list() and both["train"].features == validation.features


def test_trainer_of_a_class_conditional_generator(tokens, tmp_path):
    rows = load_dataset(str(tokens), split="train")
    model = train(make_generator(rows, num_classes=rows.features["label"].num_classes), rows, tmp_path)
    sequences = model.eval().generate(class_labels=[0, 1], max_tokens=8)
    codes, counts = model.unpack_sequences(sequences)
    assert codes.shape == (2, 4, 16) and counts.sum(1).max() <= 8


def test_trainer_of_frame_prediction_on_a_stream(tokens, tmp_path):
    rows = load_dataset(str(tokens), split="train", streaming=True)
    train(make_generator(rows, num_classes=0, num_condition_codes=32), rows, tmp_path)


def test_batches_are_those_of_the_model(tokens):
    rows = load_dataset(str(tokens), split="train")
    model = make_generator(rows, num_classes=2)
    batch = TokenCollator(model.config)(rows.select([0, 4, 5]))
    assert len(set(map(tuple, rows["token_counts"]))) > 1, "rows of several lengths"
    columns = {name: torch.tensor(rows.select([0, 4, 5])[name]) for name in ("codes", "token_counts", "label")}
    expected = model.build_inputs(columns["codes"], columns["token_counts"], class_labels=columns["label"])
    assert batch.keys() == expected.keys() and all(torch.equal(batch[name], expected[name]) for name in batch)
    # the sequence of the card
    row = rows[0]
    sequence = [c for block, n in zip(row["codes"], row["token_counts"], strict=True) for c in block[:n] + [40]]
    assert batch["input_ids"][0, 1 : 1 + len(sequence)].tolist() == sequence
    assert batch["labels"][0, : 1 + len(sequence)].tolist() == [-100, *sequence]
    tensors = [rows.with_format("torch")[i] for i in (0, 4, 5)]
    assert torch.equal(TokenCollator(model.config)(tensors)["input_ids"], batch["input_ids"])


def test_rows_that_do_not_fit(tokens):
    rows = load_dataset(str(tokens), split="train")
    collate = TokenCollator(make_generator(rows, num_classes=1).config)
    with pytest.raises(ValueError, match=r"\['label'\].*remove_unused_columns=False"):
        collate([{"codes": [], "token_counts": []}])
    with pytest.raises(ValueError, match=r"0\.\.0, got 1"):
        collate(rows.to_list())


def test_a_model_is_not_a_configuration():
    with pytest.raises(TypeError, match=r"Linear.*model\.config"):
        TokenCollator(torch.nn.Linear(1, 1))
