"""The card of a folder of tokens, by which `datasets` finds its columns and splits."""

import re
from pathlib import Path
from typing import Any

from datasets import DatasetInfo, Features
from datasets.info import DatasetInfosDict
from datasets.utils.metadata import MetadataConfigs
from huggingface_hub import DatasetCardData

from ...atomic_files import write_text
from ...models.configuration_adaptok import AdapTokConfig

SHARDS = "tokens-*.parquet"
_COLUMNS = {
    "codes": "the codes of each block, all {latents_per_block} of them: 0..{last_code}",
    "token_counts": "how many of each block's codes are kept, from the first; the others were dropped to save tokens",
    "label": "the class; -1 where there is none",
    "source": "the video",
    "start": "the window's first frame in the video",
    "config_hash": "`hash` of `dataset.json`",
    "condition_codes": "as `codes`, of the clip that repeats the last of the window's first {num_condition_frames} frames",
}
_CARD = """---
{data}
---

# {name}

Tokens of videos, to train language models on. A row is a window of {num_frames} frames of {image_size} x {image_size}
pixels, in {num_blocks} blocks of codes. `tokenize_dataset.py` of adaptok_hf made them with the tokenizer {model_hash:.12}.

| column | what it is |
|---|---|
{rows}

```python
from datasets import load_dataset

rows = load_dataset("PATH_OR_REPOSITORY", split="{split}")  # streaming=True reads as it goes
end = {codebook_size}  # <EOB>, after each block
sequence = [code for block, count in zip(rows[0]["codes"], rows[0]["token_counts"]) for code in block[:count] + [end]]
```

`adaptok_hf.data.TokenCollator` makes batches of such sequences, after a class or given frames, for a `Trainer`.
The tokenizer's `decode(codes, token_counts)` turns rows into videos, so the videos' license counts. It is not known here.
{options}
"""


def check_split(name: str) -> None:
    """Raise `ValueError` for a name that `datasets` does not take for a split."""
    if not re.fullmatch(r"\w+(\.\w+)*", name) or name == "all":
        raise ValueError(f"split={name!r} is no name of a split, such as 'train', 'validation' or 'test'")


def write_card(folder: Path, features: Features, description: dict[str, Any], config: AdapTokConfig) -> None:
    """Write the card of the shards in a folder; one that is there is kept, since its owner may have edited it.

    Args:
        description: the content of `dataset.json`.
    """
    if (folder / "README.md").exists():
        return
    data = DatasetCardData(license="unknown", tags=["video", "video-tokens", "adaptok"])
    DatasetInfosDict({"default": DatasetInfo(features=features)}).to_dataset_card_data(data)
    files = [{"split": description["split"], "path": SHARDS}]
    MetadataConfigs({"default": {"data_files": files}}).to_dataset_card_data(data)
    sizes = {name: getattr(config, name) for name in ("num_frames", "image_size")}
    values = description | sizes | {"last_code": config.codebook_size - 1}
    rows = "\n".join(f"| `{name}` | {_COLUMNS[name].format(**values)} |" for name in features)
    names = ("allocation", "budget", "price", "threshold", "rounding", "window_step", "num_condition_frames")
    options = ", ".join(f"`{name}={description[name]}`" for name in names if description[name])
    options = f"\nMade with {options}." if options else ""
    values |= {"data": data, "name": folder.resolve().name, "rows": rows, "options": options}
    write_text(folder / "README.md", _CARD.format(**values).rstrip() + "\n")
