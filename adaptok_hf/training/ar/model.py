"""The generator that `train_ar.py` trains: a new one, a trained one, or adapters of a trained one."""

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from ...models.configuration_adaptok_ar import AdapTokARConfig
from ...models.modeling_adaptok_ar import AdapTokARForCausalLM
from .arguments import Arguments

if TYPE_CHECKING:
    from peft import PeftModel

GEOMETRY = ("codebook_size", "num_blocks", "latents_per_block")
CONDITION = ("num_condition_codes", "condition_counts")  # either makes a generator one that continues frames


def is_class_conditional(args: Arguments) -> bool:
    """Return whether the generator of a run is conditioned on a class; otherwise it continues frames."""
    if args.init_from:
        return AdapTokARConfig.from_pretrained(args.init_from).is_class_conditional
    return not any(args.model.get(name) for name in CONDITION)


def build_model(args: Arguments, description: dict, report: Callable[[str], None]) -> AdapTokARForCausalLM:
    """Return the generator, in training mode.

    Args:
        description: of the tokens, see `token_rows.read_description`.
        report: prints what happens to the classes of `init_from`.

    Raises:
        ValueError: if a trained generator and the tokens do not fit each other.
    """
    names = description["class_names"]
    if args.init_from:
        model = AdapTokARForCausalLM.from_pretrained(args.init_from, dtype=torch.float32)
        model.config.take_blocks(description["num_blocks"], description["latents_per_block"])
        for entry in GEOMETRY:
            if getattr(model.config, entry) != description[entry]:
                raise ValueError(
                    f"{args.init_from} has {entry}={getattr(model.config, entry)}, the tokens {description[entry]}: they "
                    "are of different tokenizers"
                )
        if names and names != model.class_names:
            report(change_classes(model, names))
    else:
        entries = {name: description[name] for name in GEOMETRY} | args.model
        if not any(entries.get(name) for name in CONDITION):
            if not names:
                raise ValueError("a class-conditional generator needs tokens with classes; make them with --labels folder")
            entries = {"num_classes": len(names), "id2label": dict(enumerate(names))} | entries
        model = AdapTokARForCausalLM(AdapTokARConfig(**entries))
    if args.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model.train()


def change_classes(model: AdapTokARForCausalLM, names: list[str]) -> str:
    """Give a generator other classes: those that it knows by name keep their weights, new ones start as "no class".

    Returns:
        A line that says what was done.
    """
    old = model.class_names
    model.replace_classes(names)
    known, new = ([name for name in names if (name in old) == kept] for kept in (True, False))
    shown, others = (f" ({', '.join(some[:5])}{', ...' * (len(some) > 5)})" if some else "" for some in (known, new))
    starting = f", new ones start as 'no class'{others}" if new else ""
    return f"the tokens have other classes than the generator: {len(known)} of its {len(old)} are kept{shown}{starting}"


def add_adapters(model: AdapTokARForCausalLM, args: Arguments) -> "PeftModel":
    """Freeze a generator and put trainable adapters into it. The rows of its classes are trained too, unless `lora` says
    which embeddings are.

    Raises:
        ValueError: for unknown target modules, as peft.
    """
    from peft import LoraConfig, get_peft_model

    entries = dict(args.lora)
    if model.config.is_class_conditional and not {"modules_to_save", "trainable_token_indices"} & set(entries):
        entries["trainable_token_indices"] = {"embed_tokens": model.config.conditioning_token_ids}
    return get_peft_model(model, LoraConfig(**entries))


def merged(model: "PeftModel") -> AdapTokARForCausalLM:
    """Return a copy of the generator with the adapters merged into its weights."""
    return copy.deepcopy(model).merge_and_unload()
