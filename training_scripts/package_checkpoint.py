#!/usr/bin/env python
"""Puts trained models into one pipeline folder, as float16 safetensors.

    python training_scripts/package_checkpoint.py --tokenizer runs/tokenizer/model --scorer runs/scorer/model \
        --ar_model runs/ar/model --fp_model runs/fp/model --output adaptok_hf/checkpoints/small
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModel

from adaptok_hf import (
    AdapTokARForCausalLM,
    AdapTokPipeline,
    AdapTokRouterModel,
    AdapTokScorerModel,
    AdapTokVideoProcessor,
)
from adaptok_hf.atomic_files import atomic_folder, check_new_folder, write_json
from adaptok_hf.cli.program import run_script

OPTIONAL = {
    "scorer": AdapTokScorerModel,
    "router": AdapTokRouterModel,
    "ar_model": AdapTokARForCausalLM,
    "fp_model": AdapTokARForCausalLM,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", required=True)
    for name in OPTIONAL:
        parser.add_argument(f"--{name}")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier call")
    arguments = parser.parse_args()
    if not arguments.overwrite:
        check_new_folder(arguments.output)
    tokenizer = AutoModel.from_pretrained(arguments.tokenizer, dtype=torch.float16)
    optional = {
        name: model_class.from_pretrained(getattr(arguments, name), dtype=torch.float16)
        for name, model_class in OPTIONAL.items()
        if getattr(arguments, name)
    }
    config = tokenizer.config
    processor = AdapTokVideoProcessor(config.image_size, config.num_frames, config.tubelet_size)
    with atomic_folder(arguments.output, arguments.overwrite) as partial:
        AdapTokPipeline(processor, tokenizer, **optional).save_pretrained(partial)
        for code in partial.rglob("*.py"):  # the copies for loading without this package; here it is the package
            code.unlink()
        for config_file in partial.rglob("config.json"):
            entries = json.loads(config_file.read_text())
            entries.pop("auto_map", None)
            write_json(config_file, entries)
        for weights in partial.rglob("*.safetensors"):
            weights.chmod(0o644)
    size = sum(file.stat().st_size for file in arguments.output.rglob("*") if file.is_file())
    print(f"wrote {arguments.output}: {size / 1e6:.2f} MB")


if __name__ == "__main__":
    run_script(main)
