"""The Space's functions, and the whole Space through its API: results, bad uploads, nothing left behind."""

import inspect
import re
import shutil
import sys
from functools import partial
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from video_files import (
    corrupt,
    make_frames,
    truncate,
    write_animation,
    write_audio_only,
    write_empty,
    write_file,
    write_mp4,
    write_text,
    write_webm,
    write_without_frames,
)

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, AdapTokPipeline, AdapTokVideoProcessor, Video

gr = pytest.importorskip("gradio", reason="the Space needs gradio: pip install adaptok_hf[space]")
sys.path.insert(0, str(Path(__file__).parents[1] / "space_app"))

import generate_tab  # noqa: E402
import inspect_tab  # noqa: E402
import predict_tab  # noqa: E402
import reconstruct_tab  # noqa: E402
import uploads  # noqa: E402
from charts import Line, line_chart  # noqa: E402
from demo import build_demo  # noqa: E402
from encoding import encode_video, spread  # noqa: E402
from example_clips import make_examples  # noqa: E402
from player import token_bars  # noqa: E402
from streaming import Watcher, watch  # noqa: E402
from theme import page_options  # noqa: E402

SURFING = Path(__file__).parents[1] / "examples" / "surfing.mp4"


@pytest.fixture(scope="module")
def shipped() -> AdapTokPipeline:
    pipeline = AdapTokPipeline.from_pretrained()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def tiny(tiny_tokenizer, tiny_scorer) -> AdapTokPipeline:
    """All parts, of another geometry than the shipped ones: 3 blocks of 6 latents, 50 codes, 3 classes."""
    torch.manual_seed(3)
    sizes = {"codebook_size": 50, "num_blocks": 3, "latents_per_block": 6, "hidden_size": 16, "intermediate_size": 32}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    names = {0: "first_class", 1: "second", 2: "third"}
    by_class = AdapTokARForCausalLM(AdapTokARConfig(num_classes=3, id2label=names, **sizes)).eval()
    by_frames = AdapTokARForCausalLM(AdapTokARConfig(num_classes=0, num_condition_codes=9, start_block=1, **sizes)).eval()
    processor = AdapTokVideoProcessor(image_size=16, num_frames=12, tubelet_size=4)
    pipeline = AdapTokPipeline(processor, tiny_tokenizer, tiny_scorer, by_class, by_frames)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.fixture
def clip(tmp_path) -> str:
    return str(write_mp4(tmp_path / "clip.mp4", frames=make_frames(20, 40, 64)))


def last(results):
    *_, result = results
    return result


# --- reconstruct ---


def test_reconstruct_with_the_shipped_checkpoint(shipped, tmp_path):
    """The numbers are the pipeline's own."""
    path = tmp_path / "short.mp4"
    write_mp4(path, frames=AdapTokVideoProcessor().load(SURFING, max_frames=20).frames)
    first, second = reconstruct_tab.reconstruct(shipped, str(path), "joint", 32)
    (html, curve, report), expected = second, shipped.reconstruct(str(path), budget=32)
    assert first[0] == html and first[2] is report
    assert html.count("<video") == 3 and "<polyline" in curve and "<polyline" not in first[1]
    assert report["token_counts"] == expected.token_counts.flatten()[:5].tolist() and sum(report["token_counts"]) == 160
    assert report["bits_per_second"] == pytest.approx(expected.bits_per_second, abs=0.1)
    error = np.mean((expected.frames.astype(float) - expected.original) ** 2)
    assert report["psnr_db"] == pytest.approx(10 * np.log10(255**2 / error), abs=2e-3)
    fixed = shipped.reconstruct(str(path), budget=32, allocation="fixed")
    error = np.mean((fixed.frames.astype(float) - fixed.original) ** 2)
    assert report["fixed"] == {"tokens_per_block": 32, "psnr_db": pytest.approx(10 * np.log10(255**2 / error), abs=2e-3)}
    points = report["curve"]["joint"]
    assert [point["tokens_per_block"] for point in points] == [8, 16, 32, 64, 128]
    assert points[2]["psnr_db"] == report["psnr_db"] and points[0] == report["curve"]["fixed"][0]


