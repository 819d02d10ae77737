import copy

import pytest
import torch
from torch.testing import assert_close
from transformers import AutoConfig, AutoModel

from adaptok_hf import AdapTokConfig, AdapTokModel


def test_shapes_and_outputs(tiny_tokenizer, tiny_video):
    encoded = tiny_tokenizer.encode(tiny_video)
    assert encoded.codes.shape == (2, 3, 6)
    assert encoded.latents.shape == encoded.quantized.shape == (2, 3, 6, 32)
    output = tiny_tokenizer(tiny_video)
    assert output.pixel_values_videos.shape == tiny_video.shape
    assert output.code_vectors.shape == (2, 3, 6, 8)
    assert_close(output.code_vectors.norm(dim=-1), torch.ones(2, 3, 6))
    assert torch.equal(output.codes, encoded.codes)
    for a, b in zip(tiny_tokenizer(tiny_video, return_dict=False), output.to_tuple(), strict=True):
        assert torch.equal(a, b)


def test_codes_depend_on_the_video(tiny_tokenizer, tiny_video):
    codes = tiny_tokenizer.encode(tiny_video).codes
    assert not torch.equal(codes[0], codes[1])


def test_decoding_codes_is_decoding_quantized(tiny_tokenizer, tiny_video):
    encoded = tiny_tokenizer.encode(tiny_video)
    counts = torch.tensor([[3, 0, 6], [1, 5, 2]])
    from_codes = tiny_tokenizer.decode(encoded.codes, counts).pixel_values_videos
    assert_close(from_codes, tiny_tokenizer.decode(quantized=encoded.quantized, token_counts=counts).pixel_values_videos)
    assert_close(from_codes, tiny_tokenizer(tiny_video, counts).pixel_values_videos)


# --- causality, by gradient ---------------------------------------------------------------------------------------


def gradient_per_block(output_block: torch.Tensor, inputs: torch.Tensor, num_blocks: int) -> list[float]:
    """Largest absolute gradient of the block's sum with respect to each block of the inputs (dim 1)."""
    (gradient,) = torch.autograd.grad(output_block.double().pow(2).sum(), inputs)
    return [float(g.abs().max()) for g in gradient.chunk(num_blocks, dim=1)]


@pytest.mark.parametrize("block", [0, 1, 2])
def test_encoder_is_causal_over_blocks(tiny_tokenizer, tiny_video, block):
    tiny_video.requires_grad_()
    latents = tiny_tokenizer.encode(tiny_video).latents[:, block]
    gradients = gradient_per_block(latents, tiny_video, 3)
    assert all(g > 0 for g in gradients[: block + 1]) and all(g == 0 for g in gradients[block + 1 :])


@pytest.mark.parametrize("counts", [None, [[4, 2, 6], [6, 6, 1]]])
@pytest.mark.parametrize("block", [0, 1, 2])
def test_decoder_is_causal_over_blocks(tiny_tokenizer, tiny_video, block, counts):
    quantized = tiny_tokenizer.encode(tiny_video).quantized.detach().requires_grad_()
    counts = None if counts is None else torch.tensor(counts)
    video = tiny_tokenizer.decode(quantized=quantized, token_counts=counts).pixel_values_videos
    gradients = gradient_per_block(video[:, 4 * block : 4 * block + 4], quantized, 3)
    assert all(g > 0 for g in gradients[: block + 1]) and all(g == 0 for g in gradients[block + 1 :])


def test_leading_blocks_alone_give_the_same(tiny_tokenizer, tiny_video):
    whole = tiny_tokenizer.encode(tiny_video)
    counts = torch.tensor([[2, 5, 1], [6, 0, 3]])
    video = tiny_tokenizer.decode(whole.codes, counts).pixel_values_videos
    for blocks in (1, 2):
        part = tiny_tokenizer.encode(tiny_video[:, : 4 * blocks])
        assert torch.equal(part.codes, whole.codes[:, :blocks])
        assert_close(part.latents, whole.latents[:, :blocks])
        decoded = tiny_tokenizer.decode(part.codes, counts[:, :blocks]).pixel_values_videos
        assert_close(decoded, video[:, : 4 * blocks])


# --- dropping -----------------------------------------------------------------------------------------------------


