"""Repositories for the Hub: folders that load where this package is not installed, and their upload."""

import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, get_token, snapshot_download
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from transformers import AutoConfig, AutoModel, LlamaConfig, LlamaForCausalLM

from .. import checkpoints
from ..atomic_files import atomic_folder, write_json
from ..checkpoints import PACKAGED_CHECKPOINTS, find_checkpoint
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..models.modeling_adaptok_router import AdapTokRouterModel
from ..models.modeling_adaptok_scorer import AdapTokScorerModel
from ..pipelines.pipeline_adaptok import AdapTokPipeline
from ..pipelines.remote_code import COMPONENT_ENTRY, collect_code
from ..video.video_processing_adaptok import AdapTokVideoProcessor
from .card import TEXTS, read_configs, render_card
from .onnx_graphs import write_onnx

PARTS: dict[str, type] = {
    "tokenizer": AutoModel,  # AdapTok's or EVATok's
    "scorer": AdapTokScorerModel,
    "ar_model": AdapTokARForCausalLM,
    "fp_model": AdapTokARForCausalLM,
    "router": AdapTokRouterModel,
}
_PARTS_OF_KINDS = {"ar": "ar_model", "fp": "fp_model"}


@dataclass(frozen=True)
class ExportReport:
    """
    Args:
        destination: the folder; with `dry_run` it was not made.
        kind: `"pipeline"`, `"tokenizer"`, `"scorer"`, `"router"`, `"ar"`, `"fp"` or `"llama"`.
        files: name in the repository -> bytes.
        repository: where it was, or would be, uploaded; `None` for nowhere.
        private: whether a repository that has to be made is private.
        dry_run: nothing was written or sent.
        url: of the commit, if there was an upload.
    """

    destination: Path
    kind: str
    files: dict[str, int]
    repository: str | None = None
    private: bool = False
    dry_run: bool = False
    url: str | None = None

    def __str__(self) -> str:
        lines = [f"{size:>14,}  {name}" for name, size in self.files.items()]
        lines.append(f"{sum(self.files.values()):>14,}  bytes in {len(self.files)} files ({self.kind})")
        lines.append(f"{'would write' if self.dry_run else 'wrote'} {self.destination}/")
        if self.repository is not None and self.dry_run:
            privacy = "private" if self.private else "public"
            lines.append(f"would make the {privacy} model repository {self.repository}, unless it exists, and upload these")
        elif self.repository is not None:
            lines.append(f"uploaded to {self.repository}: {self.url}")
        return "\n".join(lines)


