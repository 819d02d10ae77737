"""Everything that README and documentation show works as written.

Every code block of the pages below is checked: names and keywords of Python, options of `adaptok`, of launchers and of the
training scripts. The first Python block and the first command of README are run too, all others with the slow tests: Python
blocks and the cells of the notebook by `exec`, `adaptok` commands by the command line's `main`, each in a new folder with
some videos. An HTML comment directly above a block says otherwise: `<!-- slow: why -->` or `<!-- not run: why -->`.
"""

import argparse
import ast
import configparser
import importlib
import inspect
import json
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from adaptok_hf import read_video, write_video
from adaptok_hf.cli.main import build_parser, main
from adaptok_hf.training import recipes

ROOT = Path(__file__).parents[2]
PAGES = ["README.md", "CONTRIBUTING.md", "training_scripts/README.md", "space_app/README.md"]
PAGES += sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md"))
NOTEBOOK = ROOT / "docs" / "quickstart.ipynb"


@dataclass
class Block:
    page: str
    line: int
    language: str
    code: str
    mark: str = ""  # "slow" or "not run"

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: str, text: str) -> list[Block]:
    blocks, tokens = [], MarkdownIt().parse(text)
    for before, token in zip([None, *tokens], tokens, strict=False):
        if token.type in ("fence", "code_block"):
            comment = before.content if before is not None and before.type == "html_block" else ""
            mark = re.search(r"<!-- (slow|not run): \S.*-->\s*$", comment)
            blocks.append(Block(page, token.map[0] + 1, token.info.strip(), token.content, mark[1] if mark else ""))
    return blocks


def read_notebook() -> Block:
    cells = [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]
    return Block("docs/quickstart.ipynb", 1, "python", "\n".join("".join(cell["source"]) for cell in cells))


BLOCKS = [block for page in PAGES for block in read_blocks(page, (ROOT / page).read_text())]


def parameters(blocks: list[Block]) -> list:
    """Test cases, of which all but the first Python block are slow."""
    first = next(block for block in blocks if block.language == "python")
    return [pytest.param(block, id=str(block), marks=[] if block is first else [pytest.mark.slow]) for block in blocks]


@pytest.fixture(scope="module")
def short_video(tmp_path_factory):
    """The beginning of the example, one clip and a half, for time's sake."""
    path = tmp_path_factory.mktemp("video") / "short.mp4"
    video = read_video(ROOT / "examples" / "surfing.mp4")
    write_video(path, video.frames[:24], video.fps)
    return path


@pytest.fixture
def folder(tmp_path, short_video, monkeypatch):
    """Where a reader stands: a folder with the videos that the blocks name."""
    for name in ("examples/surfing.mp4", "holiday.mp4", "my_videos/val/kayaking/one.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(short_video, tmp_path / name)
    (tmp_path / "docs").mkdir()  # where the notebook runs
    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr(sys, "argv", ["a_script.py", "my_videos/val"])
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("block", parameters([b for b in BLOCKS if b.mark != "not run"]))
def test_block_runs(block, folder):
    if block.language == "python":
        exec(compile(block.code, str(block), "exec"), {"__name__": "__main__"})
        return
    commands = read_commands(block.code)
    assert commands and all(command[0] == "adaptok" for command in commands), (
        f"{block}: only Python and adaptok are run here; mark it with <!-- not run: why --> if it cannot be"
    )
    for command in commands:
        assert main(command[1:]) == 0


@pytest.mark.parametrize("block", [*BLOCKS, read_notebook()], ids=str)
def test_block_is_right(block, monkeypatch):
    if block.language == "python":
        check_names(block.code)
        return
    for command in read_commands(block.code):
        check_command(command, block.page, monkeypatch)


def test_first_command_does_what_it_says(folder, capsys):
    shutil.copy(ROOT / "examples" / "surfing.mp4", "examples")
    first = next(block for block in BLOCKS if block.page == "README.md")
    command = next(command for command in read_commands(first.code) if command[0] == "adaptok")
    assert main(command[1:]) == 0
    written = ["reconstruction.mp4", "report.json", "side_by_side.mp4", "tokens.png"]
    assert sorted(path.name for path in (folder / "surfing-adaptok").iterdir()) == written
    budget = float(command[command.index("--budget") + 1])
    assert f"({budget:.1f} of {budget:g} tokens per block" in capsys.readouterr().out


def read_commands(code: str) -> list[list[str]]:
    """The words of each command: continued lines are joined; loops, variables and printed lines are left out."""
    lines = re.split(r"\n|&&", code.replace("\\\n", " "))
    commands = []
    for line in lines:
        if not re.match(r"\s*([A-Z_]+=\S+ )*(\S*/)?(adaptok|accelerate|python[\d.]*|torchrun|pip|make) ", line):
            continue
        words = shlex.split(line, comments=True)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):
            words.pop(0)
        commands.append([Path(words[0]).name, *words[1:]])
    return commands


