"""How a program ends: exit codes, lines on standard error, signals and pipes."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adaptok_hf.cli.program import STOP_SIGNALS, run_program, run_script, take_debug


def raising(error: BaseException):
    def run():
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("the value 7\nis wrong"), 2, "p: error: the value 7 is wrong\n"),
        (FileNotFoundError(2, "No such file", "a.mp4"), 2, "p: error: [Errno 2] No such file: 'a.mp4'\n"),
        (ImportError("datasets is missing"), 2, "p: error: datasets is missing\n"),
        (MemoryError(), 2, "p: error: not enough memory: MemoryError\n"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 2, None),
        (IndexError("list index out of range"), 1, None),
        (RecursionError("too deep"), 1, None),
        (KeyboardInterrupt(), 130, "p: interrupted\n"),
        (ValueError("x" * 1000), 2, f"p: error: {'x' * 397}...\n"),
    ],
    ids=repr,
)
def test_errors(error, code, line, capsys):
    assert run_program("p", raising(error)) == code
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1 and "Traceback" not in printed
    assert printed == line if line else type(error).__name__ in printed or "not enough memory" in printed
    assert ("this is a bug, run with --debug" in printed) == (code == 1)
    assert run_program("p", raising(error), debug=True) == code
    assert "Traceback" in capsys.readouterr().err


def test_debug_is_an_option_of_every_command():
    for argv, found, left in (
        (["info", "--debug"], True, ["info"]),
        (["--debug", "info"], True, ["info"]),
        (["tokenize", "--", "--debug"], False, ["tokenize", "--", "--debug"]),
        ([], False, []),
    ):
        assert take_debug(argv) == found and argv == left


def test_a_script_exits(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["folder/train.py", "--debug"])
    with pytest.raises(SystemExit) as stop:
        run_script(raising(KeyError("a")))
    assert stop.value.code == 1 and "train.py: error: KeyError" in capsys.readouterr().err and "--debug" not in sys.argv


@pytest.fixture(autouse=True)
def signals():
    """As a terminal starts a program; in the background, or under nohup, some are ignored."""
    before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
    for number in STOP_SIGNALS:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.skipif(not hasattr(signal, "raise_signal"), reason="no signals")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_clean_up(name, capsys):
    number, cleaned = getattr(signal, name), []
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]

    def run():
        try:
            signal.raise_signal(number)
            cleaned.append("not stopped")
        finally:
            signal.raise_signal(signal.SIGTERM)  # a second one does not stop the cleaning
            cleaned.append("cleaned")

    assert run_program("p", run) == 128 + number and cleaned == ["cleaned"]
    assert ("interrupted" if name == "SIGINT" else name) in capsys.readouterr().err
    assert before == [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]


def test_a_library_may_turn_an_interrupt_into_an_error(capsys):
    def run():
        try:
            signal.raise_signal(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("numpy is broken") from None

    assert run_program("p", run) == 143 and "SIGTERM" in capsys.readouterr().err


def test_a_second_signal_stops_a_library_that_swallowed_the_first():
    reached = []

    def run():
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        reached.append("first")
        signal.raise_signal(signal.SIGTERM)
        reached.append("second")

    assert run_program("name", run) == 128 + signal.SIGTERM
    assert reached == ["first"]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers")
def test_a_swallowed_signal_is_raised_again(monkeypatch):
    monkeypatch.setattr("adaptok_hf.cli.program.REPEAT_SECONDS", 0.01)
    reached = []

    def run():
        with contextlib.suppress(BaseException):
            signal.raise_signal(signal.SIGTERM)
        reached.append("continued")
        try:
            time.sleep(5)
            reached.append("ended")
        finally:
            time.sleep(0.03)  # the timer does not stop the cleaning
            reached.append("cleaned")

    assert run_program("name", run) == 128 + signal.SIGTERM
    assert reached == ["continued", "cleaned"]
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0) and signal.getsignal(signal.SIGALRM) == signal.SIG_DFL


def test_what_is_ignored_stays_ignored():
    """Under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run_program("p", lambda: signal.raise_signal(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_hangup_signal_on_windows(monkeypatch):
    monkeypatch.setattr("adaptok_hf.cli.program.STOP_SIGNALS", [signal.SIGINT])
    assert run_program("p", lambda: None) == 0


def start(code: str, **options) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "PYTHONIOENCODING": "utf-8"}
    code = f"import sys\nfrom adaptok_hf.cli.program import run_program\n{code}"
    return subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, env=environment, **options)


def test_a_closed_pipe_is_silent():
    code = "sys.exit(run_program('p', lambda: [print('line', flush=True) for _ in range(10**6)]))"
    process = start(code, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait() == 141


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_output_is_one_line():
    with open("/dev/full", "w") as full:
        process = start("sys.exit(run_program('p', lambda: print('line')))", stdout=full)
        assert process.stderr.read().count(b"\n") == 1 and process.wait() == 2


@pytest.mark.parametrize(("encoding", "printed"), [("utf-8", b"caf\xe9 \xc3\xa9\n"), ("ascii", b"caf\xe9 \\xe9\n")])
def test_any_name_can_be_printed(encoding, printed):
    code = f"""
import os
sys.stdout.reconfigure(encoding={encoding!r})
sys.exit(run_program('p', lambda: print(os.fsdecode(b'caf\\xe9') + ' \\xe9')))"""
    process = start(code, stdout=subprocess.PIPE)
    assert process.stdout.read() == printed and process.stderr.read() == b"" and process.wait() == 0


def test_an_interrupt_during_the_imports_is_one_line(tmp_path):
    (tmp_path / "argparse.py").write_text("raise KeyboardInterrupt\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(Path(__file__).parents[2])])}
    done = subprocess.run([sys.executable, "-m", "adaptok_hf", "info"], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "adaptok: interrupted\n")


def test_code_is_portable():
    """No fork, and no names that only POSIX has."""
    package = Path(__file__).parents[2]
    for path in [
        *package.glob("adaptok_hf/**/*.py"),
        *package.glob("training_scripts/*.py"),
        *package.glob("space_app/*.py"),
    ]:
        text = path.read_text(encoding="utf-8")
        for word in (
            "os.fork",
            '"fork"',
            "import fcntl",
            "import resource",
            "os.setsid",
            "signal.SIGHUP",
            "signal.SIGKILL",
        ):
            assert word not in text, f"{path.relative_to(package)}: {word}"
