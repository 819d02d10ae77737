"""What users of diffusers write, line by line."""

import shutil
import sys
from copy import deepcopy
from types import SimpleNamespace

import diffusers.utils.export_utils
import diffusers.utils.hub_utils
import numpy as np
import pytest
import torch
from builders.pipelines import noisy_video
from diffusers import DiffusionPipeline
from diffusers.utils import export_to_video
from peft import LoraConfig, get_peft_model

from adaptok_hf import AdapTokPipeline


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator("cpu").manual_seed(seed)


# --- outputs ------------------------------------------------------------------------------------------------------


def test_export_to_video_gets_the_colors(complete_pipeline, tmp_path, monkeypatch):
    """diffusers' own function, with a writer that keeps what it is given in place of imageio's."""
    written = []

    class Writer(SimpleNamespace):
        __enter__ = lambda self: self  # noqa: E731
        __exit__ = lambda self, *_: None  # noqa: E731
        append_data = staticmethod(written.append)

    plugins = SimpleNamespace(ffmpeg=SimpleNamespace(get_exe=lambda: "ffmpeg"))
    imageio = SimpleNamespace(plugins=plugins, get_writer=lambda *_, **__: Writer())
    monkeypatch.setitem(sys.modules, "imageio", imageio)
    monkeypatch.setattr(diffusers.utils.export_utils, "is_imageio_available", lambda: True)
    video = noisy_video(12)
    expected = complete_pipeline(video, output_type="uint8").frames[0]
    for output_type in ("np", "pil"):
        written.clear()
        export_to_video(complete_pipeline(video, output_type=output_type).frames[0], str(tmp_path / "a.mp4"), fps=8)
        assert np.array_equal(np.stack(written), expected)
    written.clear()
    export_to_video(complete_pipeline(class_labels=1, generator=seeded()).frames[0], str(tmp_path / "a.mp4"))
    assert np.array_equal(written, complete_pipeline.generate(1, generator=seeded(), output_type="uint8").frames[0])


def test_export_to_video_writes_a_file(complete_pipeline, tmp_path):
    pytest.importorskip("imageio_ffmpeg")
    from adaptok_hf.video.video_io import read_video

    frames = complete_pipeline(np.full((12, 16, 16, 3), 200, np.uint8)).frames[0]
    export_to_video(frames, str(tmp_path / "a.mp4"), fps=8)
    assert np.abs(read_video(tmp_path / "a.mp4").frames / 255 - frames).mean() < 0.04


def test_return_dict_false_gives_frames_first(complete_pipeline):
    video, pipe = noisy_video(12), complete_pipeline
    for call in (
        lambda **options: pipe(video, **options),
        lambda **options: pipe.reconstruct([video, noisy_video(5)], **options),
        lambda **options: pipe(class_labels=[0, 2], generator=seeded(), **options),
        lambda **options: pipe.generate("second", generator=seeded(), **options),
        lambda **options: pipe(video, num_condition_frames=5, generator=seeded(), **options),
        lambda **options: pipe.predict(video, generator=seeded(), **options),
    ):
        (frames, *others), output = call(return_dict=False), call(return_dict=True)
        assert len(frames) == len(output.frames) and others
        assert all(np.array_equal(a, b) for a, b in zip(frames, output.frames, strict=True))
    (_, tokens, _, _) = pipe([video, noisy_video(5)], return_dict=False)
    assert [each.num_frames for each in tokens] == [12, 5]


def test_lists_of_videos(complete_pipeline):
    videos = [noisy_video(12, seed) for seed in range(2)]
    assert complete_pipeline(videos, output_type="pt").frames.shape == (2, 12, 3, 16, 16)
    tokens = complete_pipeline.tokenize(videos)
    assert np.array_equal(complete_pipeline.detokenize(tokens), complete_pipeline(videos).frames)
    predicted = complete_pipeline.predict(videos, generator=[seeded(1), seeded(2)], num_videos_per_prompt=1)
    for video, frames, seed in zip(videos, predicted.frames, (1, 2), strict=True):
        assert np.array_equal(complete_pipeline.predict(video, generator=seeded(seed)).frames[0], frames)
    assert len(complete_pipeline.predict(videos, num_videos=2).frames) == 4


