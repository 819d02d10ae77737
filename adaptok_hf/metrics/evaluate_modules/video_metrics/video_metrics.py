"""PSNR, SSIM, LPIPS and FVD of videos, for `evaluate.load`."""

import datasets
import evaluate

from adaptok_hf.metrics.video_batches import VideoMetrics


class VideoMetricsModule(VideoMetrics, evaluate.Metric):
    """The configuration names the metric."""

    def _info(self):
        if self.config_name not in self.METRICS:
            raise ValueError(f"the configuration must be one of {', '.join(self.METRICS)}, got {self.config_name!r}")
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description="Videos (N, T, 3, H, W) in [0, 1] or uint8, or lists of paths.",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )
