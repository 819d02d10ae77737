"""`python -m adaptok_hf` is `adaptok`."""

import sys

from .cli import main

sys.exit(main())
