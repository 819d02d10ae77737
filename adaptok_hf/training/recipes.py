"""`script.py recipe.json --option value`: the recipe's numbers, overridden by options."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import TypeVar

from transformers import HfArgumentParser

T = TypeVar("T")


def parse_arguments(arguments_class: type[T]) -> T:
    """The dataclass filled from the recipe file, if the first argument is one, and the options after it.

    Raises:
        ValueError: for entries of the recipe that the dataclass does not have.
    """
    parser, argv = HfArgumentParser(arguments_class), sys.argv[1:]
    if argv and argv[0].endswith(".json"):
        recipe = json.loads(Path(argv[0]).read_text())
        known = {field.name for field in dataclasses.fields(arguments_class)}
        if unknown := set(recipe) - known:
            raise ValueError(f"{argv[0]}: unknown entries {sorted(unknown)}")
        parser.set_defaults(**recipe)
        argv = argv[1:]
    return parser.parse_args_into_dataclasses(argv)[0]
