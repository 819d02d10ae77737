"""A plain `transformers.Trainer` trains the models, on rows as `datasets` and `torch.utils.data` give them."""

import pytest
import torch
from transformers import AutoModel, AutoModelForCausalLM, Trainer, TrainingArguments

pytestmark = pytest.mark.slow


@pytest.fixture
def rows(complete_pipeline, tiny_video) -> dict[str, list[dict]]:
    """Four rows for each model, by the model's name in the pipeline."""
    videos = tiny_video.repeat(2, 1, 1, 1, 1)
    with torch.no_grad():
        encoded = complete_pipeline.tokenizer.encode(videos)
    targets = torch.rand(4, 3, 3, generator=torch.Generator().manual_seed(4))
    texts = complete_pipeline.ar_model.build_inputs(encoded.codes, torch.full((4, 3), 5), torch.arange(4) % 3)
    return {
        "tokenizer": [{"pixel_values_videos": video, "file": f"{i}.mp4"} for i, video in enumerate(videos)],
        "scorer": [
            {"latents": latents, "quantized": quantized, "labels": labels}
            for latents, quantized, labels in zip(encoded.latents, encoded.quantized, targets, strict=True)
        ],
        "ar_model": [dict(zip(texts, row, strict=True)) for row in zip(*texts.values(), strict=True)],
    }


def trainer_of(model, rows, folder, **options) -> Trainer:
    options = {"per_device_train_batch_size": 2, "max_steps": 2, "save_strategy": "no", "learning_rate": 0.001} | options
    settings = TrainingArguments(folder, use_cpu=True, report_to="none", disable_tqdm=True, **options)
    return Trainer(model, settings, train_dataset=rows, eval_dataset=rows[:3])


@pytest.mark.parametrize("name", ["tokenizer", "scorer", "ar_model"])
def test_trains_evaluates_and_saves(complete_pipeline, rows, name, tmp_path):
    model = getattr(complete_pipeline, name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    trainer = trainer_of(model, rows[name], tmp_path)
    first = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < first
    assert not any(torch.equal(value, before[key]) for key, value in model.state_dict().items() if key.endswith("weight"))
    trainer.save_model(tmp_path / "model")
    auto = AutoModelForCausalLM if name == "ar_model" else AutoModel
    loaded = auto.from_pretrained(tmp_path / "model")
    assert type(loaded) is type(model)
    for key, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)


@pytest.mark.parametrize("name", ["tokenizer", "scorer", "ar_model"])
def test_accumulated_gradients_are_those_of_one_batch(complete_pipeline, rows, name, tmp_path):
    model = getattr(complete_pipeline, name)
    model.config.stochastic_quantizer = False
    for key in ("embedding_dropout", "residual_dropout", "mlp_dropout", "class_dropout"):
        setattr(model.config, key, 0.0)
    for layer in getattr(getattr(model, "model", None), "layers", []):
        layer.residual_dropout = layer.mlp_dropout = 0.0
    start, results = {key: value.clone() for key, value in model.state_dict().items()}, []
    for options in ({"per_device_train_batch_size": 4}, {"gradient_accumulation_steps": 2}):
        model.load_state_dict(start)
        sgd = {"max_steps": 1, "optim": "sgd", "max_grad_norm": 0.0, "learning_rate": 0.1}
        trainer_of(model, rows[name], tmp_path, **sgd, **options).train()
        results.append({key: value.clone() for key, value in model.state_dict().items()})
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, atol=1e-5, rtol=1e-4)


def test_label_smoothing_shifts_the_labels(complete_pipeline, rows, tmp_path):
    model = complete_pipeline.ar_model.eval()
    trainer = trainer_of(model, rows["ar_model"], tmp_path, label_smoothing_factor=1e-6)
    batch = trainer.data_collator(rows["ar_model"])
    expected = torch.nn.functional.cross_entropy(model(batch["input_ids"]).logits[:, :-1].mT, batch["labels"][:, 1:])
    torch.testing.assert_close(trainer.compute_loss(model, dict(batch)), expected, atol=1e-4, rtol=1e-4)


def test_predictions_are_videos_and_scores(complete_pipeline, rows, tmp_path):
    def measure(prediction):
        return {"psnr": -10 * float(torch.tensor((prediction.predictions - prediction.label_ids) ** 2).mean().log10())}

    trainer = trainer_of(complete_pipeline.tokenizer, rows["tokenizer"], tmp_path, label_names=["pixel_values_videos"])
    trainer.compute_metrics = measure
    assert trainer.evaluate().keys() >= {"eval_loss", "eval_psnr"}
    assert trainer.predict(rows["tokenizer"]).predictions.shape == (4, 12, 3, 16, 16)
    assert trainer_of(complete_pipeline.scorer, rows["scorer"], tmp_path).predict(rows["scorer"]).predictions.shape == (
        4,
        3,
        3,
    )


@pytest.mark.parametrize("name", ["tokenizer", "scorer", "ar_model"])
@pytest.mark.parametrize(
    "options",
    [
        {"gradient_checkpointing": True},
        {"bf16": True},
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {
            "eval_strategy": "steps",
            "save_strategy": "steps",
            "save_steps": 1,
            "eval_steps": 1,
            "load_best_model_at_end": True,
        },
    ],
    ids=lambda options: next(iter(options)),
)
def test_options_of_the_trainer(complete_pipeline, rows, name, options, tmp_path):
    trainer = trainer_of(getattr(complete_pipeline, name), rows[name], tmp_path, **options)
    assert trainer.train().training_loss > 0 and trainer.evaluate()["eval_loss"] > 0
