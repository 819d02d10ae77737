"""EVATok's tokenizer: counts first, causal over blocks, alone or in a batch, and with the sizes that the paper states."""

import pytest
import torch
from builders.evatok import TINY, make_clips, make_evatok
from transformers import AutoConfig, AutoModel

from adaptok_hf import AdapTokModel, BlockCache, EVATokConfig, EVATokModel
from adaptok_hf.models import quantization_evatok

COUNTS = torch.tensor([[16, 2, 4, 2], [2, 2, 2, 2], [4, 4, 16, 16]])


@pytest.fixture
def model() -> EVATokModel:
    return make_evatok()


@pytest.fixture
def exact() -> EVATokModel:
    return make_evatok().double()


def test_the_published_size():
    with torch.device("meta"):
        model = EVATokModel(EVATokConfig())
    assert 144e6 < sum(p.numel() for p in model.parameters()) < 145.6e6
    assert model.config.num_latent_tokens == 2048 and model.config.latents_per_block == 512
    assert AdapTokModel.prefix_decodable and not EVATokModel.prefix_decodable


def written_out(rows: list[str]) -> torch.Tensor:
    return torch.tensor([[int(cell) for cell in row] for row in rows], dtype=torch.bool)


def repeat(lines: list[tuple[int, str]]) -> list[str]:
    return [line for times, line in lines for _ in range(times)]


def test_masks_of_figure_11():
    """The paper's example: counts 16, 8, 2, 2 and 16 patches in each of 4 blocks."""
    latents_see_latents = repeat(
        [
            (16, "1111111111111111" + "00000000" + "00" + "00"),
            (8, "1111111111111111" + "11111111" + "00" + "00"),
            (2, "1111111111111111" + "11111111" + "11" + "00"),
            (2, "1111111111111111" + "11111111" + "11" + "11"),
        ]
    )
    seen_patches = [
        "1111111111111111" + "0000000000000000" + "0000000000000000" + "0000000000000000",
        "1111111111111111" + "1111111111111111" + "0000000000000000" + "0000000000000000",
        "1111111111111111" + "1111111111111111" + "1111111111111111" + "0000000000000000",
        "1111111111111111" + "1111111111111111" + "1111111111111111" + "1111111111111111",
    ]
    latents_see_patches = repeat(list(zip((16, 8, 2, 2), seen_patches, strict=True)))
    patches_see_patches = repeat(list(zip((16, 16, 16, 16), seen_patches, strict=True)))
    patches_see_latents = repeat([(16, latents_see_latents[row]) for row in (0, 16, 24, 26)])
    expected = [latents_see_latents, latents_see_patches, patches_see_patches, patches_see_latents]

    output = make_evatok(levels=[2, 8, 16])(make_clips(1), torch.tensor([[16, 8, 2, 2]]), output_attentions=True)
    found = [pair[i][0] for i in (0, -1) for pair in (output.attentions, output.cross_attentions)]
    for weights, rows in zip(found, expected, strict=True):
        assert torch.equal(weights[0] > 0, written_out(rows))


