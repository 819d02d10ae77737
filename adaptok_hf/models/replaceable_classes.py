"""The classes of a generator: other ones to fine-tune to, and those that an adapter was trained for."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils.peft_utils import find_adapter_config_file


class ReplaceableClasses:
    """Mixin of a generator. peft's adapters keep the names of the classes that they were trained for, in the entry
    `auto_mapping` of their `adapter_config.json`, and a generator that they are loaded into gets these classes."""

    @torch.no_grad()
    def replace_classes(self, names: Sequence[str]) -> None:
        """Give a class-conditional generator a new set of classes, to be fine-tuned to.

        Codes and `<EOB>` or length tokens keep what they learned, and so do classes that it knows by name; each new class
        starts as "no class". With peft, train the rows of the classes next to the adapter by
        `trainable_token_indices={"embed_tokens": model.config.conditioning_token_ids}`.

        Raises:
            ValueError: without names, or for a frame-prediction generator.
        """
        config = self.config
        if not config.is_class_conditional or not names:
            raise ValueError("replace_classes needs a class-conditional generator and at least one name")
        kept, null, size = config.num_sequence_ids, config.null_class_token_id, config.vocab_size
        known = {name: config.first_class_token_id + label for label, name in enumerate(self.class_names)}
        rows = [*range(kept), *(known.get(name, null) for name in names), null]
        replaced: dict[nn.Parameter, nn.Parameter] = {}  # tied tables stay tied
        for table in (self.model.embed_tokens, self.lm_head):
            for module in table.modules():  # the table, or what peft made of it
                for name, weight in list(module.named_parameters(recurse=False)):
                    if len(weight) == size:
                        replaced.setdefault(weight, nn.Parameter(weight[rows], requires_grad=weight.requires_grad))
                        setattr(module, name, replaced[weight])
                for name in ("num_embeddings", "out_features"):
                    if module.__dict__.get(name) == size:
                        setattr(module, name, len(rows))
        config.num_classes, config.vocab_size = len(names), len(rows)
        config.id2label = dict(enumerate(names))
        config.label2id = {name: label for label, name in enumerate(names)}
        self.vocab_size = self.model.vocab_size = config.vocab_size
        self.generation_config.suppress_tokens = config.conditioning_token_ids

    @property
    def class_names(self) -> list[str]:
        """The names of the classes, in the order of their ids; none for frame prediction."""
        names = self.config.id2label
        return [names.get(label, f"LABEL_{label}") for label in range(self.config.num_classes)]

    @property
    def peft_config(self) -> dict[str, Any]:
        """The configurations of the adapters. peft sets it when it has put one into the model, new or from a folder."""
        if "_peft_config" not in self.__dict__:
            raise AttributeError("peft_config: this model has no adapter")
        return self.__dict__["_peft_config"]

    @peft_config.setter
    def peft_config(self, configs: dict[str, Any]) -> None:
        self.__dict__["_peft_config"] = configs
        for adapter, config in configs.items():
            names = (config.auto_mapping or {}).get("class_names")
            if names is not None:
                self._take_classes(names, adapter, len(configs) > 1)
            elif self.config.is_class_conditional:
                config.auto_mapping = {**(config.auto_mapping or {}), "class_names": self.class_names}
                config.task_type = config.task_type or "CAUSAL_LM"  # without one, peft writes its own auto_mapping

    @peft_config.deleter
    def peft_config(self) -> None:
        self.__dict__.pop("_peft_config", None)

    def load_adapter(self, peft_model_id=None, *args, adapter_kwargs: dict | None = None, **kwargs):
        """As that of transformers; the generator gets the classes that the adapter was trained for."""
        path = None if peft_model_id is None else find_adapter_config_file(peft_model_id, **(adapter_kwargs or {}))
        if path is not None:
            entries = json.loads(Path(path).read_text(encoding="utf-8"))
            names = (entries.get("auto_mapping") or {}).get("class_names")
            if names is not None:
                self._take_classes(names, peft_model_id, hasattr(self, "peft_config"))
        return super().load_adapter(peft_model_id, *args, adapter_kwargs=adapter_kwargs, **kwargs)

    def _take_classes(self, names: list[str], adapter: str, has_others: bool) -> None:
        if names == self.class_names:
            return
        if has_others:
            raise ValueError(
                f"the adapter {adapter} is of {len(names)} classes ({', '.join(names[:3])}, ...), the others of "
                f"{len(self.class_names)} ({', '.join(self.class_names[:3])}, ...): a model has one set of classes"
            )
        self.replace_classes(names)
