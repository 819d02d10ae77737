"""Runs the training scripts as users run them, and reads what they wrote."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "training_scripts"
# what differs between two runs that are the same
RATES = ("clips_per_s", "tokens_per_s")


def environment() -> dict[str, str]:
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}
    return os.environ | variables


def command(script: str, *options, launch: bool = False, processes: int = 1) -> list[str]:
    """
    Args:
        launch: by `accelerate launch` instead of `python`.
        processes: more than one are started by `torchrun`: on a CPU `accelerate launch` starts one whatever it is told.
    """
    python = [sys.executable]
    if processes > 1:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        python += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", port]
    elif launch:
        python += ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]
        python += ["--mixed_precision", "no", "--dynamo_backend", "no"]
    return [*python, str(SCRIPTS / script), *map(str, options)]


def run_script(script: str, *options, fails: bool = False, launch: bool = False, processes: int = 1) -> str:
    """What the script printed; with `fails`, which then must be so, its last words."""
    arguments = command(script, *options, launch=launch, processes=processes)
    done = subprocess.run(arguments, capture_output=True, text=True, env=environment(), timeout=300)
    assert (done.returncode != 0) == fails, done.stderr[-3000:]
    return done.stderr if fails else done.stdout


def kill_script(script: str, *options, once_there: Path) -> None:
    """Starts a script and kills it (SIGKILL) as soon as a file or folder is there."""
    process = subprocess.Popen(
        command(script, *options),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
        start_new_session=True,
    )
    deadline = time.time() + 120
    while not once_there.exists() and process.poll() is None and time.time() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, "the script ended before it could be killed"


def metrics(run_folder: Path) -> dict[int, dict]:
    """The records of each step put together; of what was logged twice the later."""
    steps: dict[int, dict] = {}
    for line in (run_folder / "metrics.jsonl").read_text().splitlines():
        record = {name: value for name, value in json.loads(line).items() if name not in RATES}
        steps.setdefault(record["step"], {}).update(record)
    return steps
