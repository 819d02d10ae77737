"""Checkpoints of the original AdapTok code -> our folders.

What the original calls things is data, in `conversion_tables`. One of its files holds tokenizer, scorer and prior
together; each becomes a folder of its own. A generator has a file of its own, and becomes a folder beside them.
"""

import hashlib
import json
import os
import pickle
import re
import shutil
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import PreTrainedModel

from .class_names import UCF101
from .configuration_adaptok import AdapTokConfig
from .configuration_adaptok_ar import AdapTokARConfig
from .configuration_adaptok_prior import AdapTokPriorConfig
from .configuration_adaptok_scorer import AdapTokScorerConfig
from .conversion_tables import (
    ARGUMENTS,
    ATTENTION_TYPES,
    EQUAL,
    GENERATOR_ARGUMENTS,
    GENERATOR_SUPPORTED,
    GENERATORS,
    KEYS,
    NONE,
    PRIORS,
    SCORER_ARGUMENTS,
    SUPPORTED,
    TABLES,
)
from .layers import SinCosPositions
from .modeling_adaptok import AdapTokModel
from .modeling_adaptok_ar import AdapTokARForCausalLM
from .modeling_adaptok_prior import AdapTokPriorModel
from .modeling_adaptok_scorer import AdapTokScorerModel
from .video_processing_adaptok import AdapTokVideoProcessor

ACCEPTED = "a folder with config.json and model.safetensors, a training checkpoint (.pth), or a Hub repository's id"
# Stored position tables may differ from ours by this much.
TABLE_TOLERANCE = 1e-5
CLASSES = {
    "tokenizer": AdapTokModel,
    "scorer": AdapTokScorerModel,
    "prior": AdapTokPriorModel,
    "ar_model": AdapTokARForCausalLM,
    "fp_model": AdapTokARForCausalLM,
}


@dataclass(frozen=True)
class ConvertedModel:
    """
    Args:
        name: `"tokenizer"`, `"scorer"`, `"prior"`, `"ar_model"` (class-conditional generator) or `"fp_model"` (frame
            prediction); also the name of its folder.
        tensors, parameters: how many were taken over.
        tables: fixed position tables that the source holds, found equal to ours, and that are not saved.
        sha256: of the folder's `model.safetensors`.
    """

    name: str
    tensors: int
    parameters: int
    tables: int
    sha256: str


@dataclass(frozen=True)
class ConversionReport:
    """
    Args:
        source: the file that held the weights.
        source_sha256: its hash.
        destination: the folder written.
        models: what it holds.
    """

    source: Path
    source_sha256: str
    destination: Path
    models: tuple[ConvertedModel, ...]

    def __str__(self) -> str:
        lines = [f"{self.source}", f"  sha256 {self.source_sha256}", f"-> {self.destination}"]
        for model in self.models:
            tables = f", {model.tables} position tables verified" if model.tables else ""
            lines.append(f"  {model.name}: {model.parameters:,} parameters in {model.tensors} tensors{tables}")
            lines.append(f"    sha256 {model.sha256}")
        return "\n".join(lines)


