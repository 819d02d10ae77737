"""The memory that a long video takes."""

import subprocess
import sys

import numpy as np
import pytest

from adaptok_hf import write_video

CEILING_MB = 1500  # docs/reliability.md
TOKENIZE = """
import resource, sys
from adaptok_hf.cli.main import main
assert main(sys.argv[1:]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems count peaks in other units")
def test_ten_thousand_frames(tmp_path):
    y, x, t = np.ogrid[:128, :128, :500]
    frames = np.stack(np.broadcast_arrays(2 * x + t, 2 * y + t, x + y + 0 * t), -1).astype(np.uint8).transpose(2, 0, 1, 3)
    write_video(tmp_path / "long.mp4", np.concatenate([frames] * 20), 24)
    del frames
    arguments = ["tokenize", str(tmp_path / "long.mp4"), "--budget", "32", "-o", str(tmp_path / "long.safetensors")]
    done = subprocess.run([sys.executable, "-c", TOKENIZE, *arguments], capture_output=True, text=True, check=True)
    assert "10000 frames" in done.stdout
    assert int(done.stdout.splitlines()[-1]) < CEILING_MB, done.stdout
