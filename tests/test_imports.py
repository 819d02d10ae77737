import ast
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import adaptok_hf

PACKAGE = Path(adaptok_hf.__file__).parent
FILES = [path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py")]
MODULES = sorted(file.with_suffix("").parts for file in FILES if file.parts[0] != "checkpoints")

# Imports go to the same layer or to a lower one.
LAYERS = (
    ("atomic_files", "models", "video", "allocation", "metrics", "figures", "checkpoints"),
    ("data", "losses"),
    ("pipelines", "training", "conversion"),
    ("evaluation", "hub"),
    ("cli", "__main__"),
)
WITHOUT_LAYER = ("__init__", "auto_registration")


def layer_of(name: str) -> int | None:
    """The layer of a sub-package, or of a module in the package's root."""
    if name in WITHOUT_LAYER:
        return None
    layers = [number for number, names in enumerate(LAYERS) if name in names]
    assert layers, f"adaptok_hf/{name} has no layer; add it to the table of this test"
    return layers[0]


def imports_of(path: Path, module: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Absolute dotted names of all imports in a file, also those inside functions; not those for type checkers."""
    tree = ast.parse(path.read_text())
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    folder = ("adaptok_hf", *module[:-1])
    found = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            found += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            # `from . import name` imports siblings
            found += [(*base, alias.name) for alias in node.names] if node.level and not node.module else [base]
    return found


@pytest.mark.parametrize("module", MODULES, ids=".".join)
def test_imports_only_go_down(module):
    layer = layer_of(module[0])
    for name in imports_of(PACKAGE.joinpath(*module).with_suffix(".py"), module):
        if name[0] != "adaptok_hf" or len(name) == 1 or name[1] == "__version__" or layer is None:
            continue
        if name[1] != module[0]:
            assert layer_of(name[1]) is not None and layer_of(name[1]) <= layer, f"{module} imports {name}"


def test_allocation_needs_numpy_and_scipy_only():
    for module in (m for m in MODULES if m[0] == "allocation"):
        for name in imports_of(PACKAGE.joinpath(*module).with_suffix(".py"), module):
            allowed = name[0] in ("numpy", "scipy") or name[0] in sys.stdlib_module_names
            assert allowed or name[:2] == ("adaptok_hf", "allocation"), f"{module} imports {name}"


def test_model_files_import_siblings_only():
    """transformers copies the siblings that a model file imports, and nothing else."""
    for module in (m for m in MODULES if m[0] == "models"):
        for node in ast.walk(ast.parse(PACKAGE.joinpath(*module).with_suffix(".py").read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                assert node.level == 1 and node.module and "." not in node.module, f"{module}: {ast.unparse(node)}"
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
                assert not any(n.split(".")[0] == "adaptok_hf" for n in names), f"{module}: {ast.unparse(node)}"


def test_base_names_are_unique_in_a_flat_repository():
    """An exported repository holds these files in one folder."""
    names = [m[-1] for m in MODULES if m[0] in ("models", "video", "pipelines", "allocation") and m[-1] != "__init__"]
    assert len(names) == len(set(names)) and "allocation" not in names


def test_public_names_resolve():
    assert {"AdapTokModel", "AdapTokScorerModel", "AdapTokPipeline", "read_video"} <= set(adaptok_hf.__all__)
    for name in adaptok_hf.__all__:
        value = getattr(adaptok_hf, name)
        assert name == "__version__" or value.__name__ == name
        assert name in dir(adaptok_hf)
    with pytest.raises(AttributeError, match="no attribute 'AdapTokTypo'"):
        adaptok_hf.AdapTokTypo  # noqa: B018


def test_names_for_type_checkers_are_the_public_ones():
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    declared = {alias.name: node.module for node in block.body for alias in node.names}
    assert declared == adaptok_hf._HOMES


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_and_help_are_light():
    """Neither loads torch or transformers, so both answer at once."""
    code = """
        import contextlib, io, sys
        import adaptok_hf
        from adaptok_hf.cli.main import main
        for argv in ([], *([verb] for verb in ("reconstruct", "tokenize", "detokenize", "convert", "info"))):
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                try:
                    main([*argv, "--help"])
                except SystemExit as stop:
                    assert stop.code == 0
            assert "usage: adaptok" in text.getvalue() and "--help" in text.getvalue()
        heavy = {"torch", "transformers", "diffusers", "scipy", "numpy", "av", "PIL"} & set(sys.modules)
        print(sorted(heavy))
    """
    assert run_python(code).strip() == "[]"


COMMON_ORDERS = [
    "import adaptok_hf; from transformers import AutoModel, AutoConfig, AutoVideoProcessor",
    "from transformers import AutoModel, AutoConfig, AutoVideoProcessor; import adaptok_hf",
    "import adaptok_hf.models.modeling_adaptok; import transformers.modeling_layers",
]
OTHER_ORDERS = [
    "from transformers import AutoConfig; import adaptok_hf.models.configuration_adaptok_scorer",
    "import transformers.modeling_layers; from adaptok_hf.video.video_processing_adaptok import AdapTokVideoProcessor",
    "import adaptok_hf; import transformers.video_processing_utils; import adaptok_hf.data",
    "import adaptok_hf.pipelines.pipeline_adaptok",
    "from diffusers import DiffusionPipeline; import adaptok_hf",
    "import adaptok_hf; from diffusers import DiffusionPipeline",
]


@pytest.mark.parametrize("orders", [COMMON_ORDERS, pytest.param(OTHER_ORDERS, marks=pytest.mark.slow)])
def test_classes_are_registered_for_every_import_order(orders):
    """Each order runs in a fork of one process that has loaded what takes long, but not transformers."""
    code = f"""
        import os, sys, traceback
        import huggingface_hub.hf_api, PIL.Image, scipy.optimize, tokenizers
        import torch._dynamo, torch.distributed.tensor, torch.nn.attention.flex_attention
        assert not any(name.split(".")[0] in ("transformers", "adaptok_hf", "diffusers") for name in sys.modules)

        def check(order):
            exec(order, {{}})
            assert "diffusers" not in order or "adaptok_hf.pipelines.pipeline_adaptok" in sys.modules
            from transformers import AutoConfig, AutoModel, AutoVideoProcessor
            from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING
            from transformers.models.auto.video_processing_auto import VIDEO_PROCESSOR_MAPPING
            import adaptok_hf
            for name in ("AdapTok", "AdapTokScorer", "AdapTokPrior"):
                config = getattr(adaptok_hf, name + "Config")
                assert type(AutoConfig.for_model(config.model_type)) is config, name
                assert MODEL_MAPPING[config] is getattr(adaptok_hf, name + "Model"), name
            assert MODEL_FOR_CAUSAL_LM_MAPPING[adaptok_hf.AdapTokARConfig] is adaptok_hf.AdapTokARForCausalLM
            found = VIDEO_PROCESSOR_MAPPING[adaptok_hf.AdapTokConfig]
            if "diffusers.pipelines.pipeline_utils" in sys.modules:
                assert sys.modules["diffusers"].AdapTokPipeline is adaptok_hf.AdapTokPipeline
            assert adaptok_hf.AdapTokVideoProcessor in (found.values() if isinstance(found, dict) else [found])

        for order in {orders!r}:
            child = os.fork()
            if child == 0:
                try:
                    check(order)
                except BaseException:
                    traceback.print_exc()
                    os._exit(1)
                os._exit(0)
            print("failed" if os.waitpid(child, 0)[1] else "registered", "|", order, flush=True)
    """
    assert run_python(code).splitlines() == [f"registered | {order}" for order in orders]


def test_modules_can_be_imported_by_name():
    for module in MODULES:
        if module[-1] != "__main__":
            importlib.import_module(".".join(("adaptok_hf", *module)).removesuffix(".__init__"))
