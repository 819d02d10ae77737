"""How well clips come back from their tokens: every model at every setting over a set of videos.

Each clip is encoded once and decoded once per different token counts, whatever the number of settings that choose them.
"""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from ..allocation import STRATEGIES, AllocationRequest
from ..data import VideoFiles
from ..metrics import Protocol
from ..metrics.weight_formats import tensors_sha256
from ..pipelines.encoded_videos import EncodedVideos, decode_clips, stopwatch
from .baseline_schedules import schedule_clips, scheduled_counts, with_schedules, write_schedules
from .clip_chunks import ClipChunks, Clips
from .encoded_clips import allocate_clips, autocast, search_parameter
from .measuring import Networks, check_clip_size, clip_features, measure_clips
from .part_files import PartFiles
from .reconstruction_results import summarize_reconstruction
from .settings import Setting, make_settings
from .tables import write_report

logger = logging.getLogger(__name__)

AS_IS = Setting("as is")


def evaluate_reconstruction(
    models: Mapping[str, Any],
    source: VideoFiles,
    protocol: Protocol,
    output_dir: str | Path,
    *,
    strategies: Sequence[str] | None = None,
    budgets: Sequence[float | str] = ("25%",),
    batches: Sequence[int] = (64,),
    ipal_budgets: str = "equal",
    schedule_videos: VideoFiles | None = None,
    num_schedule_clips: int = 32,
    schedule_loss: str = "rmse",
    networks: Networks | None = None,
    batch_size: int = 8,
    seed: int = 0,
    paper: Sequence[dict] = (),
) -> dict[str, Any] | None:
    """Measure reconstructions and write `results.json`, `results.csv`, `results.md` and `per_video.csv`.

    All processes of an accelerate launch call it, each takes its share of the videos; the folder must be one that all of
    them see. A killed run resumes at its chunk of videos and setting; more budgets, strategies and FVD can be added to a
    finished folder.

    Args:
        models: name -> `AdapTokPipeline`, or any object with `encode(videos) -> tokens` and `decode(tokens) -> videos` for
            (clips, frames, 3, height, width) floats in [0, 1], which is measured as it is. Where its tokens have an
            attribute `token_counts` (clips, blocks) or `num_bits` (clips,), these are counted.
        source: the videos.
        protocol: which frames, at what size; its `allocation_batch` is set for each result.
        strategies, budgets, batches, ipal_budgets: see `make_settings`. A batch counts VIDEOS: their clips share a budget.
            Default: each pipeline's default for a budget, next to the baselines.
            All batches must divide the largest.
        schedule_videos: other videos, on which the best constant schedule of each budget is learned. By default, the
            evaluated ones, each of which gets the schedule of the others.
        num_schedule_clips: at most so many of them, of one video each.
        schedule_loss: what the schedules minimize, `"rmse"`, `"mse"` or `"psnr"`.
        networks: for LPIPS and FVD, see `load_networks`; by default neither is measured.
        batch_size: clips that are encoded, scored and decoded together.
        paper: the paper's numbers, to stand next to ours: dicts of `model`, `strategy`, `budget` and metrics.

    Returns:
        The content of `results.json`, on the main process; `None` on others.

    Raises:
        ValueError: for settings that do not fit, clips that do not fit a model, or a folder with results of another
            configuration.
    """
    networks = networks or Networks()
    settings = {}
    for name, model in models.items():
        _check_model(name, model, protocol, strategies or ())
        settings[name] = [AS_IS]
        if _is_pipeline(model) and model.tokenizer.config.adaptive:
            per_block = model.tokenizer.config.latents_per_block
            of_model = [model.choose_strategy(AllocationRequest(budget=1)).name] if strategies is None else strategies
            settings[name] = make_settings(of_model, budgets, batches, per_block, ipal_budgets)
            _check_budgets(model, settings[name])
    chunk_size = max(batches)
    if wrong := [batch for batch in batches if chunk_size % batch]:
        raise ValueError(f"all batches must divide the largest, {chunk_size}; {wrong[0]} does not")
    chunks = ClipChunks(source, protocol, chunk_size, seed)
    leave_one_out = schedule_videos is None
    learned_on = schedule_clips(schedule_videos or source, protocol, num_schedule_clips, seed, schedule_loss)
    configuration = {
        "task": "reconstruction",
        "protocol": protocol.hash,
        "data": chunks.identity,
        "models": {name: _fingerprint(model) for name, model in models.items()},
        "lpips": networks.lpips_key,
        "schedules": [learned_on.identity, leave_one_out, schedule_loss],
    }
    parts = PartFiles(Path(output_dir) / "parts", configuration)
    state = parts.state
    if state.is_main_process:
        for name, model in models.items():
            _search_parameters(name, model, settings[name], chunks, parts, batch_size)
            write_schedules(name, model, settings[name], learned_on, parts, leave_one_out, schedule_loss, batch_size)
    state.wait_for_everyone()
    notes = list(networks.missing)
    for name, of_model in settings.items():
        settings[name], without = with_schedules(name, of_model, parts)
        notes += without

    own = range(state.process_index, len(chunks), state.num_processes)
    for name, model in models.items():
        bar = tqdm(total=len(own) * len(settings[name]), desc=name, disable=not state.is_main_process)
        for index in own:
            work = _Chunk(name, model, index, chunks, parts, networks, batch_size)
            for setting in settings[name]:
                work.measure(setting)
                bar.update()
        bar.close()
    state.wait_for_everyone()
    if not state.is_main_process:
        return None
    results, rows = summarize_reconstruction(parts, len(chunks), settings, protocol, networks)
    all_batches = {None} | {setting.batch for of_model in settings.values() for setting in of_model}
    return write_report(
        output_dir,
        rows,
        task="reconstruction",
        configuration_hash=parts.hash,
        protocols=[dataclasses.replace(protocol, allocation_batch=b) for b in sorted(all_batches, key=lambda b: b or 0)],
        notes=notes,
        results=results,
        paper=paper,
        num_processes=state.num_processes,
    )


