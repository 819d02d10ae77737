"""Structural similarity of videos, for `evaluate.load`."""

import datasets
import evaluate

from adaptok_hf.metrics import VideoSSIM
from adaptok_hf.metrics.video_batches import PairedModule


class SsimVideo(PairedModule, evaluate.Metric):
    """No configurations."""

    def _info(self):
        return evaluate.MetricInfo(
            description=VideoSSIM.__doc__,
            citation="Wang et al., Image quality assessment: from error visibility to structural similarity, TIP 2004",
            inputs_description="Videos (N, T, 3, H, W) in [0, 1] or uint8, or lists of paths.",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def make_metric(self):
        return VideoSSIM()

    def results(self, metric):
        return {"ssim": metric.compute().item(), "num_videos": len(metric.per_video())}
