"""The generators among EVATok's files: by class, or continuing frames, with a length token before each block."""

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..models.configuration_adaptok_ar import AdapTokARConfig
from ..models.modeling_adaptok_ar import AdapTokARForCausalLM
from ..models.modeling_evatok import EVATokModel
from .class_names import UCF101
from .evatok_files import make_config, read_arguments, saved_config
from .evatok_names import CLASSES, POSITIONS, TOKENS, NameMatcher
from .evatok_tokenizers import Proof, read_clip
from .original_names import GENERATOR_ARGUMENTS, GENERATORS

REQUIRED = ("frame_num", "temporal_patch_size", "spatial_token_num_choices", "codebook_size")
SIZES = ("n_layer", "n_head", "dim")
SUPPORTED = {
    "n_kv_head": (None,),
    "ffn_dim_multiplier": (None,),
    "rope": (False, None),
    "use_qk_norm": (False, None),
    "use_adaLN": (False, None),
    "use_simple_adaLN": (False, None),
}
CONDITION_COUNTS = (512, 128)  # of the paper's frame prediction, which is given this many frames
GIVEN_FRAMES = 5
# Entries of an id order next to the token counts; the ids of `UNUSED` ones have no place here.
UNUSED = ("unused", "bos", "eos", "pad")
CLEAR_MARGIN = 10.0  # nats: e^10 times as likely


def convert_generator(
    tensors: Mapping[str, torch.Tensor],
    names: NameMatcher,
    config: Path,
    tokenizer: Mapping[str, Any],
    *,
    part: str,
    load_tokenizer: Callable[[], EVATokModel],
    id_order: str | None = None,
    classes: str | os.PathLike | None = None,
    verify_class: str | None = None,
    **condition: Any,
) -> tuple[AdapTokARForCausalLM, list[str], Proof]:
    """Return a generator, notes about it, and what proves it on a video; see `convert_evatok`.

    Args:
        tokenizer: arguments of the YAML that are known from the tokenizer.
        part: `"ar_model"` or `"fp_model"`.
        load_tokenizer: returns the tokenizer whose codes it writes.
        condition: `condition_counts` and `condition_length_tokens`, if they were given.
    """
    order = None if id_order is None else [entry.strip() for entry in id_order.split(",")]
    ours = saved_config(config, AdapTokARConfig)
    if ours is not None and condition:
        raise ValueError(f"{', '.join(condition)}: {config} says it already")
    if ours is None:
        ours = _read_config(part, config, tensors, names, tokenizer, condition, order)
    _check_config(part, config, ours)
    _name_classes(ours, classes)
    order = order or ["codes", *_entries(ours)]
    if Counter(entry for entry in order if entry not in UNUSED) != Counter(["codes", *_entries(ours)]):
        raise ValueError(
            f"id_order must have codes and each of {','.join(_entries(ours))} once, and may have {' or '.join(UNUSED)} for "
            f"rows without use, got {','.join(order)}"
        )
    with torch.device("meta"):
        shapes = {name: each.shape for name, each in AdapTokARForCausalLM(ours).named_parameters()}
    mapped = names.match(shapes | _stored_shapes(ours, tensors, names, order), tensors)
    notes = [f"ids: {','.join(order)}", *mapped.notes()]
    if (lacking := ours.max_position_embeddings - 1 - len(mapped.tensors[POSITIONS])) > 0:
        notes.append(f"positions: the source lacks the last {lacking}; they repeat the one before")
    model = _build(mapped.tensors, order, ours)

    def prove(video: str | os.PathLike) -> list[str]:
        tokens = _tokenize(load_tokenizer(), video, ours)

        def loss_of(layout: Layout) -> float:
            entries = {"condition_length_tokens": layout.condition_length_tokens} if part == "fp_model" else {}
            return _loss(_build(mapped.tensors, layout.order, AdapTokARConfig(**ours.to_dict() | entries)), tokens)

        layout = Layout(tuple(order), ours.condition_length_tokens if part == "fp_model" else None)
        proofs = _verify_layout(loss_of, layout, tokens, ours.codebook_size, video)
        return proofs if verify_class is None else [*proofs, _verify_class(model, tokens, verify_class)]

    return model, notes, prove