@pytest.mark.parametrize("strategy", list(reconstruct_tab.STRATEGIES))
def test_every_strategy_gives_the_pipelines_counts(tiny, clip, strategy):
    given = {"quality": {"price": 0.002}, "threshold": {"threshold": 0.1}}.get(strategy, {"budget": 4})
    arguments = {"price": 2.0} if strategy == "quality" else given  # the slider's price is for 1000 tokens
    _, _, report = last(reconstruct_tab.reconstruct(tiny, clip, strategy, **arguments))
    tokens = tiny.tokenize(clip, allocation=strategy, **given)
    assert report["token_counts"] == tokens.token_counts.flatten()[:5].tolist()
    assert report["tokens"] == tokens.num_tokens and report["strategy"] == strategy


def test_without_a_scorer_only_fixed_is_offered(tiny, clip):
    tiny.register_modules(scorer=None)
    assert reconstruct_tab.strategies(tiny) == ["fixed"]
    html, curve, report = last(reconstruct_tab.reconstruct(tiny, clip, "fixed", 3))
    assert set(report["token_counts"]) == {3} and html.count("<video") == 2 and list(report["curve"]) == ["fixed"]
    with pytest.raises(ValueError, match="one of fixed, not 'joint'"):
        next(reconstruct_tab.reconstruct(tiny, clip, "joint", 3))


def test_a_long_video_is_cut_and_says_so(tiny, tmp_path):
    path = str(write_mp4(tmp_path / "long.mp4", frames=make_frames(100, 32, 32)))
    html, _, report = next(reconstruct_tab.reconstruct(tiny, path, "joint", 4))
    assert report["frames"] == uploads.MAX_CLIPS * 12 and "Only the first 72 frames (3.0 s)" in html


def test_frames_are_those_of_the_processor(shipped, clip):
    expected = shipped.video_processor.clips(clip)
    frames = uploads.read_upload(shipped, clip).video.frames
    np.testing.assert_array_equal(frames, expected.frames.flatten(0, 1)[:20].permute(0, 2, 3, 1).numpy())


# --- generate, predict, inspect ---


def test_generate_streams_blocks_and_ends_with_the_pipelines_video(shipped):
    label = shipped.class_names[3]
    looks = list(generate_tab.generate(shipped, label, seed=5, guidance=1.5, budget=10))
    report = looks[-1][1]
    expected = shipped.generate(
        label, guidance_scale=1.5, temperature=1.0, budget=10, generator=torch.Generator().manual_seed(5)
    )
    assert report["token_counts"] == expected.token_counts.flatten().tolist() and report["class"] == label
    begun = [len(look[1].get("token_counts", [])) for look in looks]
    assert begun == sorted(begun) and begun[0] == 0 and set(begun) >= {1, begun[-1]}, begun
    assert "not written yet" in looks[0][0] and "<video" in looks[-1][0]


def test_looks_are_prefixes_of_the_final_tokens(tiny):
    looks = list(generate_tab.generate(tiny, 1, seed=7, guidance=2))
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
        ({"label": 0, "guidance": 0.5}, "guidance_scale must be at least 1"),
        ({"label": 0, "temperature": -1}, "temperature must be at least 0"),
        ({"label": 0, "budget": 0.1}, "must lie in"),
    ],
)
def test_bad_settings_of_generate(tiny, arguments, message):
    with pytest.raises(ValueError, match=message):
        list(generate_tab.generate(tiny, **arguments))


def test_closing_the_stream_stops_the_generator(tiny):
    """A visitor who leaves does not keep the model busy."""
    written = []

    def run(watcher):
        def after(ids, scores, **kwargs):
            written.append(ids.shape[1])
            return watcher(ids, scores)

        return tiny.generate(0, stopping_criteria=[after], generator=torch.Generator().manual_seed(0), temperature=1.0)

    stream = watch(run, Watcher(1, tiny.ar_model.config.eob_token_id))
    next(stream)
    watcher_stopped_at = len(written)
    stream.close()
    assert len(written) <= watcher_stopped_at + 3


def test_errors_of_the_watched_thread_are_raised():
    def run(watcher):
        raise ValueError("inside")

    with pytest.raises(ValueError, match="inside"):
        list(watch(run, Watcher(1, 0)))


