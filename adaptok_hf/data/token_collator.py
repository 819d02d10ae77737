"""Rows of a data set of tokens as batches for a generator."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..models.sequence_inputs import SequenceInputs

if TYPE_CHECKING:
    from ..models.configuration_adaptok_ar import AdapTokARConfig


class TokenCollator(SequenceInputs):
    """Turn rows of `tokenize_dataset.py` into inputs of an [`AdapTokARForCausalLM`]: the data collator of a `Trainer`.

    A row has `codes` and `token_counts`, and what the generator is conditioned on: `label` or `condition_codes`. The
    `Trainer` keeps these columns with `TrainingArguments(remove_unused_columns=False)`.

    Args:
        config: of the generator.

    Raises:
        TypeError: for what is no configuration, such as the generator itself.
    """

    device = torch.device("cpu")

    def __init__(self, config: "AdapTokARConfig"):
        if not hasattr(config, "is_class_conditional"):
            raise TypeError(f"got {type(config).__name__}, expected the generator's configuration (`model.config`)")
        self.config = config

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `input_ids`, `attention_mask` and `labels`, each (rows, sequence) long, padded on the right.

        Raises:
            ValueError: for rows that lack a column, or do not fit the generator.
        """
        condition = "label" if self.config.is_class_conditional else "condition_codes"
        if missing := [name for name in ("codes", "token_counts", condition) if name not in rows[0]]:
            raise ValueError(
                f"the rows have {sorted(rows[0])} and lack {missing}; a Trainer drops columns unless its arguments have "
                "remove_unused_columns=False"
            )
        columns = {
            name: torch.from_numpy(np.stack([np.asarray(row[name], dtype=np.int64) for row in rows]))
            for name in ("codes", "token_counts", condition)
        }
        given = columns.pop(condition)
        if condition == "label":
            return self.build_inputs(**columns, class_labels=given)
        return self.build_inputs(**columns, condition_codes=given)
