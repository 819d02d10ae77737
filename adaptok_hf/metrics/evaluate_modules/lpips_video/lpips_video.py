"""Perceptual distance of videos, for `evaluate.load`."""

import datasets
import evaluate

from adaptok_hf.metrics import VideoLPIPS
from adaptok_hf.metrics.video_batches import PairedModule


class LpipsVideo(PairedModule, evaluate.Metric):
    """Configurations: `vgg` (default) and `alex`."""

    def _info(self):
        if self.config_name not in ("default", "vgg", "alex"):
            raise ValueError(f"configurations of lpips_video are 'vgg' and 'alex', got {self.config_name!r}")
        return evaluate.MetricInfo(
            description=VideoLPIPS.__doc__,
            citation="Zhang et al., The Unreasonable Effectiveness of Deep Features as a Perceptual Metric, CVPR 2018",
            inputs_description="Videos (N, T, 3, H, W) in [0, 1] or uint8, or lists of paths.",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def make_metric(self):
        return VideoLPIPS("alex" if self.config_name == "alex" else "vgg")

    def results(self, metric):
        return {"lpips": metric.compute().item(), "net": metric.net, "num_videos": len(metric.per_video())}
