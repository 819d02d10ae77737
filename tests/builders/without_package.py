"""Processes that cannot import this package, as on a machine that only downloads a repository."""

import os
import subprocess
import sys
from pathlib import Path


def run_without_the_package(code: str, *arguments, cwd: Path, **variables: str) -> str:
    """Runs code in a process that cannot import adaptok_hf, with caches of its own."""
    home = cwd / f"home{len(list(cwd.glob('home*')))}"
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(home), "HF_MODULES_CACHE": str(home / "modules"), "HF_HUB_OFFLINE": "1"} | variables
    # most of it is imports, which take less time without the garbage collector
    code = f"import gc, sys\ngc.disable()\nsys.modules['adaptok_hf'] = None\n{code}\n"
    code += "assert not any(n.startswith('adaptok_hf.') for n in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code, *map(str, arguments)], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout
