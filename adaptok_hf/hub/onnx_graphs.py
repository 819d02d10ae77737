"""Tokenizer and scorer as ONNX graphs, for runtimes without torch."""

import os
import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from ..models.modeling_adaptok import AdapTokModel
from ..models.modeling_adaptok_scorer import AdapTokScorerModel


class _Encoder(nn.Module):
    outputs = ("codes", "latents", "quantized")

    def __init__(self, tokenizer: AdapTokModel):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, pixel_values_videos: torch.Tensor) -> tuple[torch.Tensor, ...]:
        encoded = self.tokenizer.encode(pixel_values_videos)
        return tuple(encoded[name] for name in self.outputs)


class _Decoder(nn.Module):
    outputs = ("pixel_values_videos",)

    def __init__(self, tokenizer: AdapTokModel):
        super().__init__()
        self.tokenizer = tokenizer

    def forward(self, codes: torch.Tensor, token_counts: torch.Tensor | None = None) -> torch.Tensor:
        return self.tokenizer.decode(codes, token_counts).pixel_values_videos


class _Scorer(nn.Module):
    outputs = ("scores",)

    def __init__(self, scorer: AdapTokScorerModel):
        super().__init__()
        self.scorer = scorer

    def forward(self, latents: torch.Tensor, quantized: torch.Tensor, token_counts: torch.Tensor) -> torch.Tensor:
        return self.scorer(latents, quantized, token_counts).scores


def write_onnx(model: AdapTokModel | AdapTokScorerModel, folder: str | os.PathLike) -> list[Path]:
    """Write `encoder.onnx` and `decoder.onnx` of a tokenizer, or `scorer.onnx` of a scorer; weights go to `*.onnx.data`.

    Inputs and outputs are those of `encode`, `decode` and the scorer, by the same names, in float32 and for whole clips, of
    any batch size. `token_counts` is an input: one graph decodes every budget. The values of inputs are not checked.

    Args:
        model: in float32; it stays as it is.
        folder: made if it is missing.

    Returns:
        The graphs' files.

    Raises:
        ImportError: without onnx and onnxscript.
        ValueError: for a model of another type of numbers, and for an [`EVATokModel`].
    """
    if not isinstance(model, AdapTokModel | AdapTokScorerModel):
        raise ValueError(f"no ONNX graph is made of a {type(model).__name__}; AdapTokModel and AdapTokScorerModel have one")
    for name in ("onnx", "onnxscript"):
        if find_spec(name) is None:
            raise ImportError(f'{name} is missing: pip install "adaptok_hf[onnx]"')
    if model.dtype != torch.float32:
        raise ValueError(f"an ONNX graph is made of a model in float32, got {model.dtype}")
    config, folder = model.config, Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    codes = torch.zeros(
        2, config.num_blocks, config.latents_per_block, dtype=torch.long
    )  # a batch of 1 would be a constant
    counts = torch.full((2, config.num_blocks), config.latents_per_block)
    if isinstance(model, AdapTokScorerModel):
        # not the same tensor twice: that would become one input
        states = {name: torch.zeros(*codes.shape, config.latent_size) for name in ("latents", "quantized")}
        graphs = {"scorer": (_Scorer(model), {**states, "token_counts": counts})}
    else:
        video = torch.zeros(2, config.num_frames, config.num_channels, config.image_size, config.image_size)
        kept = {"token_counts": counts} if config.adaptive else {}
        graphs = {
            "encoder": (_Encoder(model), {"pixel_values_videos": video}),
            "decoder": (_Decoder(model), {"codes": codes, **kept}),
        }
    training = model.training
    model.eval()
    try:
        return [_write_graph(module, inputs, folder / f"{name}.onnx") for name, (module, inputs) in graphs.items()]
    finally:
        model.train(training)


def _write_graph(module: nn.Module, inputs: dict[str, torch.Tensor], path: Path) -> Path:
    inputs = {name: tensor.to(next(module.parameters()).device) for name, tensor in inputs.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch to itself
        torch.onnx.export(
            module,
            kwargs=inputs,
            f=path,
            input_names=list(inputs),
            output_names=list(module.outputs),
            dynamic_shapes={name: {0: torch.export.Dim("batch")} for name in inputs},
            dynamo=True,
            verbose=False,
        )
    return path


__all__ = ["write_onnx"]
