"""Models that take a clip a block at a time, with a cache, give what the whole clip gives."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from adaptok_hf import AdapTokModel
from adaptok_hf.models.block_cache import BlockCache

CLOSE = {"atol": 1e-5, "rtol": 0}
RAGGED = torch.tensor([[3, 0, 6], [1, 5, 2]])
COUNTS = [None, RAGGED, torch.tensor([[1, 0, 0], [1, 0, 0]]), torch.tensor([[1, 0, 0], [6, 6, 6]]), torch.full((2, 3), 4)]
CUTS = [(1, 1, 1), (2, 1), (1, 2), (3,)]


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


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


def test_a_model_that_looks_ahead_takes_no_cache(tiny_config, tiny_video):
    tiny_config.encoder_attention_type = "full"
    with pytest.raises(ValueError, match="'full' is not causal"):
        AdapTokModel(tiny_config).encode(tiny_video[:, :4], past_key_values=BlockCache())


def test_bad_use_of_a_cache_is_named(tiny_tokenizer, tiny_video):
    cache = BlockCache()
    codes = tiny_tokenizer.encode(tiny_video[:, :8], past_key_values=cache).codes
    with pytest.raises(ValueError, match="2 .* 2 .* 3 blocks"):
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
    with pytest.raises(ValueError, match="0 blocks"):
        tiny_scorer.keep_tokens(latents, quantized, counts, cache)
    with pytest.raises(ValueError, match="must both be .*: one block"):
        tiny_scorer.score_block(latents[:, :4], quantized[:, :4], cache)
    tiny_scorer.score_block(latents, quantized, cache)
    with pytest.raises(ValueError, match="0..6, got values from 2 to 7"):
        tiny_scorer.keep_tokens(latents, quantized, torch.tensor([2, 7]), cache)
    tiny_scorer.keep_tokens(latents, quantized, counts, cache)
    assert cache.num_blocks == 1 and cache.get_seq_length() == 2
