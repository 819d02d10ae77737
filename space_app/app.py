"""Starts the Space: `python space_app/app.py`.

`ADAPTOK_MODEL` names the pipeline: "small" (the default) or "detailed" in the package, a folder, or a Hub id.
"""

import os

import zero_gpu  # noqa: F401  first: on Spaces it must come before torch

# isort: split

import torch
from demo import build_demo
from theme import page_options
from uploads import MAX_MEGABYTES

from adaptok_hf import AdapTokPipeline
from adaptok_hf.checkpoints import DEFAULT_CHECKPOINT, PACKAGED_CHECKPOINTS


def main() -> None:
    name = os.environ.get("ADAPTOK_MODEL") or DEFAULT_CHECKPOINT
    pipeline = AdapTokPipeline.from_pretrained(name).to("cuda" if torch.cuda.is_available() else "cpu")
    shown = f"{name}, in the package" if name in PACKAGED_CHECKPOINTS else os.path.basename(os.path.normpath(name))
    demo = build_demo(pipeline, shown)
    demo.launch(max_file_size=f"{MAX_MEGABYTES}mb", footer_links=["api"], **page_options())


if __name__ == "__main__":
    main()