def test_predict(tiny, clip):
    html, report = last(predict_tab.predict(tiny, clip, num_condition_frames=5, num_rollouts=2, num_videos=2, seed=3))
    generator = torch.Generator().manual_seed(3)
    video = uploads.read_upload(tiny, clip).video
    expected = tiny.predict(
        video, num_condition_frames=5, num_rollouts=2, num_videos=2, temperature=0.6, generator=generator
    )
    assert report["token_counts"] == expected.token_counts.tolist() and report["frames"] == 19
    assert html.count("<video") == 3 and "What really came" in html and 'data-given="0.2083"' in html
    html, _ = last(predict_tab.predict(tiny, clip, num_condition_frames=5, num_rollouts=3, num_videos=1))
    assert html.count("<video") == 1 and "nothing to compare" in html


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_rollouts": 9}, "1..4"),
        ({"num_videos": 0}, "1..3"),
        ({"seed": 0.5}, "whole"),
        ({"num_condition_frames": 12}, "1..11"),
    ],
)
def test_bad_settings_of_predict(tiny, clip, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        list(predict_tab.predict(tiny, clip, **arguments))


def test_inspect(tiny, clip):
    prefixes, curves, video = inspect_tab.inspect_clip(tiny, clip)
    assert len(video) == 12 and "data-levels=" in prefixes and curves.count("<polyline") == 3
    encoded = encode_video(tiny, video)
    np.testing.assert_array_equal(
        inspect_tab.decode_prefix(tiny, encoded, 2), tiny.reconstruct(video, budget=2, allocation="fixed").frames
    )
    html = inspect_tab.attention_map(tiny, video, 2, 3, 6)
    assert html.count("<img") == 3 and "token 6 of block 3 in layer 2" in html
    assert "later: unseen" in inspect_tab.attention_map(tiny, video, 1, 1, 1)
    assert "appears here" in inspect_tab.attention_map(tiny, None, 1, 1, 1)
    with pytest.raises(ValueError, match=r"token must lie in 1\.\.6, not 7"):
        inspect_tab.attention_map(tiny, video, 1, 1, 7)


def test_attention_is_that_of_the_eager_encoder(tiny, clip):
    """Our row against the weights that eager attention computes, at a latent of the second block."""
    video = uploads.read_upload(tiny, clip, max_frames=12).video
    weights = inspect_tab.attention_weights(tiny, video, layer=1, block=1, token=4)
    assert torch.allclose(weights.sum((1, 2)), torch.ones(2)) and not weights[:, 2].any()
    caught = []
    tiny.tokenizer.set_attn_implementation("eager")
    attention = tiny.tokenizer.encoder.layers[1].attention
    attention.register_forward_hook(lambda module, inputs, output: caught.append(output[1]))
    clips = tiny.video_processor.clips(video)
    tiny.tokenizer.encode(clips.pixel_values_videos)
    row = caught[0][0, :, 3 * 4 + 1 * 6 + 4]  # behind the patches of 3 blocks
    expected = torch.cat([row[:, :12].unflatten(1, (3, 4)), row[:, 12:].unflatten(1, (3, 6))], dim=2)
    torch.testing.assert_close(weights, expected)


# --- pieces ---


def test_charts_and_bars_are_well_formed():
    from xml.etree import ElementTree

    line = Line("a < b", [(1, 2.0), (10, 2.0)], "fixed", ["<tip>", "&"])
    for html in (
        line_chart([line], "x & y", "<y>", '"told"', [(1, "1")], (5, 2.0, "here")),
        token_bars([0, 3, 6], 6, [4, 4, 2], 2.5),
    ):
        ElementTree.fromstring(html)


def test_spread():
    assert spread(list(range(8, 129, 8)), 5) == [8, 16, 32, 64, 128]
    assert spread([4], 5) == [4] and spread([1, 2, 3], 9) == [1, 2, 3]


def test_sliders_follow_the_model(tiny):
    demo = build_demo(tiny)
    sliders = {block.label: block for block in demo.blocks.values() if isinstance(block, gr.Slider)}
    budget = sliders["Budget: tokens per block, on average"]
    assert (budget.minimum, budget.maximum, budget.step) == (2, 6, 2)
    assert sliders["Token of the block"].maximum == 6 and sliders["Encoder layer"].maximum == 2
    assert sliders["Frames that are given"].maximum == 11
    assert all(block.label for block in demo.blocks.values() if isinstance(block, gr.Slider | gr.Dropdown | gr.Number))
    tiny.register_modules(ar_model=None, fp_model=None)
    assert [tab.label for tab in build_demo(tiny).blocks.values() if isinstance(tab, gr.Tab)] == [
        "Reconstruct",
        "Inspect",
        "About",
    ]


def test_examples_need_no_network(tmp_path, tiny):
    files = make_examples(tmp_path)
    assert SURFING in files and len(files) == 2
    for file in files:
        uploads.read_upload(tiny, str(file))


def test_zero_gpu_decorator_is_used_where_it_is(monkeypatch):
    import zero_gpu

    assert zero_gpu.on_gpu(len) is len

    class Spaces:
        @staticmethod
        def GPU(duration):
            return lambda function: (duration, function)

    monkeypatch.setattr(zero_gpu, "spaces", Spaces)
    assert zero_gpu.on_gpu(len) == (90, len)


def test_requirements_are_pinned_as_tested():
    root = Path(__file__).parents[1]
    pins = set((root / "constraints.txt").read_text().split())
    wanted = [line for line in (root / "space_app/requirements.txt").read_text().splitlines() if "==" in line]
    assert len(wanted) > 8 and set(wanted) <= pins
    header = (root / "space_app/README.md").read_text().split("---")[1]
    (version,) = re.findall(r"sdk_version: (.*)", header)
    assert f"gradio=={version}" in pins and (root / "space_app" / re.findall(r"app_file: (.*)", header)[0]).exists()


# --- uploads ---


def write_long_4k(path: Path) -> Path:
    """Three frames of 3840x2160 that last ten minutes."""
    return write_file(path, frames=np.zeros((3, 2160, 3840, 3), np.uint8), pts=[0, 7200, 14400])


def write_4k(path: Path) -> Path:
    return write_file(path, frames=np.zeros((1, 2160, 3840, 3), np.uint8))


def write_sparse(path: Path, size: int = 2 << 30) -> Path:
    """Starts like an mp4, then a hole of 2 GiB."""
    with open(path, "wb") as file:
        file.write(b"\0\0\0\x18ftypisom")
        file.truncate(size)
    return path


def write_html(path: Path) -> Path:
    return write_text(path, "<!doctype html><html><script>alert(1)</script></html>" * 20)


def write_gif_bomb(path: Path) -> Path:
    """A GIF whose header declares 65535x65535 pixels."""
    data = bytearray(write_animation(path).read_bytes())
    data[6:10] = b"\xff\xff\xff\xff"
    path.write_bytes(data)
    return path


BAD_FILES = [
    (write_empty, "a.mp4", "empty"),
    (write_text, "a.mp4", "not a video"),
    (write_html, "page.mp4", "not a video"),
    (write_without_frames, "a.mp4", "no frames"),
    (write_without_frames, "a.avi", "no video frames"),
    (write_audio_only, "a.mp4", "no video stream"),
    (lambda path: write_animation(path, make_frames(1)), "a.gif", "still image"),
    (lambda path: truncate(write_mp4(path), 0.6), "a.mp4", "damaged or truncated"),
    (lambda path: truncate(write_mp4(path, faststart=True), 0.9), "a.mp4", "truncated; only"),
    (lambda path: truncate(write_webm(path), 0.6), "a.webm", "damaged or truncated"),
    (lambda path: truncate(write_animation(path), 0.6), "a.gif", "truncated; only"),
    (lambda path: corrupt(write_mp4(path, faststart=True)), "a.mp4", "damaged or truncated"),
    (lambda path: write_mp4(path, frames=make_frames(4, 8, 400)), "a.mp4", "too narrow"),
    (write_4k, "a.mp4", "3840×2160 pixels are more"),
    (write_long_4k, "a.mp4", r"\d+ seconds are more than this Space takes \(120\)"),
    (write_gif_bomb, "a.gif", "more pixels than this Space takes"),
]


def refused(message: str, folder: Path) -> None:
    """The message names no folder of this machine and is one line without markup."""
    assert str(folder) not in message and "/tmp" not in message and "gradio" not in message, message
    assert "\n" not in message and "<" not in message and "Traceback" not in message


@pytest.mark.parametrize(("writer", "name", "message"), BAD_FILES)
def test_bad_files_are_refused_in_one_sentence(tiny, tmp_path, writer, name, message):
    path = writer(tmp_path / name)
    for function in (reconstruct_tab.reconstruct, predict_tab.predict):
        with pytest.raises(ValueError, match=message) as error:
            list(function(tiny, str(path)))
        refused(str(error.value), tmp_path)
        assert str(error.value).startswith(name)
    with pytest.raises(ValueError, match=message):
        inspect_tab.inspect_clip(tiny, str(path))


def test_two_gigabytes_are_not_read(tiny, tmp_path, monkeypatch):
    path = write_sparse(tmp_path / "sparse.mp4")
    monkeypatch.setattr(av, "open", None)  # it must not come so far
    with pytest.raises(ValueError, match=r"sparse\.mp4: 2147 MB are more"):
        uploads.read_upload(tiny, str(path))


def test_nothing_chosen_and_nothing_there(tiny, tmp_path):
    with pytest.raises(ValueError, match="Choose an example"):
        uploads.read_upload(tiny, None)
    with pytest.raises(ValueError, match="not here any more") as error:
        uploads.read_upload(tiny, str(tmp_path / "gone.mp4"))
    refused(str(error.value), tmp_path)


def test_decoding_has_a_deadline(tiny, clip, monkeypatch):
    monkeypatch.setattr(uploads, "MAX_DECODING", -1)
    with pytest.raises(ValueError, match="decoding takes longer"):
        uploads.read_upload(tiny, clip)


def test_a_header_that_lies_is_noticed_while_decoding(tiny, tmp_path, monkeypatch):
    path = write_4k(tmp_path / "a.mp4")
    monkeypatch.setattr(uploads, "_check_header", lambda path, name: None)
    with pytest.raises(ValueError, match="3840×2160"):
        uploads.read_upload(tiny, str(path))


def test_guarded_errors_are_messages(caplog):
    def fails(pipeline, value):
        raise value

    def fails_later(pipeline, value):
        yield 1
        raise value

    for function in (partial(fails, None), partial(fails_later, None)):
        run = uploads.guarded(function)
        assert list(inspect.signature(run).parameters) == ["value"]
        with pytest.raises(gr.Error) as error:
            list(run(ValueError("<b>bad</b> /srv/secret/place/clip.mp4")))
        assert error.value.message == "&lt;b&gt;bad&lt;/b&gt; clip.mp4" and not error.value.print_exception
        with pytest.raises(gr.Error, match="Something went wrong") as error:
            list(run(RuntimeError("token hf_abc in /srv/x")))
        assert "hf_abc" not in str(error.value)
    assert "fails failed" in caplog.text


# --- the whole Space ---


@pytest.fixture
def space(tiny, tmp_path, monkeypatch):
    """(client, upload folder) of a Space on this machine."""
    gradio_client = pytest.importorskip("gradio_client")
    folder = tmp_path / "uploads"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    demo = build_demo(tiny, "tiny")
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, max_file_size="50mb", **page_options())
    client = gradio_client.Client(url, verbose=False, download_files=str(tmp_path / "downloads"))
    yield client, folder
    client.close()
    demo.close()


