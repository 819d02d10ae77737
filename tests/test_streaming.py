"""A block at a time gives what the whole clip gives: models, pipeline, and the rate held on the way."""

import gc
import http.server
import threading
from dataclasses import replace
from functools import partial

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from video_files import make_frames, truncate, write_animation, write_mp4

from adaptok_hf import (
    AdapTokConfig,
    AdapTokModel,
    AdapTokPipeline,
    Video,
    read_video,
)
from adaptok_hf.allocation import quality
from adaptok_hf.block_cache import BlockCache
from adaptok_hf.cli import main

CLOSE = {"atol": 1e-5, "rtol": 0}
RAGGED = torch.tensor([[3, 0, 6], [1, 5, 2]])
COUNTS = [None, RAGGED, torch.tensor([[1, 0, 0], [1, 0, 0]]), torch.tensor([[1, 0, 0], [6, 6, 6]]), torch.full((2, 3), 4)]
CUTS = [(1, 1, 1), (2, 1), (1, 2), (3,)]


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


def parts(blocks: int, cut: tuple[int, ...]):
    """Slices over the blocks."""
    ends = np.cumsum(cut)
    assert ends[-1] == blocks
    return [slice(end - size, end) for end, size in zip(ends, cut, strict=True)]


# --- tokenizer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_encoding_blocks_is_encoding_the_clip(tiny_tokenizer, tiny_video, cut):
    whole, cache, codes, latents, quantized = tiny_tokenizer.encode(tiny_video), BlockCache(), [], [], []
    for part in parts(3, cut):
        output = tiny_tokenizer.encode(tiny_video[:, 4 * part.start : 4 * part.stop], past_key_values=cache)
        assert cache.num_blocks == part.stop
        codes.append(output.codes)
        latents.append(output.latents)
        quantized.append(output.quantized)
    assert torch.equal(torch.cat(codes, 1), whole.codes)
    assert_close(torch.cat(latents, 1), whole.latents, **CLOSE)
    assert_close(torch.cat(quantized, 1), whole.quantized, **CLOSE)


@pytest.mark.parametrize("counts", COUNTS, ids=lambda c: "all" if c is None else str(c.tolist()))
@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_decoding_blocks_is_decoding_the_clip(tiny_tokenizer, tiny_video, cut, counts):
    codes = tiny_tokenizer.encode(tiny_video).codes
    whole, cache, frames = tiny_tokenizer.decode(codes, counts).pixel_values_videos, BlockCache(), []
    for part in parts(3, cut):
        kept = None if counts is None else counts[:, part]
        frames.append(tiny_tokenizer.decode(codes[:, part], kept, past_key_values=cache).pixel_values_videos)
    assert_close(torch.cat(frames, 1), whole, **CLOSE)
    # kept latents of the longest row stay in the cache, and nothing else
    most = 18 if counts is None else int(counts.amax(0).sum())
    assert cache.get_seq_length() == most and cache.num_bytes == 2 * 2 * 2 * most * 32 * 4


@pytest.mark.parametrize("types", [("block_diagonal", "block_causal"), ("decoder", "block_diagonal")], ids=str)
@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
def test_other_attention_types_and_implementations(tiny_config, tiny_video, types, implementation):
    tiny_config.encoder_attention_type, tiny_config.decoder_attention_type = types
    model = AdapTokModel(tiny_config).eval()
    model.set_attn_implementation(implementation)
    for counts in (None, RAGGED):
        whole, caches, encoded, frames = model.encode(tiny_video), (BlockCache(), BlockCache()), [], []
        expected = model.decode(quantized=whole.quantized, token_counts=counts).pixel_values_videos
        for block in range(3):
            encoded.append(model.encode(tiny_video[:, 4 * block : 4 * block + 4], past_key_values=caches[0]).latents)
            kept = None if counts is None else counts[:, block : block + 1]
            given = whole.quantized[:, block : block + 1]
            output = model.decode(quantized=given, token_counts=kept, past_key_values=caches[1])
            frames.append(output.pixel_values_videos)
        assert_close(torch.cat(encoded, 1), whole.latents, **CLOSE)
        assert_close(torch.cat(frames, 1), expected, **CLOSE)


@pytest.mark.slow
def test_flex_attention(tiny_tokenizer, tiny_video):
    whole, cache, frames = tiny_tokenizer.encode(tiny_video), BlockCache(), []
    expected = tiny_tokenizer.decode(whole.codes, RAGGED).pixel_values_videos
    tiny_tokenizer.set_attn_implementation("flex_attention")
    for block in range(3):
        part = slice(block, block + 1)
        frames.append(
            tiny_tokenizer.decode(whole.codes[:, part], RAGGED[:, part], past_key_values=cache).pixel_values_videos
        )
    assert_close(torch.cat(frames, 1), expected, **CLOSE)


