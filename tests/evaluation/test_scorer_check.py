import numpy as np
import torch

from adaptok_hf.evaluation.scorer_check import score_curves
from adaptok_hf.training.scorer.targets import BlockLoss


def test_score_curves(tiny_pipeline, tiny_video):
    videos = (tiny_video * 255).round().to(torch.uint8)
    predicted, measured, levels = score_curves(tiny_pipeline, videos, BlockLoss("l1"))
    assert levels == [2, 4, 6] and predicted.shape == measured.shape == (2, 3, 3)
    tokenizer = tiny_pipeline.tokenizer
    with torch.no_grad():
        encoded = tokenizer.encode(videos / 255)
        counts = torch.tensor([[3, 4]] * 2)
        decoded = tokenizer.decode(encoded.codes[:, :2], counts).pixel_values_videos[:, 4:8].clamp(0, 1)
        scores = tiny_pipeline.scorer(encoded.latents[:, :2], encoded.quantized[:, :2], torch.tensor([[3, 6]] * 2)).scores
    error = (decoded - videos[:, 4:8] / 255).abs().mean(dim=(1, 2, 3, 4))
    np.testing.assert_allclose(measured[:, 1, 1], error, atol=1e-6)
    np.testing.assert_allclose(predicted[:, 1], scores[:, 1], atol=1e-5)
