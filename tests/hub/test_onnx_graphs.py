"""ONNX graphs give what the models give, where onnxruntime runs them."""

import pytest
import torch
from torch.testing import assert_close

from adaptok_hf import AdapTokModel
from adaptok_hf.hub import onnx_graphs
from adaptok_hf.hub.export import export_repository
from adaptok_hf.hub.onnx_graphs import write_onnx

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def run(path, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    session = pytest.importorskip("onnxruntime").InferenceSession(path)
    assert {value.name for value in session.get_inputs()} == set(inputs)
    names = [value.name for value in session.get_outputs()]
    values = session.run(names, {name: tensor.numpy() for name, tensor in inputs.items()})
    return {name: torch.from_numpy(value) for name, value in zip(names, values, strict=True)}


@pytest.mark.slow
def test_graphs_of_an_exported_pipeline(tiny_pipeline, tmp_path):
    """For batches and counts that were not those of the example."""
    pytest.importorskip("onnxscript")
    for part in (tiny_pipeline.tokenizer.encoder, tiny_pipeline.tokenizer.decoder, tiny_pipeline.scorer):
        part.layers = part.layers[:1]  # quicker
    config = tiny_pipeline.tokenizer.config
    config.num_encoder_layers = config.num_decoder_layers = tiny_pipeline.scorer.config.num_hidden_layers = 1
    tiny_pipeline.save_pretrained(tmp_path / "saved")
    report = export_repository(tmp_path / "saved", tmp_path / "out", onnx=True)
    graphs = {name for name in report.files if name.endswith(".onnx")}
    assert graphs == {"onnx/encoder.onnx", "onnx/decoder.onnx", "onnx/scorer.onnx"}
    for batch in (1, 3):
        video = torch.rand(batch, 12, 3, 16, 16)
        counts = torch.randint(0, 7, (batch, 3)).clamp_(min=torch.tensor([1, 0, 0]))
        with torch.no_grad():
            encoded = tiny_pipeline.tokenizer.encode(video)
            decoded = tiny_pipeline.tokenizer.decode(encoded.codes, counts)
            scored = tiny_pipeline.scorer(encoded.latents, encoded.quantized, counts)
        kept = {"token_counts": counts}
        states = {"latents": encoded.latents, "quantized": encoded.quantized}
        for name, inputs, expected in (
            ("encoder", {"pixel_values_videos": video}, encoded),
            ("decoder", {"codes": encoded.codes, **kept}, decoded),
            ("scorer", states | kept, scored),
        ):
            output = run(tmp_path / "out" / "onnx" / f"{name}.onnx", inputs)
            assert output.keys() == expected.keys()
            for key in expected:
                assert_close(output[key], expected[key], **CLOSE)


@pytest.mark.slow
def test_graph_of_a_tokenizer_without_counts(tiny_config, tmp_path):
    pytest.importorskip("onnxscript")
    tiny_config.adaptive = False
    model = AdapTokModel(tiny_config).train()
    assert [path.name for path in write_onnx(model, tmp_path)] == ["encoder.onnx", "decoder.onnx"] and model.training
    codes = torch.randint(0, 50, (3, 3, 6))
    expected = model.decode(codes).pixel_values_videos
    assert_close(run(tmp_path / "decoder.onnx", {"codes": codes})["pixel_values_videos"], expected.detach(), **CLOSE)


def test_what_is_missing_is_named(tiny_tokenizer, tiny_scorer, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graphs, "find_spec", lambda name: None if name == "onnxscript" else name)
    tiny_scorer.save_pretrained(tmp_path / "scorer")
    with pytest.raises(ImportError, match=r"onnxscript.*adaptok_hf\[onnx\]"):
        export_repository(tmp_path / "scorer", tmp_path / "out", onnx=True)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(onnx_graphs, "find_spec", lambda name: name)
    with pytest.raises(ValueError, match="bfloat16"):
        write_onnx(tiny_tokenizer.to(torch.bfloat16), tmp_path / "out")
