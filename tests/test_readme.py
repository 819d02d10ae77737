"""What the README shows works as written."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adaptok_hf.cli import build_parser

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("code", blocks("python"), ids=lambda code: code.split("\n")[0][:40])
def test_python_block_runs(code, tmp_path):
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_adaptok_commands_parse():
    lines = [line for block in blocks("bash") for line in re.split(r"\n|&&", block)]
    commands = [line.strip() for line in lines if re.match(r"\s*(env/bin/)?adaptok ", line)]
    assert len(commands) >= 3
    for command in commands:
        build_parser().parse_args(shlex.split(command)[1:])


def test_files_that_are_named_exist():
    links = re.findall(r"\]\(((?!http)[^)]+)\)", README) + re.findall(r"[\w/]+\.(?:py|json|mp4|txt)\b", README)
    named = {name for name in links if "/" in name and not name.startswith(("env/", "surfing-adaptok", "DATA"))}
    missing = [name for name in named if not (ROOT / name).exists()]
    assert missing == [] and len(named) > 5


def test_first_command_does_what_it_says(tmp_path):
    """The first README command, in this environment."""
    command = [sys.executable, "-m", "adaptok_hf", "reconstruct", str(ROOT / "examples/surfing.mp4"), "--budget", "32"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in (tmp_path / "surfing-adaptok").iterdir()) == [
        "reconstruction.mp4",
        "report.json",
        "side_by_side.mp4",
        "tokens.png",
    ]
    assert "(32.0 per block" in done.stdout