def test_a_model_that_looks_ahead_takes_no_cache(tiny_config, tiny_video):
    tiny_config.encoder_attention_type = "full"
    with pytest.raises(ValueError, match="'full' is not causal"):
        AdapTokModel(tiny_config).encode(tiny_video[:, :4], past_key_values=BlockCache())


def test_bad_use_of_a_cache_is_named(tiny_tokenizer, tiny_video):
    cache = BlockCache()
    codes = tiny_tokenizer.encode(tiny_video[:, :8], past_key_values=cache).codes
    with pytest.raises(ValueError, match="2 more blocks do not fit behind the 2 in the cache: a clip has 3"):
        tiny_tokenizer.encode(tiny_video[:, :8], past_key_values=cache)
    with pytest.raises(ValueError, match="cache holds a batch of 2, got 1"):
        tiny_tokenizer.encode(tiny_video[:1, 8:], past_key_values=cache)
    with pytest.raises(ValueError, match="first block of a clip must keep at least 1 token"):
        tiny_tokenizer.decode(codes, torch.zeros(2, 2, dtype=torch.long), past_key_values=BlockCache())


# --- scorer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["sdpa", "eager"])
@pytest.mark.parametrize(
    "counts",
    [RAGGED, torch.tensor([[0, 0, 6], [6, 0, 2]]), torch.full((2, 3), 6), torch.full((2, 3), 0), torch.full((2, 3), 2)],
    ids=lambda c: str(c.tolist()),
)
def test_scoring_blocks_is_scoring_the_clip(tiny_scorer, counts, implementation):
    """Against one whole pass per block, as the original does it."""
    generator = torch.Generator().manual_seed(3)
    latents, quantized = (torch.randn(2, 3, 6, 32, generator=generator) for _ in range(2))
    for layer in tiny_scorer.layers:  # makes the counts of earlier blocks matter
        layer.attention.proj.weight.mul_(5)
    tiny_scorer.set_attn_implementation(implementation)
    cache, length = BlockCache(), 0
    for block in range(3):
        asked = counts.clone()
        asked[:, block], asked[:, block + 1 :] = 6, 0
        expected = tiny_scorer(latents, quantized, asked).scores[:, block]
        given = latents[:, block], quantized[:, block]
        assert_close(tiny_scorer.score_block(*given, cache), expected, atol=2e-5, rtol=1e-5)
        tiny_scorer.keep_tokens(*given, counts[:, block], cache)
        length += int(counts[:, block].max())
        assert cache.get_seq_length() == length


def test_a_block_that_keeps_all_is_not_computed_again(tiny_scorer):
    latents, quantized = torch.randn(2, 2, 6, 32).unbind(0)
    cache, passes = BlockCache(), []
    tiny_scorer.layers[0].register_forward_pre_hook(lambda module, args: passes.append(args[0].shape[1]))
    tiny_scorer.score_block(latents, quantized, cache)
    tiny_scorer.keep_tokens(latents, quantized, torch.tensor([6, 6]), cache)
    assert passes == [6]
    tiny_scorer.score_block(latents, quantized, cache)
    tiny_scorer.keep_tokens(latents, quantized, torch.tensor([2, 3]), cache)
    assert passes == [6, 6, 3]


def test_bad_use_of_the_scorer_is_named(tiny_scorer):
    latents, quantized = torch.randn(2, 2, 6, 32).unbind(0)
    cache, counts = BlockCache(), torch.tensor([2, 2])
    with pytest.raises(ValueError, match="keep_tokens follows score_block"):
        tiny_scorer.keep_tokens(latents, quantized, counts, cache)
    with pytest.raises(ValueError, match="must both be .*: one block"):
        tiny_scorer.score_block(latents[:, :4], quantized[:, :4], cache)
    tiny_scorer.score_block(latents, quantized, cache)
    with pytest.raises(ValueError, match="0..6, got values from 2 to 7"):
        tiny_scorer.keep_tokens(latents, quantized, torch.tensor([2, 7]), cache)
    tiny_scorer.keep_tokens(latents, quantized, counts, cache)
    with pytest.raises(ValueError, match="keep_tokens follows score_block"):
        tiny_scorer.keep_tokens(latents, quantized, counts, cache)