class _Chunk:
    """The clips of a chunk; read and encoded when something about them is still to be measured."""

    def __init__(
        self,
        name: str,
        model: Any,
        index: int,
        chunks: ClipChunks,
        parts: PartFiles,
        networks: Networks,
        batch_size: int,
    ):
        self.name, self.model, self.index, self.chunks = name, model, index, chunks
        self.parts, self.networks, self.batch_size = parts, networks, batch_size
        # (clip, *counts) -> what was measured: settings often agree on a clip
        self.numbers: dict[tuple, dict] = {}
        self.features: dict[tuple, torch.Tensor] = {}

    @cached_property
    def clips(self) -> Clips:
        return self.chunks.read(self.index)

    @cached_property
    def encoded(self) -> EncodedVideos:
        return encode_clips(self.model, self.clips, self.batch_size, self.chunks.protocol.precision)

    def measure(self, setting: Setting) -> None:
        """Write the file of this setting, and for FVD that of its features, unless they exist."""
        index, key, fvd = f"{self.index:05d}", self.networks.features_key, self.networks.features is not None
        if fvd and not self.parts.exists(f"real-{key}", index):
            features = [self._take_features(clip / 255) for clip in self.clips.videos.split(1)]
            self._write_features((f"real-{key}", index), features)
        rows_missing = not self.parts.exists(self.name, setting.name, index)
        features_missing = fvd and not self.parts.exists(self.name, setting.name, f"{index}-{key}")
        if not rows_missing and not features_missing:
            return
        if not len(self.clips):
            rows, seconds, features = [], {}, []
        elif not _is_pipeline(self.model):
            rows, seconds, features = self._measure_codec(features_missing)
        else:
            rows, seconds, features = self._measure_setting(setting, rows_missing, features_missing)
        if features_missing:
            self._write_features((self.name, setting.name, f"{index}-{key}"), features)
        if rows_missing:
            self.parts.write(self.name, setting.name, index, rows={"clips": rows, "seconds": seconds})

    def _take_features(self, videos: torch.Tensor) -> torch.Tensor:
        return clip_features(self.networks.features, videos, self.chunks.protocol.feature_size)

    def _write_features(self, name: tuple[str, ...], features: list[torch.Tensor]) -> None:
        tensor = torch.cat(features) if features else torch.zeros(0, self.networks.features.num_features)
        self.parts.write(*name, rows=[], tensors={"features": tensor})

    def _row(self, clip: int, counts: list[int] | None, bits: float | None, numbers: dict) -> dict:
        clips, frames = self.clips, self.chunks.protocol.num_frames
        row = {"video": clips.keys[clip], "first_frame": clips.starts[clip], "label": clips.labels[clip]}
        row |= {"token_counts": counts, "tokens": None if counts is None else sum(counts)}
        row["bits_per_second"] = None if bits is None else bits * clips.fps[clip] / frames
        return row | numbers

    def _measure_setting(self, setting: Setting, numbers: bool, features: bool) -> tuple[list, dict, list]:
        model, encoded, precision = self.model, self.encoded, self.chunks.protocol.precision
        parameter = None
        if setting.needs_search:
            parameter = self.parts.read("searched", self.name, setting.name)[0]["parameter"]
        if setting.strategy == "schedule":
            codes, counts, seconds = encoded.codes, scheduled_counts(self.name, setting, self.clips, self.parts), {}
        else:
            batches = clip_batches(self.clips, setting.batch) if setting.batch else []
            codes, counts, seconds = allocate_clips(model, encoded, setting, batches, self.batch_size, precision, parameter)
        keys = [(clip, *chosen) for clip, chosen in enumerate(counts.tolist())]
        todo = [key for key in keys if (numbers and key not in self.numbers) or (features and key not in self.features)]
        seconds["decode"] = 0.0
        for start in range(0, len(todo), self.batch_size):
            batch = todo[start : start + self.batch_size]
            index = torch.tensor([key[0] for key in batch])
            with stopwatch(seconds, "decode", model.device), autocast(model.device, precision):
                videos = decode_clips(model.tokenizer, codes[index], counts[index])
            if numbers:
                originals = (self.clips.videos[index] / 255).to(videos.device)
                self.numbers.update(zip(batch, measure_clips(self.networks, videos, originals), strict=True))
            if features:
                self.features.update(zip(batch, self._take_features(videos).split(1), strict=True))
        # a clip that was measured before is not decoded again: the time of a stage stands with the clips that it took
        seconds = {"encode": encoded.seconds.get("encode", 0.0)} | seconds
        timing = {stage: [value, len(todo) if stage == "decode" else len(keys)] for stage, value in seconds.items()}
        config = model.tokenizer.config
        count_bits = math.log2(config.latents_per_block + 1) if config.adaptive else 0.0
        rows = []
        for key in keys if numbers else []:
            clip, *chosen = key
            bits = sum(chosen) * math.log2(config.codebook_size) + len(chosen) * count_bits
            rows.append(self._row(clip, chosen, bits, self.numbers[key]))
        return rows, timing, [self.features[key] for key in keys] if features else []

    @torch.no_grad()
    def _measure_codec(self, fvd: bool) -> tuple[list, dict, list]:
        rows, features = [], []
        for index in torch.arange(len(self.clips)).split(self.batch_size):
            originals = self.clips.videos[index] / 255
            tokens = self.model.encode(originals)
            videos = torch.as_tensor(self.model.decode(tokens)).float()
            if videos.shape != originals.shape:
                raise ValueError(f"decode returned {tuple(videos.shape)} for videos of {tuple(originals.shape)}")
            videos = videos.clamp(0, 1)
            numbers = measure_clips(self.networks, videos, originals.to(videos.device))
            counts, bits = (getattr(tokens, name, None) for name in ("token_counts", "num_bits"))
            columns = [[None] * len(index) if each is None else torch.as_tensor(each).tolist() for each in (counts, bits)]
            rows += [self._row(*row) for row in zip(index.tolist(), *columns, numbers, strict=True)]
            features += [self._take_features(videos)] if fvd else []
        return rows, {}, features


