import ast
import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from builders.metric_networks import PixelFeatures
from builders.video_files import make_frames, write_animation

import adaptok_hf.metrics
from adaptok_hf.metrics import FrechetVideoDistance, LPIPSNetwork, VideoLPIPS, VideoPSNR, VideoSSIM
from adaptok_hf.metrics.video_batches import VideoMetrics, as_videos

FOLDER = Path(adaptok_hf.metrics.__file__).parent / "evaluate_modules" / "video_metrics"


def make_videos() -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    target = torch.rand(3, 9, 3, 32, 32)
    return (target + 0.1 * torch.randn(target.shape)).clamp(0, 1), target


@pytest.mark.slow
def test_evaluate_loads_the_folders_offline(tmp_path):
    """In a process of its own: `evaluate` reads its folders at import. Networks are stand-ins."""
    pytest.importorskip("evaluate")
    torch.save(make_videos(), tmp_path / "videos.pt")
    code = f"""
        import json
        import evaluate, torch
        from adaptok_hf.metrics import I3DNetwork, lpips_network
        from builders.metric_networks import PixelFeatures
        lpips_network.load_network_weights = lambda network, *args: network.eval()
        I3DNetwork.from_pretrained = PixelFeatures
        x, y = torch.load({str(tmp_path / "videos.pt")!r})
        results = {{}}
        for name in ("psnr", "psnr_per_frame", "ssim", "lpips_alex", "fvd"):
            torch.manual_seed(0)
            module = evaluate.load({str(FOLDER)!r}, name)
            if name != "fvd":
                # streamed, and again after the results: nothing is left over
                module.add_batch(predictions=x[:1], references=y[:1])
                module.add(prediction=x[1], reference=y[1])
                first = module.compute(predictions=x[2:], references=y[2:])
                assert first == module.compute(predictions=list(x), references=y), name
            else:
                first = module.compute(predictions=x[:2], references=y)
            results[name] = first
        try:
            evaluate.load({str(FOLDER)!r}, "typo")
        except ValueError as error:
            results["typo"] = str(error)
        with open({str(tmp_path / "results.json")!r}, "w") as file:
            json.dump(results, file)
    """
    folders = {"HF_HOME": str(tmp_path / "home"), "PYTHONPATH": os.pathsep.join(sys.path)}
    offline = {"HF_EVALUATE_OFFLINE": "1", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)]
    process = subprocess.run(command, env={**os.environ, **folders, **offline}, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    results = json.loads((tmp_path / "results.json").read_text())

    x, y = make_videos()
    psnr, per_frame, ssim = VideoPSNR(), VideoPSNR(per_frame=True), VideoSSIM()
    torch.manual_seed(0)
    lpips = VideoLPIPS(network=LPIPSNetwork("alex"))
    for metric in (psnr, per_frame, ssim, lpips):
        metric.update(x, y)
    metrics = {"psnr": psnr, "psnr_per_frame": per_frame, "ssim": ssim, "lpips_alex": lpips}
    for name, metric in metrics.items():
        assert results[name] == {name: pytest.approx(float(metric.compute()), rel=1e-5), "num_videos": 3}
    fvd = FrechetVideoDistance(PixelFeatures())
    fvd.update(x[:2], real=False)
    fvd.update(y, real=True)
    assert results["fvd"] == {"fvd": pytest.approx(float(fvd.compute()), rel=1e-6), "num_videos": 2}
    assert "lpips_alex" in results["typo"] and "'typo'" in results["typo"]


def test_the_folder_is_complete():
    card = (FOLDER / "README.md").read_text()
    header = card.split("---")[1]
    assert all(key in header for key in ("title:", "tags:", "- evaluate", "- metric", "sdk: gradio", "description:"))
    for heading in ("## How to use", "## Inputs", "## Output", "## Limits", "## Citation"):
        assert heading in card
    code = card.split("```python\n")[1].split("```")[0]
    assert "evaluate_modules/video_metrics" in code and all(f'"{name}"' in code for name in VideoMetrics.METRICS)
    # `evaluate` finds a module's imports line by line
    tree = ast.parse((FOLDER / "video_metrics.py").read_text())
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert all(len(node.names) == 1 and node.lineno == node.end_lineno for node in imports)
    assert {node.module.split(".")[0] for node in imports if isinstance(node, ast.ImportFrom)} == {"adaptok_hf"}


def test_videos_in_any_form(tmp_path):
    frames = make_frames(4, 16, 20)
    path = write_animation(tmp_path / "video.webp", frames)
    expected = torch.from_numpy(np.moveaxis(frames, 3, 1).copy())[None]
    for videos in ([path], [str(path)], expected, [expected[0]], expected.numpy(), [expected[0].numpy()]):
        (video,) = as_videos(videos)
        assert torch.equal(video, expected) and video.dtype == torch.uint8
    with pytest.raises(FileNotFoundError, match="missing.mp4"):
        list(as_videos([tmp_path / "missing.mp4"]))


class Psnr(VideoMetrics):
    config_name = "psnr"


def test_videos_are_streamed_and_forgotten():
    x, y = make_videos()
    metric = VideoPSNR()
    metric.update(x, y)
    module = Psnr()
    for _ in range(2):  # nothing is left after the results
        module.add_batch(predictions=x[:1], references=y[:1])
        module.add(prediction=x[1], reference=y[1])
        assert module.compute(predictions=list(x[2:]), references=y[2:].numpy()) == {
            "psnr": pytest.approx(float(metric.compute())),
            "num_videos": 3,
        }


def test_unequal_numbers():
    x, y = make_videos()
    with pytest.raises(ValueError):
        Psnr().compute(predictions=x[:2], references=y)
    with pytest.raises(ValueError, match="references"):
        Psnr().compute(predictions=x)
    with pytest.raises(ValueError, match="no videos"):
        Psnr().compute()
