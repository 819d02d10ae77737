"""Peak signal-to-noise ratio of videos, for `evaluate.load`."""

import datasets
import evaluate

from adaptok_hf.metrics import VideoPSNR
from adaptok_hf.metrics.video_batches import PairedModule


class PsnrVideo(PairedModule, evaluate.Metric):
    """Configurations: `per_video` (default) and `per_frame`."""

    def _info(self):
        if self.config_name not in ("default", "per_video", "per_frame"):
            raise ValueError(f"configurations of psnr_video are 'per_video' and 'per_frame', got {self.config_name!r}")
        return evaluate.MetricInfo(
            description=VideoPSNR.__doc__,
            citation="",
            inputs_description="Videos (N, T, 3, H, W) in [0, 1] or uint8, or lists of paths.",
            features=datasets.Features({"predictions": datasets.Value("string"), "references": datasets.Value("string")}),
        )

    def make_metric(self):
        return VideoPSNR(per_frame=self.config_name == "per_frame")

    def results(self, metric):
        return {"psnr": metric.compute().item(), "num_videos": len(metric.per_video())}
