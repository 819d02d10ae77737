"""The shape of the code: what imports what, which names are used where, and how long files and functions are."""

import ast
import gc
import importlib
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest

import adaptok_hf

PACKAGE = Path(adaptok_hf.__file__).parent
ROOT = PACKAGE.parent
MODULES = sorted(path.relative_to(PACKAGE).with_suffix("").parts for path in PACKAGE.rglob("*.py"))
# Code outside the package, which uses its public names only.
USERS = sorted(
    path.relative_to(ROOT)
    for folder in ("training_scripts", "space_app", "benchmarks", "model_cards", "docs")
    for path in (ROOT / folder).rglob("*.py")
)
FILES = sorted([*(path.relative_to(ROOT) for path in PACKAGE.rglob("*.py")), *USERS])

# Imports go to the same layer or to a lower one.
LAYERS = (
    ("atomic_files", "models", "video", "allocation", "metrics", "figures", "checkpoints"),
    ("data", "losses"),
    ("pipelines", "training", "conversion"),
    ("evaluation", "hub"),
    ("cli", "__main__"),
)
WITHOUT_LAYER = ("__init__", "auto_registration")

MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_SCRIPTS = 500, 80, 9


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def layer_of(name: str) -> int | None:
    """Return the layer of a sub-package, or of a module in the package's root."""
    if name in WITHOUT_LAYER:
        return None
    layers = [number for number, names in enumerate(LAYERS) if name in names]
    assert layers, f"adaptok_hf/{name} has no layer; add it to the table of this test"
    return layers[0]