def test_lists_of_generators_seed_one_video_each(complete_pipeline):
    together = complete_pipeline(class_labels=[0, 2], generator=[seeded(3), seeded(4)])
    for label, seed, frames in zip((0, 2), (3, 4), together.frames, strict=True):
        assert np.array_equal(complete_pipeline.generate(label, generator=seeded(seed)).frames[0], frames)
    with pytest.raises(ValueError, match="2 .* 3 "):
        complete_pipeline(class_labels=[0, 1, 2], generator=[seeded(), seeded()])


def test_num_videos_per_prompt(complete_pipeline):
    two = complete_pipeline(class_labels="second", num_videos_per_prompt=2, generator=seeded())
    assert np.array_equal(two.frames, complete_pipeline.generate(1, num_videos_per_class=2, generator=seeded()).frames)
    assert complete_pipeline.predict(noisy_video(5), num_videos_per_prompt=3).frames.shape[0] == 3
    with pytest.raises(ValueError, match="num_videos_per_class=1 .* num_videos_per_prompt=2"):
        complete_pipeline.generate(1, num_videos_per_class=1, num_videos_per_prompt=2)
    with pytest.raises(TypeError, match="num_videos_per_prompt"):  # one video has one reconstruction
        complete_pipeline(noisy_video(5), num_videos_per_prompt=2)


# --- callbacks ----------------------------------------------------------------------------------------------------


def test_callback_after_each_block(complete_pipeline):
    calls = []

    def callback(pipe, step, timestep, callback_kwargs):
        assert pipe is complete_pipeline and set(callback_kwargs) == {"sequences"}
        closed = (callback_kwargs["sequences"] == pipe.ar_model.config.eob_token_id).sum(1)
        calls.append((step, timestep, len(closed), int(closed.min())))
        return callback_kwargs

    settings = {"generator": seeded(), "batch_size": 2}
    output = complete_pipeline(class_labels=[0, 1, 2], callback_on_step_end=callback, **settings)
    assert [call[:3] for call in calls] == [(0, 0, 2), (1, 1, 2), (2, 2, 2), (3, 0, 1), (4, 1, 1), (5, 2, 1)]
    assert all(closed >= timestep + 1 for _, timestep, _, closed in calls)
    plain = complete_pipeline(class_labels=[0, 1, 2], generator=seeded(), batch_size=2)
    assert np.array_equal(output.frames, plain.frames)

    calls.clear()
    complete_pipeline.predict(
        noisy_video(5),
        num_rollouts=2,
        callback_on_step_end=lambda pipe, step, timestep, tensors: calls.append((step, timestep, len(tensors))),
        callback_on_step_end_tensor_inputs=[],
    )
    assert calls == [(0, 1, 0), (1, 2, 0), (2, 1, 0), (3, 2, 0)]  # the first block is given


def test_interrupt(complete_pipeline):
    def callback(pipe, step, timestep, callback_kwargs):
        pipe._interrupt = step == 4  # the second block of the second batch
        return callback_kwargs

    assert not complete_pipeline.interrupt
    settings = {"num_videos_per_prompt": 2, "batch_size": 2}
    whole = complete_pipeline.generate([0, 1, 2], generator=seeded(), **settings)
    output = complete_pipeline.generate([0, 1, 2], generator=seeded(), callback_on_step_end=callback, **settings)
    assert complete_pipeline.interrupt and output.class_labels == [0, 0, 1, 1] and output.frames.shape[:2] == (4, 12)
    assert torch.equal(output.seeds, whole.seeds[:4]) and torch.equal(output.token_counts[:2], whole.token_counts[:2])
    assert torch.equal(output.token_counts[2:, :, :2], whole.token_counts[2:4, :, :2])
    assert (output.token_counts[2:, :, 2] == 0).any() and np.array_equal(output.frames[:, :8], whole.frames[:4, :8])
    assert len(complete_pipeline.generate([0, 1, 2], generator=seeded(), **settings).frames) == 6  # the next call is whole


def test_what_callbacks_cannot_do(complete_pipeline):
    with pytest.raises(ValueError, match="latents"):
        complete_pipeline.generate(0, callback_on_step_end=print, callback_on_step_end_tensor_inputs=["latents"])
    with pytest.raises(ValueError, match="sequences"):
        complete_pipeline.generate(0, callback_on_step_end=lambda *given: {"sequences": given[3]["sequences"] + 1})


