import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from builders.metric_networks import PixelFeatures

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, AdapTokPipeline, write_video
from adaptok_hf.cli.main import main
from adaptok_hf.evaluation import Networks, evaluate_generation, open_videos, own_protocol
from adaptok_hf.evaluation.class_accuracy import (
    ClipClassifier,
    LabeledFeatures,
    measure_class_accuracy,
    pixel_features,
)
from adaptok_hf.metrics import Protocol

COLORS = {"blue_ball": (30, 30, 220), "green_ball": (30, 220, 30), "red_ball": (220, 30, 30)}
# not in the folders' order, and spelled another way
NAMES = {0: "RedBall", 1: "BlueBall", 2: "GreenBall"}
PROTOCOL = Protocol("own", "test", "first", 12, 16, "generation")


def clusters(per_class: int, num_classes: int, seed: int, spread: float = 0.3) -> tuple[torch.Tensor, torch.Tensor]:
    """(clips, 5) features around one center per class, and labels."""
    centers = torch.randn(num_classes, 5, generator=torch.Generator().manual_seed(100)) * 3
    labels = torch.arange(num_classes).repeat(per_class)
    noise = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(seed))
    return centers[labels] + spread * noise, labels


def labelled(features: torch.Tensor, labels: torch.Tensor) -> LabeledFeatures:
    return LabeledFeatures(features, labels.tolist(), [f"v{i}" for i in range(len(labels))])


def measure(generated: LabeledFeatures, num_classes: int = 4) -> tuple[dict, list[int]]:
    training, real = labelled(*clusters(8, num_classes, 0)), labelled(*clusters(5, num_classes, 1))
    # a tokenizer that makes all clips alike: one in four is still right
    blurred = LabeledFeatures(real.features[:1].expand_as(real.features), real.labels, real.videos)
    names = [f"class{i}" for i in range(num_classes)]
    return measure_class_accuracy(training, real, blurred, generated, names, PROTOCOL, "test")


def test_separable_features_are_separated():
    features, labels = clusters(8, 4, seed=0)
    unseen, truth = clusters(8, 4, seed=1)
    classifier = ClipClassifier(features, labels)
    assert classifier.predict(unseen).tolist() == truth.tolist()
    # labels need not be without gaps, and a constant or tiny feature does no harm
    odd = torch.cat([features, torch.full((len(labels), 1), 7.0)], dim=1)
    classifier = ClipClassifier(odd, labels * 3 + 1)
    odd = torch.cat([unseen, torch.full((len(truth), 1), 7.5)], dim=1)  # it was never seen to vary
    assert classifier.predict(odd).tolist() == (truth * 3 + 1).tolist()


def test_same_clips_same_classifier_whatever_the_random_state():
    features, labels = clusters(8, 4, seed=0, spread=3)
    torch.manual_seed(1)
    one = ClipClassifier(features, labels)
    torch.manual_seed(2)
    with torch.no_grad():
        other = ClipClassifier(features, labels)
    assert torch.equal(one.linear.weight, other.linear.weight) and torch.equal(one.linear.bias, other.linear.bias)
    # the loss has one minimum: the order of the clips does not matter
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    shuffled = ClipClassifier(features[order], labels[order])
    torch.testing.assert_close(shuffled.linear.weight, one.linear.weight, atol=1e-4, rtol=0)


def test_the_fit_is_the_minimum():
    """At the minimum, class by class: sum of (probability - target) x feature = -2 x penalty x weight."""
    features, labels = clusters(8, 3, seed=0, spread=3)
    classifier = ClipClassifier(features, labels)
    x = (features.double() - classifier.mean) / classifier.scale
    with torch.no_grad():
        error = classifier.linear(x).softmax(1) - torch.nn.functional.one_hot(labels, 3)
        torch.testing.assert_close(error.T @ x / len(x), -0.02 * classifier.linear.weight, atol=1e-5, rtol=0)
        torch.testing.assert_close(error.mean(0), torch.zeros(3, dtype=torch.float64), atol=1e-5, rtol=0)


def test_one_class_is_not_enough():
    features, labels = clusters(8, 2, seed=0)
    with pytest.raises(ValueError, match="8 of 1"):
        ClipClassifier(features[labels == 0], labels[labels == 0])


def test_perfect_clips_have_accuracy_one():
    features, labels = clusters(6, 4, seed=2)
    entry, predicted = measure(labelled(features, labels))
    assert (entry["value"], entry["low"], entry["high"], entry["num_videos"]) == (1, 1, 1, 24)
    assert entry["real"]["value"] == 1 and entry["real"]["num_videos"] == 20
    assert entry["reconstructed"]["value"] == 0.25
    assert entry["classes"] == {f"class{i}": 1.0 for i in range(4)}
    assert entry["chance"] == 0.25 and entry["num_training_clips"] == 32 and predicted == labels.tolist()
    assert entry["metric"] == "ClassAccuracy (test)" and "right on 100.0% of 20 other real clips, 25.0% of" in entry["note"]
    json.dumps(entry, allow_nan=False)