def gradients(outputs: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
    """Return (blocks of outputs, blocks of inputs) bool: whether the outputs depend on the inputs."""
    depends = []
    for block in range(outputs.shape[1]):
        (gradient,) = torch.autograd.grad(outputs[:, block].square().sum(), inputs, retain_graph=True)
        depends.append(gradient.abs().transpose(0, 1).flatten(1).sum(1) > 0)
    return torch.stack(depends)


@pytest.mark.parametrize("query_init", ["pyramid", "mean", "learned"])
def test_later_blocks_have_no_influence(query_init):
    model, video = make_evatok(query_init=query_init), make_clips(num_frames=16).unflatten(1, (4, 4)).requires_grad_()
    causal = torch.ones(4, 4).tril() > 0
    encoded = model.encode(video.flatten(1, 2), COUNTS)
    assert torch.equal(gradients(encoded.latents, video), causal)
    quantized = encoded.quantized.detach().requires_grad_()
    decoded = model.decode(quantized=quantized, token_counts=COUNTS).pixel_values_videos.unflatten(1, (4, 4))
    assert torch.equal(gradients(decoded, quantized), causal)
    whole = model(video.flatten(1, 2), COUNTS).pixel_values_videos.unflatten(1, (4, 4))
    assert torch.equal(gradients(whole, video), causal)


def test_a_clip_alone_and_in_a_batch(exact):
    video = make_clips().double()
    together = exact(video, COUNTS)
    for clip in range(3):
        alone = exact(video[clip, None], COUNTS[clip, None])
        assert torch.equal(alone.codes[0], together.codes[clip])
        torch.testing.assert_close(alone.latents[0], together.latents[clip], rtol=0, atol=1e-12)
        decoded = exact.decode(quantized=together.quantized[clip, None], token_counts=COUNTS[clip, None])
        torch.testing.assert_close(decoded.pixel_values_videos[0], together.pixel_values_videos[clip], rtol=0, atol=1e-12)


def test_what_is_not_kept_is_zero_and_has_no_influence(model):
    output = model.encode(make_clips(), COUNTS)
    dropped = torch.arange(16) >= COUNTS[..., None]
    for states in (output.codes, output.latents, output.quantized):
        assert (states[dropped] == 0).all() and states.shape[:3] == (3, 4, 16)
    others = torch.where(dropped, 39, output.codes)
    assert torch.equal(
        model.decode(others, COUNTS).pixel_values_videos, model.decode(output.codes, COUNTS).pixel_values_videos
    )


def test_blocks_after_the_end_of_a_video(exact):
    video, counts = make_clips(2).double(), torch.tensor([[4, 16, 0, 0], [2, 2, 2, 0]])
    encoded = exact.encode(video, counts)
    decoded = exact.decode(encoded.codes, counts).pixel_values_videos
    for clip, blocks in enumerate((2, 3)):
        given = video[clip, None, : 4 * blocks], counts[clip, None, :blocks]
        alone = exact.encode(*given)
        torch.testing.assert_close(alone.latents[0], encoded.latents[clip, :blocks], rtol=0, atol=1e-12)
        alone = exact.decode(alone.codes, given[1]).pixel_values_videos[0]
        torch.testing.assert_close(alone, decoded[clip, : 4 * blocks], rtol=0, atol=1e-12)
    encoder, decoder = BlockCache(), BlockCache()
    for block in range(4):  # the same in a stream
        latents = exact.encode(video[:, 4 * block : 4 * block + 4], counts[:, [block]], past_key_values=encoder).latents
        torch.testing.assert_close(latents, encoded.latents[:, [block]], rtol=0, atol=1e-12)
        frames = exact.decode(encoded.codes[:, [block]], counts[:, [block]], past_key_values=decoder).pixel_values_videos
        for clip in (counts[:, block] > 0).nonzero().flatten():
            expected = decoded[clip, 4 * block : 4 * block + 4]
            torch.testing.assert_close(frames[clip], expected, rtol=0, atol=1e-12)
    assert (encoded.codes[counts == 0] == 0).all() and decoded.isfinite().all()


def test_fewer_tokens_are_not_the_first_of_more(model):
    few, many = (model.encode(make_clips(), torch.full((3, 4), count)).latents for count in (2, 16))
    assert not torch.allclose(few[:, :, :2], many[:, :, :2], atol=1e-2)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 2), (1, 3)])
def test_a_stream_equals_the_clip(exact, sizes):
    video = make_clips().double()
    encoded = exact.encode(video, COUNTS)
    decoded = exact.decode(encoded.codes, COUNTS).pixel_values_videos
    encoder_cache, decoder_cache, start = BlockCache(), BlockCache(), 0
    for size in sizes:
        blocks, frames = slice(start, start + size), slice(4 * start, 4 * (start + size))
        given = {"token_counts": COUNTS[:, blocks]}
        some = exact.encode(video[:, frames], **given, past_key_values=encoder_cache)
        torch.testing.assert_close(some.latents, encoded.latents[:, blocks], rtol=0, atol=1e-12)
        some = exact.decode(encoded.codes[:, blocks], **given, past_key_values=decoder_cache)
        torch.testing.assert_close(some.pixel_values_videos, decoded[:, frames], rtol=0, atol=1e-12)
        start += size
    with pytest.raises(ValueError, match="1 more blocks do not fit after the 4"):
        exact.encode(video[:, :4], COUNTS[:, :1], past_key_values=encoder_cache)