def test_dropped_tokens_have_no_influence(tiny_tokenizer, tiny_video):
    codes = tiny_tokenizer.encode(tiny_video).codes
    counts = torch.tensor([[3, 0, 6], [1, 5, 2]])
    dropped = torch.arange(6) >= counts[..., None]
    scrambled = torch.where(dropped, (codes + 17) % 50, codes)
    assert not torch.equal(scrambled, codes)
    a = tiny_tokenizer.decode(codes, counts).pixel_values_videos
    assert torch.equal(a, tiny_tokenizer.decode(scrambled, counts).pixel_values_videos)
    assert not torch.equal(a, tiny_tokenizer.decode(codes).pixel_values_videos)


def test_dropping_is_masking(tiny_tokenizer, tiny_video):
    """The dropped sequence against a plain pass over all latents in which the dropped ones are masked."""
    from adaptok_hf.models.attention_masks import Segment, dense_mask, kept_tokens

    quantized = tiny_tokenizer.encode(tiny_video).quantized
    counts = torch.tensor([[3, 0, 6], [1, 5, 2]])
    decoder = tiny_tokenizer.decoder
    kept = kept_tokens(counts, 6).flatten(1)
    latents = quantized.flatten(1, 2) * kept[..., None] + decoder.latent_positions()
    queries = (decoder.patch_queries() + decoder.patch_type()).expand(2, -1, -1)
    hidden_states = torch.cat([latents, queries], 1)
    block = torch.cat([torch.arange(3).repeat_interleave(6), torch.arange(3).repeat_interleave(4)])
    kept = torch.cat([kept, torch.ones(2, 12, dtype=torch.bool)], 1)
    mask = dense_mask("decoder", block, torch.arange(30) >= 18) & kept[:, None] & kept[..., None]
    mask = (mask | torch.eye(30, dtype=torch.bool))[:, None]
    for layer in decoder.layers:
        hidden_states = layer(hidden_states, [Segment(mask=mask)])
    expected = decoder.head(hidden_states[:, 18:])
    assert_close(tiny_tokenizer.decode(quantized=quantized, token_counts=counts).pixel_values_videos, expected)


def test_repeated_counts_are_decoded_as_each_clip_alone(tiny_tokenizer):
    """As in training, where groups of clips keep the same numbers of tokens and form one sequence per repetition."""
    codes, groups = torch.randint(tiny_tokenizer.config.codebook_size, (16, 3, 6)), torch.tensor([[6, 1, 3], [2, 5, 0]])
    together = tiny_tokenizer.decode(codes, groups.repeat(8, 1)).pixel_values_videos
    for clip in (0, 1, 7, 12):
        alone = tiny_tokenizer.decode(codes[clip : clip + 1], groups[clip % 2 :][:1]).pixel_values_videos
        assert_close(together[clip : clip + 1], alone, rtol=1e-4, atol=1e-5)


def test_a_clip_does_not_depend_on_its_neighbours(tiny_tokenizer, tiny_video):
    codes = tiny_tokenizer.encode(tiny_video).codes
    counts = torch.tensor([[1, 0, 1], [6, 6, 6]])
    together = tiny_tokenizer.decode(codes, counts).pixel_values_videos
    for i in range(2):
        assert_close(together[i : i + 1], tiny_tokenizer.decode(codes[i : i + 1], counts[i : i + 1]).pixel_values_videos)


# --- quantiser and training ---------------------------------------------------------------------------------------


def test_losses_have_the_right_gradients(tiny_tokenizer, tiny_video):
    output = tiny_tokenizer(tiny_video)
    parameters = [tiny_tokenizer.quantizer.project_in.weight, tiny_tokenizer.quantizer.codebook.weight]
    to_latents, to_codebook = torch.autograd.grad(output.commitment_loss, parameters, retain_graph=True, allow_unused=True)
    assert to_latents.abs().max() > 0 and to_codebook is None
    to_latents, to_codebook = torch.autograd.grad(output.codebook_loss, parameters, allow_unused=True)
    assert to_latents is None and to_codebook.abs().max() > 0
    assert_close(output.commitment_loss, output.codebook_loss)


def test_losses_are_averaged_over_kept_tokens(tiny_tokenizer, tiny_video):
    counts = torch.tensor([[6, 0, 0], [1, 0, 0]])
    output = tiny_tokenizer(tiny_video, counts)
    with torch.no_grad():
        projected = tiny_tokenizer.quantizer.project(output.latents)
        chosen = tiny_tokenizer.quantizer.normalized_codebook()[output.codes]
        squares = (projected - chosen).square().mean(-1)
        expected = torch.cat([squares[0, 0], squares[1, 0, :1]]).mean()
    assert_close(output.commitment_loss.detach(), expected)


