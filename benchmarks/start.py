"""Where the time of one `adaptok reconstruct` goes: imports by owner, weights, work, writing; in seconds of CPU time.

    python benchmarks/start.py
    python benchmarks/start.py --video clip.mp4 --model figures --repeats 9

Every repeat is a fresh process that takes the steps in order, so that each import counts what those before it left.
transformers imports torch's compiler and scipy's optimizers, and diffusers imports peft where it is installed. Numbers are
medians, with the lowest and the highest.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile

from timing import spread

STEPS = {
    "import numpy and scipy.optimize": "import numpy, scipy.optimize",
    "import torch": "import torch",
    "import torch's compiler": "import torch._dynamo",
    "import transformers' PreTrainedModel": "from transformers import PreTrainedModel",
    "import peft": "import importlib.util\nif importlib.util.find_spec('peft'): import peft",
    "import diffusers' DiffusionPipeline": "from diffusers import DiffusionPipeline",
    "import AdapTokPipeline": "from adaptok_hf import AdapTokPipeline",
    "import torchmetrics and matplotlib": "import torchmetrics, matplotlib.figure; from adaptok_hf.cli import reports",
    "load weights": "pipeline = AdapTokPipeline.from_pretrained(model)",
    "read and encode": "from adaptok_hf import AllocationRequest; request = AllocationRequest(32); "
    "encoded = pipeline.encode(video, request=request)",
    "allocate": "tokens = pipeline.allocate(encoded, request)",
    "decode": "frames = pipeline.decode(tokens)",
    "write": "from adaptok_hf.pipelines.pipeline_output import AdapTokPipelineOutput as Output; "
    "output = Output(frames[None], tokens, encoded.clips[0].original()[None], encoded.seconds); "
    "reports.write_report(folder, output, pipeline, {})",
}
TAKE_STEPS = """
import json, sys, time
steps, names = json.loads(sys.argv[1])
for name, code in steps.items():
    start = time.process_time()
    exec(code, names)
    print(json.dumps([name, time.process_time() - start]))
"""
IMPORT = "from adaptok_hf import AdapTokPipeline"
# the same module without the lazy import of the package, which keeps the garbage collector off
COLLECTING = "from adaptok_hf.pipelines.pipeline_adaptok import AdapTokPipeline"


def run(*arguments: str) -> tuple[float, str]:
    """Run Python in a fresh process; return its seconds of CPU time and what it prints."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", default="examples/surfing.mp4")
    parser.add_argument("--model", default="small")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    steps: dict[str, list[float]] = {name: [] for name in STEPS}
    command, paused, collecting = [], [], []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            names = {"video": arguments.video, "model": arguments.model, "folder": f"{folder}/steps"}
            for line in run("-c", TAKE_STEPS, json.dumps([STEPS, names]))[1].splitlines():
                name, seconds = json.loads(line)
                steps[name].append(seconds)
            options = ["--budget", "32", "--model", arguments.model, "-o", f"{folder}/command"]
            command.append(run("-m", "adaptok_hf", "reconstruct", arguments.video, *options)[0])
        paused.append(run("-c", IMPORT)[0])
        collecting.append(run("-c", COLLECTING)[0])
    total = sum(map(statistics.median, steps.values()))
    print("| step | CPU seconds | share |\n|---|---|---|")
    for name, values in steps.items():
        print(f"| {name} | {spread(values)} | {statistics.median(values) / total:.0%} |")
    ratios = [a / b for a, b in zip(paused, collecting, strict=True)]
    print(f"\n`adaptok reconstruct {arguments.video} --budget 32`: {spread(command)} s")
    print(f"`{IMPORT}`: {spread(paused)} s, with the garbage collector on {spread(collecting)} s, ratio {spread(ratios)}")


if __name__ == "__main__":
    main()
