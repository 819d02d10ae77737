"""`generate` and `predict` of the pipeline, and their commands."""

import json

import numpy as np
import pytest
import torch
from builders.video_files import make_frames, write_mp4
from PIL import Image

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, AdapTokPipeline, read_video
from adaptok_hf.cli.main import main
from adaptok_hf.cli.reports import contact_sheet
from adaptok_hf.pipelines.kept_details import with_details

GEOMETRY = {"codebook_size": 50, "num_blocks": 3, "latents_per_block": 6}
SIZE = {"hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2, "intermediate_size": 64}
NAMES = {0: "PlayingGuitar", 1: "surfing", 2: "rowing_boat"}
FRAMES = np.zeros((20, 16, 16, 3), np.uint8)


def make_generator(seed: int, **options) -> AdapTokARForCausalLM:
    torch.manual_seed(seed)
    model = AdapTokARForCausalLM(AdapTokARConfig(**GEOMETRY, **SIZE, **options)).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(10)  # random weights alone make all tokens equally likely
    return model


@pytest.fixture
def generating(tiny_pipeline) -> AdapTokPipeline:
    components = (tiny_pipeline.video_processor, tiny_pipeline.tokenizer, tiny_pipeline.scorer)
    ar_model = make_generator(3, num_classes=3, id2label=NAMES)
    fp_model = make_generator(4, num_classes=0, num_condition_codes=9, start_block=1)
    pipeline = AdapTokPipeline(*components, ar_model, fp_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def folder(generating, tmp_path):
    generating.save_pretrained(tmp_path / "pipeline")
    return tmp_path / "pipeline"


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_generate_decodes_what_the_model_writes(generating):
    output = generating.generate(["surfing", 2], num_videos_per_class=2, generator=seeded(), output_type="pt")
    assert output.class_labels == [1, 1, 2, 2]
    assert output.class_names == ["surfing", "surfing", "rowing_boat", "rowing_boat"]
    assert output.frames.shape == (4, 12, 3, 16, 16) and output.token_counts.shape == (4, 1, 3)
    assert len(set(output.seeds.flatten().tolist())) == 4 and not torch.equal(output.codes[0], output.codes[1])
    decoded = generating.tokenizer.decode(output.codes[:, 0], output.token_counts[:, 0]).pixel_values_videos
    torch.testing.assert_close(output.frames, decoded.clamp(0, 1), atol=0.5 / 255 + 1e-6, rtol=0)


def test_a_video_depends_on_its_seed_only(generating):
    whole = generating.generate([0, 1, 2, 0, 1], generator=seeded(), guidance_scale=1.5)
    parts = generating.generate([0, 1, 2, 0, 1], generator=seeded(), guidance_scale=1.5, batch_size=2)
    assert torch.equal(whole.codes, parts.codes) and torch.equal(whole.token_counts, parts.token_counts)
    other = generating.generate([0, 1, 2, 0, 1], generator=seeded(1), guidance_scale=1.5)
    assert not torch.equal(whole.codes, other.codes)


def test_temperature_0_is_greedy(generating):
    first = generating.generate(1, temperature=0, generator=seeded(0))
    second = generating.generate(1, temperature=0, generator=seeded(1))
    assert torch.equal(first.codes, second.codes)
    sampled = generating.generate(1, temperature=5.0, generator=seeded(1))
    assert not torch.equal(first.codes, sampled.codes)


def test_caps_are_kept(generating):
    output = generating.generate([0, 1, 2], max_tokens=6, generator=seeded())
    assert output.token_counts.sum((1, 2)).max() <= 6 < generating.generate([0], generator=seeded()).token_counts.sum()
    output = generating.generate([0, 1, 2], max_tokens=[3, 0, 2], generator=seeded())
    assert (output.token_counts[:, 0] <= torch.tensor([3, 0, 2])).all()
    clip = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    counts = generating.tokenize(clip, budget=4).token_counts[0]  # what allocation chose for another clip
    assert (generating.generate([0, 1], max_tokens=counts.tolist()).token_counts[:, 0] <= counts).all()


@pytest.mark.parametrize("name", ["playing guitar", "Playing_Guitar", "PLAYINGGUITAR", "0"])
def test_class_names_are_forgiving(generating, name):
    assert generating.generate(name).class_labels == [0]


def test_predict_composes_the_clip_as_the_original_does(generating):
    frames = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    output = generating.predict(frames, num_videos=2, generator=seeded(), fps=8)
    assert output.frames.shape == (2, 12, 16, 16, 3) and output.num_condition_frames == 5 and output.fps == 8
    repeated = np.concatenate([frames[:5], np.repeat(frames[4:5], 7, axis=0)])
    condition = generating.tokenize(repeated).codes
    assert torch.equal(output.codes[:, 0, 0], condition[:, 0].expand(2, -1))  # the given block, whole
    assert (output.token_counts[:, 0, 0] == 6).all()
    prompt = generating.fp_model.build_prompt(condition_codes=condition)
    assert torch.equal(prompt[0, :9], condition.flatten()[:9])
    sequences = generating.fp_model.generate(prompt.expand(2, -1), seeds=output.seeds[:, 0])
    codes, counts = generating.fp_model.unpack_sequences(sequences, condition.expand(2, -1, -1))
    assert torch.equal(counts, output.token_counts[:, 0])
    kept = torch.arange(6) < counts[..., None]
    assert torch.equal(codes[kept], output.codes[:, 0][kept])


def test_predict_uses_the_given_frames_only(generating):
    frames = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    changed = frames.copy()
    changed[5:] = 0
    outputs = [generating.predict(video, generator=seeded()) for video in (frames, changed, frames[:5])]
    assert all(torch.equal(outputs[0].codes, output.codes) for output in outputs[1:])


def test_rollouts_continue_the_prediction(generating):
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    output = generating.predict(frames, num_rollouts=3, generator=seeded())
    capped = generating.predict(frames, num_rollouts=2, generator=seeded(), max_tokens=3)
    assert capped.token_counts[..., 1:].sum(-1).max() <= 3 < output.token_counts[..., 1:].sum(-1).max()  # of each clip
    assert output.frames.shape == (1, 12 + 2 * 7, 16, 16, 3) and output.token_counts.shape == (1, 3, 3)
    first = generating.predict(frames, generator=seeded())
    assert np.array_equal(output.frames[:, :12], first.frames)
    generator = seeded()
    torch.randint(2**63 - 1, (1,), generator=generator)  # the first clip's seed
    second = generating.predict(first.frames[0, -5:], generator=generator)
    assert np.array_equal(output.frames[:, 12:19], second.frames[:, 5:])


def test_details_of_given_frames_are_kept(generating):
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    settings = {"num_rollouts": 2, "output_type": "uint8", "max_tokens": 3}
    plain, kept = (generating.predict(frames, generator=seeded(), keep_details=on, **settings) for on in (False, True))
    assert np.array_equal(kept.frames[0, :5], frames) and not np.array_equal(plain.frames[0, :5], frames)
    assert torch.equal(plain.codes[:, 0], kept.codes[:, 0])  # the first clip's tokens are the same, its frames are not
    assert not torch.equal(plain.codes[:, 1], kept.codes[:, 1])  # the second continues what was shown


def test_details_are_kept_where_nothing_changes():
    given = torch.randint(60, 200, (2, 3, 3, 32, 32), dtype=torch.uint8)
    decoded = torch.full((2, 6, 3, 32, 32), 128, dtype=torch.uint8)
    decoded[:, 4, :, 16:] = 255  # half of a later frame is new
    shown = with_details(decoded, given)
    assert shown.dtype == torch.uint8 and torch.equal(shown[:, :3], given)
    assert torch.equal(shown[:, 3], given[:, 2]) and torch.equal(shown[:, 5], given[:, 2])
    assert torch.equal(shown[:, 4, :, :12], given[:, 2, :, :12]) and torch.equal(shown[:, 4, :, 20:], decoded[:, 4, :, 20:])
    assert torch.equal(with_details(given, given), given)
    bright = torch.full_like(given, 250)
    assert (with_details(torch.cat([bright, bright + 4], 1), bright + 5) == 255).all()  # clamped, not wrapped


def test_call_dispatches(generating):
    frames = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)
    assert generating(class_labels="surfing").class_labels == [1]
    assert generating(frames, num_condition_frames=4).num_condition_frames == 4
    assert generating(frames).tokens.num_tokens == 18
    for arguments in ({}, {"video": frames, "class_labels": 1}):
        with pytest.raises(ValueError, match="class_labels"):
            generating(**arguments)


@pytest.mark.parametrize(
    ("call", "values"),
    [
        (lambda p: p.generate("surfin"), ["'surfin'", "'surfing'"]),
        (lambda p: p.generate(3), ["0..2", "3"]),
        (lambda p: p.generate([]), ["class_labels"]),
        (lambda p: p.generate(0, num_videos_per_class=0), ["num_videos_per_class", "0"]),
        (lambda p: p.generate(0, budget=2), ["budget=2", "max_tokens"]),
        (lambda p: p.generate(0, max_tokens=-1), ["1..18", "-1"]),
        (lambda p: p.generate(0, max_tokens=19), ["1..18", "19"]),
        (lambda p: p.generate(0, max_tokens=[0, 1, 1]), ["1..6", "[0, 1, 1]"]),
        (lambda p: p.generate(0, max_tokens=[1, 2]), ["(3,)", "(2,)"]),
        (lambda p: p.generate(0, guidance_scale=0.5), ["guidance_scale", "0.5"]),
        (lambda p: p.generate(0, temperature=-1), ["temperature", "-1"]),
        (lambda p: p.generate(0, top_p=0), ["top_p", "1", "0"]),
        (lambda p: p.generate(0, top_k=-1), ["top_k", "-1"]),
        (lambda p: p.generate(0, output_type="gif"), ["'gif'"]),
        (lambda p: p.predict(FRAMES[:4]), ["4 frames", "num_condition_frames", "5"]),
        (lambda p: p.predict(FRAMES, num_condition_frames=12), ["num_condition_frames", "11", "12"]),
        (lambda p: p.predict(FRAMES, num_rollouts=0), ["num_rollouts", "0"]),
        (lambda p: p.predict(FRAMES, guidance_scale=2.0), ["guidance_scale=2.0"]),
        (lambda p: p.predict(FRAMES, budget=2), ["budget=2", "max_tokens"]),
    ],
)
def test_bad_input(generating, call, values):
    with pytest.raises(ValueError) as error:
        call(generating)
    assert "\n" not in str(error.value)
    for value in values:
        assert value in str(error.value)


def test_missing_generators(tiny_pipeline):
    with pytest.raises(ValueError, match="ar_model"):
        tiny_pipeline.generate(0)
    with pytest.raises(ValueError, match="fp_model"):
        tiny_pipeline.predict(FRAMES)


def test_generators_that_do_not_fit(tiny_pipeline):
    parts = (tiny_pipeline.video_processor, tiny_pipeline.tokenizer, tiny_pipeline.scorer)
    other = AdapTokARForCausalLM(AdapTokARConfig(**GEOMETRY | {"codebook_size": 64}, **SIZE, num_classes=3))
    with pytest.raises(ValueError, match="codebook_size=64.* 50"):
        AdapTokPipeline(*parts, other)
    with pytest.raises(ValueError, match="fp_model"):
        AdapTokPipeline(*parts, None, make_generator(0, num_classes=3))


def test_save_and_load(generating, folder):
    loaded = AdapTokPipeline.from_pretrained(folder)
    assert loaded.class_names == list(NAMES.values())
    for name in ("ar_model", "fp_model"):
        assert (folder / name / "generation_config.json").exists()
    first, second = (p.generate([0, 1], generator=seeded()) for p in (generating, loaded))
    assert torch.equal(first.codes, second.codes)


def test_commands(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["generate", "--class", "surfing", "--class", "rowing boat", "--videos", "2", "--model", str(folder)]
    assert main([*command, "--seed", "7", "--guidance", "1.5", "--fps", "8", "--max-tokens", "12"]) == 0
    assert "4 videos of 12 frames" in capsys.readouterr().out
    report = json.loads((tmp_path / "generated" / "report.json").read_text())
    assert {"seed": 7, "guidance_scale": 1.5, "max_tokens": 12}.items() <= report["request"].items()
    assert max(video["tokens"] for video in report["videos"]) <= 12
    assert [video["class_label"] for video in report["videos"]] == [1, 1, 2, 2]
    for video in report["videos"]:
        read = read_video(tmp_path / "generated" / video["file"])
        assert read.frames.shape == (12, 16, 16, 3) and read.fps == pytest.approx(8)
        assert sum(video["token_counts"]) == video["tokens"] and len(video["seeds"]) == 1
    assert Image.open(tmp_path / "generated" / "contact_sheet.png").width > 8 * 16

    write_mp4(tmp_path / "clip.mp4", frames=make_frames(9, 32, 32))
    assert main(["predict", "clip.mp4", "--condition-frames", "4", "--rollouts", "2", "--model", str(folder)]) == 0
    report = json.loads((tmp_path / "clip-predicted" / "report.json").read_text())
    assert report["condition_frames"] == 4 and report["frames"] == 20
    assert len(read_video(tmp_path / "clip-predicted" / report["videos"][0]["file"]).frames) == 20
    assert report["request"]["keep_details"] is True

    assert main(["predict", "clip.mp4", "--condition-frames", "10", "--overwrite", "--model", str(folder)]) == 2
    assert main(["generate", "--class", "surfin", "--overwrite", "--model", str(folder)]) == 2
    errors = capsys.readouterr().err.splitlines()
    for error, values in zip(errors, (["9 frames", "10"], ["'surfing'"]), strict=True):
        assert all(value in error for value in values), error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip-predicted", "clip.mp4", "generated", "pipeline"]


def test_contact_sheet():
    videos = np.zeros((2, 20, 16, 16, 3), np.uint8)
    videos[0], videos[1, 10:] = 200, 90
    sheet = np.asarray(contact_sheet(videos, ["a", "b"], num_condition_frames=5, columns=4))
    assert (sheet == 200).all(-1).sum() >= 4 * 256 - 100 and (sheet == 90).all(-1).sum() == 2 * 256
    assert (sheet == (255, 176, 59)).all(-1).any()  # the mark of given frames