def test_straight_through_gradient_is_one(tiny_tokenizer):
    latents = torch.randn(2, 5, 32, requires_grad=True)
    quantizer = tiny_tokenizer.quantizer
    weight = torch.randn(2, 5, 8)
    through = torch.autograd.grad((quantizer(latents).code_vectors * weight).sum(), latents)[0]
    direct = torch.autograd.grad((quantizer.project(latents) * weight).sum(), latents)[0]
    assert_close(through, direct)


@torch.no_grad()
def test_bfloat16_tells_near_codes_apart(tiny_tokenizer):
    """Cosines of near codes differ in the fourth digit, which bfloat16 does not have."""
    quantizer = tiny_tokenizer.quantizer
    near = torch.cat([0.03 * torch.randn(50, 7), torch.ones(50, 1)], 1)
    quantizer.codebook.weight.copy_(near)
    quantizer.project_in.weight.copy_(torch.eye(8, 32))
    quantizer.project_in.bias.zero_()
    quantizer.bfloat16()
    latents = torch.cat([near + 0.003 * torch.randn(50, 8), torch.zeros(50, 24)], 1)[None].bfloat16()
    assert (quantizer(latents).codes[0] == torch.arange(50)).float().mean() > 0.95
    assert quantizer(latents).quantized.dtype == torch.bfloat16


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_compares_codes_in_float32(tiny_tokenizer, tiny_video, dtype):
    quantizer = tiny_tokenizer.quantizer
    quantizer.codebook.weight.copy_(1 + 0.01 * torch.randn(50, 8))
    encoded = tiny_tokenizer.to(dtype).encode(tiny_video, return_dict=True)
    expected = copy.deepcopy(quantizer).float()(encoded.latents.flatten(1, 2).float())
    assert torch.equal(expected.codes, encoded.codes.flatten(1))


def test_sampling_follows_the_softmax(tiny_tokenizer):
    quantizer = tiny_tokenizer.quantizer
    latents = torch.randn(1, 1, 32).expand(1, 20000, 32)
    with torch.no_grad():
        torch.manual_seed(0)
        codes = quantizer(latents, sample=True).codes.flatten()
        similarity = quantizer.project(latents[:, 0]) @ quantizer.normalized_codebook().T
        expected = (similarity / quantizer.temperature).softmax(-1)[0]
    assert_close(codes.bincount(minlength=50) / len(codes), expected, atol=0.015, rtol=0)
    assert expected.max() < 0.999  # otherwise nothing is sampled


def test_sampling_only_where_asked(tiny_tokenizer, tiny_video):
    best = tiny_tokenizer.encode(tiny_video).codes
    assert torch.equal(best, tiny_tokenizer(tiny_video).codes)
    torch.manual_seed(0)
    assert not torch.equal(best, tiny_tokenizer.encode(tiny_video, sample_codes=True).codes)
    tiny_tokenizer.train()
    assert not torch.equal(best, tiny_tokenizer(tiny_video).codes)
    assert torch.equal(best, tiny_tokenizer(tiny_video, sample_codes=False).codes)


