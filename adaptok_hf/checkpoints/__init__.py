"""Names of checkpoints: those in this package, and the original authors' on the Hub."""

import os
from pathlib import Path

# Folders next to this file, which `AdapTokPipeline.from_pretrained` loads by name.
PACKAGED_CHECKPOINTS = {
    "small": "videos of any kind: tokenizer of up to 256 tokens per block, scorer; no generators",
    "figures": "animated figures: tokenizer of up to 128 tokens per block, scorer, generators by class and from frames",
}
DEFAULT_CHECKPOINT = "small"
DEFAULT_GENERATORS = "figures"  # of what generates and predicts: the default has no generators
# Repositories that `convert_checkpoint` downloads.
ORIGINAL_CHECKPOINTS = {
    "yeahhhh326/AdapTok": "tokenizer",
    "yeahhhh326/AdapTok-Scorer": "tokenizer and scorer",
    "yeahhhh326/AdapTok-AR": "generator by class, UCF-101",
    "yeahhhh326/AdapTok-FP": "generator from frames, Kinetics-600",
}


def find_checkpoint(name: str | os.PathLike | None = None) -> str | os.PathLike:
    """Return the folder of a checkpoint in this package, and any other name as it is.

    Args:
        name: `None` is `DEFAULT_CHECKPOINT`. A local folder of that name comes first.
    """
    if name is None:
        name = DEFAULT_CHECKPOINT
    elif Path(name).is_dir():
        return name
    return Path(__file__).parent / name if name in PACKAGED_CHECKPOINTS else name