class Parsed(SystemExit):
    """Raised where a script has read its options, instead of what it would do then."""


def check_command(words: list[str], page: str, monkeypatch) -> None:
    program, *rest = words
    if program == "adaptok":
        build_parser().parse_args([str(ROOT / word) if (ROOT / word).is_file() else word for word in rest])
    elif program == "accelerate":
        from accelerate.commands.config import load_config_from_file
        from accelerate.commands.launch import launch_command_parser

        assert rest[0] == "launch"
        launch = launch_command_parser().parse_args(rest[1:])
        if launch.config_file:
            load_config_from_file(str(ROOT / launch.config_file))
        check_script(launch.training_script, launch.training_script_args, page, monkeypatch)
    elif program == "torchrun":
        from torch.distributed.run import get_args_parser

        launch = get_args_parser().parse_args(rest)
        check_script(launch.training_script, launch.training_script_args, page, monkeypatch)
    elif program == "make":
        targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert set(rest) <= set(targets)
    elif program == "pip" or rest[:2] == ["-m", "pip"]:
        check_pip(rest)
    elif rest[0] != "-m":
        check_script(rest[0], rest[1:], page, monkeypatch)


def check_pip(words: list[str]) -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    extras = re.findall(r"\[([\w,]+)\]", " ".join(words))
    assert {extra for group in extras for extra in group.split(",")} <= set(setup["options.extras_require"])
    assert all((ROOT / word).exists() for word in words if word.endswith(".txt"))


def check_script(script: str, options: list[str], page: str, monkeypatch) -> None:
    """Runs a training script until it has read its options. Of other scripts only the file is looked for."""
    options = [str(ROOT / option) if option.endswith(".json") else option for option in options]
    if script == "adaptok_hf":  # accelerate launch -m adaptok_hf
        build_parser().parse_args(options)
        return
    if not (ROOT / script).exists():
        assert f"Save as `{script}`" in (ROOT / page).read_text(), f"{page} names {script}, which does not exist"
        return
    if not script.startswith("training_scripts/"):
        return

    def stopping(read):
        def read_and_stop(*arguments, **keywords):
            read(*arguments, **keywords)
            raise Parsed

        return read_and_stop

    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", [script, *options])
        patch.setattr(recipes, "parse_arguments", stopping(recipes.parse_arguments))
        patch.setattr(argparse.ArgumentParser, "parse_args", stopping(argparse.ArgumentParser.parse_args))
        with pytest.raises(Parsed):
            runpy.run_path(str(ROOT / script), run_name="__main__")


