"""Memory that a long video takes."""

import subprocess
import sys

import numpy as np
import pytest

from adaptok_hf.video.video_writing import write_video

pytest.importorskip("resource")

SCRIPT = """
import resource, sys
from adaptok_hf import AdapTokConfig, AdapTokModel, AdapTokPipeline, AdapTokVideoProcessor

config = AdapTokConfig(
    patch_size=32, hidden_size=32, num_attention_heads=2, num_encoder_layers=1, num_decoder_layers=1,
    latents_per_block=16, codebook_size=64, codebook_dim=8,
)
pipeline = AdapTokPipeline(AdapTokVideoProcessor(), AdapTokModel(config).eval())
tokens = pipeline.tokenize(sys.argv[1])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(tokens.num_frames, peak // (2**20 if sys.platform == "darwin" else 2**10))
"""


@pytest.mark.slow
def test_tokenizing_10000_frames_stays_below_1500_mb(tmp_path):
    path = tmp_path / "long.mp4"
    still = np.random.default_rng(0).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    write_video(path, (np.roll(still, number, 0) for number in range(10_000)), 25)
    output = subprocess.run([sys.executable, "-c", SCRIPT, path], capture_output=True, text=True, check=True).stdout
    frames, megabytes = map(int, output.split()[-2:])
    print(f"{frames} frames: {megabytes} MB")
    assert frames == 10_000
    assert megabytes < 1500
