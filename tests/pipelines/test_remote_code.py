"""Saved folders load where this package is not installed, are saved again there, and load once more."""

import re
from graphlib import TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.pipelines import noisy_video
from builders.without_package import run_without_the_package
from diffusers import DiffusionPipeline
from safetensors.torch import load_file, save_file

from adaptok_hf import AdapTokModel, AdapTokPipeline, AdapTokScorerModel
from adaptok_hf.conversion.convert import convert_checkpoint
from adaptok_hf.pipelines.remote_code import pipeline_code

TRAINING_CHECKPOINT = Path(__file__).parents[1] / "assets" / "parity" / "tokenizer_tiny" / "checkpoint_easydict.pth"

REMOTE = """
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
folder = sys.argv[1]
inputs = load_file("inputs.safetensors")
for number in range(2):  # from what was saved here as well
    tokenizer = AutoModel.from_pretrained(f"{folder}/tokenizer", trust_remote_code=True).eval()
    scorer = AutoModel.from_pretrained(f"{folder}/scorer", trust_remote_code=True).eval()
    with torch.no_grad():
        encoded = tokenizer.encode(inputs["video"])
        video = tokenizer.decode(encoded.codes, inputs["counts"]).pixel_values_videos
        scores = scorer(encoded.latents, encoded.quantized, inputs["counts"]).scores
    save_file({"codes": encoded.codes, "video": video, "scores": scores}, f"result{number}")
    folder = "again"
    tokenizer.save_pretrained(f"{folder}/tokenizer")
    scorer.save_pretrained(f"{folder}/scorer")
"""


def test_files_do_not_import_each_other_in_circles():
    """diffusers follows each import that it reads in a file of a repository, even inside a string, without an end."""
    files = pipeline_code()
    graph = {name.removesuffix(".py"): get_imports(text) for name, text in files.items()}
    assert list(TopologicalSorter(graph).static_order())[-1] == "adaptok_pipeline"


def get_imports(text: str) -> list[str]:
    return re.findall(r"^\s*from\s+\.(\S+)\s+import", text, flags=re.MULTILINE)  # as diffusers reads them


@pytest.mark.slow
def test_models_load_without_the_package(tmp_path):
    converted = tmp_path / "converted"
    convert_checkpoint(TRAINING_CHECKPOINT, converted)
    generator = torch.Generator().manual_seed(0)
    inputs = {"video": torch.rand(2, 16, 3, 32, 32, generator=generator), "counts": torch.tensor([[5, 0, 9, 16]] * 2)}
    save_file(inputs, tmp_path / "inputs.safetensors")
    run_without_the_package(REMOTE, converted, cwd=tmp_path)

    tokenizer = AdapTokModel.from_pretrained(converted / "tokenizer").eval()
    scorer = AdapTokScorerModel.from_pretrained(converted / "scorer").eval()
    with torch.no_grad():
        encoded = tokenizer.encode(inputs["video"])
        video = tokenizer.decode(encoded.codes, inputs["counts"]).pixel_values_videos
        scores = scorer(encoded.latents, encoded.quantized, inputs["counts"]).scores
    for name in ("result0", "result1"):
        result = load_file(tmp_path / name)
        assert torch.equal(result["codes"], encoded.codes)
        torch.testing.assert_close(result["video"], video, atol=1e-6, rtol=0)
        torch.testing.assert_close(result["scores"], scores, atol=1e-6, rtol=0)


PIPELINE = """
import numpy as np
from diffusers import DiffusionPipeline
video, folder = np.load("video.npy"), "saved"
for number in range(3):  # what is saved here from what was saved here, too
    pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
    assert type(pipe).__name__ == "AdapTokPipeline" and pipe.ar_model.generation_config.temperature == 0.7
    np.save(f"frames{number}.npy", pipe(video, budget=4, output_type="uint8").frames)
    folder = f"again{number}"
    pipe.save_pretrained(folder)
type(pipe).from_pretrained(folder).to("cpu")
"""


@pytest.mark.slow
def test_pipelines_load_without_the_package(complete_pipeline, tmp_path):
    complete_pipeline.ar_model.generation_config.temperature = 0.7
    complete_pipeline.save_pretrained(tmp_path / "saved")
    (tmp_path / "saved" / "ar_model" / "generation_config.json").unlink()  # diffusers does not download it
    np.save(tmp_path / "video.npy", noisy_video(15))
    run_without_the_package(PIPELINE, cwd=tmp_path)
    expected = complete_pipeline(noisy_video(15), budget=4, output_type="uint8").frames
    for number in range(3):
        assert np.abs(np.load(tmp_path / f"frames{number}.npy").astype(int) - expected).max() <= 1
    loaded = AdapTokPipeline.from_pretrained(tmp_path / "again2")
    assert type(loaded.tokenizer) is AdapTokModel and loaded.model_hash == complete_pipeline.model_hash


def test_installed_classes_need_no_trust(tiny_pipeline, tmp_path):
    """As with transformers' Auto classes, what is installed and registered comes before a folder's code."""
    tiny_pipeline.save_pretrained(tmp_path)
    for code in tmp_path.rglob("*.py"):
        code.write_text("raise AssertionError('code of the folder was run')")
    for options in ({}, {"trust_remote_code": True}):
        loaded = DiffusionPipeline.from_pretrained(tmp_path, **options)
        assert type(loaded) is AdapTokPipeline and type(loaded.scorer) is AdapTokScorerModel