def check_names(code: str) -> None:
    """Imports, attributes of what is imported, and keywords of calls to it."""
    tree, names = ast.parse(code), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                importlib.import_module(alias.name)
                name = alias.name if alias.asname else alias.name.split(".")[0]
                names[alias.asname or name] = sys.modules[name]
        elif isinstance(node, ast.ImportFrom):
            module = importlib.import_module(node.module)
            names |= {alias.asname or alias.name: getattr(module, alias.name) for alias in node.names}

    def resolve(node):
        if isinstance(node, ast.Name):
            return names.get(node.id)
        owner = resolve(node.value) if isinstance(node, ast.Attribute) else None
        return None if owner is None else getattr(owner, node.attr)

    for node in ast.walk(tree):
        resolve(node)
        called = resolve(node.func) if isinstance(node, ast.Call) else None
        if called is not None:
            try:
                accepted = inspect.signature(called).parameters
            except ValueError:  # of functions in C
                continue
            if not any(parameter.kind == parameter.VAR_KEYWORD for parameter in accepted.values()):
                assert {keyword.arg for keyword in node.keywords} <= set(accepted), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\(([^)#:\s]+)[)#]", text)  # those with a scheme have a colon
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    folders = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith("."))
    for name in re.findall(rf"\b(?:{folders})/[\w/.-]*[a-z\d]\.(?:py|json|yaml|txt|toml|mp4|png|md)\b", text):
        missing += [] if (ROOT / name).exists() or (ROOT / page).parent.joinpath(name).exists() else [name]
    assert missing == []


def test_pictures_are_small_and_used():
    pictures = [path for path in (ROOT / "docs" / "images").iterdir() if path.suffix in (".png", ".gif")]
    assert sum(path.stat().st_size for path in pictures) <= 6_000_000
    text = "".join((ROOT / page).read_text() for page in PAGES)
    assert [path.name for path in pictures if f"/{path.name})" not in text] == []


@pytest.mark.slow
def test_notebook_runs_as_a_script(folder, monkeypatch):
    monkeypatch.chdir(folder / "docs")
    block = read_notebook()
    exec(compile(block.code, str(block), "exec"), {"__name__": "__main__"})


@pytest.mark.slow
def test_notebook_runs_in_its_kernel(folder, monkeypatch):
    pytest.importorskip("nbclient", reason="needs nbclient and ipykernel: pip install adaptok_hf[test]")
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.delenv("MPLBACKEND")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert all(not cell.outputs for cell in notebook.cells if cell.cell_type == "code")
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(folder / "docs")}}).execute()
    kinds = [set(output.data) for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("image/png" in kind for kind in kinds) >= 4


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The documentation as `make docs` builds it, where a warning is an error."""
    if find_spec("mkdocs") is None:
        pytest.skip("needs mkdocs: pip install adaptok_hf[docs]")
    site = tmp_path_factory.mktemp("site")
    process = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    assert process.returncode == 0 and "WARNING" not in process.stderr, process.stderr
    return site


@pytest.mark.slow
def test_site_has_every_page(site):
    for page in [*PAGES, "CHANGELOG.md", "model_cards/README.md"]:
        folder, name = Path(page).parent, Path(page).stem
        assert (site / folder / ("index.html" if name == "README" else f"{name}.html")).is_file(), page


@pytest.mark.slow
def test_docstring_names_are_links(site):
    """[`Name`] in a docstring leads somewhere (docs/api_links.py)."""
    for page in (site / "docs" / "api").glob("*.html"):
        assert "[<code>" not in page.read_text(), page.name


def test_api_reference_has_every_public_name():
    """Also those of the next export that somebody adds."""
    pages = "".join(path.read_text() for path in (ROOT / "docs" / "api").glob("*.md"))
    documented = re.findall(r"^::: (\S+)$", pages, flags=re.MULTILINE)
    for target in documented:
        module, _, name = target.rpartition(".")
        assert hasattr(importlib.import_module(module), name), target
    for module in ("", ".allocation", ".data", ".evaluation", ".losses", ".metrics"):
        names = {target.rpartition(".")[2] for target in documented if target.startswith(f"adaptok_hf{module}.")}
        missing = set(importlib.import_module(f"adaptok_hf{module}").__all__) - names - {"__version__"}
        assert not missing, f"adaptok_hf{module}: write ::: lines for these into docs/api"
