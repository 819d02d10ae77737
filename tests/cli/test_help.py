"""Help, examples, completion and progress."""

import argparse
import io
import shlex
import sys
import time

import pytest

from adaptok_hf.checkpoints import PACKAGED_CHECKPOINTS
from adaptok_hf.cli import waiting as progress
from adaptok_hf.cli.main import build_parser, main


def parsers() -> dict[str, argparse.ArgumentParser]:
    found = {"adaptok": build_parser()}
    for name, parser in list(found.items()):
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{name} {verb}": each for verb, each in action.choices.items()}
    for name in ("adaptok evaluate", "adaptok metrics"):
        for action in found[name]._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= {f"{name} {task}": each for task, each in action.choices.items()}
    return found


COMMANDS = [name for name in parsers() if name != "adaptok"]


def test_bare_adaptok_prints_help(capsys):
    assert main([]) == 0
    printed = capsys.readouterr()
    assert printed.err == "" and all(name.split()[1] in printed.out for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_examples_that_parse(command, capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main([*command.split()[1:], "--help"])
    assert stop.value.code == 0
    lines = capsys.readouterr().out.partition("examples:\n")[2].splitlines()
    examples = [line.strip() for line in lines if line.startswith("  adaptok ")]
    assert any(example.startswith(command) for example in examples)
    for example in examples:
        argv = shlex.split(example.partition("<")[0], comments=True)[1:]
        if "--recipe" not in argv:  # reads its file
            build_parser().parse_args(argv)


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.split()[1] not in ("metrics", "convert")])
def test_help_names_the_shipped_models(command, capsys, monkeypatch):
    if command == "adaptok evaluate":
        pytest.skip("its tasks have the option")
    with pytest.raises(SystemExit):
        main([*command.split()[1:], "--help"])
    printed = capsys.readouterr().out
    assert all(name in printed for name in PACKAGED_CHECKPOINTS)


def test_default_checkpoints():
    """What generates and predicts takes the checkpoint that has generators."""
    commands = {"reconstruct x": "small", "tokenize x": "small", "detokenize x": "small", "stream x": "small"}
    commands |= {"generate --class x": "figures", "predict x": "figures"}
    assert {command: build_parser().parse_args(command.split()).model for command in commands} == commands


@pytest.mark.parametrize("shell", ["bash", "zsh", "tcsh"])
def test_completion(shell, capsys):
    pytest.importorskip("shtab")
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", shell])
    printed = capsys.readouterr().out
    assert stop.value.code == 0 and "detokenize" in printed and "exact-budget" in printed


def test_completion_without_its_library(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "bash"]) == 2
    assert "shtab" in capsys.readouterr().err


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_waiting_is_shown_on_a_terminal_only(monkeypatch, capsys):
    monkeypatch.setattr(progress, "DELAY", 0.02)
    monkeypatch.setattr(progress, "INTERVAL", 0.02)
    with progress.waiting("loading small"):
        time.sleep(0.05)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.waiting("loading small"):
        deadline = time.monotonic() + 10
        while "loading small" not in sys.stderr.getvalue() and time.monotonic() < deadline:
            time.sleep(0.01)
    assert "loading small" in sys.stderr.getvalue()
    monkeypatch.setattr(progress, "DELAY", 60.0)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.waiting("something quick"):
        pass
    assert "quick" not in sys.stderr.getvalue()
