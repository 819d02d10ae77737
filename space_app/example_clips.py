"""The clips that a visitor can try at once, without a network and without an upload."""

from pathlib import Path

_HERE = Path(__file__).parent


def find_examples() -> list[Path]:
    """Return the videos of `examples/`, which lies next to this file (on Spaces) or in the repository."""
    return sorted(_HERE.glob("examples/*.mp4")) or sorted(_HERE.parent.glob("examples/*.mp4"))