def test_every_parameter_is_trained(tiny_tokenizer, tiny_video):
    output = tiny_tokenizer.train()(tiny_video, torch.tensor([[3, 1, 6], [1, 5, 2]]))
    loss = (output.pixel_values_videos - tiny_video).abs().mean() + output.commitment_loss + output.codebook_loss
    loss.backward()
    without = [n for n, p in tiny_tokenizer.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert without == []


def test_gradient_checkpointing_changes_nothing(tiny_tokenizer, tiny_video):
    def gradients():
        tiny_tokenizer.zero_grad()
        output = tiny_tokenizer(tiny_video, torch.tensor([[3, 1, 6], [1, 5, 2]]), sample_codes=False)
        (output.pixel_values_videos - tiny_video).square().mean().backward()
        return [p.grad.clone() for p in tiny_tokenizer.parameters() if p.grad is not None]

    tiny_tokenizer.train()
    plain = gradients()
    calls = []
    tiny_tokenizer.gradient_checkpointing_enable()
    for layer in tiny_tokenizer.decoder.layers:
        layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for a, b in zip(plain, gradients(), strict=True):
        assert_close(a, b)
    assert len(calls) == 4  # each of the two layers ran again in the backward pass


def test_the_loss_is_made_of_the_outputs(tiny_tokenizer, tiny_video):
    output = tiny_tokenizer(tiny_video, torch.tensor([[3, 1, 6], [1, 5, 2]]))
    pixels = (output.pixel_values_videos - tiny_video).abs().mean()
    assert_close(output.loss, pixels + 0.025 * output.commitment_loss + 0.1 * output.codebook_loss)
    assert tiny_tokenizer(tiny_video, return_dict=False)[0].ndim == 0
    assert tiny_tokenizer(tiny_video, return_loss=False).loss is None
    whole = (tiny_video * 255).round()
    assert_close(tiny_tokenizer(whole.to(torch.uint8)).loss, tiny_tokenizer(whole / 255).loss)


# --- recorded outputs ---------------------------------------------------------------------------------------------


def test_hidden_states_and_attentions(tiny_tokenizer, tiny_video):
    """3 blocks of 6 latents and 4 patches through 2 + 2 layers."""
    plain = tiny_tokenizer(tiny_video)
    assert plain.hidden_states is None and plain.attentions is None
    output = tiny_tokenizer(tiny_video, output_hidden_states=True, output_attentions=True)
    assert_close(output.pixel_values_videos, plain.pixel_values_videos)
    assert [state.shape for state in output.hidden_states] == [(2, 30, 32)] * 5
    assert [weights.shape for weights in output.attentions] == [(2, 2, 30, 30)] * 4
    latents = output.hidden_states[2].unflatten(1, (3, 10))[:, :, :6]
    assert_close(latents, output.latents)
    for weights in output.attentions:
        assert_close(weights.sum(-1), torch.ones(2, 2, 30))
        assert not weights[:, :, :10, 10:].any() and weights[:, :, 20:, :6].any()  # nothing later, something earlier
    encoded = tiny_tokenizer.encode(tiny_video, output_hidden_states=True)
    decoded = tiny_tokenizer.decode(encoded.codes, output_attentions=True)
    assert len(encoded.hidden_states) == 3 and encoded.attentions is None
    assert len(decoded.attentions) == 2 and decoded.hidden_states is None
    assert_close(decoded.attentions[1], output.attentions[3])


def test_recorded_outputs_of_clips_with_different_counts(tiny_tokenizer, tiny_video):
    """Clips stay apart, though without recording they would form one sequence."""
    counts = torch.tensor([[3, 0, 6], [1, 5, 2]])
    output = tiny_tokenizer(tiny_video, counts, output_hidden_states=True, output_attentions=True)
    tokens = 3 + 5 + 6 + 12
    assert output.hidden_states[-1].shape == (2, tokens, 32) and output.attentions[-1].shape == (2, 2, tokens, tokens)
    assert_close(output.pixel_values_videos, tiny_tokenizer(tiny_video, counts).pixel_values_videos)
    assert not output.attentions[-1][1, :, -4:, 1:3].any()  # the second clip dropped these


def test_the_configuration_asks_for_outputs(tiny_tokenizer, tiny_video):
    tiny_tokenizer.config.output_hidden_states = True
    assert len(tiny_tokenizer(tiny_video).hidden_states) == 5
    assert tiny_tokenizer(tiny_video, output_hidden_states=False).hidden_states is None
    tiny_tokenizer.config.return_dict = False
    assert isinstance(tiny_tokenizer.encode(tiny_video), tuple)
    assert tiny_tokenizer.encode(tiny_video, return_dict=True).codes.shape == (2, 3, 6)


def test_selected_hidden_states(tiny_tokenizer, tiny_video):
    every = tiny_tokenizer.encode(tiny_video, output_hidden_states=True).hidden_states
    first, second, last = tiny_tokenizer.encode(tiny_video, output_hidden_states=[1]).hidden_states
    assert first is None and last is None and torch.equal(second, every[1])
    *others, last = tiny_tokenizer(tiny_video, output_hidden_states=[-1]).hidden_states
    assert others == [None] * 4 and last is not None
    for index in (-1, 3):  # a part of the model cannot count from the end of the whole
        with pytest.raises(ValueError, match=f"{index}.* 0 to 2"):
            tiny_tokenizer.encode(tiny_video, output_hidden_states=[0, index])


def test_unknown_options_are_named(tiny_tokenizer, tiny_scorer, tiny_video):
    for call in (tiny_tokenizer, tiny_tokenizer.encode):
        with pytest.raises(TypeError, match="interpolate_pos_encoding"):
            call(tiny_video, interpolate_pos_encoding=True)
    with pytest.raises(TypeError, match="use_cache"):
        tiny_tokenizer.decode(torch.zeros(1, 3, 6, dtype=torch.long), use_cache=True)
    with pytest.raises(TypeError, match="attention_mask"):
        tiny_scorer(torch.zeros(1, 3, 6, 32), torch.zeros(1, 3, 6, 32), attention_mask=None)


# --- attention implementations, precision, compilation ------------------------------------------------------------


@pytest.mark.parametrize("implementation", ["eager"])
def test_attention_implementations_agree(tiny_tokenizer, tiny_video, implementation):
    counts = torch.tensor([[3, 0, 6], [1, 5, 2]])
    with torch.no_grad():
        expected = tiny_tokenizer(tiny_video, counts)
        tiny_tokenizer.set_attn_implementation(implementation)
        assert tiny_tokenizer.config._attn_implementation == implementation
        output = tiny_tokenizer(tiny_video, counts)
    assert torch.equal(output.codes, expected.codes)
    assert_close(output.pixel_values_videos, expected.pixel_values_videos, atol=1e-5, rtol=1e-4)


def test_flash_attention_is_refused(tiny_config, tmp_path):
    AdapTokModel(tiny_config).save_pretrained(tmp_path)
    with pytest.raises((ValueError, ImportError), match="[Ff]lash"):
        AdapTokModel.from_pretrained(tmp_path, attn_implementation="flash_attention_2")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_runs(tiny_tokenizer, tiny_video, dtype):
    expected = tiny_tokenizer(tiny_video).pixel_values_videos
    half = tiny_tokenizer.to(dtype)
    codes = half.encode(tiny_video).codes
    video = half.decode(codes, torch.tensor([[3, 0, 6], [1, 5, 2]])).pixel_values_videos
    assert video.dtype == dtype and video.isfinite().all()
    assert (half(tiny_video).pixel_values_videos.float() - expected).abs().mean() < 0.1 * expected.abs().mean()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "inductor"])
