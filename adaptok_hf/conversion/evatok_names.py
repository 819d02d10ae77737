"""Which tensors of EVATok's files become which of ours: by alias, then by shape, and never by a guess.

The aliases are those of GigaTok, by the same first author, and for the router those of common vision transformers. Nobody
here has seen EVATok's own files.
"""

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from ..atomic_files import write_json

# Regular expressions of our names and of the original's. `\g<layer>` is the number of a layer, `\g<end>` weight or bias.
_NORM = r"(?P<end>weight|bias)"
_LAYER = r"layers\.(?P<layer>\d+)"
_ATTENTIONS = (("self_attention", "self_attn"), ("cross_attention", r"(multihead_attn|cross_attn)"))
_ENDS = (("encoder", r"s[23]to1encoder"), ("decoder", r"s1to[23]decoder"))


def _tokenizer_aliases() -> list[tuple[str, str]]:
    rows = []
    for ours, theirs in _ENDS:
        layer = rf"{theirs}\.transformer(\.layers)?\.\g<layer>"
        for part, name in _ATTENTIONS:
            our_part, their_part = rf"{ours}\.{_LAYER}\.{part}", rf"{layer}\.{name}"
            for each in ("q_proj", "k_proj", "v_proj"):
                rows.append((rf"{our_part}\.{each}\.{_NORM}", rf"{their_part}\.(in_proj_|{each}\.)\g<end>"))
            rows.append((rf"{our_part}\.out_proj\.{_NORM}", rf"{their_part}\.(out_proj|wo)\.\g<end>"))
            for each in ("q_norm", "k_norm"):
                rows.append((rf"{our_part}\.{each}\.{_NORM}", rf"{their_part}\.{each}\.\g<end>"))
        for number in "123":
            rows.append((rf"{ours}\.{_LAYER}\.norm{number}\.{_NORM}", rf"{layer}\.norm{number}\.\g<end>"))
        for number in "12":
            rows.append((rf"{ours}\.{_LAYER}\.mlp\.fc{number}\.{_NORM}", rf"{layer}\.(mlp\.)?(linear|fc){number}\.\g<end>"))
        rows.append((rf"{ours}\.patch_positions\.weight", rf"{theirs}\.positional_embedding"))
        rows.append((rf"{ours}\.latent_positions\.weight", rf"{theirs}\.latent_token_positional_embedding"))
    encoder, decoder = (theirs for _, theirs in _ENDS)
    embedding = r"((s[23]to1)?encoder\.)?(patch_embed|x_embedder)\.proj"
    rows += [
        (rf"encoder\.patch_embedding\.projection\.{_NORM}", rf"{embedding}\.\g<end>"),
        (rf"encoder\.feature_norm\.{_NORM}", rf"{encoder}\.ln_pre\.\g<end>"),
        (rf"encoder\.feature_projection\.{_NORM}", rf"{encoder}\.encoder_embed\.\g<end>"),
        (rf"encoder\.query_projection\.{_NORM}", rf"{encoder}\.global_proj\.\g<end>"),
        (r"encoder\.queries\.weight", rf"{encoder}\.(latent_tokens|query_embed)"),
        (rf"encoder\.norm\.{_NORM}", rf"{encoder}\.ln_post\.\g<end>"),
        (rf"encoder\.projection\.{_NORM}", rf"{encoder}\.conv_out\.\g<end>"),
        (rf"decoder\.latent_norm\.{_NORM}", rf"{decoder}\.ln_pre\.\g<end>"),
        (rf"decoder\.latent_projection\.{_NORM}", rf"{decoder}\.decoder_embed\.\g<end>"),
        (rf"decoder\.head\.norm\.{_NORM}", rf"{decoder}\.ln_post\.\g<end>"),
        (rf"decoder\.head\.projection\.{_NORM}", rf"{decoder}\.conv_out\.\g<end>"),
        (rf"quantizer\.project_in\.{_NORM}", r"quant_conv\.\g<end>"),
        (rf"quantizer\.project_out\.{_NORM}", r"post_quant_conv\.\g<end>"),
        (r"quantizer\.codebook\.weight", r"quantize\.embedding\.weight"),
    ]
    return rows


