"""`adaptok`, and `python -m adaptok_hf`."""

import sys


def main() -> int:
    """Run `adaptok` and return its exit code."""
    try:
        from .cli.main import main as run
    except KeyboardInterrupt:
        print("adaptok: interrupted", file=sys.stderr)
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
