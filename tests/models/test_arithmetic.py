"""What encode, score and decode cost, counted, and that running without masks changes nothing."""

import pytest
import torch
from builders.loaded_scripts import load_script
from torch.testing import assert_close

from adaptok_hf import AdapTokModel
from adaptok_hf.models.block_cache import BlockCache

codec = load_script("benchmarks/codec.py")

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
RAGGED = torch.tensor([[3, 0, 6], [1, 5, 2]])


@pytest.fixture(scope="module")
def released() -> tuple:
    """The released size, without weights."""
    return codec.build("base", "meta")


@pytest.mark.parametrize(
    ("count", "most"),
    [
        pytest.param(128, 0.42, id="512 per clip", marks=pytest.mark.slow),
        pytest.param(512, 0.65, id="2048 per clip", marks=pytest.mark.slow),
    ],
)
def test_share_of_the_originals_operations(released, count, most):
    """Encode, score and decode against dense encoding, four scorer passes and decoding under a mask."""
    ways = codec.both_ways(*released, count, "meta")
    counted = {stage: [codec.count_operations(run) for run in pair] for stage, pair in ways.items()}
    theirs, ours = (sum(pair[way] for pair in counted.values()) for way in range(2))
    assert theirs == pytest.approx(3.772e12, rel=1e-3)
    assert ours <= most * theirs
    assert counted["score"][1] <= 0.40 * counted["score"][0]


def test_one_scorer_pass_for_joint(released):
    latents = torch.empty(1, 4, 512, 768, device="meta")
    assert codec.count_operations(lambda: released[1](latents, latents)) < 0.25 * 2.03e12


def test_the_count_by_hand(released):
    """Encoding: every pair that sees each other once, and in the last layer only what latents ask."""
    d, patches, latents = 768, 256, 512
    tokens = 4 * (patches + latents)
    pairs = 1 + 2 + 3 + 4  # of a block and those before it
    embedding = 2 * 4 * patches * d * (3 * 4 * 8 * 8)
    layer = 24 * d**2 * tokens + 4 * d * pairs * (patches + latents) ** 2
    last = 6 * d**2 * tokens + 18 * d**2 * 4 * latents + 4 * d * pairs * latents * (patches + latents)
    ours = codec.both_ways(*released, 128, "meta")["encode"][1]
    assert codec.count_operations(ours) == embedding + 11 * layer + last


# --- equal to the dense way ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoder_type", ["block_causal", "block_diagonal", "decoder"])
@pytest.mark.parametrize("inference", [True, False])
def test_encoding_equals_the_dense_way(tiny_config, tiny_video, encoder_type, inference):
    tiny_config.encoder_attention_type = encoder_type
    model = AdapTokModel(tiny_config).eval()
    with torch.inference_mode(inference):
        latents = model.encode(tiny_video).latents.flatten(1, 2)
        assert_close(latents, codec.dense_encode(model, tiny_video), **CLOSE)
        assert_close(latents[:1], codec.dense_encode(model, tiny_video[:1]), **CLOSE)


@pytest.mark.parametrize("decoder_type", ["decoder", "block_causal", "block_diagonal"])
@pytest.mark.parametrize(
    "counts",
    [RAGGED, torch.tensor([[2, 0, 5], [2, 0, 5]]), torch.full((2, 3), 6), torch.tensor([[1, 0, 0], [6, 6, 6]])],
    ids=lambda c: str(c.tolist()),
)
@pytest.mark.parametrize("inference", [True, False])
def test_decoding_equals_the_dense_way(tiny_config, tiny_video, decoder_type, counts, inference):
    tiny_config.decoder_attention_type = decoder_type
    model = AdapTokModel(tiny_config).eval()
    with torch.inference_mode(inference):
        quantized = torch.randn(2, 3, 6, 32, generator=torch.Generator().manual_seed(0))
        video = model.decode(quantized=quantized, token_counts=counts).pixel_values_videos
        assert_close(video, codec.masked_decode(model, quantized, counts), **CLOSE)
        for implementation in ("eager", "sdpa"):
            model.set_attn_implementation(implementation)
            assert_close(model.decode(quantized=quantized, token_counts=counts).pixel_values_videos, video, **CLOSE)


