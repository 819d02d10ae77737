"""Draws the pictures of docs/evaluation.md: `python docs/images/make_evaluation_images.py`, the checkpoint `small`.

Curves are of the card's results (model_cards/measure.py); attention and scorer curves are of the example clips.
"""

import json
import tempfile
from pathlib import Path

from adaptok_hf import AdapTokPipeline
from adaptok_hf.evaluation import draw_reconstruction, open_videos
from adaptok_hf.metrics import Protocol

HERE = Path(__file__).parent
ROOT = HERE.parents[1]


def main() -> None:
    report = json.loads((ROOT / "model_cards" / "results" / "small_reconstruction_wild.json").read_text())
    protocol = next(Protocol(**fields) for fields in report["protocols"].values())
    pipeline = AdapTokPipeline.from_pretrained()
    with tempfile.TemporaryDirectory() as folder:
        draw_reconstruction(folder, report, pipeline, open_videos(ROOT / "examples"), protocol)
        for name in ("rate_psnr", "gain_psnr", "scorer", "attention"):
            Path(folder, f"{name}.png").replace(HERE / f"evaluation_{name}.png")
        scorer = json.loads(Path(folder, "scorer.json").read_text())
    print(f"rank correlation across levels: {scorer['rank_correlation_across_levels']:.2f}")


if __name__ == "__main__":
    main()