# The rows of our embeddings come from two tables: of tokens, and of classes.
TOKENS, CLASSES, POSITIONS = "model.embed_tokens.weight", "model.embed_tokens.classes", "model.positions.weight"
_WRAPPER = r"((model|gpt|router|vit|backbone|encoder)\.)?"
_GENERATOR_LAYER = (
    *((rf"self_attn\.{each}_proj", rf"attention\.(wqkv|w{each}|{each}_proj)") for each in "qkv"),
    (r"self_attn\.o_proj", r"attention\.(wo|o_proj)"),
    (r"mlp\.gate_proj", r"feed_forward\.w1"),
    (r"mlp\.up_proj", r"feed_forward\.w3"),
    (r"mlp\.down_proj", r"feed_forward\.w2"),
    (r"input_layernorm", r"attention_norm"),
    (r"post_attention_layernorm", r"ffn_norm"),
)
GENERATOR_ALIASES = [
    (re.escape(TOKENS), rf"{_WRAPPER}tok_embeddings\.weight"),
    (re.escape(CLASSES), rf"{_WRAPPER}cls_embedding\.(embedding_table\.)?weight"),
    (re.escape(POSITIONS), rf"{_WRAPPER}(positional_embedding|abs_pe)(\.weight)?"),
    *(
        (rf"model\.{_LAYER}\.{ours}\.weight", rf"{_WRAPPER}layers\.\g<layer>\.{theirs}\.weight")
        for ours, theirs in _GENERATOR_LAYER
    ),
    (r"model\.norm\.weight", rf"{_WRAPPER}norm\.weight"),
    (r"lm_head\.weight", rf"{_WRAPPER}(output|lm_head)\.weight"),
]
QUERY, PATCH_POSITIONS = "queries.weight", "patch_positions.weight"
_BLOCK = rf"{_WRAPPER}(blocks|layers|transformer|transformer\.layers|resblocks)\.\g<layer>"
_ATTENTION = rf"{_BLOCK}\.(attn|self_attn|attention)"
ROUTER_ALIASES = [
    (rf"patch_embedding\.projection\.{_NORM}", rf"{_WRAPPER}(patch_embed|x_embedder|patch_embedding)(\.proj)?\.\g<end>"),
    (re.escape(QUERY), rf"{_WRAPPER}(cls_token|class_token|cls_embedding|class_embedding)(\.weight)?"),
    (re.escape(PATCH_POSITIONS), rf"{_WRAPPER}(pos_embed|pos_embedding|positional_embedding)(\.weight)?"),
    (rf"{_LAYER}\.norm(?P<number>[12])\.{_NORM}", rf"{_BLOCK}\.(norm|ln_)\g<number>\.\g<end>"),
    (rf"{_LAYER}\.attention\.qkv\.{_NORM}", rf"{_ATTENTION}\.(qkv\.|wqkv\.|in_proj_)\g<end>"),
    (rf"{_LAYER}\.attention\.proj\.{_NORM}", rf"{_ATTENTION}\.(proj|out_proj|wo)\.\g<end>"),
    (rf"{_LAYER}\.mlp\.fc(?P<number>[12])\.{_NORM}", rf"{_BLOCK}\.(mlp\.)?(fc|linear)\g<number>\.\g<end>"),
    (rf"norm\.{_NORM}", rf"{_WRAPPER}(norm|ln_post)\.\g<end>"),
    (rf"head\.{_NORM}", rf"{_WRAPPER}(head|classifier)\.\g<end>"),
]
ALIASES = {
    "tokenizer": _tokenizer_aliases(),
    "ar_model": GENERATOR_ALIASES,
    "fp_model": GENERATOR_ALIASES,
    "router": ROUTER_ALIASES,
}
# What a file holds, by names that only such files have.
TELLTALES = {
    "tokenizer": r"quantize\..*|s[23]to1encoder\..*|s1to[23]decoder\..*",
    "ar_model": rf"{_WRAPPER}tok_embeddings\.weight|.*\.feed_forward\.w[123]\.weight",
    "router": rf"{_WRAPPER}(cls_token|class_token|(head|classifier)\.weight)",
}
# Training only, or statistics.
DROPPED = (r".*\.distill_mlp\..*", r"quantize\.codebook_used", r".*num_batches_tracked")
# The original's separate projections, whose masks mean the opposite of the fused ones'.
SEPARATE = r".*\.(self_attn|multihead_attn|cross_attn)\.q_proj\.weight"


class Mapped(NamedTuple):
    """
    Args:
        tensors: our names -> tensors of our shapes.
        sources: our names -> the original's.
        by_shape: our names that were found by shape alone.
    """

    tensors: dict[str, torch.Tensor]
    sources: dict[str, str]
    by_shape: list[str]

    def notes(self) -> list[str]:
        """Return what a reader should look at."""
        found = ", ".join(f"{name} = {self.sources[name]}" for name in self.by_shape)
        return [f"matched by shape: {found}"] if found else []