def test_first_blocks_alone(exact):
    video = make_clips().double()
    first = exact.encode(video[:, :8], COUNTS[:, :2])
    torch.testing.assert_close(first.latents, exact.encode(video, COUNTS).latents[:, :2], rtol=0, atol=1e-12)


@pytest.mark.parametrize("shared", [True, False])
def test_a_cache_branches(exact, shared):
    """A repeated cache serves other counts of the next block, and stays as it is."""
    video, before = make_clips(2).double(), COUNTS[:1, :2].expand(2, -1) if shared else COUNTS[:2, :2]
    cache = BlockCache()
    exact.encode(video[:, :8], before, past_key_values=cache)
    repeated, levels = cache.repeat(3), torch.tensor([2, 4, 16]).repeat(2)[:, None]
    blocks = video[:, 8:12].repeat_interleave(3, 0)
    branches = exact.encode(blocks, levels, past_key_values=repeated)
    counts = torch.cat([before.repeat_interleave(3, 0), levels], dim=1)
    whole = exact.encode(video[:, :12].repeat_interleave(3, 0), counts)
    torch.testing.assert_close(branches.latents, whole.latents[:, 2:], rtol=0, atol=1e-12)
    assert cache.num_blocks == 2
    with pytest.raises(NotImplementedError, match="crop_block"):
        cache.crop_block()


def test_forward_and_its_losses(model):
    video = make_clips()
    output = model(video, COUNTS, output_hidden_states=True)
    l1 = (output.pixel_values_videos - video).abs().mean()
    expected = l1 + 0.25 * output.commitment_loss + output.codebook_loss + 0.02 * output.entropy_loss
    torch.testing.assert_close(output.loss, expected)
    # averages are over kept tokens
    vectors, projected = model.quantizer.normalized_codebook()[output.codes], model.quantizer.project(output.latents)
    kept = torch.arange(16) < COUNTS[..., None]
    torch.testing.assert_close(output.commitment_loss, (vectors - projected)[kept].square().mean())
    torch.testing.assert_close(output.entropy_loss, model.quantizer.entropy_loss(projected[kept][None]))
    assert [tuple(states.shape) for states in output.hidden_states] == [(3, 40, 16)] * 3 + [(3, 64, 24)] * 2
    assert model(video, COUNTS, return_loss=False).entropy_loss is None
    assert model.train()(video, COUNTS, return_loss=False).entropy_loss is not None
    assert torch.equal(model.eval()(video).codes, model(video, torch.full((3, 4), 16)).codes)


def test_entropy_in_pieces(model, monkeypatch):
    projected = model.quantizer.project(model.encode(make_clips(), COUNTS).latents)
    kept = torch.arange(16) < COUNTS[..., None]
    whole = model.quantizer.entropy_loss(projected, kept)
    (expected,) = torch.autograd.grad(whole, model.quantizer.codebook.weight, retain_graph=True)
    monkeypatch.setattr(quantization_evatok, "_VALUES_AT_ONCE", 7 * 40)
    pieces = model.quantizer.entropy_loss(projected, kept)
    (gradient,) = torch.autograd.grad(pieces, model.quantizer.codebook.weight)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(gradient, expected)


OPTIONS = {"rotation_trick": True, "stochastic_quantizer": True, "qk_norm": True, "feature_size": 8}


@pytest.mark.parametrize("options", [{}, OPTIONS])
def test_every_weight_learns_also_with_checkpointing(options):
    model, video = make_evatok(**options).train(), make_clips()
    found = []
    for checkpointing in (False, True):
        if checkpointing:
            model.gradient_checkpointing_enable()
        model.zero_grad()
        torch.manual_seed(0)
        model(video, COUNTS).loss.backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters()})
    # positions of blocks' last latents and unused codes aside, all gradients are there
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in found[0].values())
    torch.testing.assert_close(found[0], found[1])


def test_sampled_codes_follow_the_temperature():
    model = make_evatok(stochastic_quantizer=True, quantizer_temperature=5.0)
    video = make_clips()
    assert torch.equal(model.encode(video, COUNTS).codes, model(video, COUNTS).codes)
    sampled = [model.encode(video, COUNTS, sample_codes=True).codes for _ in range(2)]
    assert not torch.equal(*sampled)
    with pytest.raises(ValueError, match="normalized_codes"):
        make_evatok(normalized_codes=False).encode(video, COUNTS, sample_codes=True)