def convert_checkpoint(
    source: str | os.PathLike, destination: str | os.PathLike, *, ema: float | None = None
) -> ConversionReport:
    """Converts a checkpoint of the original code.

    Of a tokenizer it writes `destination/tokenizer`, and `scorer` and `prior` where the source has them (safetensors, each
    for `from_pretrained`), and what makes `destination` a folder for `AdapTokPipeline.from_pretrained`. The folder appears
    only when all of it is written.

    Of a generator it writes `destination/ar_model` (class-conditional) or `destination/fp_model` (frame prediction). If
    `destination` is such a pipeline's folder, the model becomes a part of it.

    Args:
        source: a folder with `config.json` and `model.safetensors`, a training checkpoint (`.pth`), or, if there is no
            such path, the id of a Hub repository.
        destination: a folder that does not exist or is empty; for a generator also a converted folder.
        ema: of a training checkpoint, take the exponential average with this decay instead of the weights themselves.

    Raises:
        FileNotFoundError: if there is no such source, or it cannot be downloaded.
        ValueError: if `destination` is in use; if the source is damaged, asks for anything but tensors and plain
            values to be unpickled, or has no such average; for arguments that we do not support; for missing,
            unexpected or wrongly shaped tensors; for a position table that differs from ours; and for a generator whose
            codes are not those of the tokenizer in `destination`.
    """
    destination = Path(destination).expanduser().resolve()
    in_use = destination.exists() and (not destination.is_dir() or any(destination.iterdir()))
    if in_use and not _is_converted(destination):
        raise ValueError(f"{destination} exists already; give a folder that does not exist or is empty")
    arguments, tensors, weights_file = _read_source(source, ema)
    models = _build_models(arguments)
    if in_use:
        _check_addition(models, destination)
    states, tables = map_tensors(models, tensors)

    partial = destination.with_name(f"{destination.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        converted = []
        for name, model in models.items():
            model.load_state_dict(states[name], assign=True)
            model.save_pretrained(partial / name)
            size = sum(tensor.numel() for tensor in states[name].values())
            checksum = _sha256(partial / name / "model.safetensors")
            converted.append(ConvertedModel(name, len(states[name]), size, tables[name], checksum))
        if "tokenizer" in models:
            config = models["tokenizer"].config
            AdapTokVideoProcessor(
                image_size=config.image_size, num_frames=config.num_frames, tubelet_size=config.tubelet_size
            ).save_pretrained(partial / "video_processor")
            # With this file the folder is one that AdapTokPipeline.from_pretrained loads.
            _write_json(partial / "model_index.json", _pipeline_index(models))
        if in_use:
            _add(models, partial, destination)
        else:
            if destination.exists():
                destination.rmdir()
            partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # nothing is left of it if all went well
    return ConversionReport(weights_file, _sha256(weights_file), destination, tuple(converted))


def _is_converted(folder: Path) -> bool:
    """Whether a folder that is not empty is a pipeline's, or holds converted generators and nothing else."""
    if not folder.is_dir():
        return False
    return (folder / "model_index.json").is_file() or {path.name for path in folder.iterdir()} <= {"ar_model", "fp_model"}


def _check_addition(models: Mapping[str, PreTrainedModel], folder: Path) -> None:
    """Raises `ValueError` unless `models` can become a part of the pipeline in `folder`."""
    if "tokenizer" in models:
        raise ValueError(f"{folder} exists already; give a folder that does not exist or is empty")
    for name, model in models.items():
        if (folder / name).exists():
            raise ValueError(f"{folder / name} exists already; remove it, or give another folder")
        if not (folder / "tokenizer").is_dir():
            continue
        tokenizer = AdapTokConfig.from_pretrained(folder / "tokenizer")
        for size in ("codebook_size", "num_blocks", "latents_per_block"):
            ours, theirs = getattr(model.config, size), getattr(tokenizer, size)
            if ours != theirs:
                raise ValueError(f"the generator does not fit the tokenizer in {folder}: {size} is {ours}, there {theirs}")


def _add(models: Mapping[str, PreTrainedModel], partial: Path, folder: Path) -> None:
    """Moves what lies in `partial` into the pipeline's folder; its index is written last, and as a whole."""
    index_file, new_index = folder / "model_index.json", partial / "model_index.json"
    if index_file.is_file():
        _write_json(new_index, json.loads(index_file.read_text(encoding="utf-8")) | _components(models))
    for name in models:
        (partial / name).rename(folder / name)
    if index_file.is_file():
        new_index.replace(index_file)


def _pipeline_index(models: Mapping[str, PreTrainedModel]) -> dict[str, Any]:
    """The `model_index.json` of a pipeline of these components."""
    index: dict[str, Any] = {"_class_name": "AdapTokPipeline", "_diffusers_version": version("diffusers")}
    index["video_processor"] = [AdapTokVideoProcessor.__module__, AdapTokVideoProcessor.__name__]
    parts = {name: model for name, model in models.items() if name != "prior"}  # which is for training only
    return index | {"scorer": [None, None]} | _components(parts)


def _components(models: Mapping[str, PreTrainedModel]) -> dict[str, list[str]]:
    return {name: [type(model).__module__, type(model).__name__] for name, model in models.items()}


def _write_json(file: Path, content: Any) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_configs(
    arguments: Mapping[str, Any],
) -> dict[str, AdapTokConfig | AdapTokScorerConfig | AdapTokPriorConfig | AdapTokARConfig]:
    """The original's constructor arguments -> the configurations of the models that they describe: a generator, or a
    tokenizer and, if there are any, scorer and prior.

    Arguments that we have no use for are ignored.

    Raises:
        ValueError: naming the arguments that are missing or not supported.
    """
    if _is_generator(arguments):
        return _read_generator_config(arguments)
    has_scorer = _lookup(arguments, "scorer_name", None) == "transformer_scorer"
    _check_present(arguments, ARGUMENTS + SUPPORTED + (SCORER_ARGUMENTS if has_scorer else ()))

    problems = _unsupported(arguments, SUPPORTED)
    for path, other, default in EQUAL:
        value, expected = _lookup(arguments, path, default), _lookup(arguments, other, default)
        if value != expected:
            problems.append(f"{path}={value!r} (must be {other}={expected!r})")
    attention = {}
    for part in ("encoder", "decoder", "scorer"):
        value = arguments.get(f"{part}_attn_type")
        if value not in list(ATTENTION_TYPES):
            problems.append(f"{part}_attn_type={value!r} (supported: {', '.join(map(repr, ATTENTION_TYPES))})")
        else:
            attention[part] = ATTENTION_TYPES[value]
    prior = _lookup(arguments, "prior_model.name", None)
    if prior not in [*NONE, *PRIORS]:
        problems.append(f"prior_model.name={prior!r} (supported: 'none', {', '.join(map(repr, PRIORS))})")

    geometry = {"bottleneck_token_num": 1024, "frame_num": 16, "temporal_patch_size": 4}
    tokens, frames, tubelet = (arguments.get(name, default) for name, default in geometry.items())
    if not all(isinstance(value, int) and value > 0 for value in (tokens, frames, tubelet)):
        problems.append(f"{', '.join(geometry)} = {tokens!r}, {frames!r}, {tubelet!r} (must be positive integers)")
    elif frames % tubelet or tokens % (frames // tubelet):
        problems.append(f"bottleneck_token_num={tokens} (must be a multiple of the blocks, {frames} / {tubelet})")
    if problems:
        raise ValueError(f"not supported: {'; '.join(problems)}")

    num_blocks = frames // tubelet
    latents_per_block = tokens // num_blocks
    mask_type = _lookup(arguments, "mask_generator.mask_type", "none_masking")
    try:
        configs = {
            "tokenizer": AdapTokConfig(
                latents_per_block=latents_per_block,
                adaptive=mask_type != "none_masking",
                encoder_attention_type=attention["encoder"],
                decoder_attention_type=attention["decoder"],
                **{ours: _lookup(arguments, path, default) for path, ours, default in ARGUMENTS},
            )
        }
        if has_scorer:
            configs["scorer"] = AdapTokScorerConfig(
                latent_size=configs["tokenizer"].hidden_size,
                num_blocks=num_blocks,
                latents_per_block=latents_per_block,
                attention_type=attention["scorer"],
                **{ours: _lookup(arguments, path, default) for path, ours, default in SCORER_ARGUMENTS},
            )
        if prior not in NONE:
            layers, heads, width = PRIORS[prior]
            no_dropout = {"embedding_dropout": 0.0, "residual_dropout": 0.0, "attention_dropout": 0.0}
            configs["prior"] = AdapTokPriorConfig(
                codebook_dim=configs["tokenizer"].codebook_dim,
                num_latent_tokens=tokens,
                hidden_size=width,
                num_attention_heads=heads,
                num_hidden_layers=layers,
                **(no_dropout if _lookup(arguments, "prior_model.no_dropout", False) else {}),
            )
    except StrictDataclassError as error:
        raise ValueError(f"not supported: {' '.join(str(error).split())}") from error
    return configs


def _read_generator_config(arguments: Mapping[str, Any]) -> dict[str, AdapTokARConfig]:
    geometry = ("cls_token_num", "max_seq_len", "tot_blocks")
    _check_present(arguments, GENERATOR_ARGUMENTS + GENERATOR_SUPPORTED + tuple((name, name, ...) for name in geometry))
    problems = _unsupported(arguments, GENERATOR_SUPPORTED)
    prompt, tokens, blocks = (arguments[name] for name in geometry)
    start = arguments.get("start_ar_block_idx", 0)
    multiple = arguments.get("multiple_of", 256)
    frame_prediction = arguments.get("frame_prediction", False)
    if not all(isinstance(value, int) and value > 0 for value in (prompt, tokens, blocks, multiple)):
        problems.append(
            f"{', '.join(geometry)}, multiple_of = {prompt!r}, {tokens!r}, {blocks!r}, {multiple!r} (must be positive "
            "integers)"
        )
    elif tokens % blocks:
        problems.append(f"max_seq_len={tokens} (must be a multiple of tot_blocks={blocks})")
    if not frame_prediction and (prompt, start) != (1, 0):
        problems.append(f"cls_token_num={prompt!r}, start_ar_block_idx={start!r} (a class-conditional one has 1, 0)")
    if not isinstance(start, int) or start < 0:
        problems.append(f"start_ar_block_idx={start!r} (must be an integer of at least 0)")
    if problems:
        raise ValueError(f"not supported: {'; '.join(problems)}")

    given = {ours: _lookup(arguments, path, default) for path, ours, default in GENERATOR_ARGUMENTS}
    if frame_prediction:
        # Without a number of its own, the condition has as many codes as the blocks that are generated.
        codes = prompt - 1 if arguments.get("custom_cls_token_num", False) else tokens
        condition: dict[str, Any] = {"num_classes": 0, "num_condition_codes": codes, "class_dropout": 0.0}
    else:
        classes = arguments.get("num_classes", 101)
        condition = {"num_classes": classes, "class_dropout": arguments.get("class_dropout_prob", 0.1)}
        if classes == len(UCF101):
            condition |= {"id2label": dict(enumerate(UCF101)), "label2id": {name: i for i, name in enumerate(UCF101)}}
    try:
        config = AdapTokARConfig(
            num_blocks=start + blocks,
            latents_per_block=tokens // blocks,
            start_block=start,
            position_embedding="absolute",
            learned_positions=not arguments.get("use_fixed_pe", False),
            intermediate_size=-(-int(8 * given["hidden_size"] / 3) // multiple) * multiple,
            **condition,
            **given,
        )
    except (StrictDataclassError, TypeError) as error:
        raise ValueError(f"not supported: {' '.join(str(error).split())}") from error
    return {"fp_model" if frame_prediction else "ar_model": config}


def _is_generator(arguments: Mapping[str, Any]) -> bool:
    return "cls_token_num" in arguments


def _check_present(arguments: Mapping[str, Any], rows: tuple[tuple[str, Any, Any], ...]) -> None:
    """Raises `ValueError` naming the arguments without default that are missing."""
    missing = [path for path, _, default in rows if _lookup(arguments, path, default) is ...]
    if missing:
        raise ValueError(f"the configuration lacks {', '.join(missing)}")


def _unsupported(arguments: Mapping[str, Any], rows: tuple[tuple[str, tuple, Any], ...]) -> list[str]:
    """A description of each argument whose value we do not support."""
    problems = []
    for path, values, default in rows:
        value = _lookup(arguments, path, default)
        if value not in values:
            problems.append(f"{path}={value!r} (supported: {', '.join(map(repr, values))})")
    return problems


def original_names(part: str, name: str) -> tuple[tuple[str, ...], Any]:
    """Our parameter of `part` (a key of `KEYS`) -> the original's names for it, how to adapt them."""
    for original, ours, *adapt in KEYS[part]:
        match = re.fullmatch(re.escape(ours).replace(r"\*", r"(?P<layer>\d+)") + r"(?P<end>(\.weight|\.bias)?)", name)
        if match is not None:
            originals = (original,) if isinstance(original, str) else original
            layer = match.groupdict().get("layer", "")
            return tuple(each.replace("*", layer) + match["end"] for each in originals), (adapt or [None])[0]
    raise AssertionError(f"KEYS[{part!r}] has no row for {name}")


def map_tensors(
    models: Mapping[str, PreTrainedModel], tensors: Mapping[str, torch.Tensor]
) -> tuple[dict[str, dict[str, torch.Tensor]], dict[str, int]]:
    """Tensors of the original -> state dictionaries of `models` (part -> model, which may be on the meta device).

    Returns:
        The state dictionary and the number of verified position tables of each part.

    Raises:
        ValueError: listing what is missing, unexpected or of another shape, and tables that differ from ours.
    """
    states: dict[str, dict[str, torch.Tensor]] = {}
    tables = dict.fromkeys(models, 0)
    used: set[str] = set()
    missing: list[str] = []
    problems: list[str] = []
    for part, model in models.items():
        states[part] = {}
        for name, parameter in model.named_parameters():
            originals, adapt = original_names(part, name)
            used.update(originals)
            absent = [original for original in originals if original not in tensors]
            if absent:
                missing += absent
                continue
            found = [tensors[original] for original in originals]
            try:
                tensor = found[0] if adapt is None else adapt(*found)
            except (RuntimeError, IndexError):  # shapes that cannot be added or flattened
                tensor = found[0]
            if tensor.shape != parameter.shape or not tensor.is_floating_point():
                shapes = ", ".join(f"{tuple(each.shape)} {each.dtype}" for each in found)
                problems.append(f"{', '.join(originals)} is {shapes}, which does not fit {tuple(parameter.shape)}")
            states[part][name] = tensor.detach().contiguous()
        modules = dict(model.named_modules())
        for original, ours in TABLES[part].items():
            if not isinstance(modules[ours], SinCosPositions):
                continue
            used.add(original)
            if original not in tensors:
                missing.append(original)
                continue
            stored, shape = tensors[original].float(), modules[ours].weight.shape
            if stored.numel() != shape.numel():
                problems.append(f"{original} is {tuple(stored.shape)}, which does not fit {tuple(shape)}")
            elif not (stored.reshape(shape) - modules[ours].compute()).abs().max() <= TABLE_TOLERANCE:
                problems.append(f"{original} is not the sine-cosine table that the configuration describes")
            tables[part] += 1
    unexpected = sorted(set(tensors) - used)
    if missing:
        problems.append(f"missing tensors: {', '.join(sorted(missing))}")
    if unexpected:
        problems.append(f"unexpected tensors: {', '.join(unexpected)}")
    if problems:
        raise ValueError(f"the weights do not fit the configuration; {'; '.join(problems)}")
    return states, tables


def _build_models(arguments: Mapping[str, Any]) -> dict[str, PreTrainedModel]:
    """Models without memory: on the meta device."""
    with torch.device("meta"):
        return {part: CLASSES[part](config) for part, config in read_configs(arguments).items()}


def _lookup(arguments: Mapping[str, Any], path: str, default: Any) -> Any:
    value: Any = arguments
    for key in path.split("."):
        if not isinstance(value, Mapping) or key not in value:
            return default
        value = value[key]
    return value


def _read_source(
    source: str | os.PathLike, ema: float | None
) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor], Path]:
    """Constructor arguments, tensors, and the file that held the tensors."""
    path = Path(source).expanduser()
    if not path.exists():
        path = _download(str(source))
    if path.is_file() and path.suffix != ".safetensors":
        weights_file = path
        arguments, tensors = _read_training_checkpoint(path, ema)
    elif ema is not None:
        raise ValueError(f"ema={ema} was given, but only training checkpoints (.pth) hold averages, {source} does not")
    else:
        folder = path if path.is_dir() else path.parent
        weights_file = folder / "model.safetensors"
        arguments, tensors = _read_folder(folder)
    if str(arguments.get("model_type", "")).startswith("adaptok"):
        raise ValueError(f"{source} is converted already (model_type {arguments['model_type']!r})")
    if not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
        raise ValueError(f"the weights in {weights_file} are not all tensors")
    return arguments, tensors, weights_file


def _download(source: str) -> Path:
    """The local folder of a Hub repository."""
    if not re.fullmatch(r"[\w][\w.-]*/[\w][\w.-]*", source) or source.endswith((".pth", ".pt", ".safetensors")):
        raise FileNotFoundError(f"{source} does not exist; accepted is {ACCEPTED}")
    try:
        return Path(snapshot_download(source, allow_patterns=["config.json", "model.safetensors"]))
    except (OSError, HFValidationError) as error:
        reason = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{source} is not a path here, and could not be downloaded from the Hub ({type(error).__name__}: {reason})"
        ) from error


