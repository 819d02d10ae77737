"""Frechet video distance, for `evaluate.load`."""

import datasets
import evaluate

from adaptok_hf.metrics import FrechetVideoDistance
from adaptok_hf.metrics.video_batches import StreamingModule


class Fvd(StreamingModule, evaluate.Metric):
    """No configurations. The number of predictions and references may differ."""

    def _info(self):
        return evaluate.MetricInfo(
            description=FrechetVideoDistance.__doc__,
            citation="Unterthiner et al., Towards Accurate Generative Models of Video, arXiv 1812.01717",
            inputs_description="Videos (N, T, 3, H, W) in [0, 1] or uint8, or lists of paths; at least 9 frames each.",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def make_metric(self):
        return FrechetVideoDistance()

    def add_videos(self, metric, predictions, references):
        for videos, real in ((predictions, False), (references, True)):
            for video in videos:
                metric.update(video, real=real)

    def results(self, metric):
        return {"fvd": metric.compute().item(), "num_real": int(metric.real_count), "num_fake": int(metric.fake_count)}