def test_the_api_end_to_end(space, clip, tmp_path):
    from gradio_client import handle_file
    from gradio_client.exceptions import AppError

    client, folder = space
    video = handle_file(clip)
    html, curve, report = client.predict(video, "joint", 4, api_name="/reconstruct")
    assert report["video"] == "clip.mp4" and "<video" in html and "<polyline" in curve
    html, report = client.predict(1, 3, 1.5, 1.0, 6, api_name="/generate")
    assert report["class"] == "second" and report["status"] == "done" and "<video" in html
    html, report = client.predict(video, 5, 1, 2, 0.6, 0, api_name="/predict")
    assert len(report["token_counts"]) == 2 and html.count("<video") == 3
    prefixes, curves = client.predict(video, api_name="/inspect")
    assert "at-prefix" in prefixes and "<polyline" in curves

    for writer, name, message in BAD_FILES:
        path = writer(tmp_path / name)
        with pytest.raises(AppError, match=message) as error:
            client.predict(handle_file(path), "joint", 4, api_name="/reconstruct")
        refused(str(error.value), folder)
    # the Space is as well as before
    assert client.predict(video, "joint", 4, api_name="/reconstruct")[2]["tokens"] == 20
    # results are part of the page: there is nothing but what was uploaded, and the examples
    kept = {path.name for path in folder.rglob("*") if path.is_file()}
    assert kept <= {name for _, name, _ in BAD_FILES} | {"clip.mp4", "surfing.mp4", "surfing_held_then_played.mp4"}