# --- arguments that mean nothing here -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a surfer"}, "prompt .*class_labels"),
        ({"class_labels": 1, "negative_prompt": "blurry"}, "negative_prompt"),
        ({"class_labels": 1, "num_inference_steps": 25}, "num_inference_steps"),
        ({"class_labels": 1, "latents": torch.zeros(1)}, "latents"),
        ({"class_labels": 1, "num_return_sequences": 2}, "num_return_sequences .*num_videos_per_prompt"),
        ({"class_labels": 1, "seed": 0}, "seed .*generator"),
        ({"class_labels": 1, "generator": 42}, "generator=42"),
        ({"image": noisy_video(1)}, "image .*num_condition_frames"),
        ({"video": noisy_video(5), "strength": 0.5}, "strength"),
        ({"video": noisy_video(5), "unheard_of": 0.5}, "unheard_of"),
        ({"video": noisy_video(5), "generator": seeded()}, "generator"),
        ({"video": noisy_video(5), "callback_on_step_end": print}, "callback_on_step_end"),
    ],
)
def test_other_arguments_are_named(complete_pipeline, arguments, message):
    with pytest.raises(TypeError, match=message):
        complete_pipeline(**arguments)


def test_class_labels_of_any_kind(complete_pipeline):
    for labels in (torch.tensor([1, 2]), np.array([1, 2]), [np.int64(1), torch.tensor(2)], ("1", 2)):
        assert complete_pipeline.generate(labels, max_tokens=2).class_labels == [1, 2]
    assert complete_pipeline.generate(torch.tensor(2), max_tokens=2).class_labels == [2]
    with pytest.raises(ValueError, match="surfing"):
        complete_pipeline.ar_model.generate(class_labels=["surfing"])


def test_the_limits_of_transformers_stop_early(complete_pipeline):
    output = complete_pipeline.generate(1, max_new_tokens=1)
    assert output.token_counts.flatten().tolist() == [1, 0, 0] and output.frames.shape[1] == 12


def test_sizes_are_those_of_the_model(complete_pipeline):
    sizes = {"height": 16, "width": 16, "num_frames": 12, "negative_prompt": None}
    assert complete_pipeline(class_labels=1, **sizes).frames.shape == (1, 12, 16, 16, 3)
    for name, value in (("height", 480), ("width", 832), ("num_frames", 81)):
        for call in (complete_pipeline, complete_pipeline.generate):
            with pytest.raises(ValueError, match=f"{name}={value}.* {name}=1[26]"):
                call(class_labels=1, **{name: value})


# --- loading, moving, saving --------------------------------------------------------------------------------------


@pytest.fixture
def folder(complete_pipeline, tmp_path):
    complete_pipeline.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def test_torch_dtype(tiny_pipeline, tmp_path):
    tiny_pipeline.save_pretrained(tmp_path)
    loaded = AdapTokPipeline.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert loaded.dtype == loaded.tokenizer.dtype == loaded.scorer.dtype == torch.bfloat16
    for bad, message in ((8, "8"), ("float33", "float33"), ({"unet": torch.bfloat16}, "unet")):
        with pytest.raises(ValueError, match=message):
            AdapTokPipeline.from_pretrained(tmp_path, dtype=bad)
    with pytest.raises(ValueError, match="torch_dtype"):
        AdapTokPipeline.from_pretrained(tmp_path, dtype=torch.bfloat16, torch_dtype=torch.float32)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "tokenizer", "scorer"),
    [
        ({"torch_dtype": None}, "float32", "float32"),
        ({"dtype": "bfloat16"}, "bfloat16", "bfloat16"),
        ({"dtype": "torch.bfloat16"}, "bfloat16", "bfloat16"),
        ({"dtype": "auto"}, "float16", "float16"),
        ({"torch_dtype": {"scorer": torch.bfloat16, "default": torch.float32}}, "float32", "bfloat16"),
        ({"dtype": {"scorer": "auto"}}, "float32", "float16"),
    ],
)
def test_types_of_each_kind(tiny_pipeline, tmp_path, options, tokenizer, scorer):
    tiny_pipeline.to(torch.float16).save_pretrained(tmp_path)
    for kind in (AdapTokPipeline, DiffusionPipeline)[: 1 + bool(options.get("torch_dtype"))]:
        loaded = kind.from_pretrained(tmp_path, **options)
        assert str(loaded.tokenizer.dtype) == f"torch.{tokenizer}" and str(loaded.scorer.dtype) == f"torch.{scorer}"


