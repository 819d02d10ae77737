"""Libraries that only `pip install "adaptok_hf[train]"` brings."""

import importlib


def require(*names: str) -> None:
    """Check that libraries are installed.

    Raises:
        ImportError: if one is missing.
    """
    for name in names:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ImportError(f'{name} is missing: pip install "adaptok_hf[train]"') from error
