"""The pipeline's stream gives what its whole-clip pass gives, in constant memory and at the rate that is asked for."""

import gc
import http.server
import threading
from contextlib import suppress
from dataclasses import replace
from functools import partial

import av
import numpy as np
import pytest
import torch
from builders.video_files import make_frames, truncate, write_animation, write_mp4
from PIL import Image
from torch.testing import assert_close

from adaptok_hf import AdapTokConfig, AdapTokModel, AdapTokPipeline, Video, read_video
from adaptok_hf.allocation import quality
from adaptok_hf.cli.main import main


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def noisy_video(num_frames: int, seed: int = 0, size: int = 16) -> np.ndarray:
    """uint8 (num_frames, size, size, 3), every frame different."""
    return np.random.default_rng(seed).integers(0, 256, (num_frames, size, size, 3), dtype=np.uint8)


def uneven_video(num_frames: int, seed: int = 0) -> np.ndarray:
    """Noise whose contrast changes from block to block."""
    contrast = np.random.default_rng(seed + 1).random(-(-num_frames // 4)).repeat(4)[:num_frames, None, None, None]
    return (noisy_video(num_frames, seed) * contrast).astype(np.uint8)


# --- the pipeline's stream against its whole-clip pass --------------------------------------------------------------


def splitting(pipeline, video: np.ndarray) -> list[dict]:
    """A price and a threshold at which blocks differ, and none is so near that round-off would decide."""
    encoded = pipeline.tokenizer.encode(pipeline.video_processor.clips(video).pixel_values_videos)
    scores = pipeline.scorer(encoded.latents, encoded.quantized).scores
    gains = (scores[..., :1] - scores[..., 1:]) / torch.tensor([2.0, 4.0])
    return [{"price": max(0.0, middle(gains.amax(-1)))}, {"threshold": middle(scores.amin(-1))}]


def middle(values: torch.Tensor) -> float:
    """Half-way between the two values in the middle."""
    ordered = values.flatten().sort().values
    return float(ordered[len(ordered) // 2 - 1 :][:2].mean())


@pytest.mark.parametrize("num_frames", [3, 12, 42])
def test_stream_is_the_whole_clip_pass(tiny_pipeline, num_frames):
    video = noisy_video(num_frames)
    for settings in ({}, *splitting(tiny_pipeline, noisy_video(36))):
        whole = tiny_pipeline.reconstruct(video, **settings)
        blocks = list(tiny_pipeline.stream(iter(video), **settings))
        valid = whole.token_counts.flatten() > 0
        assert len(blocks) == valid.sum() == -(-num_frames // 4)
        assert [block.index for block in blocks] == list(range(len(blocks)))
        codes, counts = torch.stack([b.codes for b in blocks]), torch.tensor([b.token_count for b in blocks])
        assert torch.equal(codes, whole.tokens.codes.flatten(0, 1)[valid])
        assert torch.equal(counts, whole.token_counts.flatten()[valid])
        assert not settings or num_frames < 42 or len(counts.unique()) > 1
        frames = np.concatenate([block.frames for block in blocks])
        assert frames.shape == video.shape and np.abs(frames - whole.frames[0]).max() <= 1.01 / 255
        assert np.array_equal(np.concatenate([block.original for block in blocks]), np.float32(video) / 255)
        assert np.concatenate([block.timestamps for block in blocks]) == pytest.approx(whole.timestamps)
        assert sum(block.bits for block in blocks) == pytest.approx(whole.tokens.num_bits)


def test_counts_are_those_of_whole_passes(tiny_pipeline):
    """One scorer pass over the whole clip for each block, with the counts chosen before it."""
    for layer in tiny_pipeline.scorer.layers:  # makes the counts of earlier blocks matter
        layer.attention.proj.weight.mul_(20)
    video = noisy_video(96)
    (settings, _) = splitting(tiny_pipeline, video)
    encoded = tiny_pipeline.tokenizer.encode(tiny_pipeline.video_processor.clips(video).pixel_values_videos)
    counts = torch.zeros(8, 3, dtype=torch.long)
    for block in range(3):
        counts[:, block] = 6
        scores = tiny_pipeline.scorer(encoded.latents, encoded.quantized, counts).scores[:, block]
        counts[:, block] = torch.from_numpy(quality(scores.double().numpy(), step=2, **settings))
    assert len(counts.unique()) > 1
    streamed = [block.token_count for block in tiny_pipeline.stream(video, **settings, decode=False)]
    assert streamed == counts.flatten().tolist()


def arrivals(video: np.ndarray, cut: np.random.Generator | int):
    """The frames as they may come: one at a time, or several, as arrays, tensors or images."""
    start = 0
    while start < len(video):
        size = cut if isinstance(cut, int) else int(cut.integers(0, 9))
        chunk, start = video[start : start + size], start + size
        if len(chunk) == 1:
            yield [chunk[0], Image.fromarray(chunk[0]), torch.from_numpy(chunk[0]).permute(2, 0, 1)][start % 3]
        else:
            yield chunk if start % 2 else torch.from_numpy(chunk)


def test_cutting_has_no_influence(tiny_pipeline):
    video = uneven_video(39)
    settings = {"budget": 3.5, "window": 4, "reservoir": 2}
    expected = list(tiny_pipeline.stream(video, **settings))
    assert len({block.token_count for block in expected}) > 1
    for cut in (1, 4, 5, 39, *(np.random.default_rng(seed) for seed in range(5))):
        blocks = list(tiny_pipeline.stream(arrivals(video, cut), **settings))
        assert len(blocks) == len(expected)
        for block, other in zip(blocks, expected, strict=True):
            assert torch.equal(block.codes, other.codes) and block.token_count == other.token_count
            assert np.array_equal(block.frames, other.frames) and np.array_equal(block.original, other.original)


def test_blocks_come_before_later_frames_are_asked_for(tiny_pipeline):
    """And what comes later has no influence on them."""
    taken = []

    def source(video):
        for number, frame in enumerate(video):
            taken.append(number)
            yield frame

    video, changed = uneven_video(24), uneven_video(24)
    changed[8:] = uneven_video(16, seed=5)
    settings = {"budget": 4, "window": 4, "reservoir": 2}
    stream, other = tiny_pipeline.stream(source(video), **settings), tiny_pipeline.stream(changed, **settings)
    for index in range(2):
        block, same = next(stream), next(other)
        assert len(taken) == 4 * index + 4
        assert torch.equal(block.codes, same.codes) and np.array_equal(block.frames, same.frames)
        assert block.token_count == same.token_count
    assert not np.array_equal(next(stream).frames, next(other).frames)


def test_every_clip_begins_anew(tiny_pipeline):
    """The second clip alone gives what it gives after the first."""
    video = noisy_video(24)
    blocks = list(tiny_pipeline.stream(video, price=0.0))[3:]
    for block, alone in zip(blocks, tiny_pipeline.stream(video[12:], price=0.0), strict=True):
        assert torch.equal(block.codes, alone.codes) and np.array_equal(block.frames, alone.frames)


def test_sources(tiny_pipeline, tmp_path):
    path = write_mp4(tmp_path / "video.mp4", frames=make_frames(10, 16, 16), fps=10)
    video = read_video(path)
    expected = list(tiny_pipeline.stream(video))
    assert [block.fps for block in expected] == [10] * 3
    with av.open(path) as container:
        for source in (path, str(path), path.read_bytes(), container, video.frames, iter(torch.from_numpy(video.frames))):
            blocks = list(tiny_pipeline.stream(source))
            assert len(blocks) == 3
            for block, other in zip(blocks, expected, strict=True):
                assert torch.equal(block.codes, other.codes)
                assert np.array_equal(block.frames, other.frames) and block.source_size == (16, 16)
    gif = write_animation(tmp_path / "video.gif", frames=make_frames(10, 16, 16))
    assert sum(block.num_frames for block in tiny_pipeline.stream(gif, decode=False)) == 10
    blocks = list(tiny_pipeline.stream(iter(video.frames), fps=5, decode=False))
    assert blocks[1].timestamps == pytest.approx([0.8, 1.0, 1.2, 1.4]) and blocks[1].frames is None


def test_an_address_is_opened_as_a_camera_is(tiny_pipeline, tmp_path):
    write_mp4(tmp_path / "video.mp4", frames=make_frames(10, 16, 16), faststart=True)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        blocks = list(tiny_pipeline.stream(f"http://127.0.0.1:{server.server_port}/video.mp4", decode=False))
        with pytest.raises(OSError, match="cannot open http://127.*/no.mp4"):
            next(tiny_pipeline.stream(f"http://127.0.0.1:{server.server_port}/no.mp4"))
        server.shutdown()
    expected = list(tiny_pipeline.stream(tmp_path / "video.mp4", decode=False))
    assert len(blocks) == 3 and all(torch.equal(a.codes, b.codes) for a, b in zip(blocks, expected, strict=True))


def test_outputs(tiny_pipeline):
    video = make_frames(5, 24, 40)
    (array, _), (tensor, _), (images, last), (integers, _) = (
        list(tiny_pipeline.stream(video, resize_mode="squash", output_type=kind)) for kind in ("np", "pt", "pil", "uint8")
    )
    for name, size in (("frames", (24, 40)), ("original", (16, 16))):
        expected = getattr(integers, name)
        assert expected.shape == (4, *size, 3) and expected.dtype == np.uint8
        assert np.array_equal(getattr(array, name), np.float32(expected) / 255) and getattr(array, name).dtype == np.float32
        assert torch.equal(getattr(tensor, name), torch.from_numpy(getattr(array, name)).permute(0, 3, 1, 2))
        assert np.array_equal(np.stack([np.asarray(image) for image in getattr(images, name)]), expected)
    assert len(last.frames) == last.num_frames == len(last.timestamps) == 1
    assert next(tiny_pipeline.stream(video)).frames.shape == (4, 16, 16, 3)


# --- the receiving side -------------------------------------------------------------------------------------------


def test_decoding_a_stream(tiny_pipeline):
    video = uneven_video(42)
    sent = list(tiny_pipeline.stream(video, budget=4, window=4, reservoir=2))
    frames = list(tiny_pipeline.stream_decode(iter(sent)))
    assert np.array_equal(np.stack(frames), np.concatenate([block.frames for block in sent]))
    for block in sent:  # dropped codes need not be sent
        block.codes[block.token_count :] = 0
        block.frames = block.original = None
    assert np.array_equal(np.stack(list(tiny_pipeline.stream_decode(sent))), np.stack(frames))
    late = list(tiny_pipeline.stream_decode(sent[3:]))
    assert np.array_equal(np.stack(late), np.stack(frames[12:]))
    taken = []
    receiver = tiny_pipeline.stream_decode(taken.append(block.index) or block for block in sent)
    for number, _ in zip(range(5), receiver, strict=False):
        assert taken[-1] == number // 4
    tensors = list(tiny_pipeline.stream_decode(sent, output_type="pt"))
    assert_close(torch.stack(tensors).permute(0, 2, 3, 1), torch.from_numpy(np.stack(frames)))


def test_blocks_that_do_not_follow_are_refused(tiny_pipeline):
    sent = list(tiny_pipeline.stream(noisy_video(24)))
    with pytest.raises(ValueError, match=r"got block 2, but the one before was 0; .* \(a multiple of 3\)"):
        list(tiny_pipeline.stream_decode([sent[0], sent[2]]))
    with pytest.raises(ValueError, match="got block 1, but it is the first"):
        list(tiny_pipeline.stream_decode(sent[1:]))
    with pytest.raises(ValueError, match="made by another model"):
        list(tiny_pipeline.stream_decode([replace(sent[0], model_hash="0" * 64)]))
    with pytest.raises(ValueError, match="0..6, got values from 7 to 7"):
        list(tiny_pipeline.stream_decode([replace(sent[0], token_count=7)]))


# --- memory -------------------------------------------------------------------------------------------------------


def live_bytes() -> int:
    """Storage of all tensors that are alive; views of one storage count once."""
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor):
            with suppress(RuntimeError):  # what torch.compile has left has no storage
                storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def test_memory_does_not_grow(tiny_pipeline):
    frames = noisy_video(12)
    stream = tiny_pipeline.stream((frames[n % 12] for n in range(12 * 31)), budget=4, window=8, decode=False)
    sizes = {}
    for number, _ in enumerate(tiny_pipeline.stream_decode(stream), 1):
        if number in (12 * 10, 12 * 30):
            sizes[number] = live_bytes()
    assert sizes[120] == sizes[360] > 100_000


# --- a held rate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [2, 5.5, "50%"])
def test_the_budget_is_held(tiny_pipeline, budget):
    """60 blocks: within the reservoir after each, so within 4 / 60 of the target at the end."""
    target = 3.0 if budget == "50%" else budget
    video = uneven_video(60)
    frames = (video[number % 60] for number in range(240))
    counts = [block.token_count for block in tiny_pipeline.stream(frames, budget=budget, reservoir=4, decode=False)]
    deviation = np.cumsum(counts) - target * np.arange(1, 61)
    assert np.abs(deviation).max() <= 4 * target + 1e-9
    assert abs(np.mean(counts) - target) <= 4 / 60 * target + 1e-9
    assert set(counts) <= {2, 4, 6}


def test_the_bit_rate_is_held(tiny_pipeline):
    video = uneven_video(240)
    blocks = list(tiny_pipeline.stream(iter(video), bits_per_second=150, fps=20, reservoir=3, decode=False))
    rate = sum(block.bits for block in blocks) / (len(video) / 20)
    assert rate == pytest.approx(150, rel=3 / 60)
    with pytest.raises(ValueError, match="71 and 183 .* 20 .* 200"):
        next(tiny_pipeline.stream(iter(video), bits_per_second=200, fps=20))


# --- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"price": 0.1, "budget": 4}, "only one of .*, got price, budget"),
        ({"budget": 4, "bits_per_second": 100}, "only one of .*, got budget, bits_per_second"),
        ({"budget": 1}, "between 2 and 6 tokens per block on average, got 1.0"),
        ({"budget": "200%"}, "between 2 and 6 .* got 12.0"),
        ({"budget": "many"}, "percentage such as '25%', got 'many'"),
        ({"price": -1.0}, "price"),
        ({"threshold": float("nan")}, "threshold"),
        ({"budget": 4, "window": 0}, "window .* at least 1 block, got 0"),
        ({"budget": 4, "reservoir": 0.5}, "reservoir must be at least 1 .*, got 0.5"),
        ({"resize_mode": "stretch"}, "resize_mode must be one of 'crop', 'squash', got 'stretch'"),
        ({"output_type": "jpg"}, "output_type"),
    ],
    ids=str,
)
def test_bad_requests_are_named_at_once(tiny_pipeline, settings, message):
    with pytest.raises(ValueError, match=message):
        tiny_pipeline.stream(iter(()), **settings)


def test_bad_streams_are_named(tiny_pipeline, tmp_path):
    for empty in (iter(()), [], (np.zeros((0, 16, 16, 3), np.uint8) for _ in range(3))):
        with pytest.raises(ValueError, match="ended without a frame"):
            list(tiny_pipeline.stream(empty))
    with pytest.raises(ValueError, match="frame 5 of the stream is 24x16 .* began with 16x16"):
        list(tiny_pipeline.stream([*noisy_video(5), np.zeros((24, 16, 3), np.uint8)]))
    with pytest.raises(ValueError, match=r"frame 1 of the stream: .*dtype int64 from 256"):
        list(tiny_pipeline.stream([noisy_video(1)[0], np.full((16, 16, 3), 256)]))
    with pytest.raises(ValueError, match="cannot stream frames from int"):
        list(tiny_pipeline.stream(7))
    with pytest.raises(FileNotFoundError, match="a: no such file"):
        list(tiny_pipeline.stream(["a", "b"]))
    with pytest.raises(FileNotFoundError):
        list(tiny_pipeline.stream(tmp_path / "no.mp4"))
    with pytest.raises(OSError, match="cannot open /dev/video99"):
        list(tiny_pipeline.stream("/dev/video99"))
    with pytest.raises(ValueError, match="fps=5"):
        list(tiny_pipeline.stream(tmp_path / "no.mp4", fps=5))
    cut = truncate(write_mp4(tmp_path / "video.mp4", frames=make_frames(60), faststart=True), 0.7)
    stream = tiny_pipeline.stream(cut)
    next(stream)  # what is there is shown
    with pytest.raises(ValueError, match="damaged or truncated"):
        list(stream)


def test_without_scorer_or_counts(tiny_pipeline, tiny_config):
    pipeline = AdapTokPipeline(tiny_pipeline.video_processor, tiny_pipeline.tokenizer)
    assert [block.token_count for block in pipeline.stream(noisy_video(8))] == [6, 6]
    with pytest.raises(ValueError, match="a budget needs a scorer"):
        pipeline.stream(noisy_video(8), budget=4)
    tokenizer = AdapTokModel(AdapTokConfig(**{**tiny_config.to_diff_dict(), "adaptive": False})).eval()
    pipeline = AdapTokPipeline(tiny_pipeline.video_processor, tokenizer, tiny_pipeline.scorer)
    blocks = list(pipeline.stream(noisy_video(15)))
    assert np.abs(np.concatenate([b.frames for b in blocks]) - pipeline(noisy_video(15)).frames[0]).max() <= 1.01 / 255
    with pytest.raises(ValueError, match="not adaptive"):
        pipeline.stream(noisy_video(8), price=0.1)


def test_times_of_a_variable_frame_rate(tiny_pipeline):
    times = np.array([0.0, 0.1, 0.15, 0.4, 0.5])
    blocks = list(tiny_pipeline.stream(Video(noisy_video(5), 7.5, times)))
    assert np.array_equal(np.concatenate([block.timestamps for block in blocks]), times)
    assert all(block.latency > 0 and block.fps == 7.5 for block in blocks)


# --- the command --------------------------------------------------------------------------------------------------


def test_command(tiny_pipeline, tmp_path, capsys):
    tiny_pipeline.save_pretrained(tmp_path / "model")
    source, output = write_mp4(tmp_path / "video.mp4", frames=make_frames(30, 16, 16), fps=10), tmp_path / "out.mp4"
    run = ["stream", str(source), "--model", str(tmp_path / "model"), "--device", "cpu", "-o", str(output)]
    assert main([*run, "--budget", "4", "--frames", "9"]) == 0
    written = read_video(output)
    assert len(written) == 12 and written.fps == 10
    blocks = list(tiny_pipeline.stream(source, budget=4))[:3]
    mean = sum(block.token_count for block in blocks) / 3
    assert f"12 frames, 3 blocks: {mean:.1f} of 4 tokens per block" in capsys.readouterr().out
    assert main([*run, "--price", "0.1", "--bitrate", "100"]) == 2
    assert "only one of" in capsys.readouterr().err
    assert main([*run, "--frames", "0"]) == 2
