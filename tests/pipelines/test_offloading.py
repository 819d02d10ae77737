"""Offloading by accelerate's hooks, on the CPU: which hooks run, and that the results stay the same."""

import accelerate
import numpy as np
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, CpuOffload
from builders.pipelines import noisy_video
from builders.routers import make_router, with_router

from adaptok_hf.models.block_cache import BlockCache


def run_all(pipeline) -> list:
    """Return what every kind of call gives, in an order that moves each model in and out."""
    video = noisy_video(12)
    results = [
        pipeline(video, budget=4).frames,
        pipeline(video, price=0.01).frames,
        pipeline(video, budget=4, allocation="measured").frames,
        np.concatenate([block.frames for block in pipeline.stream(video, budget=4)]),
        pipeline.detokenize(pipeline.tokenize(video)),
        pipeline.score(pipeline.encode(video)),
        pipeline(video, budget=4, allocation="router").frames,
        pipeline.generate([0, 1], generator=torch.Generator().manual_seed(0)).frames,
        pipeline.predict(video, generator=torch.Generator().manual_seed(0)).frames,
    ]
    return [*results, pipeline.model_hash]


@pytest.mark.parametrize("mode", ["enable_model_cpu_offload", "enable_sequential_cpu_offload"])
def test_results_stay(complete_pipeline, mode, monkeypatch):
    complete_pipeline = with_router(complete_pipeline, make_router())
    expected, ran = run_all(complete_pipeline), []
    for hook in (AlignDevicesHook, CpuOffload):
        pre_forward = hook.pre_forward

        def record(self, module, *args, pre_forward=pre_forward, **kwargs):
            ran.append(type(module).__name__)
            return pre_forward(self, module, *args, **kwargs)

        monkeypatch.setattr(hook, "pre_forward", record)
    # torch separates "cpu:0" from "cpu", and accelerate's hooks stumble over it; a GPU has one name
    monkeypatch.setattr(accelerate, "cpu_offload", lambda model, _, **options: cpu_offload(model, "cpu", **options))
    getattr(complete_pipeline, mode)(device="cpu")
    if mode == "enable_sequential_cpu_offload":
        assert {weight.device.type for weight in complete_pipeline.scorer.parameters()} == {"meta"}
        assert complete_pipeline.device == torch.device("cpu")
    for result, before in zip(run_all(complete_pipeline), expected, strict=True):
        assert np.array_equal(result, before)
    names = {"AdapTokModel", "AdapTokScorerModel", "AdapTokARForCausalLM", "AdapTokRouterModel"}
    assert names <= set(ran) if mode == "enable_model_cpu_offload" else "Linear" in ran
    complete_pipeline.remove_all_hooks()
    count = len(ran)
    assert np.array_equal(complete_pipeline(noisy_video(12), budget=4).frames, expected[0]) and len(ran) == count


def test_a_model_moves_before_each_of_its_methods(complete_pipeline, monkeypatch):
    """`encode` and others are not `forward`, and it is `forward` that accelerate watches."""
    tokenizer, scorer, moved = complete_pipeline.tokenizer, complete_pipeline.scorer, []
    complete_pipeline.enable_model_cpu_offload(device="cpu")
    monkeypatch.setattr(CpuOffload, "pre_forward", lambda self, module, *a, **k: moved.append(module) or (a, k))
    with torch.no_grad():
        encoded = tokenizer.encode(torch.rand(1, 12, 3, 16, 16))
        tokenizer.decode(encoded.codes)
        assert moved == [tokenizer, tokenizer]
        moved.clear()
        block, cache = (encoded.latents[:, 0], encoded.quantized[:, 0]), BlockCache()
        scorer.score_block(*block, cache)
        assert moved == [scorer]
        scorer.keep_tokens(*block, torch.tensor([6]), cache)  # all: nothing is computed
        assert moved == [scorer, scorer]
        scorer.add_block(*block, torch.tensor([2]), cache)
        assert moved == [scorer, scorer, scorer]


def test_models_leave_when_a_call_ends(complete_pipeline, monkeypatch):
    complete_pipeline.enable_model_cpu_offload(device="cpu")
    left = []
    monkeypatch.setattr(complete_pipeline, "to", lambda device, **_: left.append(device))
    video = noisy_video(12)
    tokens = complete_pipeline.tokenize(video)
    for call in (
        lambda: complete_pipeline.detokenize(tokens),
        lambda: complete_pipeline(video),
        lambda: complete_pipeline.generate(0),
        lambda: complete_pipeline.predict(video),
    ):
        left.clear()
        call()
        assert left == ["cpu"]