def test_saved_and_loaded(model, tmp_path):
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    assert isinstance(loaded, EVATokModel) and AutoConfig.from_pretrained(tmp_path).levels == [2, 4, 16]
    assert torch.equal(loaded.encode(make_clips(), COUNTS).codes, model.encode(make_clips(), COUNTS).codes)
    assert {"modeling_evatok.py", "qformer_evatok.py", "quantization_evatok.py"} <= {
        path.name for path in tmp_path.iterdir()
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_and_bytes(model, dtype):
    video = (make_clips() * 255).byte()
    floats = model(video / 255, COUNTS).pixel_values_videos
    assert torch.equal(model(video, COUNTS).pixel_values_videos, floats)
    half = model.to(dtype)(video, COUNTS)
    assert half.pixel_values_videos.dtype == dtype and half.loss.isfinite()


def test_no_clips(model):
    output = model(make_clips(0), COUNTS[:0], return_loss=False)
    assert output.codes.shape == (0, 4, 16) and output.pixel_values_videos.shape == (0, 16, 3, 16, 16)


@pytest.mark.parametrize(
    ("call", "value"),
    [
        (lambda model, video: model.encode(video, COUNTS + 1), r"\[3, 5, 17\]|17"),
        (lambda model, video: model.encode(video, torch.where(COUNTS == 4, 3, COUNTS)), r"\[3\]"),
        (lambda model, video: model.encode(video, COUNTS * 0), r"\[0, 0, 0, 0\]"),
        (lambda model, video: model.encode(video, COUNTS * torch.tensor([1, 1, 0, 1])), r"\[16, 2, 0, 2\]"),
        (lambda model, video: model.encode(video, COUNTS[:2]), r"\(2, 4\)"),
        (lambda model, video: model.encode(video, COUNTS.float()), "float32"),
        (lambda model, video: model.encode(video[:, :6], COUNTS), "6 frames"),
        (lambda model, video: model.encode(video[..., :8], COUNTS), r"16, 8\)"),
        (lambda model, video: model.encode(video + 1, COUNTS), "to 1.99|to 2"),
        (lambda model, video: model.decode(torch.full((3, 4, 16), 40), COUNTS), "40..40"),
        (lambda model, video: model.decode(torch.zeros(3, 4, 8, dtype=torch.long), COUNTS), r"\(3, 4, 8\)"),
        (lambda model, video: model.decode(torch.zeros(3, 4, 16, dtype=torch.long), COUNTS // 2), r"\[1, 8\]"),
        (lambda model, video: model.decode(), "exactly one"),
    ],
)
def test_what_does_not_fit_is_named(model, call, value):
    with pytest.raises(ValueError, match=value):
        call(model, make_clips())


def test_encode_needs_counts(model):
    with pytest.raises(TypeError, match="token_counts"):
        model.encode(make_clips())


@pytest.mark.parametrize(
    ("entries", "value"),
    [
        ({"levels": [4, 2]}, r"\[4, 2\]"),
        ({"levels": []}, r"\[\]"),
        ({"levels": [3, 4]}, r"\[3\]"),
        ({"levels": [2, 64]}, "64"),
        ({"levels": [24]}, "24"),
        ({"query_init": "zeros"}, "zeros"),
        ({"patch_size": 5}, "patch_size=5"),
        ({"num_decoder_attention_heads": 5}, "num_decoder_attention_heads=5"),
        ({"entropy_temperature": 0.0}, "0.0"),
        ({"codebook_dim": 0}, "codebook_dim"),
        ({"stochastic_quantizer": True, "normalized_codes": False}, "normalized_codes"),
    ],
)
def test_bad_configurations(entries, value):
    with pytest.raises(ValueError, match=value):
        EVATokConfig(**TINY | entries)


def test_levels_of_any_number_without_a_pyramid():
    model = make_evatok(levels=[3, 5], query_init="learned")
    assert model.encode(make_clips(1), torch.tensor([[3, 5, 5, 3]])).codes.shape == (1, 4, 5)
