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
from adaptok_hf.metrics.video_batches import PairedModule, as_videos

FOLDER = Path(adaptok_hf.metrics.__file__).parent / "evaluate_modules"
NAMES = ("fvd", "lpips_video", "psnr_video", "ssim_video")


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
        from pathlib import Path
        lpips_network.load_network_weights = lambda *args: None
        I3DNetwork.from_pretrained = PixelFeatures
        x, y = torch.load({str(tmp_path / "videos.pt")!r})
        results = {{}}
        for name, config in (
            ("psnr_video", None), ("psnr_video", "per_frame"), ("ssim_video", None), ("lpips_video", "alex"), ("fvd", None)
        ):
            torch.manual_seed(0)
            module = evaluate.load(str(Path({str(FOLDER)!r}) / name), config)
            if name != "fvd":
                # streamed, and again after the results: nothing is left over
                module.add_batch(predictions=x[:1], references=y[:1])
                module.add(prediction=x[1], reference=y[1])
                first = module.compute(predictions=x[2:], references=y[2:])
                assert first == module.compute(predictions=list(x), references=y), name
            else:
                first = module.compute(predictions=x[:2], references=y)
            results[f"{{name}}/{{config}}"] = first
        for name in ("psnr_video", "lpips_video"):
            try:
                evaluate.load(str(Path({str(FOLDER)!r}) / name), "typo")
            except ValueError as error:
                results[f"{{name}}/typo"] = str(error)
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
    assert results["psnr_video/None"] == {"psnr": pytest.approx(float(psnr.compute())), "num_videos": 3}
    assert results["psnr_video/per_frame"] == {"psnr": pytest.approx(float(per_frame.compute())), "num_videos": 3}
    assert results["ssim_video/None"] == {"ssim": pytest.approx(float(ssim.compute())), "num_videos": 3}
    expected = {"lpips": pytest.approx(float(lpips.compute()), rel=1e-5), "net": "alex", "num_videos": 3}
    assert results["lpips_video/alex"] == expected
    fvd = FrechetVideoDistance(PixelFeatures())
    fvd.update(x[:2], real=False)
    fvd.update(y, real=True)
    value = pytest.approx(float(fvd.compute()), rel=1e-6)
    assert results["fvd/None"] == {"fvd": value, "num_real": 3, "num_fake": 2}
    assert "'per_video' and 'per_frame', got 'typo'" in results["psnr_video/typo"]
    assert "'vgg' and 'alex', got 'typo'" in results["lpips_video/typo"]


@pytest.mark.parametrize("name", NAMES)
def test_folders_are_complete(name):
    card = (FOLDER / name / "README.md").read_text()
    header = card.split("---")[1]
    assert all(key in header for key in ("title:", "tags:", "- evaluate", "- metric", "sdk: gradio", "description:"))
    for heading in ("## How to use", "## Inputs", "## Output", "## Limits", "## Citation"):
        assert heading in card
    code = card.split("```python\n")[1].split("```")[0]
    assert f"evaluate_modules/{name}" in code or f'"{name}"' in code
    # `evaluate` finds a module's imports line by line
    tree = ast.parse((FOLDER / name / f"{name}.py").read_text())
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


class Psnr(PairedModule):
    def make_metric(self):
        return VideoPSNR()

    def results(self, metric):
        return {"psnr": float(metric.compute())}


def test_videos_are_streamed_and_forgotten():
    x, y = make_videos()
    metric = VideoPSNR()
    metric.update(x, y)
    module = Psnr()
    for _ in range(2):  # nothing is left after the results
        module.add_batch(predictions=x[:1], references=y[:1])
        module.add(prediction=x[1], reference=y[1])
        assert module.compute(predictions=list(x[2:]), references=y[2:].numpy()) == {
            "psnr": pytest.approx(float(metric.compute()))
        }


def test_unequal_numbers():
    x, y = make_videos()
    with pytest.raises(ValueError):
        Psnr().compute(predictions=x[:2], references=y)
    with pytest.raises(ValueError, match="references"):
        Psnr().compute(predictions=x)
    with pytest.raises(ValueError, match="no videos"):
        Psnr().compute()