# --- the pipeline's stream against its whole-clip pass --------------------------------------------------------------


def splitting(pipeline, video: np.ndarray) -> list[dict]:
    """A price and a threshold at which blocks differ."""
    encoded = pipeline.tokenizer.encode(pipeline.video_processor.clips(video).pixel_values_videos)
    scores = pipeline.scorer(encoded.latents, encoded.quantized).scores
    gains = (scores[..., :1] - scores[..., 1:]) / torch.tensor([2.0, 4.0])
    return [{"price": max(0.0, float(gains.amax(-1).median()))}, {"threshold": float(scores.amin(-1).median())}]


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
        assert frames.shape == video.shape and np.abs(frames.astype(int) - whole.frames).max() <= 1
        assert np.array_equal(np.concatenate([block.original for block in blocks]), video)
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
    """The second clip alone gives what it gives behind the first."""
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
    (array, _), (tensor, _), (images, last) = (
        list(tiny_pipeline.stream(video, resize_mode="squash", output_type=kind)) for kind in ("np", "pt", "pil")
    )
    assert array.frames.shape == (4, 24, 40, 3) and array.frames.dtype == np.uint8
    assert_close(tensor.frames.permute(0, 2, 3, 1) * 255, torch.from_numpy(array.frames).float())
    assert np.array_equal(np.stack([np.asarray(image) for image in images.frames]), array.frames)
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
    assert_close(torch.stack(tensors).permute(0, 2, 3, 1) * 255, torch.from_numpy(np.stack(frames)).float())


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
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(storages.values())


def test_memory_does_not_grow(tiny_pipeline):
    frames = noisy_video(12)
    stream = tiny_pipeline.stream((frames[n % 12] for n in range(12 * 101)), budget=4, window=8, decode=False)
    sizes = {}
    for number, _ in enumerate(tiny_pipeline.stream_decode(stream), 1):
        if number in (12 * 10, 12 * 100):
            sizes[number] = live_bytes()
    assert sizes[120] == sizes[1200] > 100_000


# --- a held rate --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [2, 5.5, "50%"])
def test_the_budget_is_held(tiny_pipeline, budget):
    """150 blocks: within the reservoir after each, so within 4 / 150 of the target at the end."""
    target = 3.0 if budget == "50%" else budget
    video = uneven_video(60)
    frames = (video[number % 60] for number in range(600))
    counts = [block.token_count for block in tiny_pipeline.stream(frames, budget=budget, reservoir=4, decode=False)]
    deviation = np.cumsum(counts) - target * np.arange(1, 151)
    assert np.abs(deviation).max() <= 4 * target + 1e-9
    assert abs(np.mean(counts) - target) <= 4 / 150 * target + 1e-9
    assert set(counts) <= {2, 4, 6}


def test_the_bit_rate_is_held(tiny_pipeline):
    video = uneven_video(240)
    blocks = list(tiny_pipeline.stream(iter(video), bits_per_second=150, fps=20, reservoir=3, decode=False))
    rate = sum(block.bits for block in blocks) / (len(video) / 20)
    assert rate == pytest.approx(150, rel=3 / 60)
    with pytest.raises(ValueError, match="bits_per_second must lie between 71 and 183 .* at 20 frames per second, got 200"):
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
    with pytest.raises(ValueError, match=r"frame 1 of the stream: .*dtype int64"):
        list(tiny_pipeline.stream([noisy_video(1)[0], np.zeros((16, 16, 3), np.int64)]))
    with pytest.raises(ValueError, match="cannot stream frames from int"):
        list(tiny_pipeline.stream(7))
    with pytest.raises(ValueError, match="frame 0 of the stream: .* is str"):
        list(tiny_pipeline.stream(["a", "b"]))
    with pytest.raises(FileNotFoundError):
        list(tiny_pipeline.stream(tmp_path / "no.mp4"))
    with pytest.raises(OSError, match="cannot open /dev/video99"):
        list(tiny_pipeline.stream("/dev/video99"))
    with pytest.raises(ValueError, match="tells its own frame rate"):
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
    assert np.abs(np.concatenate([b.frames for b in blocks]).astype(int) - pipeline(noisy_video(15)).frames).max() <= 1
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
    assert f"12 frames, 3 blocks: {mean:.1f} tokens per block" in capsys.readouterr().out
    assert main([*run, "--price", "0.1", "--bitrate", "100"]) == 2
    assert "only one of" in capsys.readouterr().err
    assert main([*run, "--frames", "0"]) == 2