class UnmatchedNamesError(ValueError):
    """Names that cannot be matched without a guess.

    Args:
        missing: our names without source -> shape.
        unused: the original's that are left over -> shape.
        template: for `names.json`, our missing names -> null.
    """

    def __init__(self, missing: Mapping[str, tuple[int, ...]], unused: Mapping[str, tuple[int, ...]], wrong: list[str]):
        self.missing, self.unused = dict(missing), dict(unused)
        self.template: dict[str, str | None] = dict.fromkeys(missing)
        lines = ["the tensors cannot be matched without a guess; the layout was inferred from GigaTok, never seen", *wrong]
        lines.append(f"ours without a source ({len(self.missing)}):")
        for name, shape in self.missing.items():
            same = [theirs for theirs, other in self.unused.items() if _squeezed(other) == _squeezed(shape)]
            lines.append(f"  {name} {shape}; of this shape: {', '.join(same) or 'none'}")
        lines.append(f"theirs left over ({len(self.unused)}):")
        lines += [f"  {name} {shape}" for name, shape in self.unused.items()] or ["  none"]
        super().__init__("\n".join(lines))


def match_names(
    shapes: Mapping[str, torch.Size],
    tensors: Mapping[str, torch.Tensor],
    aliases: Sequence[tuple[str, str]],
    names: Mapping[str, str | None] | None = None,
    unused: Sequence[str] = (),
) -> Mapped:
    """Return the original's tensors under our names.

    Args:
        shapes: our names -> shapes.
        tensors: the original's.
        aliases: regular expressions of our names and of the original's.
        names: our names -> the original's, which come before all aliases; `None` as a value leaves a name open.
        unused: the original's names that are left out, next to `DROPPED`.

    Raises:
        UnmatchedNamesError: unless each of ours has exactly one source and nothing else is left over.
        ValueError: for names that neither side has.
    """
    given = {ours: theirs for ours, theirs in (names or {}).items() if theirs is not None}
    if unknown := [*(given.keys() - shapes.keys()), *({*given.values(), *unused} - tensors.keys())]:
        raise ValueError(f"names that neither the model nor the checkpoint has: {', '.join(sorted(unknown))}")
    sources, wrong, known = {}, [], set()
    for name, shape in shapes.items():
        candidates = alias_candidates(name, tensors, aliases)
        known.update(candidates)
        candidates = [given[name]] if name in given else candidates
        fitting = [theirs for theirs in candidates if _fitted(name, shape, tensors[theirs]) is not None]
        if len(fitting) == 1:
            sources[name] = fitting[0]
        elif not fitting:
            wrong += [f"{each} is {tuple(tensors[each].shape)}, but {name} {tuple(shape)}" for each in candidates]
        else:
            wrong.append(f"{name} could be any of {', '.join(fitting)}")
    dropped = {*unused, *(name for name in tensors if any(re.fullmatch(pattern, name) for pattern in DROPPED))}
    left = [name for name in tensors if name not in sources.values() and name not in dropped]
    # a known name of another shape is an error, not a name for something else
    by_shape, open_names = [], [name for name in shapes if name not in sources]
    for name in open_names:
        theirs = [each for each in left if _squeezed(tensors[each].shape) == _squeezed(shapes[name])]
        rivals = [each for each in open_names if _squeezed(shapes[each]) == _squeezed(shapes[name])]
        if len(theirs) == len(rivals) == 1 and theirs[0] not in known:
            sources[name] = theirs[0]
            by_shape.append(name)
    for name in open_names:  # the bias of a weight that was found
        weight = sources.get(name.removesuffix("bias") + "weight", "")
        theirs = weight.removesuffix("weight") + "bias"
        if name.endswith(".bias") and theirs in left and _squeezed(tensors[theirs].shape) == _squeezed(shapes[name]):
            sources.setdefault(name, theirs)
    left = [name for name in left if name not in sources.values()]
    for theirs in {each for each in given.values() if sum(s == each for s in sources.values()) > 1}:
        users = [name for name in sources if sources[name] == theirs]
        if any(_squeezed(tensors[theirs].shape) == _squeezed(shapes[name]) for name in users):  # not a fused projection
            raise ValueError(f"{theirs} was given for {', '.join(users)}")
    missing = {name: tuple(shapes[name]) for name in shapes if name not in sources}
    if missing or left:
        raise UnmatchedNamesError(missing, {name: tuple(tensors[name].shape) for name in left}, wrong)
    found = {name: _fitted(name, shapes[name], tensors[theirs]) for name, theirs in sources.items()}
    return Mapped({name: tensor.detach().clone().float() for name, tensor in found.items()}, sources, by_shape)