def test_what_a_browser_would_not_send(space, tmp_path):
    """Names with folders in them, files of the server, and two gigabytes."""
    import httpx

    client, folder = space
    address = f"{client.src.rstrip('/')}/gradio_api/upload"
    for name in ("../../evil.mp4", "..\\..\\evil.mp4", "/etc/evil.mp4", "a/b/evil.mp4"):
        answer = httpx.post(address, files={"files": (name, b"x" * 100, "video/mp4")}, timeout=60)
        if answer.status_code == 200:
            assert Path(answer.json()[0]).resolve().is_relative_to(folder.resolve()), name
    assert [path for path in tmp_path.rglob("*evil.mp4") if not path.is_relative_to(folder)] == []

    def call(path: str) -> str:
        data = {"data": [{"path": path, "meta": {"_type": "gradio.FileData"}}, "joint", 4, 1, 0.1]}
        event = httpx.post(f"{client.src.rstrip('/')}/gradio_api/call/reconstruct", json=data)
        if event.status_code != 200:
            return event.text
        return httpx.get(
            f"{client.src.rstrip('/')}/gradio_api/call/reconstruct/{event.json()['event_id']}", timeout=60
        ).text

    assert "evil.mp4: not a video" in call(answer.json()[0])  # what was uploaded is looked at
    for path in ("/etc/passwd", "../../../etc/passwd", __file__):
        answer = call(path)
        assert "error" in answer and "not a video" not in answer and "root:" not in answer and "Traceback" not in answer

    before = shutil.disk_usage(tmp_path).used
    path = write_sparse(tmp_path / "sparse.mp4")
    try:
        with open(path, "rb") as file:
            answer = httpx.post(address, files={"files": ("sparse.mp4", file, "video/mp4")}, timeout=120)
        assert answer.status_code in (400, 413) and "exceeded maximum allowed size" in answer.text
    except httpx.TransportError:  # the server hung up, as it may
        pass
    assert not list(folder.rglob("sparse.mp4"))
    assert shutil.disk_usage(tmp_path).used - before < 200_000_000


