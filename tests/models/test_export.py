"""`torch.export`, `torch.compile` and dynamic quantization give the models that they are given."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.ao.quantization import quantize_dynamic
from torch.export import Dim, export
from torch.testing import assert_close

from adaptok_hf import AdapTokModel, AdapTokPipeline

CLOSE = {"atol": 1e-5, "rtol": 1e-4}
COUNTS = torch.tensor([[3, 0, 6], [1, 5, 2]])
BATCH = Dim("batch")


class Method(nn.Module):
    """A method of a model as a module: what `torch.export` takes."""

    def __init__(self, model: nn.Module, name: str):
        super().__init__()
        self.model, self.name = model, name

    def forward(self, *inputs):
        return getattr(self.model, self.name)(*inputs)


def examples(name: str, batch: int) -> tuple[torch.Tensor, ...]:
    """Inputs of a method, at random; the first block keeps at least 1 token, other blocks 0 to 6."""
    generator = torch.Generator().manual_seed(batch)
    counts = torch.randint(0, 7, (batch, 3), generator=generator)
    counts[:, 0].clamp_(min=1)
    return {
        "encode": (torch.rand(batch, 12, 3, 16, 16, generator=generator),),
        "decode": (torch.randint(0, 50, (batch, 3, 6), generator=generator), counts),
        "forward": (*torch.randn(2, batch, 3, 6, 32, generator=generator), counts),  # of the scorer
    }[name]


@pytest.fixture
def models(tiny_config, tiny_scorer) -> dict:
    """One layer each, which is quick to trace."""
    tiny_config.num_encoder_layers = tiny_config.num_decoder_layers = 1
    tokenizer = AdapTokModel(tiny_config).eval()
    tiny_scorer.layers = tiny_scorer.layers[:1]
    return {"encode": tokenizer, "decode": tokenizer, "forward": tiny_scorer}


def assert_same(output, expected) -> None:
    assert output.keys() == expected.keys()
    for name in expected:
        if not expected[name].is_floating_point():
            assert torch.equal(output[name], expected[name])
        else:
            assert_close(output[name], expected[name], **CLOSE)


SLOW = pytest.mark.slow


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=SLOW)])
@pytest.mark.parametrize("name", ["decode", pytest.param("encode", marks=SLOW), pytest.param("forward", marks=SLOW)])
def test_exported_program_is_the_model(models, name, strict):
    """For batches and token counts that were not those of the example, none of which may be a constant."""
    method = Method(models[name], name)
    inputs = examples(name, 2)
    program = export(method, inputs, dynamic_shapes=(tuple({0: BATCH} for _ in inputs),), strict=strict)
    with torch.no_grad():
        for batch in (1, 3, 9):
            inputs = examples(name, batch)
            assert_same(program.module()(*inputs), method(*inputs))


@pytest.mark.slow
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("decoder_type", ["decoder", "block_causal", "full"])
def test_saved_program_is_the_model(tiny_config, implementation, decoder_type):
    tiny_config.decoder_attention_type = decoder_type
    model = AdapTokModel(tiny_config).eval()
    model.set_attn_implementation(implementation)
    method, file = Method(model, "decode"), io.BytesIO()
    torch.export.save(export(method, examples("decode", 2), dynamic_shapes=(({0: BATCH}, {0: BATCH}),)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()
    with torch.no_grad():
        assert_same(loaded(*examples("decode", 5)), method(*examples("decode", 5)))


@pytest.mark.slow
def test_whole_models_export(tiny_tokenizer, tiny_scorer, tiny_video):
    """`forward` of the tokenizer, with every count, and of a half-precision one; the scorer without counts."""
    shapes = {"pixel_values_videos": {0: BATCH}, "token_counts": {0: BATCH}}
    program = export(tiny_tokenizer, (tiny_video, COUNTS), dynamic_shapes=shapes)
    video = tiny_video[[0, 1, 0]]
    for counts in (torch.tensor([[1, 0, 0]]), torch.tensor([[6, 6, 6]]), torch.tensor([[2, 4, 0]])):
        counts = counts.repeat(3, 1)
        assert_same(program.module()(video, counts), tiny_tokenizer(video, counts))
    latents = torch.randn(2, 2, 3, 6, 32)
    program = export(tiny_scorer, tuple(latents), dynamic_shapes={"latents": {0: BATCH}, "quantized": {0: BATCH}})
    assert_same(program.module()(*latents[:, :1]), tiny_scorer(*latents[:, :1]))
    half = tiny_tokenizer.to(torch.bfloat16)
    program = export(Method(half, "encode"), (tiny_video,), dynamic_shapes=(({0: BATCH},),))
    assert torch.equal(program.module()(video).codes, half.encode(video).codes)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["encode", "decode", "forward"])
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_without_graph_breaks(models, name, dynamic):
    torch._dynamo.reset()
    method = getattr(models[name], name)
    compiled = torch.compile(method, fullgraph=True, dynamic=dynamic, backend="eager")
    with torch.no_grad():
        for batch in (2, 3, 5):
            assert_same(compiled(*examples(name, batch)), method(*examples(name, batch)))
    torch._dynamo.reset()


# --- other weights: int8, other types of numbers ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped() -> AdapTokPipeline:
    return AdapTokPipeline.from_pretrained("figures")


def linear_maps(model: nn.Module) -> int:
    return sum(type(module) is nn.Linear for module in model.modules())


@torch.inference_mode()
def test_int8_keeps_what_the_models_mean(shipped):
    """The measured agreement, loosely; the projection to the codebook stays in float32, since near codes differ little."""
    tokenizer, scorer, ar_model = (
        quantize_dynamic(part, {nn.Linear}) for part in (shipped.tokenizer, shipped.scorer, shipped.ar_model)
    )
    assert linear_maps(tokenizer) == linear_maps(scorer) == linear_maps(ar_model) == 0
    assert type(tokenizer.quantizer.project_in) is type(shipped.tokenizer.quantizer.project_in)
    video = shipped.video_processor("examples/surfing.mp4")["pixel_values_videos"]
    expected, encoded = shipped.tokenizer.encode(video), tokenizer.encode(video)
    codes = expected.codes
    assert 0.5 < (encoded.codes == codes).float().mean() < 1

    counts = torch.tensor([[9, 3, 0, 16]])
    for some in (None, counts):
        output, reference = (m.decode(codes, some).pixel_values_videos for m in (tokenizer, shipped.tokenizer))
        assert 0 < (output - reference).square().mean() < 0.05**2
    scores = scorer(expected.latents, expected.quantized).scores
    reference = shipped.scorer(expected.latents, expected.quantized).scores
    assert 0 < (scores - reference).abs().mean() < 0.5 * reference.std()

    inputs = ar_model.build_inputs(codes, counts, [3])
    logits, reference = ar_model(**inputs).logits, shipped.ar_model(**inputs).logits
    assert (logits.argmax(-1) == reference.argmax(-1)).float().mean() > 0.8
    assert ar_model.generate(class_labels=[3], seeds=[0], max_tokens=3).shape[1] > 3


@pytest.mark.slow
@torch.inference_mode()
@pytest.mark.parametrize(
    ("change", "agreement"),
    [
        (lambda model: quantize_dynamic(model, {nn.Linear}, dtype=torch.float16), 0.98),
        (lambda model: quantize_dynamic(model), 0.5),
        (lambda model: copy.deepcopy(model).half(), 0.97),
        (lambda model: copy.deepcopy(model).bfloat16(), 0.9),
        (lambda model: copy.deepcopy(model).double(), 1),
    ],
    ids=["float16 weights", "what torch quantizes by default", "half", "bfloat16", "double"],
)
def test_other_types_of_numbers(shipped, change, agreement):
    tokenizer, scorer = change(shipped.tokenizer), change(shipped.scorer)
    video = shipped.video_processor("examples/surfing.mp4")["pixel_values_videos"]
    expected, encoded = shipped.tokenizer.encode(video), tokenizer.encode(video)
    assert encoded.latents.dtype == encoded.quantized.dtype == tokenizer.dtype
    assert (encoded.codes == expected.codes).float().mean() >= agreement
    video = tokenizer.decode(expected.codes, torch.full((1, 4), 8)).pixel_values_videos
    assert video.dtype == tokenizer.dtype and video.isfinite().all()
    assert scorer(encoded.latents, encoded.quantized).scores.dtype == torch.float32


def test_pipeline_of_int8_models(tiny_pipeline, tiny_video):
    parts = {"tokenizer": tiny_pipeline.tokenizer, "scorer": tiny_pipeline.scorer}
    int8 = AdapTokPipeline(
        tiny_pipeline.video_processor, **{name: quantize_dynamic(part, {nn.Linear}) for name, part in parts.items()}
    )
    int8.set_progress_bar_config(disable=True)
    output = int8.reconstruct(tiny_video[0], budget=4, fps=25)
    assert output.frames.shape[:2] == (1, 12) and output.tokens.token_counts.sum() == 12
    assert int8.decode(output.tokens).shape[0] == 12
    with pytest.raises(ValueError, match=int8.model_hash[:12]):  # an int8 tokenizer is another model
        tiny_pipeline.detokenize(output.tokens)