def alias_candidates(ours: str, tensors: Iterable[str], aliases: Sequence[tuple[str, str]]) -> list[str]:
    """Return the original's names that are aliases of one of ours."""
    for pattern, alias in aliases:
        if match := re.fullmatch(pattern, ours):
            for group, value in match.groupdict().items():
                alias = alias.replace(rf"\g<{group}>", value)
            return [theirs for theirs in tensors if re.fullmatch(alias, theirs)]
    return []


def _squeezed(shape) -> tuple[int, ...]:
    """Return a shape without axes of length 1, kernels as the linear maps that they are."""
    sizes = [size for size in shape if size != 1]
    return (sizes[0], torch.Size(sizes[1:]).numel()) if len(sizes) > 2 else tuple(sizes)


def _fitted(ours: str, shape: torch.Size, tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a tensor in our shape: kernels flattened, a third of fused projections, one block's positions repeated.

    `None` if it does not fit.
    """
    if not tensor.is_floating_point():
        return None
    if ours == "decoder.head.projection.weight" and tensor.ndim == 5 and tensor.numel() == shape.numel():
        return tensor.permute(2, 3, 4, 1, 0).reshape(shape)  # of a transposed convolution
    if ours == "decoder.head.projection.bias" and tensor.ndim == 1 and len(tensor) < 8 and shape[0] % len(tensor) == 0:
        return tensor.repeat(shape[0] // len(tensor))  # one for each channel, the fastest axis here
    projection = re.fullmatch(r".*\.([qkv])_proj\.(weight|bias)", ours)
    if projection and tuple(tensor.shape) == (3 * shape[0], *shape[1:]):
        return tensor.chunk(3)["qkv".index(projection[1])]
    rows = _squeezed(tensor.shape)
    per_block = re.fullmatch(r"(encoder|decoder)\.\w+_positions\.weight", ours)
    if per_block and len(rows) == 2 and rows[1] == shape[-1] and shape[1] % rows[0] == 0:
        return tensor.reshape(rows).repeat(shape[1] // rows[0], 1)[None]  # one table for every block
    return tensor.reshape(shape) if rows == _squeezed(shape) else None


class NameMatcher:
    """Matches the names of a part's tensors, with what the user has said of them.

    Args:
        part: a key of `ALIASES`.
        path: a JSON file, our names -> the checkpoint's, and under "unused" a list of the checkpoint's names to leave out;
            or `None`.
        template: the file that is written, if there is none, for names that cannot be matched.
    """

    def __init__(self, part: str, path: str | os.PathLike | None, template: Path):
        self.aliases, self.path, self.template = ALIASES[part], path, template
        self.names, self.unused = ({}, []) if path is None else _read_names(path)

    def rows(self, ours: str, tensors: Mapping[str, torch.Tensor]) -> tuple[int, ...] | None:
        """Return the shape, without axes of length 1, of the one tensor that bears the name of ours; else `None`."""
        theirs = self.sources(ours, tensors)
        return _squeezed(tensors[theirs[0]].shape) if len(theirs) == 1 else None

    def sources(self, ours: str, tensors: Mapping[str, torch.Tensor]) -> list[str]:
        """Return the tensors that bear the name of ours, given or an alias."""
        given = self.names.get(ours)
        return alias_candidates(ours, tensors, self.aliases) if given is None else [given] if given in tensors else []

    def match(self, shapes: Mapping[str, torch.Size], tensors: Mapping[str, torch.Tensor]) -> Mapped:
        """Return the tensors under our names (see `match_names`), or write down what is open.

        Raises:
            ValueError: as `match_names`; it lists both sides, and names the file to complete.
        """
        try:
            return match_names(shapes, tensors, self.aliases, self.names, self.unused)
        except UnmatchedNamesError as error:
            path = self.template if self.path is None else Path(self.path)
            if self.path is None and path.exists():
                raise ValueError(
                    f"{error}\n{path} exists already: complete it and give it as names (--names), or move it away if it is "
                    "another checkpoint's"
                ) from error
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, self.names | error.template | ({"unused": self.unused} if self.unused else {}))
            raise ValueError(
                f'{error}\ncomplete {path} and give it as names (--names); a list under "unused" leaves theirs out'
            ) from error


def _read_names(path: str | os.PathLike) -> tuple[dict[str, str | None], list[str]]:
    try:
        names = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    unused = names.pop("unused", []) if isinstance(names, dict) else None
    if (
        not isinstance(names, dict)
        or not all(isinstance(value, str | None) for value in names.values())
        or not isinstance(unused, list)
        or not all(isinstance(value, str) for value in unused)
    ):
        raise ValueError(
            f'{path} must hold an object, our names -> the checkpoint\'s or null, and a list of names under "unused"'
        )
    return names, unused