@pytest.mark.slow
def test_memory_and_temporary_space_stay_bounded(tiny, tmp_path, monkeypatch):
    """50 different uploads: old ones are deleted, memory does not grow with their number."""
    import time

    import demo as demo_module
    from gradio_client import Client, handle_file

    psutil = pytest.importorskip("psutil")
    folder = tmp_path / "uploads"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    monkeypatch.setattr(demo_module, "_CLEANING_SECONDS", 1)
    monkeypatch.setattr(demo_module, "_UPLOAD_LIFETIME", 1)
    demo = build_demo(tiny)
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **page_options())
    client = Client(url, verbose=False, download_files=str(tmp_path / "downloads"))
    frames, memory = make_frames(40, 240, 320), []
    for index in range(50):
        path = write_mp4(tmp_path / f"clip{index}.mp4", frames=np.roll(frames, 3 * index, axis=2))
        client.predict(handle_file(path), "joint", 4, api_name="/reconstruct")
        path.unlink()
        memory.append(psutil.Process().memory_info().rss)
    for _ in range(60):
        left = [path for path in folder.rglob("clip*.mp4")]
        if not left:
            break
        time.sleep(1)
    assert left == []
    assert memory[-1] - memory[9] < 60e6, [round(m / 1e6) for m in memory]
    client.close()
    demo.close()
    assert not Path(demo.example_folder.name).exists() or demo.example_folder.cleanup() is None


def test_video_of_one_frame(tiny):
    """The shortest video there is goes through every tab."""
    video = Video(make_frames(1, 16, 16), 24.0, np.zeros(1))
    assert encode_video(tiny, video).num_blocks == 1