def test_compiled_model_is_the_model(tiny_tokenizer, tiny_video, backend):
    counts = torch.tensor([[3, 0, 6], [1, 5, 2]])
    with torch.no_grad():
        expected = tiny_tokenizer(tiny_video, counts).pixel_values_videos
        compiled = torch.compile(tiny_tokenizer, backend=backend)(tiny_video, counts).pixel_values_videos
    assert_close(compiled, expected, atol=1e-5, rtol=1e-4)


# --- saving and loading -------------------------------------------------------------------------------------------


def test_save_and_load_is_exact(tiny_tokenizer, tiny_video, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path)
    for loaded in (AdapTokModel.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path)):
        assert type(loaded) is AdapTokModel and not loaded.training
        state = dict(loaded.named_buffers()) | dict(loaded.named_parameters())
        expected = dict(tiny_tokenizer.named_buffers()) | dict(tiny_tokenizer.named_parameters())
        assert state.keys() == expected.keys() and any("positions" in name for name, _ in loaded.named_buffers())
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        assert torch.equal(loaded(tiny_video).pixel_values_videos, tiny_tokenizer(tiny_video).pixel_values_videos)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is AdapTokConfig and config.latents_per_block == 6


# --- configuration and bad input ----------------------------------------------------------------------------------


def count_parameters(config: AdapTokConfig) -> float:
    with torch.device("meta"):
        return round(sum(p.numel() for p in AdapTokModel(config).parameters()) / 1e6, 2)


def test_preset_sizes():
    """Ours, without the prior; the paper's totals with prior are 195M (base), 59M, 259M and 913M."""
    assert count_parameters(AdapTokConfig.base()) == 172.97
    assert count_parameters(AdapTokConfig.small()) == 39.8
    assert count_parameters(AdapTokConfig.large()) == 172.97
    assert count_parameters(AdapTokConfig.extra_large()) == 608.31


def test_config_derives_its_geometry():
    config = AdapTokConfig()
    assert (config.num_blocks, config.patches_per_block, config.num_latent_tokens) == (4, 256, 2048)
    assert config.eob_token_id == 8192


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_frames": 15}, "num_frames=15 .* tubelet_size=4"),
        ({"patch_size": 7}, "image_size=128 .* patch_size=7"),
        ({"num_attention_heads": 7}, "hidden_size=768 .* num_attention_heads=7"),
        ({"latents_per_block": 0}, "latents_per_block"),
        ({"encoder_attention_type": "causal"}, "encoder_attention_type .* 'causal'"),
    ],
)
def test_impossible_geometry_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        AdapTokConfig(**overrides)


