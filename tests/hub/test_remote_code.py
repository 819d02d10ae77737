"""Saved folders load where this package is not installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from adaptok_hf import AdapTokModel, AdapTokScorerModel
from adaptok_hf.conversion.convert import convert_checkpoint

TRAINING_CHECKPOINT = Path(__file__).parents[1] / "assets" / "parity" / "tokenizer_tiny" / "checkpoint_easydict.pth"

REMOTE = """
import sys
sys.modules["adaptok_hf"] = None  # importing it fails, even where it is installed
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel
folder, inputs, result = sys.argv[1:]
tokenizer = AutoModel.from_pretrained(f"{folder}/tokenizer", trust_remote_code=True).eval()
scorer = AutoModel.from_pretrained(f"{folder}/scorer", trust_remote_code=True).eval()
inputs = load_file(inputs)
with torch.no_grad():
    encoded = tokenizer.encode(inputs["video"])
    video = tokenizer.decode(encoded.codes, inputs["counts"]).pixel_values_videos
    scores = scorer(encoded.latents, encoded.quantized, inputs["counts"]).scores
assert not any(name.split(".")[0] == "adaptok_hf" for name in sys.modules if sys.modules[name] is not None)
save_file({"codes": encoded.codes, "video": video, "scores": scores}, result)
"""


@pytest.mark.slow
def test_loads_without_the_package(tmp_path):
    converted = tmp_path / "converted"
    convert_checkpoint(TRAINING_CHECKPOINT, converted)
    generator = torch.Generator().manual_seed(0)
    inputs = {"video": torch.rand(2, 16, 3, 32, 32, generator=generator), "counts": torch.tensor([[5, 0, 9, 16]] * 2)}
    save_file(inputs, tmp_path / "inputs.safetensors")
    caches = {"HF_HOME": str(tmp_path / "home"), "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | caches
    command = [sys.executable, "-P", "-c", REMOTE, converted, tmp_path / "inputs.safetensors", tmp_path / "result"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    result = load_file(tmp_path / "result")

    tokenizer = AdapTokModel.from_pretrained(converted / "tokenizer").eval()
    scorer = AdapTokScorerModel.from_pretrained(converted / "scorer").eval()
    with torch.no_grad():
        encoded = tokenizer.encode(inputs["video"])
        video = tokenizer.decode(encoded.codes, inputs["counts"]).pixel_values_videos
        scores = scorer(encoded.latents, encoded.quantized, inputs["counts"]).scores
    assert torch.equal(result["codes"], encoded.codes)
    torch.testing.assert_close(result["video"], video, atol=1e-6, rtol=0)
    torch.testing.assert_close(result["scores"], scores, atol=1e-6, rtol=0)
