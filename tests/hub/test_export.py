"""Exported repositories: what they hold, how they load without the package, and their upload."""

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from builders.fake_hub import serve_repository
from builders.routers import make_router, with_router
from builders.token_data import make_pipeline
from builders.video_files import make_frames, write_mp4
from builders.without_package import run_without_the_package
from diffusers.utils.dynamic_modules_utils import get_relative_imports
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from adaptok_hf import AdapTokARConfig, AdapTokARForCausalLM, AdapTokPipeline
from adaptok_hf.checkpoints import ORIGINAL_CHECKPOINTS, PACKAGED_CHECKPOINTS
from adaptok_hf.cli.main import main
from adaptok_hf.hub import export
from adaptok_hf.hub.card import TEXTS
from adaptok_hf.hub.export import export_repository, find_model, read_release
from adaptok_hf.pipelines.remote_code import PIPELINE_ENTRY, collect_code, component_code, pipeline_code

GENERATOR = {
    "codebook_size": 50,
    "num_blocks": 3,
    "latents_per_block": 6,
    "hidden_size": 32,
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
}
KINDS = ("tokenizer", "scorer", "ar_model", "fp_model", "router", "llama", "pipeline")


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    """A pipeline of all parts, as `save_pretrained` writes it; the class-conditional generator draws at temperature 0.7."""
    torch.manual_seed(3)
    ar = AdapTokARForCausalLM(AdapTokARConfig(num_classes=2, id2label={0: "cat", 1: "dog"}, **GENERATOR))
    ar.generation_config.temperature = 0.7
    fp = AdapTokARForCausalLM(AdapTokARConfig(num_classes=0, num_condition_codes=12, start_block=1, **GENERATOR))
    folder = tmp_path_factory.mktemp("original") / "saved"
    with_router(make_pipeline(ar_model=ar.half(), fp_model=fp), make_router()).save_pretrained(folder)
    return folder


@pytest.fixture
def saved(original, tmp_path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(original, tmp_path / "saved"))


@pytest.fixture(scope="module")
def repositories(original, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("repositories")
    for part in KINDS[:5]:
        export_repository(original, folder / part, part=part)
    export_repository(original, folder / "llama", part="ar_model", plain_llama=True)
    export_repository(original, folder / "pipeline")
    return folder


@pytest.fixture
def exported(repositories, tmp_path) -> Path:
    """A folder of repositories, one of each kind; a copy that a test may change."""
    return Path(shutil.copytree(repositories, tmp_path / "exported"))


LOAD_ALL = """
import re
import torch
from pathlib import Path
from safetensors.torch import load_file, save_file
inputs = load_file("inputs.safetensors")
results = {}
for kind in ("tokenizer", "scorer", "ar_model", "fp_model", "router", "llama", "pipeline"):
    usage = re.search(r"```python\\n(.*?)```", Path(kind, "README.md").read_text(), re.S)[1]  # as a user would paste it
    assert len(usage.strip().splitlines()) <= 8, usage
    names = {}
    exec(usage, names)
    with torch.no_grad():
        if kind == "tokenizer":
            encoded = names["tokenizer"].encode(inputs["video"])
            results["codes"] = encoded.codes
        elif kind == "scorer":
            results["scores"] = names["scorer"](encoded.latents, encoded.quantized).scores
        elif kind == "router":
            results["routed"] = names["router"].route(inputs["video"], 0.0025)
        elif kind == "pipeline":
            pipeline = names["pipeline"]
            output = pipeline.reconstruct("video.mp4", budget="50%")
            results |= {"frames": torch.from_numpy(output.frames), "counts": output.token_counts}
            routed = pipeline.tokenize("video.mp4", budget=3, allocation="router")
            assert routed.num_tokens == 3 * routed.num_blocks and "price" in routed.allocation
            results["drawn"] = pipeline.ar_model.generate(class_labels=[0, 1], seeds=[3, 4])
            assert pipeline.ar_model.generation_config.temperature == 0.7
            assert type(pipeline).__module__ == "diffusers_modules.local.pipeline_adaptok"
            assert isinstance(pipeline.tokenizer, sys.modules["diffusers_modules.local.modeling_adaptok"].AdapTokModel)
        else:
            results[kind] = names["model"].eval()(inputs["ids"]).logits
            if kind == "llama":
                exec(re.findall(r"```python\\n(.*?)```", Path(kind, "README.md").read_text(), re.S)[1], names)
                results["video"] = names["video"]
from transformers import AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module
part = AutoModel.from_pretrained("pipeline", subfolder="tokenizer", trust_remote_code=True)
results["codes of the part"] = part.encode(inputs["video"]).codes
name = "video_processing_adaptok.AdapTokVideoProcessor"
processor = get_class_from_dynamic_module(name, "tokenizer").from_pretrained("tokenizer")
results["clips"] = processor.clips("video.mp4").frames
save_file({name: tensor.contiguous() for name, tensor in results.items()}, "results.safetensors")
"""


def test_repositories_load_without_the_package(exported, saved):
    """Usage lines of each card, and the same numbers as with the package."""
    write_mp4(exported / "video.mp4", frames=make_frames(14, 24, 32))
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "video": torch.rand(2, 12, 3, 16, 16, generator=generator),
        "ids": torch.randint(50, (1, 9), generator=generator),
    }
    save_file(inputs, exported / "inputs.safetensors")
    run_without_the_package(LOAD_ALL, cwd=exported)
    results = load_file(exported / "results.safetensors")

    pipeline = AdapTokPipeline.from_pretrained(saved)
    with torch.no_grad():
        encoded = pipeline.tokenizer.encode(inputs["video"])
        assert torch.equal(results["codes"], encoded.codes) and torch.equal(results["codes of the part"], encoded.codes)
        torch.testing.assert_close(results["scores"], pipeline.scorer(encoded.latents, encoded.quantized).scores)
        assert torch.equal(results["routed"], pipeline.router.route(inputs["video"], 0.0025))
        for name in ("ar_model", "fp_model"):
            torch.testing.assert_close(results[name], getattr(pipeline, name).eval()(inputs["ids"]).logits)
        torch.testing.assert_close(results["llama"], results["ar_model"])
        assert results["video"].shape == (1, 12, 3, 16, 16)
        drawn = pipeline.ar_model.generate(class_labels=[0, 1], seeds=[3, 4])
    assert torch.equal(results["drawn"], drawn)
    output = pipeline.reconstruct(exported / "video.mp4", budget="50%")
    assert torch.equal(results["counts"], output.token_counts)
    assert (results["frames"] - torch.from_numpy(output.frames)).abs().max() <= 1.01 / 255
    assert torch.equal(results["clips"], pipeline.video_processor.clips(exported / "video.mp4").frames)