def test_bad_inputs_are_named(tiny_tokenizer, tiny_video):
    codes = tiny_tokenizer.encode(tiny_video).codes
    with pytest.raises(ValueError, match=r"expected \(batch, frames"):
        tiny_tokenizer.encode(tiny_video[:, :, :, :8])
    with pytest.raises(ValueError, match="10 frames, expected a multiple of 4 up to 12"):
        tiny_tokenizer.encode(tiny_video[:, :10])
    with pytest.raises(ValueError, match="exactly one"):
        tiny_tokenizer.decode()
    with pytest.raises(ValueError, match="codes has shape"):
        tiny_tokenizer.decode(codes[:, :, :4])
    with pytest.raises(ValueError, match=r"codes .* torch.float32"):
        tiny_tokenizer.decode(codes.float())
    decoded = tiny_tokenizer.decode(codes).pixel_values_videos
    assert torch.equal(tiny_tokenizer.decode(codes.to(torch.uint16)).pixel_values_videos, decoded)
    with pytest.raises(ValueError, match=r"codes must lie in 0..49"):
        tiny_tokenizer.decode(codes + 50)
    with pytest.raises(ValueError, match="first block .* at least 1"):
        tiny_tokenizer.decode(codes, torch.tensor([[0, 1, 1], [1, 1, 1]]))
    with pytest.raises(ValueError, match="0..6, got values from 1 to 7"):
        tiny_tokenizer.decode(codes, torch.tensor([[1, 1, 1], [7, 1, 1]]))


def test_causaltok_takes_no_counts(tiny_config, tiny_video):
    tiny_config.adaptive = False
    model = AdapTokModel(tiny_config).eval()
    assert model(tiny_video).pixel_values_videos.shape == tiny_video.shape
    with pytest.raises(ValueError, match="not adaptive"):
        model(tiny_video, torch.full((2, 3), 6))


# --- key/value cache ----------------------------------------------------------------------------------------------


def test_attention_with_a_cache_is_attention_over_all(tiny_tokenizer):
    from transformers import DynamicCache

    from adaptok_hf.models.attention_masks import Segment

    layer = tiny_tokenizer.encoder.layers[0].attention
    hidden_states = torch.randn(1, 7, 32)
    mask = torch.ones(1, 1, 7, 7, dtype=torch.bool).tril()
    expected, _ = layer(hidden_states, [Segment(mask=mask)])
    cache = DynamicCache()
    first, _ = layer(hidden_states[:, :4], [Segment(mask=mask[:, :, :4, :4])], cache)
    second, _ = layer(hidden_states[:, 4:], [Segment(mask=mask[:, :, 4:])], cache)
    assert_close(torch.cat([first, second], 1), expected)


@pytest.mark.parametrize("attention_type", ["block_causal", "decoder", "block_diagonal"])
def test_causal_types_by_gradient(tiny_config, tiny_video, attention_type):
    tiny_config.encoder_attention_type = tiny_config.decoder_attention_type = attention_type
    model = AdapTokModel(tiny_config).eval()
    tiny_video.requires_grad_()
    encoded = model.encode(tiny_video)
    quantized = encoded.quantized.detach().requires_grad_()
    video = model.decode(quantized=quantized, token_counts=torch.tensor([[4, 2, 6], [6, 1, 3]])).pixel_values_videos
    for block in range(3):
        for output, inputs in ((encoded.latents[:, block], tiny_video), (video[:, 4 * block : 4 * block + 4], quantized)):
            (gradient,) = torch.autograd.grad(output.sum(), inputs, retain_graph=True)
            gradients = [float(g.abs().max()) for g in gradient.chunk(3, dim=1)]
            assert all(g == 0 for g in gradients[block + 1 :])
            if (attention_type, inputs is tiny_video) not in {("decoder", True), ("block_diagonal", False)}:
                assert gradients[block] > 0  # in those two, what is read sees no token of what comes in


@pytest.mark.parametrize("counts", [None, torch.tensor([[3, 0, 6], [1, 5, 2]])])
def test_training_and_inference_run_the_same_code(tiny_tokenizer, tiny_video, counts):
    expected = tiny_tokenizer(tiny_video, counts).pixel_values_videos
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert torch.equal(tiny_tokenizer(tiny_video, counts).pixel_values_videos, expected)