def test_shuffled_labels_are_near_chance_and_do_not_touch_the_reference():
    features, labels = clusters(50, 4, seed=2)
    wanted = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(3))]
    entry, _ = measure(labelled(features, wanted))
    assert 0.15 < entry["value"] < 0.35 and entry["low"] < 0.25 < entry["high"]
    assert entry["real"]["value"] == 1


def test_accuracy_of_each_class():
    features, labels = clusters(2, 4, seed=2)
    wanted = labels.clone()
    wanted[0] = 1  # asked for class 1, is of class 0
    entry, predicted = measure(labelled(features, wanted))
    assert entry["value"] == 7 / 8 and predicted == labels.tolist()
    assert entry["classes"] == {"class0": 1.0, "class1": pytest.approx(2 / 3), "class2": 1.0, "class3": 1.0}


def test_pixel_features_show_where_colors_and_changes_are():
    video = torch.zeros(1, 3, 3, 16, 32)
    video[:, :, 2, :2, :4] = 0.5  # blue stays in the first of 8 x 8 places
    video[:, 1, 0, -2:, -4:] = 0.9  # red flashes in the last one
    pictures = pixel_features(video).view(2, 3, 8, 8)
    assert pictures[0, 2, 0, 0] == 0.5 and pictures[0, 0, -1, -1] == pytest.approx(0.3)
    assert pictures[1, 0, -1, -1] == pytest.approx(0.9) and pictures[1, 2].abs().max() == 0
    assert pictures.count_nonzero() == 3


def frames_of(color: tuple[int, int, int], seed: int) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(-20, 20, (12, 16, 16, 3))
    return (np.array(color) + noise).clip(0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """`train` and `val`: a folder per color, 3 and 2 videos in each."""
    folder = tmp_path_factory.mktemp("colors")
    for split, count, first in (("train", 3, 0), ("val", 2, 10)):
        for name, color in COLORS.items():
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                write_video(folder / split / name / f"{split}{index}.mp4", frames_of(color, first + index), 12)
    return folder


@pytest.fixture
def generating(tiny_pipeline) -> AdapTokPipeline:
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 16}
    sizes |= {"codebook_size": 50, "num_blocks": 3, "latents_per_block": 6}
    ar_model = AdapTokARForCausalLM(AdapTokARConfig(num_classes=3, id2label=NAMES, **sizes)).eval()
    pipeline = AdapTokPipeline(tiny_pipeline.video_processor, tiny_pipeline.tokenizer, tiny_pipeline.scorer, ar_model)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def evaluate(pipeline, val: Path, train: Path | None, output: Path, features: str = "pixels", **options) -> dict:
    protocol = own_protocol(pipeline, "test", "first", "generation")
    options = {"num_videos": 6, "batch_size": 4} | options
    options |= {"classifier": None if train is None else open_videos(train), "classifier_features": features}
    return evaluate_generation(pipeline, open_videos(val), protocol, output, **options)


class PerfectGenerator:
    """Stands in for `generate`: clips of the right color, or of the color of the class after it."""

    def __init__(self, pipeline, shift: int = 0):
        self.pipeline, self.shift, self.calls = pipeline, shift, 0

    def __call__(self, labels, **_):
        self.calls += 1
        colors = [COLORS[f"{NAMES[(label + self.shift) % 3][:-4].lower()}_ball"] for label in labels]
        frames = np.stack([frames_of(color, 20 + label) for color, label in zip(colors, labels, strict=True)])
        return SimpleNamespace(
            frames=torch.from_numpy(frames).permute(0, 1, 4, 2, 3) / 255,
            class_labels=list(labels),
            class_names=[NAMES[label] for label in labels],
            seeds=torch.zeros(len(labels), 1, dtype=torch.long),
            token_counts=torch.full((len(labels), 1, 3), 2),
            codes=torch.zeros(len(labels), 1, 3, 6, dtype=torch.long),
        )


@pytest.mark.parametrize("kind", ["pixels", "network"])
def test_generated_videos_of_the_right_class_are_found_right(generating, data, tmp_path, monkeypatch, kind):
    networks = Networks(features=PixelFeatures())
    for shift, accuracy in ((0, 1.0), (1, 0.0)):
        monkeypatch.setattr(generating, "generate", PerfectGenerator(generating, shift))
        output = tmp_path / str(shift)
        report = evaluate(generating, data / "val", data / "train", output, kind, networks=networks)
        entry = report["results"][0]["metrics"]["class_accuracy"]
        assert entry["value"] == accuracy and entry["real"] == {"value": 1, "low": 1, "high": 1, "num_videos": 6}
        assert entry["classes"] == {name: accuracy for name in NAMES.values()}
        assert entry["metric"] == f"ClassAccuracy ({'pixels' if kind == 'pixels' else 'PixelFeatures'})"
        assert (entry["weights_sha256"] is None) == (kind == "pixels")
        assert "fvd" in report["results"][0]["metrics"]
        rows = list(csv.DictReader(open(tmp_path / str(shift) / "per_video.csv")))
        assert [row["classified_as"] for row in rows] == [NAMES[(int(row["label"]) + shift) % 3] for row in rows]