def find_model(model: str | os.PathLike, part: str | None = None) -> Path:
    """Return the folder of a model.

    Args:
        model: a folder, a Hub id (it is downloaded, without code), or a name in `adaptok_hf.checkpoints`.
        part: of a pipeline, one of `PARTS`; by default all of it.

    Raises:
        FileNotFoundError: if there is no such model, or it cannot be downloaded.
        ValueError: for an unknown part.
    """
    if part is not None and part not in PARTS:
        raise ValueError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    folder = Path(find_checkpoint(model)).expanduser()
    if not folder.is_dir():
        try:
            validate_repo_id(str(model))
            folder = Path(snapshot_download(str(model), allow_patterns=["*.json", "*.safetensors"]))
        except HFValidationError as error:
            raise FileNotFoundError(f"{model}: no such folder, and not the id of a Hub repository") from error
        except Exception as error:  # the Hub's and the network's errors have no common class
            raise FileNotFoundError(f"{model}: no such folder, and it cannot be downloaded ({error})") from error
    if part is not None and not (folder / part / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no part {part}")
    return folder.resolve() if part is None else (folder / part).resolve()


def read_release(name: str | os.PathLike | None, folder: str | os.PathLike) -> dict[str, Any] | None:
    """Return what a card says about weights, data and training: see `card_texts/releases`.

    Args:
        name: a checkpoint in the package, `"original"` (the authors' weights) or a TOML file of that form. Default: the
            checkpoint's for a folder in the package, nothing for others.
        folder: of the model.

    Raises:
        ValueError: for an unknown name or a file that is not TOML.
    """
    if name is None:
        shipped = Path(checkpoints.__file__).resolve().parent
        name = next((name for name in PACKAGED_CHECKPOINTS if Path(folder).resolve().is_relative_to(shipped / name)), None)
        if name is None:
            return None
    known = {path.stem: path for path in sorted((TEXTS / "releases").glob("*.toml"))}
    path = known.get(str(name), Path(name))
    if not path.is_file():
        raise ValueError(f"unknown release {str(name)!r}; give {', '.join(known)} or a TOML file")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a TOML file: {error}") from error


def export_repository(
    model: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    part: str | None = None,
    plain_llama: bool = False,
    onnx: bool = False,
    release: str | os.PathLike | None = None,
    reports: Sequence[dict[str, Any]] = (),
    weights_license: str | None = None,
    push_to_hub: str | None = None,
    private: bool = False,
    dry_run: bool = False,
) -> ExportReport:
    """Write a model or a pipeline as a repository that needs nothing of this package, and upload it if asked to.

    The folder appears only when all of it is written. Weights keep their dtype. A pipeline has its code in its root; its
    parts also load alone from there, by `subfolder=`.

    Args:
        model, part: see `find_model`.
        destination: a folder that does not exist or is empty.
        plain_llama: of a generator with `position_embedding="rope"`: the same weights as a stock Llama, without code.
        onnx: also write `onnx/`: encoder, decoder and scorer as graphs for runtimes without torch, see `write_onnx`.
        release, reports, weights_license: for the card, see `read_release` and `render_card`.
        push_to_hub: id of the repository to upload to; it is created if it does not exist. The token is
            huggingface_hub's: `HF_TOKEN`, or what `hf auth login` has stored.
        private: create that repository as a private one.
        dry_run: report what would be written and uploaded, leave no files, need neither network nor token.

    Raises:
        FileNotFoundError: if there is no such model.
        FileExistsError: if `destination` is in use.
        ImportError: for `onnx` without the libraries that it needs.
        ValueError: for a model of another kind or an impossible id, and without a token.
        OSError: if the upload fails; the folder stays.
    """
    destination = Path(destination).expanduser().resolve()
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise FileExistsError(f"{destination} exists already; give a folder that does not exist or is empty")
    if push_to_hub is not None:
        validate_repo_id(push_to_hub)  # HFValidationError is a ValueError
        if not dry_run and get_token() is None:
            raise ValueError("no token for the Hub was found: run `hf auth login`, or set HF_TOKEN")
    elif private:
        raise ValueError("private is about the repository on the Hub; give push_to_hub, too")
    folder = find_model(model, part)
    kind, configs = read_configs(folder)
    if onnx and kind not in ("pipeline", "tokenizer", "scorer"):
        hint = ", see plain_llama" if kind in _PARTS_OF_KINDS else ""
        raise ValueError(f"onnx is about a tokenizer or a scorer; {folder} holds a model of kind {kind!r}{hint}")
    if plain_llama:
        _check_llama(folder, kind, configs)
        kind = "llama"
    card = render_card(
        kind,
        configs,
        repository=push_to_hub or destination.name,
        release=read_release(release, folder),
        reports=reports,
        weights_license=weights_license,
    )
    with tempfile.TemporaryDirectory() if dry_run else atomic_folder(destination) as partial:
        partial = Path(partial)
        _write_repository(kind, folder, partial)
        if onnx:
            _write_onnx(kind, folder, partial / "onnx")
        card.save(partial / "README.md")
        paths = sorted(path for path in partial.rglob("*") if path.is_file())
        files = {path.relative_to(partial).as_posix(): path.stat().st_size for path in paths}
    url = None
    if push_to_hub is not None and not dry_run:
        url = upload_repository(destination, push_to_hub, private=private)
    return ExportReport(destination, kind, files, push_to_hub, private, dry_run, url)


def upload_repository(folder: str | os.PathLike, repository: str, *, private: bool = False) -> str:
    """Upload a folder in one commit to a model repository, which is created if it does not exist.

    Returns:
        The commit's address.

    Raises:
        OSError: if that fails; the folder is not changed.
    """
    api = HfApi()
    try:
        api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repository, repo_type="model", folder_path=folder, commit_message="Export from adaptok_hf"
        )
    except Exception as error:  # the Hub's and the network's errors have no common class
        raise OSError(
            f"the upload to {repository} failed ({' '.join(str(error).split())}); the folder is complete, try again with: "
            f"hf upload {repository} {folder}"
        ) from error
    return str(commit.commit_url)