def encode_clips(pipeline: Any, clips: Clips, batch_size: int, precision: str) -> EncodedVideos:
    """Encode each clip as a video of its own."""
    with autocast(pipeline.device, precision):
        return pipeline.encode(clips.videos, batch_size=batch_size)


def clip_batches(clips: Clips, num_videos: int) -> list[slice]:
    """Return the clips of every `num_videos` consecutive videos."""
    pairs = zip(clips.keys, clips.keys[1:], clips.starts, clips.starts[1:], strict=False)
    starts = [0] if len(clips) else []
    starts += [clip for clip, (key, after, start, later) in enumerate(pairs, start=1) if after != key or later <= start]
    ends = [*starts[num_videos::num_videos], len(clips)]
    return [slice(start, end) for start, end in zip(starts[::num_videos], ends, strict=True)]


def _search_parameters(
    name: str, model: Any, settings: Sequence[Setting], chunks: ClipChunks, parts: PartFiles, batch_size: int
) -> None:
    """Search prices and thresholds that meet the budgets on the first chunk; they are used for all."""
    todo = [s for s in settings if s.needs_search and not parts.exists("searched", name, s.name)]
    if not todo:
        return
    clips = chunks.read(0)
    if not len(clips):
        raise ValueError("no video of the first chunk can be read: there is nothing to search prices and thresholds on")
    encoded = encode_clips(model, clips, batch_size, chunks.protocol.precision)
    for setting in tqdm(todo, desc="prices and thresholds"):
        result = search_parameter(model, encoded, setting, batch_size, chunks.protocol.precision)
        parts.write("searched", name, setting.name, rows=result)


