"""Generated videos against real ones: FVD with its floor, whether they are of their class, and the tokens of each class."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..data import VideoFiles
from ..metrics import CodebookUsage, Protocol
from ..metrics.weight_formats import tensors_sha256
from .class_accuracy import LabeledFeatures, measure_class_accuracy, pixel_features, prepare_classes
from .clip_chunks import ClipChunks
from .encoded_clips import autocast, reconstruct_from_all_tokens
from .illustrations import draw_samples
from .measuring import Networks, check_clip_size, clip_features, sampling_settings
from .part_files import PartFiles
from .summaries import summarize_features
from .tables import write_report

if TYPE_CHECKING:
    from ..pipelines.pipeline_adaptok import AdapTokPipeline

# Real videos whose features are one file.
REAL_CHUNK = 16
NUM_PICTURES = 8


def evaluate_generation(
    pipeline: "AdapTokPipeline",
    source: VideoFiles,
    protocol: Protocol,
    output_dir: str | Path,
    *,
    num_videos: int,
    classes: Sequence[int | str] | None = None,
    networks: Networks | None = None,
    classifier: VideoFiles | None = None,
    classifier_features: str = "pixels",
    sampling: Mapping[str, Any] | None = None,
    batch_size: int = 16,
    seed: int = 0,
    paper: Sequence[dict] = (),
    model_name: str = "shipped",
) -> dict[str, Any] | None:
    """Generate videos of all classes in turn and write `results.json`, `.csv`, `.md`, `per_video.csv` and pictures.

    Processes, interruptions and errors as in `evaluate_reconstruction`. The videos depend on `batch_size`, the unit of
    work, but not on the number of processes.

    Args:
        source: real videos (`sample_videos` gives as many windows as a protocol asks for).
        protocol: frames and windows of the real clips, guidance scale.
        num_videos: to generate over all classes.
        classes: names or ids; by default all that the generator knows.
        networks: for FVD.
        classifier (*optional*): labeled real videos other than `source`, which a small classifier learns from. Its accuracy
            on generated videos is then reported as `class_accuracy`, with that on `source`, which needs labels, and on the
            reconstructions of `source`.
        classifier_features: `"pixels"`, small pictures, which distinguish classes that differ in where colors are; or
            `"network"`, the features of FVD's network, which costs the network's time for every training clip.
        sampling: `temperature`, `top_k`, `top_p` and `max_tokens`, see `AdapTokPipeline.generate`.

    Raises:
        ValueError: for a pipeline without a class-conditional generator, unknown classes, or fewer than 2 videos; for real
            videos without a class, of classes that the generator does not know, or classes that the classifier has no
            videos of.
    """
    networks, sampling = networks or Networks(), dict(sampling or {})
    labels = _labels_to_generate(pipeline, classes, num_videos)
    check_clip_size("the model", pipeline, protocol)
    training, kinds = None, {"network"} if networks.features is not None else set()
    if classifier is not None:
        training, source = prepare_classes(classifier, classifier_features, source, labels, pipeline.ar_model, networks)
        training = ClipChunks(training, protocol, REAL_CHUNK, seed)
        kinds.add(classifier_features)
    chunks = ClipChunks(source, protocol, REAL_CHUNK, seed)
    configuration = {
        "task": "generation",
        "protocol": protocol.hash,
        "data": chunks.identity,
        "model": f"{pipeline.model_hash[:12]} {tensors_sha256(pipeline.ar_model.state_dict())[:12]}",
        "classes": labels,
        "batch_size": batch_size,
        "sampling": sampling_settings(pipeline.ar_model, sampling),
        "features": networks.features_key,
    }
    if training is not None:
        configuration["classifier"] = {
            "data": training.identity,
            "features": classifier_features,
            "labels": [_hash([item.label for item in clips.source.items]) for clips in (training, chunks)],
        }
    parts = PartFiles(Path(output_dir) / "parts", configuration)
    steps = _Steps(pipeline, protocol, parts, networks)
    if training is not None:
        steps.write_features("training", training, {classifier_features})
        steps.write_features("reconstructed", chunks, {classifier_features}, reconstruct=True)
    steps.write_features("real", chunks, kinds)
    batches = [labels[start : start + batch_size] for start in range(0, num_videos, batch_size)]
    steps.generate(batches, kinds, sampling, seed)
    parts.state.wait_for_everyone()
    if not parts.state.is_main_process:
        return None

    rows, tensors = parts.read_all("generated", len(batches))
    rows = [{"video": index, **row} for index, row in enumerate(rows)]
    metrics = {}
    if networks.features is not None:
        real, fake = (
            torch.cat([features["network"] for features in files])
            for files in (parts.read_all("real", len(chunks))[1], tensors)
        )
        metrics |= summarize_features(real, fake, networks.features, protocol, paired=False)
    if training is not None:
        metrics["class_accuracy"] = steps.class_accuracy(classifier_features, training, chunks, rows, tensors)
        metrics["class_accuracy"]["classifier"] = _hash(configuration["classifier"])
    result = {"model": model_name, "strategy": "generated", "budget": None, "allocation_batch": None}
    result |= _token_statistics(pipeline, rows, torch.cat([part["codes"] for part in tensors]).long())
    report = write_report(
        output_dir,
        rows,
        task="generation",
        configuration_hash=parts.hash,
        protocols=[protocol],
        notes=[*networks.missing, f"{len(set(labels))} classes, {len(source.items)} real videos"],
        results=[result | {"metrics": metrics}],
        paper=paper,
    )
    draw_samples(Path(output_dir) / "generated.png", tensors[0]["videos"], rows)
    return report


def _labels_to_generate(pipeline: "AdapTokPipeline", classes: Sequence[int | str] | None, num_videos: int) -> list[int]:
    """Return the class id of every video to generate."""
    from ..pipelines.pipeline_generation import class_id

    if pipeline.ar_model is None:
        raise ValueError("this pipeline has no class-conditional generator (ar_model); the checkpoint 'figures' has")
    if num_videos < 2:
        raise ValueError(f"at least 2 videos must be generated, got {num_videos}")
    classes = range(pipeline.ar_model.config.num_classes) if classes is None else classes
    ids = [class_id(pipeline.ar_model, label) for label in classes]
    return [ids[index % len(ids)] for index in range(num_videos)]


@dataclasses.dataclass
class _Steps:
    """What this process contributes to the files of an evaluation."""

    pipeline: "AdapTokPipeline"
    protocol: Protocol
    parts: PartFiles
    networks: Networks

    def write_features(self, name: str, chunks: ClipChunks, kinds: set[str], reconstruct: bool = False) -> None:
        """Write features of real clips, or of their reconstructions from all tokens."""
        for index in self.parts.unfinished(name, len(chunks)) if kinds else ():
            clips = chunks.read(index)
            videos = clips.videos / 255
            if reconstruct and len(clips):
                with autocast(self.pipeline.device, self.protocol.precision):
                    videos = reconstruct_from_all_tokens(self.pipeline, videos)
            rows = [{"video": key, "label": label} for key, label in zip(clips.keys, clips.labels, strict=True)]
            self.parts.write(name, f"{index:05d}", rows=rows, tensors=self._features(videos, kinds))

    def generate(self, batches: Sequence[Sequence[int]], kinds: set[str], sampling: Mapping[str, Any], seed: int) -> None:
        """Generate batches of classes, and write their codes, token counts and features."""
        batch_size = len(batches[0])
        for index in self.parts.unfinished("generated", len(batches)):
            with autocast(self.pipeline.device, self.protocol.precision):
                output = self.pipeline.generate(
                    batches[index],
                    guidance_scale=self.protocol.guidance_scale,
                    generator=torch.Generator().manual_seed(seed + index * batch_size),
                    batch_size=batch_size,
                    output_type="pt",
                    **sampling,
                )
            seeds, counts = output.seeds[:, 0].tolist(), output.token_counts[:, 0].tolist()
            columns = (output.class_labels, output.class_names, seeds, counts)
            names = ("label", "class", "seed", "token_counts")
            rows = [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]
            tensors = {"codes": output.codes[:, 0].to(torch.int32)} | self._features(output.frames, kinds)
            if index == 0:
                tensors["videos"] = (output.frames[:NUM_PICTURES] * 255).round().to(torch.uint8)
            self.parts.write("generated", f"{index:05d}", rows=rows, tensors=tensors)

    def _features(self, videos: torch.Tensor, kinds: set[str]) -> dict[str, torch.Tensor]:
        """Return (clips, D) features by kind, `"network"` or `"pixels"`."""
        features = {"pixels": pixel_features(videos)} if "pixels" in kinds else {}
        if "network" in kinds:
            features["network"] = clip_features(self.networks.features, videos, self.protocol.feature_size)
        return features

    def class_accuracy(
        self, kind: str, training: ClipChunks, real: ClipChunks, rows: list[dict], tensors: list[dict]
    ) -> dict[str, Any]:
        """Return the metric's entry, and add to each generated row the class that the classifier takes it for."""

        def labeled(rows: list[dict], tensors: list[dict]) -> LabeledFeatures:
            features = torch.cat([part[kind] for part in tensors])
            return LabeledFeatures(features, [row["label"] for row in rows], [str(row["video"]) for row in rows])

        config, network = self.pipeline.ar_model.config, self.networks.features if kind == "network" else None
        entry, predicted = measure_class_accuracy(
            labeled(*self.parts.read_all("training", len(training))),
            labeled(*self.parts.read_all("real", len(real))),
            labeled(*self.parts.read_all("reconstructed", len(real))),
            labeled(rows, tensors),
            [config.id2label[label] for label in range(config.num_classes)],
            self.protocol,
            "pixels" if network is None else type(network).__name__,
            None if network is None else tensors_sha256(network.state_dict()),
        )
        for row, label in zip(rows, predicted, strict=True):
            row["classified_as"] = config.id2label[label]
        return entry


def _token_statistics(pipeline: "AdapTokPipeline", rows: list[dict], codes: torch.Tensor) -> dict[str, Any]:
    counts = torch.tensor([row["token_counts"] for row in rows])
    usage = CodebookUsage(pipeline.tokenizer.config.codebook_size, distributed_available_fn=lambda: False)
    usage.update(codes, counts)
    totals = counts.sum(1).double()
    by_class: dict[str, list[int]] = {}
    for row in rows:
        by_class.setdefault(row["class"], []).append(sum(row["token_counts"]))
    return {
        "tokens_per_block": counts.double().mean().item(),
        "tokens_per_clip": totals.mean().item(),
        "tokens_per_clip_deviation": totals.std().item(),
        "tokens_per_block_position": counts.double().mean(0).tolist(),
        "codebook": {name: float(value) for name, value in usage.compute().items()},
        "tokens_of_classes": {
            name: {"mean": sum(tokens) / len(tokens), "min": min(tokens), "max": max(tokens), "videos": len(tokens)}
            for name, tokens in by_class.items()
        },
    }


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