FROM_HUB = """
import torch
from diffusers import DiffusionPipeline
pipeline = DiffusionPipeline.from_pretrained("someone/tiny", trust_remote_code=True, dtype=torch.float32)
assert pipeline.reconstruct("video.mp4", budget="50%").frames.shape == (1, 14, 16, 16, 3)
print(pipeline.ar_model.generation_config.temperature, pipeline.fp_model.generation_config.suppress_tokens)
"""
FROM_HUB_WITH_PACKAGE = """
from pathlib import Path
from adaptok_hf import AdapTokPipeline
pipeline = AdapTokPipeline.from_pretrained("someone/tiny")
assert type(pipeline.tokenizer).__module__ == "adaptok_hf.models.modeling_adaptok"
assert pipeline.reconstruct("video.mp4", budget="50%").frames.shape == (1, 14, 16, 16, 3)
print(pipeline.ar_model.generation_config.temperature)
"""


@pytest.mark.slow
def test_pipeline_loads_from_a_hub(exported, tmp_path):
    """diffusers downloads less than the repository holds: no siblings of a part's file, no part's generation config."""
    write_mp4(tmp_path / "video.mp4", frames=make_frames(14, 24, 32))
    with serve_repository("someone/tiny", exported / "pipeline") as (address, fetched):
        online = {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        printed = run_without_the_package(FROM_HUB, cwd=tmp_path, **online)
        assert printed.split("\n")[0] == "0.7 [51]"
        assert "ar_model/generation_config.json" not in fetched and "adaptok_pipeline.py" in fetched
        fetched.clear()
        environment = (
            os.environ | online | {"HF_HOME": str(tmp_path / "other"), "PYTHONPATH": str(Path(__file__).parents[2])}
        )
        done = subprocess.run(
            [sys.executable, "-c", FROM_HUB_WITH_PACKAGE], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-4000:]
        assert done.stdout.strip() == "0.7"
        assert fetched and not any(name.endswith(".py") for name in fetched)


def test_package_loads_exported_pipelines_with_its_own_classes(exported, saved):
    for code in (exported / "pipeline").rglob("*.py"):
        code.write_text("raise AssertionError('code of the repository was run')")
    for folder in (exported / "pipeline", saved):
        pipeline = AdapTokPipeline.from_pretrained(folder)
        assert type(pipeline.tokenizer).__module__ == "adaptok_hf.models.modeling_adaptok"
        assert pipeline.ar_model.generation_config.temperature == 0.7


def test_code_is_flat_and_complete():
    files = pipeline_code()
    assert {"allocation.py", "budgets.py", "block_cache.py", "pipeline_streaming.py"} <= files.keys()
    for name, source in files.items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and f"{node.module}.py" in files, f"{name}: {ast.unparse(node)}"
                assert "." not in node.module


def test_entry_names_all_files_to_diffusers(tmp_path):
    """diffusers copies what this finds in the entry file, and looks no further."""
    files = pipeline_code()
    (tmp_path / "entry.py").write_text(files[f"{PIPELINE_ENTRY}.py"])
    assert {f"{name}.py" for name in get_relative_imports(tmp_path / "entry.py")} == files.keys() - {f"{PIPELINE_ENTRY}.py"}


def test_flattened_code_keeps_its_meaning():
    flat = collect_code("allocation")
    assert "from .budgets import published_budgets" in flat["allocation.py"]
    classes = component_code({"AdapTokARForCausalLM": AdapTokARForCausalLM.__module__})
    assert classes.count("AdapTokARForCausalLM = import_module(") == 1


def test_files_of_each_kind(exported):
    names = {kind: {p.relative_to(exported / kind).as_posix() for p in (exported / kind).rglob("*")} for kind in KINDS}
    for kind in KINDS[:5]:
        config = json.loads((exported / kind / "config.json").read_text())
        home = next(iter(config["auto_map"].values())).partition(".")[0]
        assert {"README.md", "model.safetensors", f"{home}.py", "LICENSE-CODE.txt"} <= names[kind]
    assert "block_cache.py" in names["tokenizer"] and "video_preprocessor_config.json" in names["tokenizer"]
    assert "generation_config.json" in names["ar_model"] and "generation_config.json" in names["fp_model"]
    assert names["llama"] == {"README.md", "config.json", "generation_config.json", "model.safetensors"}
    assert json.loads((exported / "llama" / "config.json").read_text())["model_type"] == "llama"
    index = json.loads((exported / "pipeline" / "model_index.json").read_text())
    assert index["_class_name"] == [PIPELINE_ENTRY, "AdapTokPipeline"]
    assert {"video_processor/adaptok_component.py", "ar_model/generation_config.json"} <= names["pipeline"]
    assert not any(path.stat().st_mode & 0o044 != 0o044 for path in exported.rglob("*.safetensors"))


def test_weights_keep_their_dtype(exported):
    dtypes = {kind: next(iter(load_file(exported / kind / "model.safetensors").values())).dtype for kind in KINDS[:6]}
    assert dtypes["ar_model"] == dtypes["llama"] == torch.float16 and dtypes["fp_model"] == torch.float32
    assert LlamaForCausalLM.from_pretrained(exported / "llama").dtype == torch.float16


def test_exports_can_be_exported_again(exported, tmp_path):
    export_repository(exported / "pipeline", tmp_path / "again")
    first, second = (
        load_file(folder / "tokenizer" / "model.safetensors") for folder in (exported / "pipeline", tmp_path / "again")
    )
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_optional_parts_may_be_missing(tiny_tokenizer, tiny_pipeline, tmp_path):
    AdapTokPipeline(tiny_pipeline.video_processor, tiny_tokenizer).save_pretrained(tmp_path / "saved")
    export_repository(tmp_path / "saved", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model_index.json").read_text())
    assert index["scorer"] == index["ar_model"] == [None, None]
    assert "generate(" not in (tmp_path / "out" / "README.md").read_text()


def test_bad_requests(saved, tmp_path, capsys):
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").touch()
    absolute = AdapTokARForCausalLM(AdapTokARConfig(num_classes=2, position_embedding="absolute", **GENERATOR))
    absolute.save_pretrained(tmp_path / "absolute")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    out = tmp_path / "out"
    for error, match, model, options in (
        (FileExistsError, "used", saved, {"destination": used}),
        (ValueError, "encoder", saved, {"part": "encoder"}),
        (FileNotFoundError, "scorer", saved / "tokenizer", {"part": "scorer"}),
        (FileNotFoundError, "nothing", tmp_path / "nothing", {}),
        (ValueError, "bert", tmp_path / "other", {}),
        (FileNotFoundError, "config.json", used, {}),
        (ValueError, "ar_model, fp_model", saved, {"plain_llama": True}),
        (ValueError, "ar.*plain_llama", saved, {"part": "ar_model", "onnx": True}),
        (ValueError, "'router'", saved, {"part": "router", "onnx": True}),
        (ValueError, "'absolute'", tmp_path / "absolute", {"plain_llama": True}),
        (ValueError, "mine", saved, {"release": "mine"}),
        (ValueError, "push_to_hub", saved, {"private": True}),
        (ValueError, "a/b/c", saved, {"push_to_hub": "a/b/c"}),
    ):
        with pytest.raises(error, match=match):
            export_repository(model, **{"destination": out} | options)
        assert not out.exists() and not list(tmp_path.glob(".out*"))
    assert main(["export", str(saved), str(used)]) == 2
    assert str(used) in capsys.readouterr().err
    assert [path.name for path in used.iterdir()] == ["file"]


def test_models_by_name(saved, tmp_path, monkeypatch):
    small, figures = find_model("small"), find_model("figures")
    assert (small.parent, small.name, figures.name) == (figures.parent, "small", "figures")
    assert find_model("small", "scorer") == small / "scorer"
    assert read_release(None, small / "scorer") == read_release("small", saved) != read_release(None, figures)
    assert read_release(None, saved) is None
    monkeypatch.chdir(tmp_path)
    shutil.copytree(saved, "small")
    assert find_model("small") == tmp_path / "small"  # a folder of that name comes first


def test_releases_name_known_checkpoints():
    assert set(PACKAGED_CHECKPOINTS) | {"original"} == {path.stem for path in (TEXTS / "releases").glob("*.toml")}
    assert set(read_release("original", TEXTS)["base_model"].values()) == set(ORIGINAL_CHECKPOINTS)


def test_parts_that_do_not_fit_are_refused(saved, tmp_path):
    config = AdapTokARConfig(num_classes=2, **(GENERATOR | {"codebook_size": 40}))
    AdapTokARForCausalLM(config).save_pretrained(saved / "ar_model")
    with pytest.raises(ValueError, match="codebook_size"):
        export_repository(saved, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


class RecordedApi:
    """In place of `HfApi`; keeps what it was asked for."""

    calls: list[tuple[str, dict]] = []
    fails = False

    def create_repo(self, repo_id, **options):
        self.calls.append(("create", {"repo_id": repo_id, **options}))

    def upload_folder(self, **options):
        if self.fails:
            raise ConnectionError("the line broke")
        files = sorted(
            path.relative_to(options["folder_path"]).as_posix() for path in Path(options["folder_path"]).rglob("*")
        )
        self.calls.append(("upload", {**options, "files": files}))
        return SimpleNamespace(commit_url="https://hub/commit/1")


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setattr(export, "HfApi", RecordedApi)
    monkeypatch.setattr(RecordedApi, "calls", [])
    monkeypatch.setattr(RecordedApi, "fails", False)
    monkeypatch.setattr(export, "get_token", lambda: "hf_secret")
    return RecordedApi


def test_push(api, saved, tmp_path, capsys):
    command = ["export", str(saved), str(tmp_path / "out"), "--part", "scorer", "--push-to-hub", "me/scorer", "--private"]
    assert main(command) == 0
    (_, created), (_, uploaded) = api.calls
    assert created == {"repo_id": "me/scorer", "repo_type": "model", "private": True, "exist_ok": True}
    assert uploaded["repo_id"] == "me/scorer" and uploaded["folder_path"] == (tmp_path / "out").resolve()
    assert {"README.md", "config.json", "model.safetensors", "modeling_adaptok_scorer.py"} <= set(uploaded["files"])
    printed = capsys.readouterr()
    assert "uploaded to me/scorer: https://hub/commit/1" in printed.out and "hf_secret" not in printed.out + printed.err
    assert '"me/scorer"' in (tmp_path / "out" / "README.md").read_text()


def test_push_without_a_token(api, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "get_token", lambda: None)
    with pytest.raises(ValueError, match="hf auth login"):
        export_repository(saved, tmp_path / "out", part="scorer", push_to_hub="me/scorer")
    assert api.calls == [] and not (tmp_path / "out").exists()


def test_failed_push_keeps_the_folder(api, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(RecordedApi, "fails", True)
    with pytest.raises(OSError, match="the line broke.*me/scorer"):
        export_repository(saved, tmp_path / "out", part="scorer", push_to_hub="me/scorer")
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_dry_run(api, saved, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "get_token", lambda: None)
    planned = export_repository(saved, tmp_path / "out", push_to_hub="me/tiny", private=True, dry_run=True)
    assert api.calls == [] and not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))
    text = str(planned)
    assert "would make the private model repository me/tiny" in text and "would write" in text
    assert "tokenizer/model.safetensors" in text
    monkeypatch.setattr(export, "get_token", lambda: "hf_secret")
    done = export_repository(saved, tmp_path / "out", push_to_hub="me/tiny", private=True)
    assert done.files == planned.files and str(sum(done.files.values()))[:1] in text
    assert done.files["model_index.json"] == (tmp_path / "out" / "model_index.json").stat().st_size
