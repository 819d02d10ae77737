"""The true I3D on real clips: what is worse must be farther away."""

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from adaptok_hf import read_video
from adaptok_hf.metrics import FrechetVideoDistance

JUGGLING_BALLS = 169  # of the classes of Kinetics-400 in alphabetical order

pytestmark = [pytest.mark.slow, pytest.mark.network]  # I3D's weights are downloaded where they are not in the cache


@pytest.fixture(scope="module")
def clips() -> torch.Tensor:
    """(clips, 16, 3, 128, 128) in [0, 1]: the first frames of the videos of `wild/val`."""
    if "ADAPTOK_DATA_DIR" not in os.environ:
        pytest.skip("set ADAPTOK_DATA_DIR to the folder that holds wild/val")
    folder = Path(os.environ["ADAPTOK_DATA_DIR"]) / "wild" / "val"
    videos = [read_video(path, max_frames=16).frames for path in sorted(folder.glob("*.mp4"))]
    videos = [frames for frames in videos if len(frames) == 16][: int(os.environ.get("ADAPTOK_NUM_CLIPS", 10))]
    return torch.stack([torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 for frames in videos])


def test_order_of_corruptions(clips):
    """
    Noise is farther than blur, blur farther than shuffled frames, and these farther than clean clips.

    That noise and blur are farther than shuffled frames is a matter of their strength: a blur of 5 x 5 is nearer.
    """
    generator = torch.Generator().manual_seed(0)
    noise = (clips + 0.2 * torch.randn(clips.shape, generator=generator)).clamp(0, 1)
    blur = F.avg_pool2d(clips.flatten(0, 1), 9, stride=1, padding=4, count_include_pad=False).view(clips.shape)
    shuffled = clips[:, torch.randperm(clips.shape[1], generator=generator)]
    metric = FrechetVideoDistance()
    with torch.no_grad():
        features = {
            name: torch.cat([metric.network(clip) for clip in videos.split(1)])
            for name, videos in {"clean": clips, "noise": noise, "blur": blur, "shuffled": shuffled}.items()
        }
    distance = {name: float(metric.distance_of(features["clean"], other)) for name, other in features.items()}
    print({name: round(value, 1) for name, value in distance.items()})
    assert distance["clean"] == pytest.approx(0, abs=0.1)
    assert distance["noise"] > distance["blur"] > distance["shuffled"] > 100


@pytest.mark.parametrize("name", ["juggling_m4.mp4", "juggling_w2.mp4"])
def test_an_action_is_recognized(name):
    """No filmed clip of a Kinetics action is in public packages: these are animated."""
    if "ADAPTOK_DATA_DIR" not in os.environ:
        pytest.skip("set ADAPTOK_DATA_DIR to the folder that holds action32/val")
    frames = read_video(Path(os.environ["ADAPTOK_DATA_DIR"]) / "action32/val/juggling" / name, max_frames=16).frames
    video = torch.from_numpy(frames).permute(0, 3, 1, 2)[None].float() / 255
    with torch.no_grad():
        probability = FrechetVideoDistance().network(video).softmax(-1)[0]
    assert int(probability.argmax()) == JUGGLING_BALLS and probability.max() > 0.5
