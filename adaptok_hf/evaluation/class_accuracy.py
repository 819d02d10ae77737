"""Whether generated videos are of the class that was asked for, by a small classifier of real clips.

The classifier's accuracy on other real clips, and on their reconstructions, is reported with it.
"""

import dataclasses
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from ..data import VideoFiles
from ..metrics import Protocol
from .measuring import Networks
from .summaries import metric_entry, summarize_clips

if TYPE_CHECKING:
    from ..models.modeling_adaptok_ar import AdapTokARForCausalLM

# Small pictures show where colors are, and hardly anything of a generator's blur.
PICTURE_SIZE = 8
# Weight of the sum of squared weights against the mean cross-entropy.
PENALTY = 0.01


def pixel_features(videos: torch.Tensor) -> torch.Tensor:
    """Return the mean of each clip's frames, and its mean absolute change from frame to frame, as 8 x 8 pictures.

    Args:
        videos: (clips, frames, 3, height, width) in [0, 1], of at least 2 frames.

    Returns:
        (clips, 384) float32, on the CPU.
    """
    small = torch.nn.functional.adaptive_avg_pool2d(videos.float().flatten(0, 1), PICTURE_SIZE)
    small = small.unflatten(0, videos.shape[:2])
    return torch.cat([small.mean(1).flatten(1), small.diff(dim=1).abs().mean(1).flatten(1)], dim=1).cpu()


class ClipClassifier:
    """Multinomial logistic regression on standardized features: convex, so the same clips give the same classifier.

    Args:
        features: (clips, D).
        labels: (clips,) long. Only these are ever predicted; they may leave numbers out.

    Raises:
        ValueError: for clips of fewer than 2 classes.
    """

    def __init__(self, features: torch.Tensor, labels: torch.Tensor):
        self.classes, targets = labels.unique(return_inverse=True)
        if len(self.classes) < 2:
            raise ValueError(f"a classifier needs clips of 2 classes or more, got {len(labels)} of {len(self.classes)}")
        features = features.double()
        self.mean, deviation = features.mean(0), features.std(0)
        # Features that hardly vary in real clips, such as a white border, are not scaled up: they would magnify the faint
        # faults of generated ones.
        self.scale = deviation.clamp_min(deviation.square().mean().sqrt()).clamp_min(1e-8)
        self.linear = _fit((features - self.mean) / self.scale, targets, len(self.classes))

    @torch.no_grad()
    def predict(self, features: torch.Tensor) -> torch.Tensor:
        """Return the (clips,) labels of (clips, D) features."""
        return self.classes[self.linear((features.double() - self.mean) / self.scale).argmax(1)]


