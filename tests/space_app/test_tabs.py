"""The Space's tabs and the pieces they are made of, called as functions."""

import base64
import configparser
import math
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.pipelines import make_pipeline
from builders.video_files import make_frames, write_mp4

from adaptok_hf import AdapTokPipeline, TokenizedVideo, Video

gr = pytest.importorskip("gradio", reason="the Space needs gradio: pip install adaptok_hf[space]")

import generate_tab  # noqa: E402
import inspect_tab  # noqa: E402
import predict_tab  # noqa: E402
import reconstruct_tab  # noqa: E402
import share_tab  # noqa: E402
import uploads  # noqa: E402
from demo import build_demo, run_once  # noqa: E402
from encoding import spread  # noqa: E402
from example_clips import find_examples  # noqa: E402
from player import token_bars  # noqa: E402
from streaming import Watcher, watch  # noqa: E402

SURFING = Path(__file__).parents[2] / "examples" / "surfing.mp4"


@pytest.fixture(scope="module")
def shipped() -> AdapTokPipeline:
    pipeline = AdapTokPipeline.from_pretrained("figures")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def last(results):
    *_, result = results
    return result


# --- reconstruct ---


def test_reconstruct_with_the_shipped_checkpoint(shipped, tmp_path):
    """The numbers are the pipeline's own, next to those of the scorer's schedule."""
    path = tmp_path / "short.mp4"
    write_mp4(path, frames=shipped.video_processor.load(SURFING, max_frames=20).frames)
    num_blocks = math.ceil(20 / shipped.tokenizer.config.tubelet_size)
    step, most = shipped.scorer.config.score_step, shipped.tokenizer.config.latents_per_block
    budgets = spread(list(range(step, most + 1, step)), 5)
    budget = budgets[len(budgets) // 2]
    first, second = reconstruct_tab.reconstruct(shipped, str(path), budget=budget)
    (html, curve, report), expected = second, shipped.reconstruct(str(path), budget=budget)
    assert first[0] == html and first[2] is report
    assert html.count("<video") == 3 and first[1] is None
    assert list(curve.columns) == ["tokens per block", "PSNR, dB", "allocation"] and len(curve) == 2 * len(budgets)
    assert report["token_counts"] == expected.token_counts.flatten()[:num_blocks].tolist()
    assert sum(report["token_counts"]) == budget * num_blocks
    assert report["bits_per_second"] == pytest.approx(expected.bits_per_second, abs=0.1)
    error = np.mean((expected.frames.astype(float) - expected.original) ** 2) * 255**2
    assert report["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error), abs=2e-3)
    valid = torch.arange(2 * shipped.tokenizer.config.num_blocks).reshape(2, -1) < num_blocks
    schedule = shipped.find_schedule(budget, valid)
    fixed = shipped.reconstruct(str(path), budget=schedule, allocation="fixed")
    assert "Best constant schedule" in html and fixed.token_counts[0].tolist() == list(schedule)
    assert budget - 1 < fixed.tokens.num_tokens / num_blocks <= budget
    error = np.mean((fixed.frames.astype(float) - fixed.original) ** 2) * 255**2
    assert report["baseline"] == {
        "strategy": "schedule",
        "tokens_per_block": round(fixed.tokens.num_tokens / num_blocks, 3),
        "token_counts": fixed.token_counts.flatten()[:num_blocks].tolist(),
        "psnr_db": pytest.approx(10 * np.log10(255**2 / error), abs=2e-3),
    }
    points = report["curve"]["compared"]
    assert [point["tokens_per_block"] for point in points] == budgets and (budgets[0], budgets[-1]) == (step, most)
    assert points[budgets.index(budget)]["psnr_db"] == report["psnr_db"]


QUICK = [name for name, row in reconstruct_tab.STRATEGIES.items() if row.scores not in ("searched", "routed")]


@pytest.mark.parametrize("strategy", QUICK)
def test_every_strategy_gives_the_pipelines_counts(complete_pipeline, clip_file, strategy):
    given = {"quality": {"price": 0.002}, "threshold": {"threshold": 0.1}}.get(strategy, {"budget": 4})
    arguments = {"price": 2.0} if strategy == "quality" else given  # the slider's price is for 1000 tokens
    _, _, report = last(reconstruct_tab.reconstruct(complete_pipeline, clip_file, strategy, **arguments))
    tokens = complete_pipeline.tokenize(clip_file, allocation=strategy, **given)
    assert report["token_counts"] == tokens.token_counts.flatten()[:5].tolist()
    assert report["tokens"] == tokens.num_tokens and report["strategy"] == strategy


def test_without_a_scorer_joint_is_not_offered(complete_pipeline, clip_file):
    complete_pipeline.register_modules(scorer=None)
    assert reconstruct_tab.strategies(complete_pipeline) == ["fixed", "measured"]
    html, curve, report = last(reconstruct_tab.reconstruct(complete_pipeline, clip_file, "fixed", 3))
    assert set(report["token_counts"]) == {3} and html.count("<video") == 2 and list(report["curve"]) == ["fixed"]
    with pytest.raises(ValueError, match="fixed.*'joint'"):
        next(reconstruct_tab.reconstruct(complete_pipeline, clip_file, "joint", 3))


def test_a_long_video_is_cut_and_says_so(complete_pipeline, tmp_path):
    path = str(write_mp4(tmp_path / "long.mp4", frames=make_frames(100, 32, 32)))
    html, _, report = next(reconstruct_tab.reconstruct(complete_pipeline, path, "joint", 4))
    assert report["frames"] == uploads.MAX_CLIPS * 12 and "Only the first 72 frames (3.0 s)" in html


def test_frames_are_those_of_the_processor(shipped, clip_file):
    expected = shipped.video_processor.clips(clip_file)
    frames = uploads.read_upload(shipped, clip_file).video.frames
    np.testing.assert_array_equal(frames, expected.frames.flatten(0, 1)[:20].permute(0, 2, 3, 1).numpy())


def test_the_tokens_can_be_taken_along(complete_pipeline, clip_file, tmp_path):
    html, _, report = next(reconstruct_tab.reconstruct(complete_pipeline, clip_file, "joint", 4))
    (data,) = re.findall(r'href="data:[^,]*,([^"]*)" download="clip.safetensors"', html)
    (tmp_path / "clip.safetensors").write_bytes(base64.b64decode(data))
    tokens = TokenizedVideo.load(tmp_path / "clip.safetensors")
    assert tokens.token_counts.flatten()[:5].tolist() == report["token_counts"]
    assert f"Download all {report['tokens']}" in html and f"<code>{tokens.codes[0, 0, 0]} " in html


# --- share ---


def test_share_is_the_pipelines_list(complete_pipeline, clip_file, tmp_path):
    other = str(write_mp4(tmp_path / "other.mp4", frames=make_frames(12, 32, 32)[::-1]))
    html, report = share_tab.share(complete_pipeline, clip_file, None, other, 4, "joint")
    expected = complete_pipeline.reconstruct([clip_file, other], budget=4, allocation="joint", output_type="uint8")
    counts = [output.token_counts.flatten()[:num].tolist() for output, num in zip(expected, (5, 3), strict=True)]
    assert [row["token_counts"] for row in report["videos"]] == counts and sum(map(sum, counts)) == report["tokens"] == 32
    errors = [np.square(output.frames.astype(float) - output.original) for output in expected]
    error = np.mean(np.concatenate([each[0] for each in errors]))
    assert report["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error), abs=2e-3)
    assert report["baseline"]["tokens"] <= 32 and [len(row) for row in report["baseline"]["token_counts"]] == [5, 3]
    assert html.count("<video") == 4 and html.count('class="at-bars"') == 2
    with pytest.raises(ValueError, match="two videos, not 1"):
        share_tab.share(complete_pipeline, clip_file, None)


# --- generate, predict, inspect ---


def test_generate_streams_blocks_and_ends_with_the_pipelines_video(shipped):
    label = shipped.class_names[-1]
    looks = list(generate_tab.generate(shipped, label, seed=5, guidance=1.5, max_tokens=40))
    report = looks[-1][1]
    expected = shipped.generate(
        label, guidance_scale=1.5, temperature=0.6, max_tokens=40, generator=torch.Generator().manual_seed(5)
    )
    assert report["token_counts"] == expected.token_counts.flatten().tolist() and report["class"] == label
    begun = [len(look[1].get("token_counts", [])) for look in looks]
    assert begun == sorted(begun) and begun[0] == 0 and set(begun) >= {1, begun[-1]}, begun
    assert "not written yet" in looks[0][0] and "<video" in looks[-1][0]


def test_looks_are_prefixes_of_the_final_tokens(complete_pipeline):
    looks = list(generate_tab.generate(complete_pipeline, 1, seed=7, guidance=2))
    final = looks[-1][1]["token_counts"]
    for _, report in looks[1:-1]:
        *closed, open_block = report["token_counts"]
        assert closed == final[: len(closed)] and open_block <= final[len(closed)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"label": None}, "Choose a class"),
        ({"label": "fourth"}, "unknown class 'fourth'"),
        ({"label": 0, "seed": -1}, "seed must be"),
        ({"label": 0, "seed": None}, "seed must be"),
        ({"label": 0, "guidance": 0.5}, "guidance_scale.* 0.5"),
        ({"label": 0, "temperature": -1}, "temperature.* -1"),
        ({"label": 0, "max_tokens": 0}, "must lie in"),
    ],
)
def test_bad_settings_of_generate(complete_pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        list(generate_tab.generate(complete_pipeline, **arguments))


def test_closing_the_stream_stops_the_generator(complete_pipeline):
    """A visitor who leaves does not keep the model busy."""
    written = []

    def run(watcher):
        def after(ids, scores, **kwargs):
            written.append(ids.shape[1])
            return watcher(ids, scores)

        return complete_pipeline.generate(
            0, stopping_criteria=[after], generator=torch.Generator().manual_seed(0), temperature=1.0
        )

    stream = watch(run, Watcher(1, complete_pipeline.ar_model.config.eob_token_id))
    next(stream)
    watcher_stopped_at = len(written)
    stream.close()
    assert len(written) <= watcher_stopped_at + 3


def test_errors_of_the_watched_thread_are_raised():
    def run(watcher):
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        list(watch(run, Watcher(1, 0)))


def test_predict(complete_pipeline, clip_file):
    html, report = last(
        predict_tab.predict(complete_pipeline, clip_file, num_condition_frames=5, num_rollouts=2, num_videos=2, seed=3)
    )
    generator = torch.Generator().manual_seed(3)
    video = uploads.read_upload(complete_pipeline, clip_file).video
    expected = complete_pipeline.predict(
        video, num_condition_frames=5, num_rollouts=2, num_videos=2, temperature=0.6, generator=generator
    )
    assert report["token_counts"] == expected.token_counts.tolist() and report["frames"] == 19
    assert html.count("<video") == 3 and "What really followed" in html and 'data-given="0.2083"' in html
    html, _ = last(predict_tab.predict(complete_pipeline, clip_file, num_condition_frames=5, num_rollouts=3, num_videos=1))
    assert html.count("<video") == 1 and "nothing to compare" in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seed": 0.5}, "whole"),
        ({"num_condition_frames": 12}, "from 1 to 11"),
    ],
)
def test_bad_settings_of_predict(complete_pipeline, clip_file, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        list(predict_tab.predict(complete_pipeline, clip_file, **arguments))


def test_inspect(complete_pipeline, clip_file):
    prefixes, looks, curves, video = inspect_tab.inspect_clip(complete_pipeline, clip_file, 2, 3, 6)
    assert (
        looks == inspect_tab.attention_map(complete_pipeline, video, 2, 3, 6)
        and len(video) == 12
        and prefixes.count("<img") == 6
        and "from the first 6 tokens" in prefixes
    )
    assert list(curves["tokens"]) == [2, 4, 6] * 3 and set(curves["block"]) == {"block 1", "block 2", "block 3"}
    encoded = complete_pipeline.encode(video)
    np.testing.assert_array_equal(
        inspect_tab.decode_prefix(complete_pipeline, encoded, 2),
        complete_pipeline.reconstruct(video, budget=2, allocation="fixed", output_type="uint8").frames[0],
    )
    html = inspect_tab.attention_map(complete_pipeline, video, 2, 3, 6)
    assert html.count("<img") == 3 and "token 6 of block 3 in layer 2" in html
    assert "later: unseen" in inspect_tab.attention_map(complete_pipeline, video, 1, 1, 1)
    assert "appears here" in inspect_tab.attention_map(complete_pipeline, None, 1, 1, 1)


# --- pieces ---


def test_bars_are_well_formed():
    from xml.etree import ElementTree

    bars = ElementTree.fromstring(token_bars([0, 3, 6], 6, [4, 4, 2], [1, 2, 6], '<"tokens">', "<&>"))
    assert [number.text for number in bars.iter("b")] == ["0", "3", "6"]
    assert [mark.get("style") for mark in bars.iter("u")] == ["--h:0.1667", "--h:0.3333", "--h:1.0000"]
    assert not [number for well in bars.iter("span") if well.get("class") == "at-well" for number in well.iter("b")]


def test_spread():
    assert spread(list(range(3, 49, 3)), 5) == [3, 6, 12, 24, 48]
    assert spread([4], 5) == [4] and spread([1, 2, 3], 9) == [1, 2, 3]


def test_sliders_follow_the_model(complete_pipeline):
    demo = build_demo(complete_pipeline)
    sliders = {block.label: block for block in demo.blocks.values() if isinstance(block, gr.Slider)}
    budget = sliders["Budget: tokens per block, on average"]
    assert (budget.minimum, budget.maximum, budget.step) == (2, 6, 1)
    assert sliders["Token"].maximum == 6 and sliders["Encoder layer"].maximum == 2
    assert sliders["Frames that are given"].maximum == 11
    assert all(block.label for block in demo.blocks.values() if isinstance(block, gr.Slider | gr.Dropdown | gr.Number))


def test_tabs_follow_the_models(complete_pipeline):
    """Generate and Predict may have a pipeline of their own, as they have with the checkpoints in the package."""
    without = make_pipeline(scorer_layers=1)
    alone, blocks = (list(build_demo(without, generators=each).blocks.values()) for each in (None, complete_pipeline))
    assert [block.label for block in alone if isinstance(block, gr.Tab)] == ["Reconstruct", "Share", "Inspect", "About"]
    tabs = [block.label for block in blocks if isinstance(block, gr.Tab)]
    assert tabs == ["Reconstruct", "Share", "Generate", "Predict", "Inspect", "About"]
    most = {block.label: block.maximum for block in blocks if isinstance(block, gr.Slider)}
    assert (most["Token"], most["Frames that are given"], most["Most tokens of the video"]) == (64, 11, 18)


def test_examples_need_no_network(complete_pipeline):
    files = find_examples()
    assert SURFING in files and len(files) == 3
    notes = (SURFING.parent / "README.md").read_text()
    for file in files:
        uploads.read_upload(complete_pipeline, str(file))
        assert f"`{file.name}`" in notes, f"{file.name}: its source and license are not noted"
        assert file.stat().st_size < 100_000


def test_a_first_result_is_computed_once():
    runs = []

    def compute():
        runs.append(0)
        yield "players"
        if len(runs) == 2:
            raise ValueError("failed")
        yield "curve"

    once = run_once(compute)
    visitor = once()
    next(visitor)
    visitor.close()  # left before it was complete
    with pytest.raises(ValueError, match="failed"):
        list(once())
    assert (list(once()), list(once()), len(runs)) == (["players", "curve"], ["curve"], 3)


def test_tabs_arrive_with_the_result_of_their_initial_values(complete_pipeline):
    """Nothing over what a visitor made, and a click stops what is still on its way."""
    demo = build_demo(complete_pipeline)
    arrivals = [each for each in demo.fns.values() if each.concurrency_id == "first results"]
    assert len(arrivals) == 5
    for arrival in arrivals:
        assert any(arrival._id in each.cancels for each in demo.fns.values())
        (kept,) = arrival.fn(object())
        assert kept == gr.skip()
    ((html, report),) = arrivals[1].fn(None)
    assert [row["video"] for row in report["videos"]] == ["surfing.mp4", "turning_a_cup.mp4", "yoga.mp4"]
    assert next(arrivals[1].fn(None)) == (html, report)


def test_zero_gpu_decorator_is_used_where_it_is(monkeypatch):
    import zero_gpu

    assert zero_gpu.on_gpu(len) is len

    class Spaces:
        @staticmethod
        def GPU(duration):
            return lambda function: (duration, function)

    monkeypatch.setattr(zero_gpu, "spaces", Spaces)
    assert zero_gpu.on_gpu(len) == (90, len)


def test_the_repository_of_a_space(tmp_path):
    """What the README says makes one: all that `app.py` imports is there or in `requirements.txt`, pinned as tested."""
    root = Path(__file__).parents[2]
    for name in ("space_app", "adaptok_hf", "examples"):
        (tmp_path / name).symlink_to(root / name)
    (command,) = re.findall(r"^mkdir .*$", (root / "space_app/README.md").read_text(), re.MULTILINE)
    subprocess.run(command, shell=True, check=True, cwd=tmp_path)
    space = tmp_path / "build" / "space"
    header = (space / "README.md").read_text().split("---")[1]
    (app,) = re.findall(r"app_file: (.*)", header)
    assert (space / app).exists() and (space / "adaptok_hf" / "__init__.py").exists() and (space / "examples").exists()
    wanted = (space / "requirements.txt").read_text().splitlines()[1:]
    pins = set((root / "constraints.txt").read_text().split())
    assert {line for line in wanted if "==" in line} <= pins
    setup = configparser.ConfigParser()
    setup.read(root / "setup.cfg")
    needed = [*setup["options"]["install_requires"].split(), "gradio"]
    assert sorted(re.split("[=>]", line)[0] for line in wanted) == sorted(re.split("[=>]", line)[0] for line in needed)
    (version,) = re.findall(r"sdk_version: (.*)", header)
    assert f"gradio=={version}" in wanted


def test_video_of_one_frame(complete_pipeline):
    """The shortest video there is goes through every tab."""
    video = Video(make_frames(1, 16, 16), 24.0, np.zeros(1))
    assert complete_pipeline.encode(video).valid_blocks.sum() == 1
