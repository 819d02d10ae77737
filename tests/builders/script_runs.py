"""Runs the training scripts as users run them, and reads what they wrote."""

import json
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing import forkserver
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).parents[2]
SCRIPTS = ROOT / "training_scripts"
# what differs between two runs that are the same
RATES = ("clips_per_s", "tokens_per_s")


def environment() -> dict[str, str]:
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    return os.environ | variables


def command(script: str, *options, processes: int = 1) -> list[str]:
    """How a user starts a script: `accelerate launch`, or `torchrun` for more than one process, of which
    `accelerate launch` always starts one on a CPU."""
    python = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        python += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port]
    else:
        python += ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
        python += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*python, str(SCRIPTS / script), *map(str, options)]


def run_script(script: str, *options, fails: bool = False, launch: bool = False, processes: int = 1) -> str:
    """What the script printed; with `fails`, which then must be so, its last words.

    Args:
        launch: start it as users do, see `command`. Otherwise, and for one process, it runs in a fork of a process that
            has imported the libraries already, which takes a tenth of the time.
    """
    if launch or processes > 1:
        arguments = command(script, *options, processes=processes)
        done = subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=300)
        code, printed, error = done.returncode, done.stdout, done.stderr
    else:
        with tempfile.TemporaryDirectory() as folder:
            process = _start(script, options, folder)
            process.join(300)
            process.kill()
            printed, error = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
        code = process.exitcode
    assert (code != 0) == fails, error[-3000:]
    return error if fails else printed


def kill_script(script: str, *options, once_there: Path) -> None:
    """Starts a script and kills it (SIGKILL) as soon as a file or folder is there."""
    with tempfile.TemporaryDirectory() as folder:
        process = _start(script, options, folder)
        deadline = time.time() + 300
        while not once_there.exists() and process.is_alive() and time.time() < deadline:
            time.sleep(0.002)
        if process.is_alive():
            _kill_group(process)
        process.join()
        assert process.exitcode == -signal.SIGKILL, Path(folder, "stderr").read_text()[-3000:]


def kill_script_after(script: str, *options, seconds: float) -> bool:
    """Start a script and kill it (SIGKILL) after some seconds; return whether it was still running."""
    with tempfile.TemporaryDirectory() as folder:
        process = _start(script, options, folder)
        process.join(seconds)
        if killed := process.is_alive():
            _kill_group(process)
        process.join()
        # 1 and 2 are exit codes of errors
        assert killed or process.exitcode == 0, Path(folder, "stderr").read_text()[-3000:]
        return killed


def _kill_group(process: multiprocessing.Process) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has no group of its own yet
        process.kill()


def _start(script: str, options: tuple, folder: str) -> multiprocessing.Process:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.builders.loaded_libraries"])  # found from ROOT
    with mock.patch.dict(os.environ, environment()):  # the libraries look at it when they are imported
        forkserver.ensure_running()
    process = context.Process(target=_be_script, args=([str(SCRIPTS / script), *map(str, options)], folder))
    process.start()
    return process


def _be_script(arguments: list[str], folder: str) -> None:
    os.setsid()  # a group of its own, with the workers that it starts
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    os.environ.update(environment())
    sys.argv = arguments
    runpy.run_path(arguments[0], run_name="__main__")


def metrics(run_folder: Path) -> dict[int, dict]:
    """The records of each step put together; of what was logged twice the later."""
    steps: dict[int, dict] = {}
    for line in (run_folder / "metrics.jsonl").read_text().splitlines():
        record = {name: value for name, value in json.loads(line).items() if name not in RATES}
        steps.setdefault(record["step"], {}).update(record)
    return steps