@torch.enable_grad()
def _fit(features: torch.Tensor, targets: torch.Tensor, num_classes: int) -> torch.nn.Linear:
    linear = torch.nn.Linear(features.shape[1], num_classes, dtype=torch.float64)
    torch.nn.init.zeros_(linear.weight)
    torch.nn.init.zeros_(linear.bias)
    optimizer = torch.optim.LBFGS(linear.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss():
        optimizer.zero_grad()
        value = torch.nn.functional.cross_entropy(linear(features), targets) + PENALTY * linear.weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return linear


def prepare_classes(
    training: VideoFiles,
    features: str,
    source: VideoFiles,
    generated: Sequence[int],
    ar_model: "AdapTokARForCausalLM",
    networks: Networks,
) -> tuple[VideoFiles, VideoFiles]:
    """Return `training` and `source` with the generator's class ids, once a classifier can learn from them.

    Args:
        training: real videos that the classifier learns from.
        features: `"pixels"` or `"network"`.
        source: real videos that the classifier is measured on.
        generated: class ids of the videos to generate.

    Raises:
        ValueError: for videos without a class or in both sets, classes that are unknown or have no training video, or a
            network that is missing.
    """
    if features not in ("pixels", "network"):
        raise ValueError(f"classifier features must be 'pixels' or 'network', got {features!r}")
    if features == "network" and networks.features is None:
        raise ValueError("classifier features 'network' need the network of FVD, which is left out here")
    training, source = (_with_class_ids(videos, ar_model) for videos in (training, source))
    known = {item.label for item in training.items}
    if unknown := sorted(({item.label for item in source.items} | set(generated)) - known):
        names = ", ".join(ar_model.config.id2label[label] for label in unknown)
        raise ValueError(f"the classifier's videos have none of the classes {names}")
    paths, measured = (
        {os.path.realpath(item.video): item.key for item in videos.items if isinstance(item.video, str)}
        for videos in (training, source)
    )
    if shared := [key for path, key in paths.items() if path in measured]:
        raise ValueError(
            f"the classifier must learn from other videos than those it is measured on; {len(shared)} are in both, such as "
            f"{shared[:3]}"
        )
    return training, source


def _with_class_ids(source: VideoFiles, ar_model: "AdapTokARForCausalLM") -> VideoFiles:
    from ..pipelines.pipeline_generation import class_id

    if bare := [item.key for item in source.items if not 0 <= item.label < len(source.class_names)]:
        raise ValueError(
            f"class accuracy needs the class of every real video; {len(bare)} of {len(source.items)} have none, such as "
            f"{bare[:3]}: put them into a folder of their class"
        )
    ids = {label: class_id(ar_model, source.class_names[label]) for label in {item.label for item in source.items}}
    return VideoFiles([dataclasses.replace(item, label=ids[item.label]) for item in source.items], source.class_names)


class LabeledFeatures(NamedTuple):
    """(clips, D) features, and the class and video of each clip; of generated ones the class that was asked for."""

    features: torch.Tensor
    labels: Sequence[int]
    videos: Sequence[str]


def measure_class_accuracy(
    training: LabeledFeatures,
    real: LabeledFeatures,
    reconstructed: LabeledFeatures,
    generated: LabeledFeatures,
    names: Sequence[str],
    protocol: Protocol,
    features_name: str,
    weights_sha256: str | None = None,
) -> tuple[dict[str, Any], list[int]]:
    """Train a classifier and measure its accuracy.

    Args:
        names: of all classes, by label.
        features_name: stands in the metric's name.
        weights_sha256: of the network that made the features.

    Returns:
        An entry of a report: the accuracy on generated clips in [0, 1] with its interval; `real` and `reconstructed`, the
        same on real clips before and after the tokenizer (a classifier that fails on these sees the tokenizer's faults, not
        the generator's); `classes`, the accuracy of each generated class; `chance`. And the predicted labels of the
        generated clips.
    """
    classifier = ClipClassifier(training.features, torch.tensor(training.labels))
    predicted, accuracy = {}, {}
    for name, clips in {"real": real, "reconstructed": reconstructed, "generated": generated}.items():
        predicted[name] = classifier.predict(clips.features)
        right = (predicted[name] == torch.tensor(clips.labels)).double().tolist()
        metric = f"ClassAccuracy ({features_name})"
        accuracy[name] = summarize_clips(metric, right, clips.videos, protocol, weights_sha256)
    trust = (
        f"the classifier of generated videos learned from {len(training.labels)} real clips of {len(classifier.classes)} "
        f"classes and is right on {100 * accuracy['real'].value:.1f}% of {len(real.labels)} other real clips, "
        f"{100 * accuracy['reconstructed'].value:.1f}% of their reconstructions"
    )
    result = dataclasses.replace(accuracy["generated"], note="; ".join(filter(None, [accuracy["generated"].note, trust])))
    by_class: dict[str, list[bool]] = {}
    for label, guess in zip(generated.labels, predicted["generated"].tolist(), strict=True):
        by_class.setdefault(names[label], []).append(guess == label)
    entry = metric_entry(result) | {
        name: {key: getattr(accuracy[name], key) for key in ("value", "low", "high", "num_videos")}
        for name in ("real", "reconstructed")
    }
    entry |= {"chance": 1 / len(classifier.classes), "num_training_clips": len(training.labels)}
    entry["classes"] = {name: sum(right) / len(right) for name, right in by_class.items()}
    return entry, predicted["generated"].tolist()
