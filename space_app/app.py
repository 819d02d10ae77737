"""Starts the Space: `python space_app/app.py`.

`ADAPTOK_MODEL` names the pipeline, a folder or a Hub id; by default it is the small checkpoint in the package.
"""

import os

import zero_gpu  # noqa: F401  first: on Spaces it must come before torch

# isort: split

import torch
from demo import build_demo
from theme import page_options
from uploads import MAX_MEGABYTES

from adaptok_hf import AdapTokPipeline


def main() -> None:
    name = os.environ.get("ADAPTOK_MODEL") or None
    pipeline = AdapTokPipeline.from_pretrained(name).to("cuda" if torch.cuda.is_available() else "cpu")
    shown = "the small checkpoint in the package" if name is None else os.path.basename(os.path.normpath(name))
    demo = build_demo(pipeline, shown)
    demo.launch(max_file_size=f"{MAX_MEGABYTES}mb", footer_links=["api"], **page_options())


if __name__ == "__main__":
    main()
