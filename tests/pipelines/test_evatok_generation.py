"""`generate` and `predict` with EVATok's tokenizer and a generator with length tokens, and the tokens to train it."""

import json

import pytest
import torch
from builders.evatok import make_evatok
from builders.pipelines import noisy_video
from builders.routers import make_router
from builders.video_files import write_mp4

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, AdapTokPipeline, AdapTokVideoProcessor
from adaptok_hf.cli.main import main
from adaptok_hf.training.ar.token_shards import Arguments, tokenize_windows

LEVELS, PREFIX = [2, 4, 16], [4, 16]
FRAMES = noisy_video(16)


def make_generator(**changes) -> AdapTokARForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    sizes |= {"codebook_size": 40, "num_blocks": 4, "latents_per_block": 16, "length_tokens": LEVELS, "num_classes": 3}
    return AdapTokARForCausalLM(AdapTokARConfig(**sizes | {"initializer_range": 0.3} | changes)).eval()


def make_pipeline(**parts) -> AdapTokPipeline:
    tokenizer = make_evatok(num_encoder_layers=1, num_decoder_layers=1)
    pipeline = AdapTokPipeline(AdapTokVideoProcessor(16, 16, 4), tokenizer, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def pipeline() -> AdapTokPipeline:
    return make_pipeline(ar_model=make_generator(), fp_model=make_generator(num_classes=0, condition_counts=PREFIX))


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def padded(frames: int) -> torch.Tensor:
    """Return the clip that repeats the last of so many given frames, (1, 16, 3, 16, 16)."""
    return torch.from_numpy(FRAMES)[torch.arange(16).clamp(max=frames - 1)].permute(0, 3, 1, 2)[None] / 255


BARE = {"condition_length_tokens": False, "condition_separator": False}


@pytest.mark.parametrize(("start_block", "layout"), [(0, {}), (1, BARE), (2, {})])
def test_a_clip_is_continued_after_the_fixed_counts(start_block, layout):
    model = make_generator(num_classes=0, condition_counts=PREFIX, start_block=start_block, **layout)
    pipeline = make_pipeline(fp_model=model)
    output = pipeline.predict(FRAMES, num_condition_frames=5, num_videos=2, generator=seeded())
    counts = output.token_counts[:, 0]
    assert counts[:, :2].tolist() == [PREFIX] * 2 and set(counts.flatten().tolist()) <= {*LEVELS}
    with torch.no_grad():
        condition = pipeline.tokenizer.encode(padded(5), torch.tensor([[*PREFIX, 0, 0]])).codes
        decoded = pipeline.tokenizer.decode(output.codes[:, 0], counts).pixel_values_videos.clamp(0, 1)
    assert torch.equal(pipeline.tokenize_condition((padded(5) * 255).byte(), 5), condition)
    kept = torch.arange(16) < torch.tensor(PREFIX)[:start_block, None]
    for codes in output.codes[:, 0, :start_block]:
        assert torch.equal(codes[kept], condition[0, :start_block][kept])
    prompt = model.build_prompt(condition_codes=condition.expand(2, -1, -1, -1).flatten(0, 1))
    written = model.unpack_sequences(model.generate(prompt, seeds=output.seeds[:, 0]), condition.expand(2, -1, -1))
    assert torch.equal(written[1], counts) and torch.equal(written[0], output.codes[:, 0])
    torch.testing.assert_close(torch.from_numpy(output.frames).movedim(4, 2), decoded, atol=0.5 / 255 + 1e-6, rtol=0)


def test_clips_are_predicted_in_a_row(pipeline):
    output = pipeline.predict([FRAMES, FRAMES[::-1].copy()], num_rollouts=2, generator=seeded(), max_tokens=30)
    assert output.frames.shape == (2, 16 + 11, 16, 16, 3) and output.token_counts.shape == (2, 2, 4)
    assert (output.token_counts[..., :2] == torch.tensor(PREFIX)).all() and output.token_counts.sum(2).max() <= 30
    # the second clip continues the last frames of the first
    last = torch.from_numpy(output.frames[:1, 11:16]).movedim(4, 2).mul(255).round().byte()
    condition = pipeline.tokenize_condition(last, 5)
    ids = pipeline.fp_model.generate(condition_codes=condition, seeds=output.seeds[:1, 1], max_tokens=30)
    assert torch.equal(pipeline.fp_model.unpack_sequences(ids)[1], output.token_counts[:1, 1])


def test_allowed_lengths(pipeline, tmp_path, monkeypatch, capsys):
    output = pipeline.generate([0, 1, 2], allowed_lengths=[2, 4], guidance_scale=1.5, generator=seeded())
    assert set(output.token_counts.flatten().tolist()) == {2, 4}
    output = pipeline.predict(FRAMES, allowed_lengths=[[4], [2, 16], [2], [16]], generator=seeded())
    assert output.token_counts.tolist() == [[[4, 16, 2, 16]]]

    monkeypatch.chdir(tmp_path)
    pipeline.save_pretrained("pipeline")
    write_mp4(tmp_path / "clip.mp4", frames=FRAMES)
    command = ["generate", "--class", "1", "--videos", "1", "--model", "pipeline"]
    assert main([*command, "--allowed-lengths", "2/16/4,2/4"]) == 0
    report = json.loads((tmp_path / "generated" / "report.json").read_text())
    assert report["request"]["allowed_lengths"] == [[2], [16], [4, 2], [4]]
    assert report["videos"][0]["token_counts"] in ([2, 16, 4, 4], [2, 16, 2, 4])
    assert main(["predict", "clip.mp4", "--model", "pipeline", "--allowed-lengths", "2,16"]) == 2
    assert "allowed_lengths=[2, 16], condition_counts=[4, 16]" in capsys.readouterr().err
    for given in ("2,x", "2//4", ""):
        with pytest.raises(SystemExit, match="2"):
            main([*command, "--allowed-lengths", given])
        assert repr(given) in capsys.readouterr().err


def test_generators_that_do_not_fit_are_named(pipeline):
    for model, values in (
        (make_generator(length_tokens=[2, 8]), r"ar_model.*\[2, 8\].*\[2, 4, 16\]"),
        (make_generator(length_tokens=None), r"ar_model.*None.*\[2, 4, 16\]"),
    ):
        with pytest.raises(ValueError, match=values):
            make_pipeline(ar_model=model)
    make_pipeline(ar_model=make_generator(length_tokens=None, block_separators=False))  # all codes of every block
    with pytest.raises(ValueError, match=r"num_condition_frames=9.*\[4, 16\].*8 frames"):
        pipeline.predict(FRAMES, num_condition_frames=9)


# --- tokens to train on ------------------------------------------------------------------------------------------


def arguments(**changes) -> Arguments:
    return Arguments(videos="v", output_dir="o", **{"num_condition_frames": 5, "condition_counts": PREFIX} | changes)


@pytest.mark.parametrize("head", ["assignment", "blocks"])
def test_windows_begin_with_the_counts_of_the_condition(head):
    router = make_router(tuple(LEVELS), num_frames=16, head=head, price_conditioned=False)
    pipeline = make_pipeline(router=router)  # there is no generator yet
    windows = torch.stack([torch.from_numpy(noisy_video(16, seed)).permute(0, 3, 1, 2) for seed in range(3)])
    free = router.route(windows / 255)
    columns = tokenize_windows(pipeline, windows, arguments(allocation="router"))
    counts = torch.from_numpy(columns["token_counts"])
    assert torch.equal(counts, router.route(windows / 255, prefix=tuple(PREFIX))) and not torch.equal(counts, free)
    assert counts[:, :2].tolist() == [PREFIX] * 3
    with torch.no_grad():
        codes = pipeline.tokenizer.encode(windows / 255, counts).codes
    assert torch.equal(torch.from_numpy(columns["codes"]), codes)
    condition = pipeline.tokenizer.encode(
        windows[:, torch.arange(16).clamp(max=4)] / 255, torch.tensor([[*PREFIX, 0, 0]] * 3)
    )
    assert torch.equal(torch.from_numpy(columns["condition_codes"]), condition.codes)
    # a generator learns from these rows
    model, given = make_generator(num_classes=0, condition_counts=PREFIX), torch.from_numpy(columns["condition_codes"])
    assert model(**model.build_inputs(codes, counts, condition_codes=given)).loss.isfinite()

    columns = tokenize_windows(pipeline, windows, arguments(allocation="fixed", budget="2"))
    assert columns["token_counts"].tolist() == [[*PREFIX, 2, 2]] * 3
    for wrong, values in (
        ({"price": 0.1}, "price=0.1"),
        ({"threshold": 0.1}, "threshold"),
        ({"rounding": "exact"}, "exact"),
    ):
        with pytest.raises(ValueError, match=values):
            tokenize_windows(pipeline, windows, arguments(allocation="router", **wrong))
    with pytest.raises(ValueError, match="3"):
        tokenize_windows(pipeline, windows, arguments(allocation="router", condition_counts=[4, 3]))


@pytest.mark.parametrize(
    ("changes", "values"),
    [
        ({"allocation": None}, r"\[4, 16\].*None"),
        ({"allocation": "search", "budget": "4"}, "search"),
        ({"allocation": "router", "budget": "4"}, r"\[4, 16\].*'4'"),
        ({"allocation": "router", "num_condition_frames": 0}, r"\[4, 16\].*num_condition_frames"),
    ],
)
def test_requests_without_room_for_fixed_counts(changes, values):
    with pytest.raises(ValueError, match=values):
        arguments(**changes)