def _read_folder(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
    config_file, weights_file = folder / "config.json", folder / "model.safetensors"
    for file in (config_file, weights_file):
        if not file.is_file():
            raise FileNotFoundError(f"{folder} has no {file.name}; accepted is {ACCEPTED}")
    try:
        arguments = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{config_file} is not JSON: {error}") from error
    if not isinstance(arguments, dict):
        raise ValueError(f"{config_file} must hold a JSON object, got {type(arguments).__name__}")
    try:
        return arguments, load_file(weights_file)
    except SafetensorError as error:
        raise ValueError(f"{weights_file} is not a safetensors file, or is damaged: {error}") from error


def _read_training_checkpoint(path: Path, ema: float | None) -> tuple[Mapping[str, Any], Mapping[str, torch.Tensor]]:
    """`{"model": {"name", "args", "sd", "ema_sd"}, ...}`; nothing but tensors and plain values is unpickled.

    The original's `args` are EasyDicts; they are read as the ordered dictionaries that they are.
    """
    try:
        with torch.serialization.safe_globals([(OrderedDict, "easydict.EasyDict")]):
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a damaged or hostile file can make the unpickler raise anything
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if isinstance(error, pickle.UnpicklingError) and forbidden:
            raise ValueError(
                f"{path} was refused: it asks for {forbidden[1]}, and only tensors and plain values are unpickled"
            ) from error
        raise ValueError(f"{path} is not a PyTorch checkpoint, or is damaged ({type(error).__name__})") from error
    model = checkpoint.get("model") if isinstance(checkpoint, Mapping) else None
    if not isinstance(model, Mapping) or not isinstance(model.get("args"), Mapping):
        raise ValueError(f"{path} is not a training checkpoint of AdapTok: it has no model.args")
    weights = model.get("sd")
    if ema is not None:
        averages = model.get("ema_sd")
        averages = averages if isinstance(averages, Mapping) else {}
        weights = {float(decay): average for decay, average in averages.items()}.get(float(ema))
        if weights is None:
            held = ", ".join(map(str, averages)) or "none"
            raise ValueError(f"{path} holds no average with decay {ema}; it holds: {held}")
    if not isinstance(weights, Mapping):
        raise ValueError(f"{path} is not a training checkpoint of AdapTok: it has no model.sd")
    sizes = GENERATORS.get(model.get("name")) if isinstance(model.get("name"), str) else None
    return dict(model["args"]) | (dict(zip(("n_layer", "n_head", "dim"), sizes, strict=True)) if sizes else {}), weights


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


__all__ = ["ConversionReport", "ConvertedModel", "convert_checkpoint"]