def _read_config(
    part: str,
    path: Path,
    tensors: Mapping[str, torch.Tensor],
    names: NameMatcher,
    tokenizer: Mapping[str, Any],
    condition: Mapping[str, Any],
    order: Sequence[str] | None,
) -> AdapTokARConfig:
    """Return the configuration that a YAML of the original, the tokenizer and the tensors' shapes describe."""
    arguments = read_arguments(path, REQUIRED, SUPPORTED, tokenizer)
    if missing := [name for name in SIZES if name not in arguments]:
        found = _known_sizes(tensors, names)
        if found is None:
            raise ValueError(f"{path}: {', '.join(missing)} missing, and the tensors are of no known size")
        arguments = found | arguments
    frames, tubelet, levels, _ = (arguments[name] for name in REQUIRED)
    levels = sorted(levels) if isinstance(levels, list | tuple) and all(isinstance(n, int) for n in levels) else []
    whole = all(isinstance(size, int) and size > 0 for size in (frames, tubelet)) and not frames % tubelet
    if not levels or not whole:
        stated = ", ".join(f"{name}={arguments[name]!r}" for name in REQUIRED[:3])
        raise ValueError(f"{path}: {stated}: must be a multiple of a positive number, and a list of token counts")
    ours = {name: arguments[theirs] for theirs, name, _ in GENERATOR_ARGUMENTS if theirs in arguments}
    width, multiple = arguments["dim"], arguments.get("multiple_of", 256)
    if not all(isinstance(size, int) and size > 0 for size in (width, multiple)):
        raise ValueError(f"{path}: dim={width!r}, multiple_of={multiple!r} must be positive integers")
    ours |= {
        "codebook_size": arguments["codebook_size"],
        "intermediate_size": -(-int(8 * width / 3) // multiple) * multiple,
        "num_blocks": frames // tubelet,
        "latents_per_block": levels[-1],
        "length_tokens": levels,
        "position_embedding": "absolute",
    }
    if part == "ar_model":
        ours["num_classes"] = arguments.get("num_classes", len(UCF101))
        ours["class_dropout"] = arguments.get("class_dropout_prob", 0.1)
    else:
        ours |= {"num_classes": 0, "class_dropout": 0.0, "condition_separator": order is None or "separator" in order}
        ours |= {"condition_counts": list(CONDITION_COUNTS)} | condition
    return make_config(path, AdapTokARConfig, **ours)


def _known_sizes(tensors: Mapping[str, torch.Tensor], names: NameMatcher) -> dict[str, int] | None:
    """Return layers, heads and width, if so many layers of such a width are a size that the public code names."""
    shape = names.rows(TOKENS, tensors)
    layers = [int(match[1]) for name in tensors if (match := re.fullmatch(r"(?:.*\.)?layers\.(\d+)\..*", name))]
    for size in GENERATORS.values() if shape and layers else ():
        if (size[0], size[2]) == (max(layers) + 1, shape[-1]):
            return dict(zip(SIZES, size, strict=True))
    return None


def _name_classes(config: AdapTokARConfig, path: str | os.PathLike | None) -> None:
    """Give the classes their names: those in a file, or of UCF-101 if there are as many."""
    labels: Sequence[str] = UCF101 if config.num_classes == len(UCF101) else ()
    if path is not None:
        labels = [line.strip() for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
        if len(set(labels)) != config.num_classes or len(labels) != config.num_classes:
            raise ValueError(f"{path} has {len(set(labels))} different names, expected {config.num_classes}, one a line")
    if labels:
        config.id2label = dict(enumerate(labels))
        config.label2id = {name: number for number, name in enumerate(labels)}


def _check_config(part: str, path: Path, config: AdapTokARConfig) -> None:
    """Raise `ValueError` unless a configuration is that of EVATok's generators."""
    expected = {"position_embedding": "absolute", "learned_positions": True, "is_class_conditional": part == "ar_model"}
    wrong = [f"{name}={getattr(config, name)}" for name, value in expected.items() if getattr(config, name) != value]
    if wrong or not config.length_tokens:
        raise ValueError(f"{path}: {', '.join(wrong) or 'no length_tokens'}; that is no {part} of EVATok")


def _entries(config: AdapTokARConfig) -> list[str]:
    """Return the entries of an order of ids that follow the codes, in our order."""
    others = ["classes", "null"] if config.is_class_conditional else ["separator"] * config.condition_separator
    return [*map(str, config.length_tokens), *others]


def _places(order: Sequence[str], config: AdapTokARConfig) -> dict[str, range]:
    """Return the rows of each entry of an order, in the table of tokens and classes."""
    sizes = {"codes": config.codebook_size, "classes": config.num_classes}
    places, start = {}, 0
    for number, entry in enumerate(order):
        name = f"{entry} {number}" if entry in UNUSED else entry
        places[name] = range(start, start + sizes.get(entry, 1))
        start = places[name].stop
    return places


def _stored_shapes(
    config: AdapTokARConfig, tensors: Mapping[str, torch.Tensor], names: NameMatcher, order: Sequence[str]
) -> dict[str, torch.Size]:
    """Return the shapes that the original's tables must have, by our names.

    Output rows and positions may be more or fewer, and the classes in a table of their own, within what an order means.
    """
    shapes, places = {}, _places(order, config)
    rows = max(place.stop for place in places.values())
    tokens, outputs, positions = ((names.rows(each, tensors) or (0,))[0] for each in (TOKENS, "lm_head.weight", POSITIONS))
    num_tokens = rows
    if config.is_class_conditional and tokens != rows:
        num_tokens -= config.num_classes + 1
        shapes[CLASSES] = config.num_classes + 1
    if tokens not in (0, num_tokens):
        raise ValueError(
            f"{names.sources(TOKENS, tensors)[0]} has {tokens} rows, but with codebook_size={config.codebook_size} the ids "
            f"{','.join(order)} are {num_tokens}; give id_order (--id-order), with 'unused' for rows that mean nothing"
        )
    shapes[TOKENS] = num_tokens
    generated = max(places[entry].stop for entry in ("codes", *map(str, config.length_tokens)))
    shapes["lm_head.weight"] = outputs if generated <= outputs <= rows else num_tokens
    # length tokens, and the last place, may be counted or not
    length = config.max_position_embeddings - 1
    near = -config.num_blocks <= positions - length <= config.num_blocks + 1
    shapes[POSITIONS] = positions if near else length
    return {name: torch.Size([size, config.hidden_size]) for name, size in shapes.items()}


def _build(stored: Mapping[str, torch.Tensor], order: Sequence[str], config: AdapTokARConfig) -> AdapTokARForCausalLM:
    """Return a generator of the original's tensors, whose rows of ids are in some order.

    What is never generated has zeros in the output layer.
    """
    places = _places(order, config)
    rows = torch.tensor([row for entry in ("codes", *_entries(config)) for row in places[entry]])
    table = torch.cat([stored[name] for name in (TOKENS, CLASSES) if name in stored])
    head = table.new_zeros(config.vocab_size, config.hidden_size)
    head[: config.num_sequence_ids] = stored["lm_head.weight"][rows[: config.num_sequence_ids]]
    index = torch.arange(config.max_position_embeddings - 1).clamp(max=len(stored[POSITIONS]) - 1)
    tables = {TOKENS: table[rows], "lm_head.weight": head, POSITIONS: stored[POSITIONS][index][None]}
    with torch.device("meta"):
        model = AdapTokARForCausalLM(config)
    model.load_state_dict({name: stored[name] for name in stored if name != CLASSES} | tables, assign=True)
    return model.eval()


@torch.no_grad()
def _tokenize(tokenizer: EVATokModel, video: str | os.PathLike, config: AdapTokARConfig) -> dict[str, torch.Tensor]:
    """Return codes and counts of a video's first clip, with each level before another block, and the given blocks."""
    clip = read_clip(video, tokenizer.config)
    fixed, falling = config.condition_counts or [], config.length_tokens[::-1]
    free = config.num_blocks - len(fixed)
    step = max(free - 1, 1)
    rows = [
        [*fixed, *(falling[(first + block) % len(falling)] for block in range(free))]
        for first in range(0, len(falling), step)
    ]
    counts = torch.tensor(rows)
    tokens = {"codes": tokenizer.encode(clip.expand(len(counts), -1, -1, -1, -1), counts).codes, "token_counts": counts}
    if fixed:
        given = clip[:, :GIVEN_FRAMES]
        given = torch.cat([given, given[:, -1:].expand(-1, clip.shape[1] - given.shape[1], -1, -1, -1)], dim=1)
        codes = tokenizer.encode(given, counts[:1]).codes[:, : len(fixed)]
        tokens["condition_codes"] = codes.expand(len(counts), -1, -1)
    return tokens


@torch.no_grad()
def _loss(model: AdapTokARForCausalLM, tokens: Mapping[str, torch.Tensor], label: int = -1) -> float:
    """Return the mean negative log-likelihood of tokens; without a class, or with one."""
    labels = {} if "condition_codes" in tokens else {"class_labels": [label] * len(tokens["codes"])}
    return float(model(**model.build_inputs(**tokens, **labels)).loss)


class Layout(NamedTuple):
    """What the tensors do not say: an order of ids, and whether length tokens stand in the condition."""

    order: tuple[str, ...]
    condition_length_tokens: bool | None  # without a condition: `None`

    def __str__(self) -> str:
        condition = self.condition_length_tokens
        return f"id_order={','.join(self.order)}" + ("" if condition is None else f", condition_length_tokens={condition}")

    def neighbors(self) -> Iterator["Layout"]:
        """Return the layouts that differ in one thing: two entries exchanged, or the condition."""
        movable = [place for place, entry in enumerate(self.order) if entry not in ("classes", "null")]
        for one, other in combinations(movable, 2):
            order = list(self.order)
            order[one], order[other] = order[other], order[one]
            yield self._replace(order=tuple(order))
        if self.condition_length_tokens is not None:
            yield self._replace(condition_length_tokens=not self.condition_length_tokens)


def _verify_layout(
    loss_of: Callable[[Layout], float],
    given: Layout,
    tokens: Mapping[str, torch.Tensor],
    codebook_size: int,
    video: str | os.PathLike,
) -> list[str]:
    """Return how likely a layout makes a clip; raise `ValueError` unless it is the likeliest.

    A length token that stands for another count puts the next one where none is expected, and a shifted code is another
    code. From the likeliest layout so far all that differ in one thing are tried, until none is better.
    """
    losses, best, center = {given: loss_of(given)}, given, None
    while best != center:
        center = best
        losses |= {layout: loss_of(layout) for layout in center.neighbors() if layout not in losses}
        best = min(losses, key=losses.get)  # the first of equals
    chance = math.log(codebook_size)
    if not losses[best] < chance:
        raise ValueError(
            f"no order of ids makes {video} likelier than chance: {losses[best]:.3f} nats per token, where equal odds have "
            f"{chance:.3f}; some tensors are not where they belong, or the tokenizer is another; nothing was written"
        )
    count = int(tokens["token_counts"].sum()) + tokens["token_counts"].numel()
    if best != given:
        raise ValueError(
            f"{given} makes {video} {losses[given]:.3f} nats per token, but {best} makes it {losses[best]:.3f}, on {count} "
            f"tokens: if that is {CLEAR_MARGIN:g} nats or more in all, give that (--id-order), else some tensors may not "
            "be where they belong; nothing was written"
        )
    second = min((each for each in losses if each != best), key=losses.get)
    margin = count * (losses[second] - losses[given])
    notes = [
        f"verified: {losses[given]:.3f} nats per token of {video} (equal odds: {chance:.3f}); of {len(losses)} layouts the "
        f"next, {second}, is {margin:.1f} nats worse on {count} tokens"
    ]
    return notes if margin >= CLEAR_MARGIN else [*notes, f"warning: less than {CLEAR_MARGIN:g} nats is no clear margin"]


def _verify_class(model: AdapTokARForCausalLM, tokens: Mapping[str, torch.Tensor], label: str) -> str:
    """Return the place of a clip's class among all, by likelihood."""
    config = model.config
    number = config.label2id.get(label, int(label) if str(label).isdigit() else -1)
    if not 0 <= number < config.num_classes:
        raise ValueError(f"verify_class={label!r} is none of the {config.num_classes} classes")
    first = {name: value[:1] for name, value in tokens.items()}
    losses = [_loss(model, first, each) for each in range(config.num_classes)]
    ranking = sorted(range(config.num_classes), key=losses.__getitem__)
    place, best = ranking.index(number) + 1, config.id2label.get(ranking[0], ranking[0])
    note = f"class {label}: number {place} of {config.num_classes} by likelihood, the likeliest is {best}"
    return note if place == 1 else f"warning: {note}; the order of classes may be another (--classes)"
