"""transformers' common tests of models, which its wheel leaves out: fetched from the source distribution into the cache.

`python -m builders.transformers_tests`, in `tests/`, prints the folder. The source distribution holds the files directly in
its `tests/` only; what these import from folders below has empty stand-ins, so the tests of generation and export are not
among them.
"""

import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

from adaptok_hf.atomic_files import atomic_folder
from adaptok_hf.metrics.network_weights import cache_folder

FILES = ("test_modeling_common.py", "test_configuration_common.py")
STAND_INS = {
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "utils/test_configuration_utils.py": (
        'config_common_kwargs = {"return_dict": False, "output_hidden_states": True, "output_attentions": True,\n'
        '    "dtype": "float16", "problem_type": "regression"}\n'
    ),
}


def fetch_common_tests() -> Path:
    """Return a folder to import `transformers_tests.test_modeling_common` from: that of the installed version.

    Raises:
        RuntimeError: if pip does not give the source distribution of this version.
    """
    installed = version("transformers")
    folder = cache_folder() / f"transformers-{installed}-tests"
    if folder.is_dir():
        return folder
    with TemporaryDirectory() as downloads:
        source = ["--no-deps", "--no-binary", "transformers", f"transformers=={installed}"]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", downloads, *source]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip found no source distribution of transformers {installed}: {done.stderr[-2000:]}")
        (archive,) = Path(downloads).glob("*.tar.gz")
        with tarfile.open(archive) as members, atomic_folder(folder) as written:
            package = Path(written) / "transformers_tests"
            for name, text in {"__init__.py": "", **STAND_INS}.items():
                path = package / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text, encoding="utf-8")
            for name in FILES:
                member = members.extractfile(f"transformers-{installed}/tests/{name}")
                (package / name).write_bytes(member.read())
    return folder


if __name__ == "__main__":
    print(fetch_common_tests())
