"""`python -m adaptok_hf` is `adaptok`."""

import sys

from .cli.main import main

sys.exit(main())
