"""Starts the Space: `python space_app/app.py`.

`ADAPTOK_MODEL` names the pipeline of all tabs: "small" or "figures" in the package, a folder, or a Hub id. Without it,
"small" reconstructs, and "figures" generates and predicts.
"""

import os

import zero_gpu  # noqa: F401  first: on Spaces it must come before torch

# isort: split

import torch
from demo import build_demo
from theme import page_options
from uploads import MAX_MEGABYTES

from adaptok_hf import AdapTokPipeline
from adaptok_hf.checkpoints import DEFAULT_CHECKPOINT, DEFAULT_GENERATORS, PACKAGED_CHECKPOINTS


def main() -> None:
    name = os.environ.get("ADAPTOK_MODEL")
    names = [name] if name else [DEFAULT_CHECKPOINT, DEFAULT_GENERATORS]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipelines = [AdapTokPipeline.from_pretrained(each).to(device) for each in names]
    shown = [each if each in PACKAGED_CHECKPOINTS else os.path.basename(os.path.normpath(each)) for each in names]
    demo = build_demo(pipelines[0], " and ".join(shown), pipelines[-1])
    demo.launch(max_file_size=f"{MAX_MEGABYTES}mb", footer_links=["api"], **page_options())


if __name__ == "__main__":
    main()
