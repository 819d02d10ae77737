"""The code files that a Hub repository needs to load where this package is not installed.

transformers copies the siblings that a model file imports. diffusers does less: it copies only the files that the
pipeline's own file names, none that those import, and of a component's folder nothing but one file. So a pipeline's
repository has an entry file that names all others, and a file in each component's folder that finds them.
"""

import ast
import json
from functools import cache
from pathlib import Path
from typing import Any

from ..atomic_files import write_json, write_text

# A pipeline that was loaded from a repository saves the files that it came with: they lie next to this one.
_IS_REMOTE = __name__.split(".")[-2] != "pipelines"
_ROOT = Path(__file__).parent if _IS_REMOTE else Path(__file__).parents[1]
# Module names in a pipeline's `model_index.json`.
PIPELINE_ENTRY, COMPONENT_ENTRY = "adaptok_pipeline", "adaptok_component"

_PIPELINE_ENTRY = '''"""Loads AdapTokPipeline: `DiffusionPipeline.from_pretrained(..., trust_remote_code=True)`.

diffusers copies the files that this one names, and not those that they import; so it names all.
"""

{imports}
{pipeline}

__all__ = ["AdapTokPipeline"]
'''

_COMPONENT_ENTRY = '''"""Names this component's class for diffusers, which has loaded the pipeline's files before."""

from importlib import import_module

{assignments}
'''


def collect_code(*modules: str) -> dict[str, str]:
    """Modules of this package and all that they import from it, as files for one flat folder.

    Remote code cannot import from sub-packages: `models/layers.py` becomes `layers.py`, `allocation/__init__.py` becomes
    `allocation.py`, and imports are changed accordingly. So base names must be unique.

    Args:
        modules: names such as `"models.modeling_adaptok"` or `"allocation"`.

    Returns:
        File name -> source.
    """
    files: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        name = f"{_flat(module)}.py"
        if name not in files:
            files[name], imported = _flatten(module)
            waiting += imported
    return dict(sorted(files.items()))


@cache
def pipeline_code() -> dict[str, str]:
    """The files in the root of a pipeline's repository, the entry file among them."""
    files = collect_code("pipelines.pipeline_adaptok")
    names = [Path(name).stem for name in files if name != "pipeline_adaptok.py"]
    imports = "\n".join(f"from .{name} import __name__ as _  # noqa: F401" for name in names)
    # in the template above, diffusers would take this line for an import of that file, and follow it in circles
    pipeline = "from .pipeline_adaptok import AdapTokPipeline"
    return files | {f"{PIPELINE_ENTRY}.py": _PIPELINE_ENTRY.format(imports=imports, pipeline=pipeline)}


def component_code(classes: dict[str, str]) -> str:
    """Return the file that goes into the folder of each component; the same in all: diffusers puts them in one place.

    Args:
        classes: name -> module.
    """
    lines = [f'{name} = import_module(".{_flat(module)}", __package__).{name}' for name, module in sorted(classes.items())]
    return _COMPONENT_ENTRY.format(assignments="\n".join(lines))


def write_pipeline_index(file: Path, index: dict[str, Any]) -> None:
    """Write the `model_index.json` of a saved pipeline, and the code that lets its folder load without this package.

    Args:
        file: in the folder in which the components have been saved.
        index: its entries, as diffusers wrote them. Components of other libraries stay theirs.
    """
    folder, files = file.parent, pipeline_code()
    pairs = {name: value for name, value in index.items() if isinstance(value, list) and value[0] is not None}
    parts = {name: (module, kind) for name, (module, kind) in pairs.items() if f"{_flat(module)}.py" in files}
    code = component_code({kind: module for module, kind in parts.values()})
    for name, (_, kind) in parts.items():
        index[name] = [COMPONENT_ENTRY, kind]
        write_text(folder / name / f"{COMPONENT_ENTRY}.py", code)
        config, sampling = folder / name / "config.json", folder / name / "generation_config.json"
        if sampling.is_file():  # diffusers does not download it; without it, transformers reads its entries in config.json
            entries = (json.loads(path.read_text(encoding="utf-8")) for path in (sampling, config))
            write_json(config, next(entries) | next(entries))
    for base, content in files.items():
        write_text(folder / base, content)
    write_json(file, index | {"_class_name": [PIPELINE_ENTRY, index["_class_name"]]})


def _flat(module: str) -> str:
    return module.rpartition(".")[2]


def _flatten(module: str) -> tuple[str, list[str]]:
    """The source of a module with flat relative imports, and the modules that these name."""
    module = _flat(module) if _IS_REMOTE else module
    path = _ROOT.joinpath(*module.split("."))
    is_package = path.is_dir()
    source = (path / "__init__.py" if is_package else path.with_suffix(".py")).read_text(encoding="utf-8")
    package = module.split(".") if is_package else module.split(".")[:-1]
    lines, imported = source.splitlines(keepends=True), []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        if not node.module or node.level > len(package) + 1:
            raise AssertionError(f"{module}: remote code cannot have {ast.unparse(node)!r}")
        target = ".".join([*package[: len(package) - node.level + 1], node.module])
        old, line = f"from {'.' * node.level}{node.module} import", lines[node.lineno - 1]
        if old not in line:
            raise AssertionError(f"{module}: expected {old!r} in line {node.lineno}")
        lines[node.lineno - 1] = line.replace(old, f"from .{_flat(target)} import")
        imported.append(target)
    return "".join(lines), imported