def test_scoring_equals_the_dense_way(tiny_scorer):
    latents, quantized = torch.randn(2, 2, 3, 6, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        everything = codec.dense_scores(tiny_scorer, latents, quantized, torch.full((2, 3), 6))
        assert_close(tiny_scorer(latents, quantized).scores, everything, **CLOSE)
        ragged, cache = codec.dense_scores(tiny_scorer, latents, quantized, RAGGED), BlockCache()
        for block in range(2):
            tiny_scorer.add_block(latents[:, block], quantized[:, block], RAGGED[:, block], cache)
        assert cache.num_blocks == 2 and cache.get_seq_length() == 3 + 5
        assert_close(tiny_scorer.score_block(latents[:, 2], quantized[:, 2], cache), ragged[:, 2], **CLOSE)


def test_bad_block_for_the_cache_is_named(tiny_scorer):
    latents, cache = torch.randn(2, 6, 32), BlockCache()
    with pytest.raises(ValueError, match="0..6, got values from 2 to 7"):
        tiny_scorer.add_block(latents, latents, torch.tensor([2, 7]), cache)
    for _ in range(3):
        tiny_scorer.add_block(latents, latents, torch.tensor([2, 3]), cache)
    with pytest.raises(ValueError, match="1 .* 3 "):
        tiny_scorer.add_block(latents, latents, torch.tensor([2, 3]), cache)


# --- nothing is computed that nobody reads ----------------------------------------------------------------------------


def rows_through(layer) -> list[int]:
    """The list to which the layer's MLP adds how many tokens it works on."""
    rows: list[int] = []
    layer.mlp.register_forward_pre_hook(lambda module, args: rows.append(args[0].shape[0] * args[0].shape[1]))
    return rows


@torch.inference_mode()
def test_last_layers_answer_only_what_is_read(tiny_tokenizer, tiny_scorer, tiny_video):
    encoder, decoder, scorer = (
        rows_through(m.layers[-1]) for m in (tiny_tokenizer.encoder, tiny_tokenizer.decoder, tiny_scorer)
    )
    first = rows_through(tiny_tokenizer.decoder.layers[0])
    encoded = tiny_tokenizer.encode(tiny_video)
    tiny_tokenizer.encode(tiny_video[:, :4], past_key_values=BlockCache())
    assert encoder == [2 * 18, 2 * 6]  # latents, no patches
    tiny_tokenizer.decode(encoded.codes, RAGGED)
    tiny_tokenizer.decode(encoded.codes, torch.full((2, 3), 2))
    assert decoder == [2 * 12] * 2  # patches, no latents
    assert first == [int(RAGGED.sum()) + 2 * 12, 2 * (6 + 12)]  # each clip's own latents: no padding
    tiny_scorer(encoded.latents, encoded.quantized)
    block, cache = (encoded.latents[:, 0], encoded.quantized[:, 0]), BlockCache()
    tiny_scorer.score_block(*block, cache)
    tiny_scorer.keep_tokens(*block, torch.tensor([2, 2]), cache)
    assert scorer == [2 * 9, 2 * 3, 0]  # the last latents of the levels, and nothing of what only stays


@torch.inference_mode()
def test_scoring_again_computes_only_kept_tokens(tiny_pipeline):
    """`ipal` over many batches: the batches' caches are not kept, earlier blocks come in with the tokens that they keep."""
    rows = rows_through(tiny_pipeline.scorer.layers[0])
    video = torch.rand(24, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    settings = {"budget": 2, "allocation": "ipal", "fps": 25}
    one = tiny_pipeline.tokenize(video, **settings)
    assert rows == [12, 4, 12, 4, 12]
    rows.clear()
    many = tiny_pipeline.tokenize(video, batch_size=1, **settings)
    assert rows == [6, 6, 2, 6, 2, 6, 2, 2, 6, 2, 2, 6]
    assert torch.equal(one.token_counts, many.token_counts)