@cache
def imports_of(path: Path, module: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Return absolute dotted names of all imports in a file, also those in functions; not those for type checkers."""
    tree = tree_of(path)
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and getattr(block.test, "id", "") == "TYPE_CHECKING"
        for statement in block.body
        for node in ast.walk(statement)
    }
    folder = ("adaptok_hf", *module[:-1])
    names = []
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            names += [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = folder[: len(folder) - node.level + 1] if node.level else ()
            base += tuple(node.module.split(".")) if node.module else ()
            # `from . import name` imports siblings, and `from .. import Name` what the package's root has from its home
            if node.level and not node.module:
                homes = adaptok_hf._HOMES if base == ("adaptok_hf",) else {}
                names += [(*base, *homes.get(alias.name, alias.name).split(".")) for alias in node.names]
            else:
                names.append(base)
    return names


@pytest.mark.parametrize("module", MODULES, ids=".".join)
def test_imports_only_go_down(module):
    layer = layer_of(module[0])
    for name in imports_of(PACKAGE.joinpath(*module).with_suffix(".py"), module):
        if name[0] != "adaptok_hf" or len(name) == 1 or name[1] == "__version__" or layer is None:
            continue
        if name[1] != module[0]:
            assert layer_of(name[1]) is not None and layer_of(name[1]) <= layer, f"{module} imports {name}"


def test_no_module_imports_itself_through_others():
    homes = {("adaptok_hf", *module) for module in MODULES}
    homes = {home: (*home, "__init__") for home in {home[:-1] for home in homes if home[-1] == "__init__"}} | {
        home: home for home in homes
    }
    waiting = {
        ("adaptok_hf", *module): {
            homes[name] for name in imports_of(PACKAGE.joinpath(*module).with_suffix(".py"), module) if name in homes
        }
        for module in MODULES
        if layer_of(module[0]) is not None
    }
    done = {("adaptok_hf", "__init__")}
    while ready := {module for module, imports in waiting.items() if imports <= done}:
        done |= ready
        waiting = {module: imports for module, imports in waiting.items() if module not in ready}
    assert not waiting, f"these import each other, or import such: {sorted(waiting)}"


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
    """An exported repository holds these files in one folder, `allocation/__init__.py` as `allocation.py`."""
    folders = ("models", "video", "pipelines", "allocation", "checkpoints")
    names = [m[-2] if m[-1] == "__init__" else m[-1] for m in MODULES if m[0] in folders]
    assert len(names) == len(set(names)), sorted(name for name in set(names) if names.count(name) > 1)


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__") and name != "_"


@cache
def private_definitions(path: Path) -> set[str]:
    """Return the underscore names of functions, classes, variables, and attributes of self."""
    names = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            names.add(node.attr)
    return set(filter(is_private, names))


def private_uses(path: Path, private_names: set[str]) -> Iterator[str]:
    """Yield underscore names of other modules that a file uses: imports, and attributes of anything but self and cls."""
    others = private_names - private_definitions(path)
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom):
            yield from (alias.name for alias in node.names if is_private(alias.name) and alias.name in private_names)
        elif isinstance(node, ast.Attribute) and node.attr in others:
            owner = ast.unparse(node.value)
            if owner not in ("self", "cls", "super()") and owner.partition(".")[0] not in ("np", "torch"):
                yield node.attr


def test_underscore_names_stay_in_their_module():
    private_names = {name for path in FILES for name in private_definitions(ROOT / path)}
    private_names.discard("_attn_implementation")  # a configuration's attribute in transformers
    uses = {(path.as_posix(), name) for path in FILES for name in private_uses(ROOT / path, private_names)}
    assert not uses, sorted(uses)


@pytest.mark.parametrize("path", USERS, ids=str)
def test_code_outside_the_package_uses_public_names(path):
    for node in ast.walk(tree_of(ROOT / path)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "adaptok_hf":
            module = importlib.import_module(node.module)
            assert not any(map(is_private, node.module.split("."))), node.module
            for alias in node.names:
                assert not is_private(alias.name) and hasattr(module, alias.name), f"{node.module}.{alias.name}"


def code_lines(function: ast.FunctionDef, lines: list[str]) -> int:
    """Count a function's lines without docstrings, comments and blank lines."""
    strings = {
        number
        for node in ast.walk(function)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        for number in range(node.lineno, node.end_lineno + 1)
    }
    numbers = set(range(function.lineno, function.end_lineno + 1)) - strings
    return sum(not lines[number - 1].strip().startswith("#") and bool(lines[number - 1].strip()) for number in numbers)


def test_files_and_functions_are_short():
    for path in FILES:
        lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
        assert len(lines) <= MAX_FILE_LINES, path
        for node in ast.walk(tree_of(ROOT / path)):
            if isinstance(node, ast.FunctionDef):
                assert code_lines(node, lines) <= MAX_FUNCTION_LINES, f"{path}: {node.name}"


def test_few_training_scripts():
    assert len(list((ROOT / "training_scripts").glob("*.py"))) <= MAX_SCRIPTS


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
    """Neither loads a library, so both answer at once; the help that lists strategies loads numpy and scipy only."""
    code = """
        import contextlib, io, sys
        import adaptok_hf
        from adaptok_hf.cli.main import main

        def help_of(*argv):
            text = io.StringIO()
            with contextlib.redirect_stdout(text):
                try:
                    main([*argv, "--help"])
                except SystemExit as stop:
                    assert stop.code == 0
            assert "usage: adaptok" in text.getvalue() and "--help" in text.getvalue()
            return text.getvalue()

        def loaded():
            return sorted({"torch", "transformers", "diffusers", "scipy", "numpy", "av", "PIL"} & set(sys.modules))

        for verb in ("detokenize", "generate", "predict", "stream", "export", "card", "convert", "info"):
            help_of(verb)
        assert "reconstruct" in help_of()
        print(loaded())
        strategies = [help_of(verb).rpartition("strategies:")[2] for verb in ("reconstruct", "tokenize")]
        print(loaded())
        from adaptok_hf.allocation import STRATEGIES
        assert all(name in text for name in STRATEGIES for text in strategies)
    """
    assert run_python(code).split("\n")[:2] == ["[]", "['numpy', 'scipy']"]


def test_public_names_are_imported_without_the_garbage_collector(monkeypatch):
    found = []
    imported = SimpleNamespace(AdapTokModel=None)
    monkeypatch.setattr(adaptok_hf.importlib, "import_module", lambda *_: found.append(gc.isenabled()) or imported)
    assert adaptok_hf.AdapTokModel is None and found == [False] and gc.isenabled()
    gc.disable()
    try:
        assert adaptok_hf.AdapTokModel is None and not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.slow
def test_the_pipeline_imports_only_what_its_base_classes_do():
    """What `PreTrainedModel` and `DiffusionPipeline` bring along takes seconds; nothing of other packages may join it."""
    code = """
        import sys
        from diffusers import DiffusionPipeline
        from transformers import PreTrainedModel
        before = set(sys.modules)
        from adaptok_hf import AdapTokPipeline
        print(sorted(name for name in sys.modules.keys() - before if not name.startswith("adaptok_hf")))
        late = ("av", "matplotlib", "torchmetrics", "torchvision", "sklearn", "pandas", "datasets", "adaptok_hf.conversion")
        print(sorted(sys.modules.keys() & {*late, "adaptok_hf.metrics", "adaptok_hf.data", "adaptok_hf.training"}))
    """
    llama = [f"transformers.models.llama{name}" for name in ("", ".configuration_llama", ".modeling_llama")]
    assert run_python(code).splitlines() == [str(llama), "[]"]


COMMON_ORDERS = [
    "import adaptok_hf; from transformers import AutoModel, AutoConfig, AutoVideoProcessor",
    "from transformers import AutoModel, AutoConfig, AutoVideoProcessor; import adaptok_hf",
]
OTHER_ORDERS = [
    "import adaptok_hf.models.modeling_adaptok; import transformers.modeling_layers",
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
        import gc, os, sys, traceback
        gc.disable()  # imports take less time
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
