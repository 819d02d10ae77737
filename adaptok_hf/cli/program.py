"""How the programs of this package end: with one line on standard error and an exit code, whatever happens."""

import codecs
import contextlib
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

STOP_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)]
# A stop that a library swallowed is tried again after so long.
REPEAT_SECONDS = 0.5


def run_program(name: str, run: Callable[[], object], debug: bool = False) -> int:
    """Run a program and return its exit code.

    0, or with one line on standard error: 2 for what the user can fix, 1 for a bug of ours, 128 and the signal's number for
    a signal. A reader that closed its end of the pipe, such as `head`, ends the program without a line (141).

    Args:
        name: of the program, at the beginning of the line.
        run: what it does.
        debug: print the traceback, too.
    """
    _print_any_name()
    received: list[int] = []
    try:
        with _signals_interrupt(received):
            try:
                run()
            finally:  # also when argparse printed a help
                for stream in filter(None, (sys.stdout, sys.stderr)):
                    stream.flush()
        return 0
    except SystemExit:
        raise
    except BrokenPipeError:
        _discard_output()
        return 128 + 13
    except BaseException as error:
        if debug:
            traceback.print_exc()
        code, line = _describe(error, received)
        with contextlib.suppress(OSError):
            print(f"{name}: {line}", file=sys.stderr, flush=True)
        _discard_output()
        return code


def take_debug(argv: list[str]) -> bool:
    """Take `--debug` out of a command's arguments; return whether it was there."""
    end = argv.index("--") if "--" in argv else len(argv)
    if found := "--debug" in argv[:end]:
        argv.remove("--debug")
    return found


def run_script(main: Callable[[], object]) -> None:
    """Run a script's `main`, with `--debug` among its options, and exit."""
    debug = take_debug(sys.argv)
    sys.exit(run_program(Path(sys.argv[0]).name, main, debug))


def one_line(error: BaseException) -> str:
    """Return an error's message in one line of at most 400 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 400 else text[:397] + "..."


def _describe(error: BaseException, received: list[int]) -> tuple[int, str]:
    """Return the exit code and the line for an error; `received` has the signal that stopped the program, if one did."""
    if received or isinstance(error, KeyboardInterrupt):  # libraries turn an interrupt in an import into other errors
        number = received[0] if received else signal.SIGINT
        return 128 + number, "interrupted" if number == signal.SIGINT else f"stopped by {signal.Signals(number).name}"
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error):
        return 2, f"error: not enough memory: {one_line(error)}"
    if isinstance(error, ValueError | OSError | ImportError):
        return 2, f"error: {one_line(error)}"
    return 1, f"error: {type(error).__name__}: {one_line(error)} (this is a bug, run with --debug)"


class _Stopped(KeyboardInterrupt):
    """Python 3.11 exits by SIGINT after a plain `KeyboardInterrupt` in code that `exec` runs, even if it was caught."""


@contextlib.contextmanager
def _signals_interrupt(received: list[int]) -> Iterator[None]:
    """Raise `KeyboardInterrupt` for a signal that asks to stop, so that all cleans up; ignore others meanwhile.

    A library may swallow the interrupt (`except:` around an import, a destructor): a timer raises it again until all ends.
    """
    process = os.getpid()

    def stop(number: int, _: object) -> None:
        if os.getpid() != process:  # a worker process that was forked
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        error = sys.exc_info()[1]
        while error is not None:
            if isinstance(error, _Stopped):  # cleaning up
                return
            error = error.__context__
        received.append(number)
        if hasattr(signal, "setitimer"):
            signal.signal(signal.SIGALRM, lambda *_: stop(received[0], None))
            signal.setitimer(signal.ITIMER_REAL, REPEAT_SECONDS, REPEAT_SECONDS)
        raise _Stopped

    before = {}
    if threading.current_thread() is threading.main_thread():
        # what is ignored, such as SIGHUP under nohup, stays ignored
        before = {number: signal.getsignal(number) for number in STOP_SIGNALS}
        before = {number: handler for number, handler in before.items() if handler not in (signal.SIG_IGN, None)}
        for number in before:
            signal.signal(number, stop)
    try:
        yield
    finally:
        if received and hasattr(signal, "setitimer"):
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
        for number, handler in before.items():
            signal.signal(number, handler)


def _print_any_name() -> None:
    """Print file names byte by byte as they are, and what the terminal does not know as escapes."""

    def escape(error: UnicodeError) -> tuple[str | bytes, int]:
        try:
            return codecs.lookup_error("surrogateescape")(error)
        except UnicodeError:
            return codecs.lookup_error("backslashreplace")(error)

    codecs.register_error("any_name", escape)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="any_name")


def _discard_output() -> None:
    """Let what standard output and error cannot take go nowhere; Python would complain about it at the exit."""
    for stream in (sys.stdout, sys.stderr):
        try:
            if stream is not None:
                stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
