"""Generators trained on the tokens of a data set, as users train them: subprocesses, tiny recipes, a few steps."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.script_runs import SCRIPTS, kill_script, metrics, run_script
from builders.token_data import TokenData, make_token_data
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, AdapTokPipeline
from adaptok_hf.training.ar import arguments as ar_arguments
from adaptok_hf.training.ar import model as ar_model
from adaptok_hf.training.ar import token_rows as ar_token_rows
from adaptok_hf.training.arguments import epochs_to_steps

SIZES = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 32}
NO_DROPOUT = {f"{part}_dropout": 0.0 for part in ("embedding", "residual", "mlp", "class")}
RECIPE = {
    "model": SIZES,
    "steps": 5,
    "batch_size": 3,
    "warmup_steps": 1,
    "learning_rate": 0.01,
    "final_learning_rate": 0.001,
    "adam_beta2": 0.98,
    "ema_decay": 0.5,
    "validation_steps": 5,
    "checkpointing_steps": 1,
    "logging_steps": 1,
    "report_to": "tensorboard",
}
FRAME_PREDICTION = {"num_classes": 0, "num_condition_codes": 32, "start_block": 1}
LORA = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "down_proj"]}
CLASSES = ["a_jump", "b_run"]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> TokenData:
    return make_token_data(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def recipe(made):
    """Writes a recipe."""

    def write(name: str, entries: dict) -> Path:
        path = made.tokens.parent / f"{name}.json"
        path.write_text(json.dumps(entries))
        return path

    return write


@pytest.fixture(scope="module")
def class_run(made, recipe) -> Path:
    """A class-conditional generator that was trained without interruption."""
    folder = made.tokens.parent / "class_run"
    options = ["--tokens", made.tokens, "--validation_tokens", made.tokens, "--output_dir", folder]
    run_script("train_ar.py", recipe("class", RECIPE), *options)
    return folder


@pytest.fixture(scope="module")
def trained(made) -> Path:
    """A generator of three classes, one of which the tokens have, with tied embeddings."""
    torch.manual_seed(0)
    names = {"num_classes": 3, "id2label": {0: "sit", 1: "b_run", 2: "stand"}}
    geometry = {"codebook_size": 40, "num_blocks": 4, "latents_per_block": 16}
    model = AdapTokARForCausalLM(AdapTokARConfig(**SIZES, **NO_DROPOUT, **names, **geometry, tie_word_embeddings=True))
    model.save_pretrained(made.tokens.parent / "trained")
    return made.tokens.parent / "trained"


@pytest.fixture(scope="module")
def lora_recipe(recipe) -> Path:
    entries = {"use_lora": True, "lora": LORA, "gradient_checkpointing": True, "weight_decay": 0.0, "report_to": "none"}
    return recipe("lora", {name: value for name, value in RECIPE.items() if name != "model"} | entries)


@pytest.fixture(scope="module")
def lora_run(made, lora_recipe, trained) -> tuple[Path, str]:
    folder = made.tokens.parent / "lora_run"
    options = ["--init_from", trained, "--tokens", made.tokens, "--output_dir", folder]
    return folder, run_script("train_ar.py", lora_recipe, *options)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def pipeline_with(made: TokenData, ar_model=None, fp_model=None) -> AdapTokPipeline:
    base = AdapTokPipeline.from_pretrained(made.pipeline)
    return AdapTokPipeline(base.video_processor, base.tokenizer, None, ar_model, fp_model)


def test_class_run(class_run, made):
    names = {"model", "model_ema", "checkpoint-4", "checkpoint-5", "tracker", "recipe.json", "metrics.jsonl"}
    assert {path.name for path in class_run.iterdir()} == names
    records = metrics(class_run)
    assert sorted(records) == [1, 2, 3, 4, 5]
    for step, record in records.items():
        validation = {"val_loss", "ema_val_loss"} if step == 5 else set()
        assert set(record) == {"step", "loss", "grad_norm", "learning_rate", "tokens_kept"} | validation
        assert record["grad_norm"] > 0 and 4 <= record["tokens_kept"] <= 16
    assert records[5]["val_loss"] < records[1]["loss"]  # of 40 codes: log(41) = 3.7 at the start
    assert records[1]["learning_rate"] == 0.01 > records[5]["learning_rate"]
    model, average = (AutoModelForCausalLM.from_pretrained(class_run / name) for name in ("model", "model_ema"))
    assert type(model) is type(average) is AdapTokARForCausalLM
    assert model.config.id2label == dict(enumerate(CLASSES))
    states = [torch.load(class_run / f"checkpoint-{step}" / "custom_checkpoint_1.pkl") for step in (4, 5)]
    before, after = (state["module.lm_head.weight"] for state in states)
    assert torch.equal(average.lm_head.weight, after) and not torch.equal(before, after)
    torch.testing.assert_close(after, (before + model.lm_head.weight) / 2)  # ema_decay is 0.5
    output = pipeline_with(made, model).generate(CLASSES, max_tokens=16)
    assert output.frames.shape == (2, 16, 32, 32, 3) and output.token_counts.sum((1, 2)).max() <= 16


def test_adapters(lora_run, trained, made):
    from peft import PeftModel

    folder, output = lora_run
    assert "1 of its 3 are kept (b_run), new ones start as 'no class' (a_jump)" in output
    names = {"adapter", "model", "model_ema", "checkpoint-4", "checkpoint-5", "recipe.json", "metrics.jsonl"}
    assert {path.name for path in folder.iterdir()} == names
    records = metrics(folder)
    assert records[5]["loss"] < records[1]["loss"]

    base = AutoModelForCausalLM.from_pretrained(trained)
    old = {name: weight.clone() for name, weight in base.state_dict().items()}
    adapted = PeftModel.from_pretrained(base, folder / "adapter")
    saved = load_file(folder / "adapter" / "adapter_model.safetensors")
    assert len(saved) == 2 * 2 + 1, "two modules of one layer, and the rows of the classes"
    assert all(weight.abs().max() > 0 for weight in saved.values()), "peft starts one of each pair at zero"

    merged, average = (AutoModelForCausalLM.from_pretrained(folder / name) for name in ("model", "model_ema"))
    assert type(merged) is AdapTokARForCausalLM and merged.config.id2label == dict(enumerate(CLASSES))
    # what is adapted moved, what is frozen did not: codes and <EOB> neither
    new, average_weights = merged.state_dict(), average.state_dict()
    tables = {"model.embed_tokens.weight", "lm_head.weight"}
    moved = {name for name in set(old) - tables if not torch.equal(old[name], new[name])}
    assert moved == {name for name in old if name.split(".")[-2] in LORA["target_modules"]}
    assert all(torch.equal(new[name][:41], old[name][:41]) for name in tables)
    assert not torch.equal(new["model.embed_tokens.weight"][42], old["model.embed_tokens.weight"][42])  # b_run
    for name in moved:
        assert not torch.equal(average_weights[name], new[name]) and not torch.equal(average_weights[name], old[name])

    codes, counts = torch.randint(40, (2, 4, 16)), torch.full((2, 4), 5)
    inputs, loaded = merged.build_inputs(codes, counts, [0, 1]), AdapTokARForCausalLM.from_pretrained(folder / "adapter")
    for model in (adapted, loaded):
        torch.testing.assert_close(model.eval()(**inputs).logits, merged.eval()(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert adapted.get_base_model().class_names == loaded.class_names == CLASSES
    assert pipeline_with(made, merged).generate("a_jump", max_tokens=16).frames.shape == (1, 16, 32, 32, 3)


def test_a_killed_run_is_resumed_exactly(class_run, made, tmp_path):
    folder = tmp_path / "interrupted"
    options = [made.tokens.parent / "class.json", "--tokens", made.tokens, "--validation_tokens", made.tokens]
    options += ["--output_dir", folder]
    kill_script("train_ar.py", *options, once_there=folder / "checkpoint-2")
    assert max(metrics(folder)) < 5
    assert "resumed at step" in run_script("train_ar.py", *options, "--resume_from_checkpoint", "latest")
    assert metrics(folder) == metrics(class_run)
    for name in ("model", "model_ema"):
        files = [path / name / "model.safetensors" for path in (folder, class_run)]
        assert files[0].read_bytes() == files[1].read_bytes()


@pytest.mark.slow
def test_adapters_are_resumed_exactly(lora_run, lora_recipe, trained, made, tmp_path):
    options = [lora_recipe, "--init_from", trained, "--tokens", made.tokens, "--output_dir", tmp_path / "run"]
    run_script("train_ar.py", *options, "--max_train_steps", 2)
    assert "has checkpoints" in run_script("train_ar.py", *options, fails=True)
    output = run_script("train_ar.py", *options, "--resume_from_checkpoint", "checkpoint-2", "--num_workers", 1)
    assert "resumed at step 2" in output
    assert metrics(tmp_path / "run") == metrics(lora_run[0])
    for name in ("model", "model_ema", "adapter"):
        ours, theirs = (
            load_file(next((folder / name).glob("*.safetensors"))) for folder in (tmp_path / "run", lora_run[0])
        )
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.slow
def test_the_same_batch_however_it_is_cut(made, recipe, tmp_path):
    """By one process, in two parts, and by two processes: sequences differ in length, the loss is a mean over tokens."""
    entries = {"model": SIZES | NO_DROPOUT, "batch_size": 4, "report_to": "none"}
    path = recipe("cut", RECIPE | entries)
    options = ["--tokens", made.tokens, "--validation_tokens", made.tokens]
    runs = {"whole": [], "parts": ["--gradient_accumulation_steps", "2"], "processes": []}
    for name, more in runs.items():
        processes = 2 if name == "processes" else 1
        output = run_script("train_ar.py", path, *options, *more, "--output_dir", tmp_path / name, processes=processes)
        assert f"on {processes} processes" in output
    whole = metrics(tmp_path / "whole")
    assert len({record["tokens_kept"] for record in whole.values()}) > 1
    for name in ("parts", "processes"):
        for step, record in metrics(tmp_path / name).items():
            assert record == pytest.approx(whole[step], rel=1e-5, abs=2e-5)  # the log has five digits
        for weight, other in zip(*(weights(tmp_path / run / "model").values() for run in ("whole", name)), strict=True):
            torch.testing.assert_close(weight, other, atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_frame_prediction_run(made, recipe, tmp_path):
    path = recipe("frames", RECIPE | {"model": SIZES | FRAME_PREDICTION})
    run_script("train_ar.py", path, "--tokens", made.tokens, "--output_dir", tmp_path / "fp")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "fp" / "model")
    pipeline = pipeline_with(made, fp_model=model)
    assert pipeline.predict(made.videos / "a_jump" / "1.mp4", max_tokens=12).frames.shape == (1, 16, 32, 32, 3)


def test_every_epoch_takes_a_window_of_each_video():
    module = ar_token_rows
    video_of_row = np.array([0, 2, 1, 0, 0, 2, 0, 0, 0, 0])  # video 0 has seven rows, 1 has one, 2 has two

    def batches(batch_size=2, steps=range(90), **options):
        return list(module.WindowSampler(video_of_row, batch_size, steps, seed=3, **options))

    all_batches = batches()
    rows = [row for batch in all_batches for row in batch]
    epochs = [rows[start : start + 3] for start in range(0, 180, 3)]  # a batch may go from one epoch into the next
    assert all(sorted(video_of_row[epoch]) == [0, 1, 2] for epoch in epochs)
    assert len({tuple(video_of_row[epoch]) for epoch in epochs}) == 6, "in random order"
    counts = Counter(rows)
    assert sorted(counts) == list(range(10)) and counts[2] == 60 and min(counts[i] for i in (0, 3, 4, 6, 7, 8, 9)) > 1
    assert batches(steps=range(50, 90)) == all_batches[50:]  # resumed
    shares = [batches(rank=rank, world_size=2) for rank in range(2)]
    assert [[a, b] for (a,), (b,) in zip(*shares, strict=True)] == all_batches
    assert [row for batch in batches(5, range(36)) for row in batch] == rows  # larger than an epoch


def test_rows(made):
    rows = ar_token_rows.TokenRows([str(made.tokens), str(made.tokens)])
    assert (len(rows), rows.num_videos, rows.largest_label) == (16, 8, 1)
    assert Counter(Counter(rows.video_of_row.tolist()).values()) == {1: 4, 3: 4}
    validation = [list(rows.validation_batches(2, 5, rank=rank, world_size=2)) for rank in range(2)]
    assert [[len(batch["codes"]) for batch in part] for part in validation] == [[2, 1], [2]]
    assert validation[0][0]["codes"].dtype == torch.int64 and set(validation[0][0]) == set(ar_token_rows.COLUMNS)
    args = ar_arguments.Arguments(tokens=[], output_dir="o", epochs=3000, warmup_epochs=4, batch_size=64)
    steps = epochs_to_steps(args.epochs, args.batch_size, 9537)
    assert (steps, epochs_to_steps(args.warmup_epochs, 64, 9537)) == (447047, 597)  # the paper's run on UCF-101


def test_known_classes_stay(trained):
    module, model = ar_model, AutoModelForCausalLM.from_pretrained(trained)
    old = model.model.embed_tokens.weight.detach().clone()
    module.change_classes(model, ["stand", "lie", "sit"])
    new = model.model.embed_tokens.weight
    assert torch.equal(new[[41, 43]], old[[43, 41]]) and torch.equal(new[[42, 44]], old[[44, 44]])
    assert torch.equal(new[:41], old[:41]) and model.lm_head.weight is new
    assert model.class_names == ["stand", "lie", "sit"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"steps": None}, "either steps or epochs, got None and None"),
        ({"epochs": 1}, "either steps or epochs, got 5 and 1"),
        ({"batch_size": 0}, "batch_size .* 0"),
        ({"init_from": "saved"}, "init_from .* saved"),
        ({"use_lora": True, "lora": LORA}, "use_lora needs init_from"),
        ({"use_lora": True, "init_from": "x", "model": {}}, "at least target_modules"),
        ({"lora": LORA}, r"lora entries \['lora_alpha', 'r', 'target_modules'\] need use_lora"),
    ],
)
def test_bad_recipes_are_named(entries, message):
    with pytest.raises(ValueError, match=message):
        ar_arguments.Arguments(tokens=["t"], output_dir="o", **(RECIPE | entries))


def test_models_and_tokens_that_do_not_belong_together(trained, made, tmp_path):
    rows, models = ar_token_rows, ar_model
    with pytest.raises(ValueError, match="holds no tokens"):
        rows.read_description([str(tmp_path)], labeled=True)
    description = rows.read_description([str(made.tokens)], labeled=True)
    other = tmp_path / "other"
    other.mkdir()
    (other / "dataset.json").write_text(json.dumps(description | {"class_names": ["a_jump"]}))
    (other / "0.parquet").touch()
    with pytest.raises(ValueError, match=r"other has another class_names than .*tokens"):
        rows.read_description([str(made.tokens), str(other)], labeled=True)
    assert rows.read_description([str(made.tokens), str(other)], labeled=False)["class_names"] == []

    arguments = ar_arguments.Arguments
    args = arguments(tokens=["t"], output_dir="o", steps=1, init_from=str(trained))
    with pytest.raises(ValueError, match="codebook_size=40, the tokens 41: they are of different tokenizers"):
        models.build_model(args, description | {"codebook_size": 41}, print)
    args = arguments(tokens=["t"], output_dir="o", steps=1, model=SIZES)
    with pytest.raises(ValueError, match="needs tokens with classes"):
        models.build_model(args, description | {"class_names": []}, print)
    args.model = SIZES | {"num_classes": 1}
    with pytest.raises(ValueError, match="num_classes=1, but the labels go up to 1"):
        rows.TokenRows([str(made.tokens)]).check(models.build_model(args, description | {"class_names": ["a"]}, print))


def test_sizes_of_published_recipes():
    description = {"codebook_size": 8192, "num_blocks": 4, "latents_per_block": 512}
    sizes = {"ar_paper": 633, "fp_paper": 633, "ar_small": 28, "ar_base": 99, "ar_large": 327, "ar_extra_large": 755}
    for name, size in sizes.items():
        recipe = json.loads((SCRIPTS / "recipes" / f"{name}.json").read_text())
        args = ar_arguments.Arguments(tokens=["t"], output_dir="o", **recipe)
        assert (args.learning_rate, args.weight_decay, args.adam_beta1, args.adam_beta2) == (6e-4, 0.05, 0.9, 0.95)
        names = [str(i) for i in range(101)] if ar_model.is_class_conditional(args) else []
        with torch.device("meta"):
            model = ar_model.build_model(args, description | {"class_names": names}, print)
        assert model.num_parameters() / 1e6 == pytest.approx(size, abs=5), name  # position tables come on top