def test_other_arguments_of_from_pretrained(folder, complete_pipeline, tmp_path):
    options = {"use_safetensors": True, "low_cpu_mem_usage": True, "device_map": "cpu", "safety_checker": None}
    loaded = AdapTokPipeline.from_pretrained(folder, scorer=None, tokenizer=complete_pipeline.tokenizer, **options)
    assert loaded.scorer is None and loaded.tokenizer is complete_pipeline.tokenizer and loaded.device.type == "cpu"
    complete_pipeline.save_pretrained(tmp_path / "half", variant="fp16")
    for name in ("tokenizer", "scorer", "ar_model", "fp_model"):
        assert (tmp_path / "half" / name / "model.fp16.safetensors").is_file()
    loaded = AdapTokPipeline.from_pretrained(tmp_path / "half", variant="fp16")
    assert loaded.model_hash == complete_pipeline.model_hash
    with pytest.raises(ValueError, match="fp16"):
        AdapTokPipeline.from_pretrained(folder, variant="fp16")
    with pytest.raises(FileNotFoundError, match=r"model\.fp16\.safetensors"):
        AdapTokPipeline.from_pretrained(tmp_path / "half")
    with pytest.raises(TypeError, match="varaint"):
        complete_pipeline.save_pretrained(tmp_path / "half", varaint="fp16")
    with pytest.raises(TypeError, match="scoer"):
        AdapTokPipeline.from_pretrained(folder, scoer=complete_pipeline.scorer)


def test_components_and_from_pipe(complete_pipeline):
    half = AdapTokPipeline(**complete_pipeline.components).to("cpu", torch.bfloat16)
    assert half.tokenizer is complete_pipeline.tokenizer and half.dtype == torch.bfloat16
    other = AdapTokPipeline.from_pipe(half, scorer=None)
    assert other.ar_model is half.ar_model and other.scorer is None and other.dtype == half.dtype == torch.bfloat16
    assert AdapTokPipeline.from_pipe(half, torch_dtype=torch.float32).dtype == torch.float32


def test_wrapped_models(complete_pipeline, tmp_path):
    """Tokens of a compiled tokenizer fit the plain one; what diffusers would leave out is named."""
    parts = complete_pipeline.components
    compiled = AdapTokPipeline(**parts | {"tokenizer": torch.compile(parts["tokenizer"], backend="eager")})
    assert compiled.model_hash == complete_pipeline.model_hash
    adapted = get_peft_model(deepcopy(parts["scorer"]), LoraConfig(target_modules=["fc1"]))
    with pytest.raises(ValueError, match="scorer .*merge_and_unload"):
        AdapTokPipeline(**parts | {"scorer": adapted}).save_pretrained(tmp_path)


def test_progress_bars(complete_pipeline, capfd):
    for disable in (True, False):
        complete_pipeline.set_progress_bar_config(disable=disable)
        complete_pipeline(noisy_video(36), batch_size=1)
        assert ("encode" in capfd.readouterr().err) != disable


def test_group_offloading_is_named(complete_pipeline):
    with pytest.raises(NotImplementedError, match="enable_model_cpu_offload"):
        complete_pipeline.enable_group_offload(torch.device("cpu"))


@pytest.mark.parametrize("save", [False, True])
def test_push_to_hub(complete_pipeline, tmp_path, monkeypatch, save):
    """What is uploaded is a whole repository, code and all."""
    made, sent = {}, {}

    def create_repo(repo_id, **options):
        made.update(options, repo_id=repo_id)
        return SimpleNamespace(repo_id=repo_id)

    def upload_folder(folder_path, **options):
        sent.update(options)
        shutil.copytree(folder_path, tmp_path / "hub")

    for module in (diffusers.utils.hub_utils, diffusers.pipelines.pipeline_utils):
        monkeypatch.setattr(module, "create_repo", create_repo)
    monkeypatch.setattr(diffusers.utils.hub_utils, "upload_folder", upload_folder)
    options = {"private": True, "create_pr": True, "commit_message": "The second try"}
    if save:
        complete_pipeline.save_pretrained(tmp_path / "tiny", push_to_hub=True, repo_id="me/tiny", **options)
    else:
        complete_pipeline.push_to_hub("me/tiny", **options)
    assert made["repo_id"] == sent["repo_id"] == "me/tiny" and made["private"] is True
    assert sent["create_pr"] is True and sent["commit_message"] == "The second try"
    names = {path.relative_to(tmp_path / "hub").as_posix() for path in (tmp_path / "hub").rglob("*")}
    assert {"README.md", "adaptok_pipeline.py", "remote_code.py", "fp_model/adaptok_component.py"} <= names
    assert AdapTokPipeline.from_pretrained(tmp_path / "hub").model_hash == complete_pipeline.model_hash