def _check_llama(folder: Path, kind: str, configs: dict[str, Any]) -> None:
    if kind not in ("ar", "fp"):
        raise ValueError(f"only a generator (ar_model, fp_model) can be a plain Llama; {folder} holds a {kind}")
    position_embedding = configs[kind].position_embedding
    if position_embedding != "rope":
        raise ValueError(
            f"only a generator with position_embedding='rope' is a plain Llama; this one has {position_embedding!r}"
        )


def _write_repository(kind: str, folder: Path, destination: Path) -> None:
    if kind == "pipeline":
        _write_pipeline(folder, destination)
    elif kind == "llama":
        _write_llama(folder, destination)
    else:
        # weights, configuration with `auto_map`, generation configuration, and the model's code
        PARTS[_PARTS_OF_KINDS.get(kind, kind)].from_pretrained(folder, dtype="auto").save_pretrained(destination)
        if kind == "tokenizer":
            _write_processor(folder, destination)
    if kind != "llama":  # which holds no code
        shutil.copyfile(TEXTS / "LICENSE-CODE.txt", destination / "LICENSE-CODE.txt")
    for weights in destination.rglob("*.safetensors"):
        weights.chmod(0o644)  # safetensors makes files that only their owner can read


def _write_llama(folder: Path, destination: Path) -> None:
    generator = AdapTokARForCausalLM.from_pretrained(folder, dtype="auto")
    known = LlamaConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version", "dtype"}
    values = {name: value for name, value in generator.config.to_dict().items() if name in known}
    llama = LlamaForCausalLM.from_pretrained(folder, config=LlamaConfig(**values), dtype="auto")
    llama.generation_config = generator.generation_config
    config = generator.config
    if config.length_tokens:  # a block begins with one
        llama.generation_config.begin_suppress_tokens = list(range(config.codebook_size))
    elif config.block_separators:  # the first block is not empty
        llama.generation_config.begin_suppress_tokens = [config.eob_token_id]
    llama.generation_config.max_new_tokens = generator.config.max_sequence_length
    llama.save_pretrained(destination)


def _write_onnx(kind: str, folder: Path, destination: Path) -> None:
    for name in ("tokenizer", "scorer"):
        place = folder / name if kind == "pipeline" else folder
        if name == kind or (kind == "pipeline" and (place / "config.json").is_file()):
            write_onnx(PARTS[name].from_pretrained(place, dtype="float32"), destination)


def _processor_of(folder: Path) -> AdapTokVideoProcessor:
    """Return the processor in or next to a tokenizer's folder, or one that fits it."""
    for place in (folder, folder.with_name("video_processor")):
        if (place / "video_preprocessor_config.json").is_file():
            return AdapTokVideoProcessor.from_pretrained(place)
    config = AutoConfig.from_pretrained(folder)
    return AdapTokVideoProcessor(config.image_size, config.num_frames, config.tubelet_size)


def _write_processor(folder: Path, destination: Path) -> None:
    _processor_of(folder).save_pretrained(destination)
    file = destination / "video_preprocessor_config.json"
    entries = json.loads(file.read_text(encoding="utf-8"))
    entries["auto_map"] = {"AutoVideoProcessor": "video_processing_adaptok.AdapTokVideoProcessor"}
    write_json(file, entries)
    for name, content in collect_code("video.video_processing_adaptok").items():
        (destination / name).write_text(content, encoding="utf-8")


def _write_pipeline(folder: Path, destination: Path) -> None:
    source = json.loads((folder / "model_index.json").read_text(encoding="utf-8"))
    names = [name for name in PARTS if (source.get(name) or [None])[0] is not None]
    parts = {name: PARTS[name].from_pretrained(folder / name, dtype="auto") for name in names}
    # raises ValueError where the parts do not fit together
    AdapTokPipeline(_processor_of(folder / "tokenizer"), **parts).save_pretrained(destination)
    for name in names:
        for copy in (destination / name).glob("*.py"):  # the root has them
            if copy.stem != COMPONENT_ENTRY:
                copy.unlink()


__all__ = ["PARTS", "ExportReport", "export_repository", "find_model", "read_release", "upload_repository"]