def _is_pipeline(model: Any) -> bool:
    return hasattr(model, "tokenizer") and hasattr(model, "video_processor")


def _fingerprint(model: Any) -> str:
    if not _is_pipeline(model):
        return f"{type(model).__module__}.{type(model).__qualname__}"
    others = [tensors_sha256(part.state_dict())[:12] for part in (model.scorer, model.router) if part is not None]
    return " ".join([model.model_hash[:12], *others])


def _check_model(name: str, model: Any, protocol: Protocol, strategies: Sequence[str]) -> None:
    if not _is_pipeline(model):
        if missing := [method for method in ("encode", "decode") if not callable(getattr(model, method, None))]:
            raise ValueError(f"{name}: expected a pipeline or an object with encode and decode, it has no {missing[0]}")
        return
    config = model.tokenizer.config
    check_clip_size(name, model, protocol)
    for strategy in [STRATEGIES[each] for each in strategies if each in STRATEGIES and config.adaptive]:
        if missing := strategy.missing(model.scorer is not None, model.router is not None, model.has_schedules):
            raise ValueError(f"{name} has no {missing}, which {strategy.name} needs")


def _check_budgets(model: Any, settings: Sequence[Setting]) -> None:
    """Raise `ValueError` for budgets that cannot be met, before the work begins."""
    for setting in settings:
        if not setting.needs_search:
            model.check_request(setting.request())


def own_protocol(model: Any, data: str, window: str, task: str, **changes: Any) -> Protocol:
    """Return a protocol for data of your own, at the model's clip size."""
    config = model.tokenizer.config
    protocol = Protocol("own", data, window, config.num_frames, config.image_size, task, source="given by the caller")
    return dataclasses.replace(protocol, **changes)