def test_the_real_generator_through_interruptions(generating, data, tmp_path, monkeypatch):
    report = evaluate(generating, data / "val", data / "train", tmp_path)
    entry = report["results"][0]["metrics"]["class_accuracy"]
    assert 0 <= entry["value"] <= 1 and entry["real"]["value"] == 1 and entry["num_videos"] == 6
    # the random tokenizer makes nearly the same grey of everything
    assert entry["reconstructed"]["value"] <= 0.5 and entry["reconstructed"]["num_videos"] == 6
    assert json.loads((tmp_path / "results.json").read_text()) == json.loads(json.dumps(report))
    assert "metrics.class_accuracy.real.value" in (tmp_path / "results.csv").read_text()
    assert "learned from 9 real clips of 3 classes" in (tmp_path / "results.md").read_text()
    # as if the run had been killed: what is left is not made again
    (tmp_path / "parts" / "training" / "00000.safetensors").unlink()
    (tmp_path / "parts" / "generated" / "00001.safetensors").unlink()
    kept = tmp_path / "parts" / "generated" / "00000.safetensors"
    before = kept.stat().st_mtime_ns
    again = evaluate(generating, data / "val", data / "train", tmp_path)
    assert again["results"][0]["metrics"] == report["results"][0]["metrics"] and kept.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="classifier"):
        evaluate(generating, data / "val", None, tmp_path)
    without = evaluate(generating, data / "val", None, tmp_path / "without")
    assert without["results"][0]["metrics"] == {} and without["results"][0]["tokens_per_block"] > 0


def test_videos_that_cannot_be_used_are_named(generating, data, tmp_path):
    val, train, out = data / "val", data / "train", tmp_path / "out"

    def copied(name: str, source: Path) -> Path:
        return Path(shutil.copytree(source, tmp_path / name))

    strange = copied("strange", train)
    (strange / "red_ball").rename(strange / "rad_ball")
    with pytest.raises(ValueError, match="rad_ball.*RedBall"):
        evaluate(generating, val, strange, out)
    fewer = copied("fewer", train)
    shutil.rmtree(fewer / "red_ball")
    with pytest.raises(ValueError, match="RedBall$"):
        evaluate(generating, val, fewer, out)
    bare = copied("bare", val)
    (bare / "red_ball" / "val0.mp4").rename(bare / "alone.mp4")
    with pytest.raises(ValueError, match="1 of 6.*alone.mp4"):
        evaluate(generating, bare, train, out)
    with pytest.raises(ValueError, match="6.*blue_ball/val0.mp4"):
        evaluate(generating, val, val, out)
    with pytest.raises(ValueError, match="network"):
        evaluate(generating, val, train, out, "network")
    with pytest.raises(ValueError, match="i3d"):
        evaluate(generating, val, train, out, "i3d")
    # a set without a class that is not asked for will do, if the real videos do not have it either
    only = copied("only", val)
    shutil.rmtree(only / "red_ball")
    report = evaluate(generating, only, fewer, out, classes=["blue ball", 2])
    entry = report["results"][0]["metrics"]["class_accuracy"]
    assert entry["chance"] == 0.5 and list(entry["classes"]) == ["BlueBall", "GreenBall"]


def test_command(generating, data, tmp_path, capsys):
    generating.save_pretrained(tmp_path / "model")
    argv = ["evaluate", "generation", str(data / "val"), "-o", str(tmp_path / "out"), "--model", str(tmp_path / "model")]
    argv += ["--videos", "3", "--no-fvd", "--device", "cpu", "--classifier-videos"]
    assert main([*argv, str(data / "train")]) == 0
    entry = json.loads((tmp_path / "out" / "results.json").read_text())["results"][0]["metrics"]["class_accuracy"]
    assert entry["num_videos"] == 3 and entry["real"]["num_videos"] == 6
    assert main([*argv, "nowhere"]) == 2 and "nowhere: no such file or folder" in capsys.readouterr().err
    assert main([*argv, str(data / "val")]) == 2 and "6 are in both" in capsys.readouterr().err


def test_other_labels_are_another_configuration(generating, data, tmp_path):
    """The same files: only what they are said to show has changed."""

    def listed(name: str, first_class: str) -> Path:
        files = sorted((data / "train").rglob("*.mp4"))
        rows = [f"{file},{first_class if index == 0 else file.parent.name}" for index, file in enumerate(files)]
        (tmp_path / name).write_text("\n".join(["path,label", *rows]) + "\n")
        return tmp_path / name

    evaluate(generating, data / "val", listed("right.csv", "blue_ball"), tmp_path / "out", num_videos=2)
    with pytest.raises(ValueError, match="classifier"):
        evaluate(generating, data / "val", listed("wrong.csv", "red_ball"), tmp_path / "out", num_videos=2)
    generating.ar_model.generation_config.temperature = 0.3
    with pytest.raises(ValueError, match="sampling"):
        evaluate(generating, data / "val", listed("right.csv", "blue_ball"), tmp_path / "out", num_videos=2)
